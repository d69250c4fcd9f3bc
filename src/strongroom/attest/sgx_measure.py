"""What the signature of an SGX enclave says: SIGSTRUCT, the ``.sig`` file of ``gramine-sgx-sign``.

Layout and rules: Intel SDM, volume 3D, "Enclave Signature Structure (SIGSTRUCT)" and the leaf function
EINIT, which starts no enclave whose SIGSTRUCT breaks one of those that are checked here. All numbers are
little-endian. It is signed by RSA-3072 with the exponent 3, PKCS #1 v1.5 and SHA-256, over its first 128
bytes and the 128 from MISCSELECT on.

The signature says that all of it is from one signer, and who that is; whether he is to be trusted is for
whoever compares ``mr_signer``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from strongroom.errors import MalformedEvidence, NotAcceptable, NotAuthentic

__all__ = ["SIZE", "EnclaveSignature"]

SIZE: Final = 1808
_KEY: Final = 384
_HEADER: Final = bytes.fromhex("06000000e10000000000010000000000")
_HEADER2: Final = bytes.fromhex("01010000600000006000000001000000")
_MODULUS, _EXPONENT, _SIGNATURE = 128, 512, 516
_BODY: Final = 900
_END: Final = 1028
_Q1, _Q2 = 1040, 1424
_RESERVED: Final = ((44, 128), (910, 912), (992, 1008), (_END, _Q1))
_VALUES: Final = {
    "mr_enclave": (960, 32),
    "isv_prod_id": (1024, 2),
    "isv_svn": (1026, 2),
    "attributes": (928, 16),
    "attributes_mask": (944, 16),
    "misc_select": (900, 4),
    "misc_mask": (904, 4),
    "isv_family_id": (912, 16),
    "isv_ext_prod_id": (1008, 16),
    "vendor": (16, 4),
}
_NUMBERS: Final = {"isv_prod_id", "isv_svn", "misc_select"}
_DEBUG: Final = 0x02
_PRIVILEGES: Final = {0x10: "the provisioning key", 0x20: "the EINIT token key"}


@dataclass(frozen=True, slots=True)
class EnclaveSignature:
    """A SIGSTRUCT whose signature is right.

    Attributes:
        values: its members under the names that claims of SGX evidence have, hexadecimal text or
            numbers, ``mr_signer`` among them. Without the date: Gramine writes it otherwise than the
            manual says, and it means nothing.
        debug: the host can look into an enclave that is started with it.
        privileges: keys of the platform that it may ask for, and ordinary enclaves may not.
    """

    values: Mapping[str, Any]
    debug: bool
    privileges: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes) -> EnclaveSignature:
        """Parse and verify a SIGSTRUCT.

        Raises:
            MalformedEvidence: it is something else, or cut.
            NotAuthentic: the signature, or what is to speed up its check, is wrong.
        """
        if len(data) != SIZE or not data.startswith(_HEADER) or data[24:40] != _HEADER2:
            raise MalformedEvidence(
                "This is no signature of an SGX enclave.",
                hint=f"It has {SIZE} bytes: give the .sig file that gramine-sgx-sign has written.",
            )
        if any(any(data[start:end]) for start, end in _RESERVED):
            raise MalformedEvidence("Bytes of the SIGSTRUCT that must be zero are not.")
        _verify(data)
        values: dict[str, Any] = {}
        for name, (offset, length) in _VALUES.items():
            part = data[offset : offset + length]
            values[name] = int.from_bytes(part, "little") if name in _NUMBERS else part.hex()
        values["mr_signer"] = hashlib.sha256(data[_MODULUS:_EXPONENT]).hexdigest()
        flags = data[928]
        privileges = tuple(name for bit, name in _PRIVILEGES.items() if flags & bit)
        return cls(values, bool(flags & _DEBUG), privileges)

    def requirement(self, *, by_signer: bool = False) -> dict[str, Any]:
        """What a policy must list to let this enclave have keys, and no other.

        Args:
            by_signer: also other enclaves of the signer, of the same product and no older than this.

        Raises:
            NotAcceptable: it is for debugging, and no policy gives such an enclave keys; or it is to
                be known by a product that has no number of its own.
        """
        if self.debug:
            raise NotAcceptable(
                "The enclave is signed for debugging: whoever runs the machine can read its memory.",
                reasons=["sgx.debug is true in its manifest."],
            )
        signer = {
            "mr_signer": self.values["mr_signer"],
            "prod_id": self.values["isv_prod_id"],
            "min_svn": self.values["isv_svn"],
        }
        if not by_signer:
            return {"kind": "sgx", "mr_enclave": self.values["mr_enclave"], **signer}
        if not self.values["isv_prod_id"]:
            raise NotAcceptable(
                "The enclave has no product number: whatever its signer signs without one would do.",
                reasons=["sgx.isvprodid is 0 in its manifest, as by default."],
            )
        return {"kind": "sgx", **signer}


def _verify(data: bytes) -> None:
    modulus = int.from_bytes(data[_MODULUS:_EXPONENT], "little")
    signature = int.from_bytes(data[_SIGNATURE:_BODY], "little")
    if int.from_bytes(data[_EXPONENT:_SIGNATURE], "little") != 3 or modulus.bit_length() != 8 * _KEY:
        raise NotAuthentic("The signer's key is not RSA-3072 with the exponent 3, as SGX demands.")
    try:
        rsa.RSAPublicNumbers(3, modulus).public_key().verify(
            signature.to_bytes(_KEY, "big"),
            data[:128] + data[_BODY:_END],
            padding.PKCS1v15(),
            hashes.SHA256(),
        )
    except (InvalidSignature, ValueError):
        raise NotAuthentic("The signature of the SIGSTRUCT is wrong.") from None
    # The processor does its arithmetic by these two quotients, and starts nothing if they are wrong.
    q1, rest = divmod(signature * signature, modulus)
    q2 = rest * signature // modulus
    if data[_Q1:_Q2] != q1.to_bytes(_KEY, "little") or data[_Q2:] != q2.to_bytes(_KEY, "little"):
        raise NotAuthentic("The quotients Q1 and Q2 of the SIGSTRUCT are wrong: it starts no enclave.")
