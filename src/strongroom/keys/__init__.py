"""Keys: who a model is sealed for (``Recipient``) and who can open it (``Identity``)."""

from strongroom.keys.base import Identity, Recipient, describe, unwrap
from strongroom.keys.hpke import HpkeIdentity, HpkeRecipient
from strongroom.keys.passphrase import Passphrase
from strongroom.keys.symmetric import SymmetricKey

__all__ = [
    "HpkeIdentity",
    "HpkeRecipient",
    "Identity",
    "Passphrase",
    "Recipient",
    "SymmetricKey",
    "describe",
    "unwrap",
]
