"""What evidence says of itself, for people; nothing of it is verified."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from strongroom.attest.evidence import Evidence
from strongroom.attest.registry import KINDS
from strongroom.errors import MalformedEvidence, MissingExtra
from strongroom.format.encoding import parse_json, unb64url_text

__all__ = ["describe"]


def describe(evidence: Evidence) -> dict[str, Any]:
    """The fields of evidence of any kind.

    Raises:
        MalformedEvidence: it is not what its kind says.
        MissingExtra: the packages for this kind are not installed.
    """
    own = {"nvidia": _nvidia, "jwt": _jwt}.get(evidence.kind)
    if own is not None:
        return own(evidence)
    try:
        module = import_module(KINDS[evidence.kind])
    except ModuleNotFoundError:
        raise MissingExtra(f"Evidence of the kind {evidence.kind}", "attest") from None
    said: dict[str, Any] = module.describe(evidence)
    return said


def _nvidia(evidence: Evidence) -> dict[str, Any]:
    from strongroom.attest.nvidia_evidence import read_devices
    from strongroom.attest.nvidia_report import Opaque, parse_report

    devices = []
    for data, certificates in read_devices(evidence.data):
        report = parse_report(data)
        devices.append(
            {
                "nonce": report.nonce.hex(),
                "driver": report.text(Opaque.DRIVER_VERSION),
                "vbios": report.vbios,
                "certificates": [one.subject.rfc4514_string() for one in certificates],
                "measurements": {str(index): one.hex() for index, one in report.measurements.items()},
            }
        )
    return {"devices": devices}


def _jwt(evidence: Evidence) -> dict[str, Any]:
    data = evidence.data.strip()
    if data[:1] != b"[":
        return _token(data)
    try:
        # The strict parser takes objects only.
        ((_, overall), texts) = parse_json(b'{"set":%s}' % data)["set"]
        parts = {str(name): text.encode() for name, text in texts.items()}
        return {
            "overall": _token(overall.encode()),
            **{name: _token(one) for name, one in parts.items()},
        }
    except (ValueError, TypeError, AttributeError):
        raise MalformedEvidence("This is neither a token nor a detached set of tokens.") from None


def _token(token: bytes) -> dict[str, Any]:
    try:
        header, claims, _ = (unb64url_text(part.decode("ascii")) for part in token.split(b"."))
        return {"header": parse_json(header), "claims": parse_json(claims)}
    except ValueError:
        raise MalformedEvidence("The parts of the token are not base64url of JSON objects.") from None
