"""A server's answer: keys sealed to the attested key, each with a lease, all of it signed.

Base-mode HPKE does not say who sealed; the signature does, under a key that the client has pinned, so
that nobody can plant a key of his own. What a key is sealed with names the whole request and the
lease: it opens nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strongroom.crypto.derive import DEK_SIZE
from strongroom.crypto.hpke import KEMS
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import UntrustedAnswer, UsageError
from strongroom.format.encoding import b64url, canonical_json, parse_json, unb64url_text
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.messages import parse_time, time_text

__all__ = [
    "Lease",
    "Refused",
    "Released",
    "open_answer",
    "seal_key",
    "sign",
    "sign_answer",
    "verify_signed",
]

_SEALED: Final = b"strongroom/v1/release\x00"
_SIGNED: Final = b"strongroom/v1/answer\x00"


@dataclass(frozen=True, slots=True)
class Lease:
    """Until when a key may be held; ``renew_after`` is when asking for more begins to be polite."""

    id: str
    not_after: datetime
    renew_after: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "not_after": time_text(self.not_after),
            "renew_after": time_text(self.renew_after),
        }


@dataclass(frozen=True, slots=True)
class Released:
    """One key; ``version`` is the one that was released, also where the current one was asked for."""

    wanted: WantedKey
    version: int
    lease: Lease
    dek: SecretBytes


@dataclass(frozen=True, slots=True)
class Refused:
    """One key that is not released; ``code`` is all that the machine is told."""

    wanted: WantedKey
    code: str


def _info(binding: Binding, wanted: WantedKey, version: int, lease: Lease) -> bytes:
    about = {
        "binding": dict(binding.to_json()),
        "key": wanted.to_json(),
        "version": version,
        "lease": lease.to_json(),
    }
    return _SEALED + hashlib.sha256(canonical_json(about)).digest()


def seal_key(
    binding: Binding, wanted: WantedKey, version: int, lease: Lease, dek: SecretBytes
) -> dict[str, Any]:
    """The member of ``results`` that releases a key.

    Raises:
        UsageError: the one-time key is none.
    """
    kem = KEMS[binding.suite]
    try:
        sealed = kem.seal(dek, binding.public_key, _info(binding, wanted, version, lease))
    except ValueError:
        raise UsageError("The recipient is not a public key of its suite.") from None
    return {
        **wanted.to_json(),
        "released": version,
        "lease": lease.to_json(),
        "encrypted_key": b64url(sealed),
    }


def refuse_key(wanted: WantedKey, code: str) -> dict[str, Any]:
    """The member of ``results`` that refuses a key."""
    return {**wanted.to_json(), "refused": code}


def sign(payload: dict[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """Wrap ``payload`` with the server's signature over its bytes."""
    raw = canonical_json(payload)
    return {"payload": b64url(raw), "signature": b64url(key.sign(_SIGNED + raw))}


def verify_signed(value: object, server_key: bytes) -> dict[str, Any]:
    """The payload, once the signature of the pinned key over its very bytes is verified.

    Raises:
        UntrustedAnswer: it is not from this server.
    """
    try:
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        raw = unb64url_text(value.get("payload"))
        signature = unb64url_text(value.get("signature"))
        Ed25519PublicKey.from_public_bytes(server_key).verify(signature, _SIGNED + raw)
        return parse_json(raw)
    except (InvalidSignature, ValueError):
        raise UntrustedAnswer(
            "The answer is not signed by the key server that is expected.",
            hint="If the server was set up anew on purpose, fetch its profile from its owner again.",
        ) from None


def sign_answer(
    binding: Binding, results: Sequence[dict[str, Any]], now: datetime, key: Ed25519PrivateKey
) -> dict[str, Any]:
    """The whole answer to a release request."""
    payload = {
        "v": 1,
        "server_id": binding.server_id,
        "challenge": b64url(binding.challenge),
        "time": time_text(now),
        "results": list(results),
    }
    return sign(payload, key)


def open_answer(
    value: object, binding: Binding, secret: SecretBytes, server_key: bytes
) -> tuple[datetime, list[Released | Refused]]:
    """What the answer to ``binding`` gives, in the order of its keys, and the server's time.

    Args:
        value: the JSON that came.
        secret: of the one-time key, raw.
        server_key: the pinned Ed25519 key of the server, 32 bytes.

    Raises:
        UntrustedAnswer: not signed by this server, not about this request, or not sealed for it.
    """
    payload = verify_signed(value, server_key)
    wrong = UntrustedAnswer("The key server answered another question than the one that was asked.")
    if (
        payload.get("v") != 1
        or payload.get("server_id") != binding.server_id
        or payload.get("challenge") != b64url(binding.challenge)
    ):
        raise wrong
    results = payload.get("results")
    if not isinstance(results, list) or len(results) != len(binding.keys):
        raise wrong
    try:
        opened = [
            _open_result(result, wanted, binding, secret)
            for result, wanted in zip(results, binding.keys, strict=True)
        ]
        return parse_time(payload.get("time"), "The server's time"), opened
    except (ValueError, TypeError, KeyError, InvalidTag, UsageError):
        raise wrong from None


def _open_result(
    result: dict[str, Any], wanted: WantedKey, binding: Binding, secret: SecretBytes
) -> Released | Refused:
    asked = wanted.to_json()
    if {name: result[name] for name in asked} != asked:
        raise ValueError
    if "refused" in result:
        return Refused(wanted, str(result["refused"]))
    version = result["released"]
    if type(version) is not int or wanted.key.version not in (None, version):
        raise ValueError
    said = result["lease"]
    lease = Lease(
        str(said["id"]),
        parse_time(said["not_after"], "The end of the lease"),
        parse_time(said["renew_after"], "The renewal of the lease"),
    )
    sealed = unb64url_text(result["encrypted_key"])
    dek = KEMS[binding.suite].open(sealed, secret, _info(binding, wanted, version, lease))
    if len(dek) != DEK_SIZE:
        raise ValueError
    return Released(wanted, version, lease, dek)
