"""What a refusal of the key server means, in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from strongroom.errors import ReleaseDenied

__all__ = ["CODES", "denied"]

_AUDIT: Final = "The owner of the server finds the reasons in its audit trail: strongroom audit tail."

CODES: Final[Mapping[str, tuple[str, str]]] = {
    "no-policy": ("no policy covers this key", "Its owner writes one: strongroom policy put."),
    "unknown-key": (
        "there is no such key or version",
        "Look at name and version: strongroom keys list.",
    ),
    "revoked": ("the key was revoked", "Take a version of the model that is not."),
    "bundle": (
        "this sealed model is not the one that the key was registered for",
        "Fetch the model again; it may be an old one, or another under its name.",
    ),
    "not-yet": ("its policy holds from a later time on", "Ask again then."),
    "expired": ("the time of its policy is over", "Ask its owner for more time."),
    "evidence": (
        "this machine sent no evidence of what it is, or none that is authentic",
        "Say how it is collected, as in attester = tsm, and look at it: strongroom attest collect. "
        + _AUDIT,
    ),
    "policy": ("its policy does not accept this machine", _AUDIT),
    "binding": ("the evidence was made for another request", _AUDIT),
    "holders": (
        "as many machines hold it as may",
        "One of them must give it back, or wait for the end of its lease: strongroom nodes list.",
    ),
    "evicted": (
        "this machine was evicted",
        "The owner of the server can admit it: strongroom nodes admit.",
    ),
    "challenge": (
        "the challenge was used already, or is too old",
        "Run it again; if it stays, look at the clock of this machine.",
    ),
    "attest-again": ("its evidence is too old to be renewed upon", "Ask for the key anew."),
}
"""Code of the protocol → reason, hint."""


def denied(code: str, key: object = None) -> ReleaseDenied:
    """The error for a refusal; ``key`` is what was asked for, where it is known."""
    reason, hint = CODES.get(code, ("it says " + code[:40], _AUDIT))
    what = "the key" if key is None else f"the key {key}"
    return ReleaseDenied(f"The key server does not release {what}: {reason}.", code=code, hint=hint)
