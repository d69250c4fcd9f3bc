"""The public halves of the server's own keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.keyserver.store import Store

__all__ = ["REGISTRATION_KEM", "PublicKeys", "public_keys"]

REGISTRATION_KEM: Final = MLKEM768X25519


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """What clients pin: Ed25519 key of answers, HPKE key to which new keys are sealed."""

    signing: bytes
    registration: bytes
    suite: str = REGISTRATION_KEM.alg


def public_keys(store: Store) -> PublicKeys:
    """Those that belong to the secrets in the store.

    Raises:
        StorageError: the database does not answer.
    """
    seed = store.secret("signing")
    signing = Ed25519PrivateKey.from_private_bytes(seed.buffer).public_key().public_bytes_raw()
    return PublicKeys(signing, REGISTRATION_KEM.public_of(store.secret("registration")))
