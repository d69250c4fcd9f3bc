"""The kinds of evidence, each with the module that verifies it; imported when used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final, cast

from strongroom.attest.verify import Verifier
from strongroom.errors import MalformedEvidence, MissingExtra

__all__ = ["KINDS", "PRIMARY", "verifier_of"]

KINDS: Final[Mapping[str, str]] = {
    "sgx": "strongroom.attest.dcap",
    "tdx": "strongroom.attest.dcap",
    "snp": "strongroom.attest.snp",
    "nitro": "strongroom.attest.nitro",
    "tpm": "strongroom.attest.tpm",
    "azure-vtpm": "strongroom.attest.azure_vtpm",
    "nvidia": "strongroom.attest.nvidia",
    "jwt": "strongroom.attest.jwt",
}
"""Kind → module, whose function ``verify(evidence, context)`` is the verifier."""

PRIMARY: Final = frozenset(KINDS) - {"nvidia"}
"""Kinds that can stand alone. Evidence of a GPU can be relayed, and counts only where a CPU vouches for it."""


def verifier_of(kind: str) -> Verifier:
    """The verifier for a kind.

    Raises:
        MalformedEvidence: nobody verifies this kind.
        MissingExtra: its packages are not installed.
    """
    name = KINDS.get(kind)
    if name is None:
        raise MalformedEvidence(
            f"Evidence of the kind {kind!r} is not known.", hint="Known are: " + ", ".join(KINDS) + "."
        )
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("strongroom"):
            raise
        raise MissingExtra(f"Verifying evidence of the kind {kind}", "attest") from error
    return cast("Verifier", module.verify)
