"""What evidence is bound to: the challenge, the server, the one-time key, what is asked for.

Primary evidence carries ``SHA-512(JCS({v, challenge, server_id, recipient, keys, secondary}))`` as its
report data; evidence that has room for 32 bytes only carries SHA-256 of the same. Secondary evidence
is collected first and carries SHA-256 of the same without ``secondary``, which then lists its digests:
the CPU vouches for the GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from strongroom.attest.evidence import Evidence
from strongroom.format.encoding import b64url, canonical_json
from strongroom.release.names import KeyName

__all__ = ["SHORT", "Binding", "WantedKey"]

SHORT: Final = frozenset({"tpm", "azure-vtpm", "nvidia", "jwt"})
"""A TPM takes as many bytes as its largest hash has, a GPU 32, tokens a short text."""


@dataclass(frozen=True, slots=True)
class WantedKey:
    """One key that is asked for: ``bundle`` is that of the sealed model at hand, 16 bytes."""

    key: KeyName
    bundle: bytes

    def to_json(self) -> dict[str, Any]:
        """The form of the wire; version ``current`` leaves the choice to the server."""
        version: int | str = "current" if self.key.version is None else self.key.version
        return {"name": self.key.name, "version": version, "bundle": b64url(self.bundle)}


@dataclass(frozen=True, slots=True)
class Binding:
    """One request for keys, as far as evidence must vouch for it.

    Attributes:
        challenge: 32 bytes, as the server gave them.
        server_id: who gave them.
        suite: of the one-time key: the ``alg`` of an HPKE recipient.
        public_key: one-time key to which the keys are sealed, raw.
        keys: what is asked for, in this order.
    """

    challenge: bytes
    server_id: str
    suite: str
    public_key: bytes
    keys: Sequence[WantedKey]

    def to_json(self) -> Mapping[str, Any]:
        """The object of which hashes are taken, without ``secondary``."""
        return {
            "v": 1,
            "challenge": b64url(self.challenge),
            "server_id": self.server_id,
            "recipient": {"suite": self.suite, "public_key": b64url(self.public_key)},
            "keys": [key.to_json() for key in self.keys],
        }

    def for_secondary(self) -> bytes:
        """32 bytes that secondary evidence must carry."""
        return hashlib.sha256(canonical_json(self.to_json())).digest()

    def for_primary(self, kind: str, secondary: Sequence[Evidence] = ()) -> bytes:
        """64 bytes that primary evidence must carry, 32 for the kinds that have no room for more."""
        digests = [b64url(evidence.digest) for evidence in secondary]
        message = canonical_json({**self.to_json(), "secondary": digests})
        return (hashlib.sha256 if kind in SHORT else hashlib.sha512)(message).digest()
