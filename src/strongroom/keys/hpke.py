"""``HPKE-MLKEM768X25519`` and ``HPKE-X25519``: a public key wraps the DEK, its identity unwraps it.

In text a public key is ``hpke-mlkem768x25519:`` or ``hpke-x25519:`` and base64url of the raw key
followed by a checksum, so that a mistyped recipient is refused rather than sealed for nobody; an
identity has ``-secret`` before the colon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag

from strongroom.crypto.hpke import KEMS, MLKEM768X25519, Kem
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import HeaderTampered, InvalidKey, Malformed, NoMatchingRecipient
from strongroom.format.encoding import b64url, unb64url
from strongroom.format.header import Header

__all__ = ["HpkeIdentity", "HpkeRecipient", "scheme_of"]

_INFO: Final = b"strongroom/v1/recipient\x00"
_CHECKSUM_SIZE: Final = 4
_SECRET: Final = "-secret"


def scheme_of(kem: Kem) -> str:
    """What stands before the colon in a recipient: ``hpke-x25519``."""
    return kem.alg.lower()


_BY_SCHEME: Final[Mapping[str, Kem]] = {scheme_of(kem): kem for kem in KEMS.values()}


def _checksum(scheme: str, raw: bytes | memoryview) -> bytes:
    return hashlib.sha256(scheme.encode() + b"\x00" + raw).digest()[:_CHECKSUM_SIZE]


def _to_text(scheme: str, raw: bytes | memoryview) -> str:
    return f"{scheme}:{b64url(bytes(raw) + _checksum(scheme, raw))}"


def _from_text(text: str, suffix: str, what: str) -> tuple[Kem, bytes]:
    scheme, _, body = text.strip().partition(":")
    kem = _BY_SCHEME.get(scheme.removesuffix(suffix)) if scheme.endswith(suffix) else None
    if kem is None:
        raise InvalidKey(f"This is not an HPKE {what}.")
    size = kem.secret_size if suffix else kem.public_size
    try:
        data = unb64url(body, what, size + _CHECKSUM_SIZE)
    except Malformed:
        raise InvalidKey(f"The HPKE {what} is cut or mistyped.") from None
    raw, checksum = data[:-_CHECKSUM_SIZE], data[-_CHECKSUM_SIZE:]
    if checksum != _checksum(scheme, raw):
        raise InvalidKey(f"The HPKE {what} is mistyped: its checksum is wrong.")
    return kem, raw


class HpkeRecipient:
    """A public key."""

    def __init__(self, kem: Kem, public: bytes) -> None:
        try:
            kem.check_public(public)
        except ValueError:
            raise InvalidKey(f"This is not a public key for {kem.alg}.") from None
        self._kem = kem
        self._public = public

    @classmethod
    def parse(cls, text: str) -> HpkeRecipient:
        """Parse the text form.

        Raises:
            InvalidKey: it is something else, cut or mistyped.
        """
        return cls(*_from_text(text, "", "recipient"))

    @property
    def kid(self) -> str:
        """The first 16 bytes of SHA-256(alg ‖ 0x00 ‖ public key), in base64url."""
        return b64url(hashlib.sha256(self._kem.alg.encode() + b"\x00" + self._public).digest()[:16])

    def wrap(self, dek: SecretBytes, header: Header) -> dict[str, Any]:
        try:
            sealed = self._kem.seal(dek, self._public, _INFO + header.bundle)
        except ValueError:
            raise InvalidKey(f"Nothing can be sealed for this {self._kem.alg} key.") from None
        return {"alg": self._kem.alg, "kid": self.kid, "encrypted_key": b64url(sealed)}

    def __str__(self) -> str:
        return _to_text(scheme_of(self._kem), self._public)

    def __repr__(self) -> str:
        return f"<HpkeRecipient {self._kem.alg} {self.kid}>"


class HpkeIdentity:
    """A key pair; :attr:`recipient` is its public half."""

    def __init__(self, kem: Kem, secret: SecretBytes) -> None:
        self._kem = kem
        self._secret = secret
        self.recipient = HpkeRecipient(kem, kem.public_of(secret))

    @classmethod
    def generate(cls, kem: Kem = MLKEM768X25519) -> HpkeIdentity:
        """A new key pair, post-quantum unless told otherwise."""
        return cls(kem, SecretBytes.random(kem.secret_size))

    @classmethod
    def parse(cls, text: str) -> HpkeIdentity:
        """Parse the text form, as :meth:`encode` gives it; lines that start with # are skipped.

        Raises:
            InvalidKey: it is something else, cut or mistyped.
        """
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if len(lines) != 1:
            raise InvalidKey(f"An identity file holds one key, this one {len(lines)}.")
        kem, raw = _from_text(lines[0], _SECRET, "identity")
        return cls(kem, SecretBytes.take(raw))

    def encode(self) -> bytes:
        """The content of an identity file."""
        secret = _to_text(scheme_of(self._kem) + _SECRET, self._secret.buffer)
        return f"# recipient: {self.recipient}\n{secret}\n".encode()

    def wrap(self, dek: SecretBytes, header: Header) -> dict[str, Any]:
        return self.recipient.wrap(dek, header)

    def unwrap(self, header: Header) -> SecretBytes:
        kid = self.recipient.kid
        for index, entry in enumerate(header.recipients):
            if entry["alg"] != self._kem.alg or entry.get("kid", kid) != kid:
                continue
            sealed = unb64url(entry.get("encrypted_key"), f"recipients[{index}].encrypted_key")
            try:
                return self._kem.open(sealed, self._secret, _INFO + header.bundle)
            except (InvalidTag, ValueError):
                if "kid" in entry:
                    raise HeaderTampered(
                        "The recipient of this key does not open: the header was changed."
                    ) from None
        raise NoMatchingRecipient(f"The model is not sealed for the {self._kem.alg} key {kid}.")

    def __repr__(self) -> str:
        return f"<HpkeIdentity {self._kem.alg} {self.recipient.kid}>"
