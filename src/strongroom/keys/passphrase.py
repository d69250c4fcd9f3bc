"""``Argon2id+A256KW``: AES key wrap under Argon2id (RFC 9106) of a passphrase."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_wrap

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    InvalidKey,
    LimitExceeded,
    Malformed,
    NoMatchingRecipient,
    WrongPassphrase,
)
from strongroom.format.encoding import b64url, unb64url
from strongroom.format.header import Header
from strongroom.format.limits import (
    MAX_ARGON2_LANES,
    MAX_ARGON2_MEMORY,
    MAX_ARGON2_PASSES,
    MAX_PASSPHRASES,
)
from strongroom.keys.symmetric import WRAPPED_SIZE, unwrap_dek

__all__ = ["ALG", "Passphrase", "check_count"]

ALG: Final = "Argon2id+A256KW"
_SALT_SIZE: Final = 16
_PASSES: Final = 3
_MEMORY: Final = 1 << 16
_LANES: Final = 4
# RFC 9106, section 4, second recommended option: 64 MiB, some 0.1 s of one core here.


def _bounded(entry: Mapping[str, Any], name: str, low: int, high: int, where: str) -> int:
    value = entry.get(name)
    if type(value) is not int or value < low:
        raise Malformed(f"{where}.{name}", f"is not an integer of at least {low}")
    if value > high:
        raise LimitExceeded(f"Argon2id parameter {name} of {where} is {value}, above {high}.")
    return value


def check_count(entries: Sequence[Mapping[str, Any]]) -> int:
    """How many of the recipients are passphrases.

    Raises:
        LimitExceeded: more than a reader tries.
    """
    count = [entry["alg"] for entry in entries].count(ALG)
    if count > MAX_PASSPHRASES:
        raise LimitExceeded(
            f"The header has {count} passphrase recipients; at most {MAX_PASSPHRASES} are tried."
        )
    return count


class Passphrase:
    """A passphrase: recipient and identity in one. It is used as UTF-8 in normal form C."""

    def __init__(self, passphrase: str | bytes) -> None:
        """Take the passphrase.

        Raises:
            InvalidKey: it is empty or not UTF-8.
        """
        try:
            text = passphrase.decode() if isinstance(passphrase, bytes) else passphrase
            encoded = unicodedata.normalize("NFC", text).encode()
        except UnicodeError:
            raise InvalidKey("The passphrase is not UTF-8.") from None
        if not encoded:
            raise InvalidKey("The passphrase is empty.")
        self._secret = SecretBytes(encoded)

    def encode(self) -> SecretBytes:
        """The passphrase as it is used, in memory of the caller's own."""
        return SecretBytes(self._secret.buffer)

    def _kek(self, salt: bytes, passes: int, memory: int, lanes: int) -> SecretBytes:
        kek = SecretBytes.zeros(32)
        kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
        kdf.derive_into(self._secret.buffer, kek.buffer)  # type: ignore[arg-type]  # takes any buffer
        return kek

    def wrap(self, dek: SecretBytes, header: Header) -> dict[str, Any]:
        salt = os.urandom(_SALT_SIZE)
        with self._kek(salt, _PASSES, _MEMORY, _LANES) as kek:
            wrapped = aes_key_wrap(kek.buffer, dek.buffer)
        return {
            "alg": ALG,
            "salt": b64url(salt),
            "t": _PASSES,
            "m": _MEMORY,
            "p": _LANES,
            "encrypted_key": b64url(wrapped),
        }

    def unwrap(self, header: Header) -> SecretBytes:
        count = check_count(header.recipients)
        for index, entry in enumerate(header.recipients):
            if entry["alg"] != ALG:
                continue
            where = f"recipients[{index}]"
            passes = _bounded(entry, "t", 1, MAX_ARGON2_PASSES, where)
            lanes = _bounded(entry, "p", 1, MAX_ARGON2_LANES, where)
            memory = _bounded(entry, "m", 8 * lanes, MAX_ARGON2_MEMORY, where)
            salt = unb64url(entry.get("salt"), f"{where}.salt", _SALT_SIZE)
            wrapped = unb64url(entry.get("encrypted_key"), f"{where}.encrypted_key", WRAPPED_SIZE)
            with self._kek(salt, passes, memory, lanes) as kek:
                try:
                    return unwrap_dek(kek, wrapped)
                except InvalidUnwrap:
                    continue
        if count:
            raise WrongPassphrase("The passphrase does not open this model.")
        raise NoMatchingRecipient("The model is not sealed under a passphrase.")

    def __repr__(self) -> str:
        return "<Passphrase>"
