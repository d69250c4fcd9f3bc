"""Evidence of a TPM 2.0, as it travels: a quote, the values of its PCRs, and the key that signs.

Two spellings. Ours::

    {"ak_public": TPM2B_PUBLIC, "quote": TPMS_ATTEST, "signature": TPMT_SIGNATURE,
     "pcrs": {"sha256": {"0": "…hex", …}}, "ek_certificate": DER}

with base64url for bytes, exactly the PCRs that are quoted, and the EK's certificate for enrolment alone;
and that of Confidential Containers, with base64, a bare SubjectPublicKeyInfo and all 24 PCRs::

    {"ak_public": SPKI, "tpm_quote": {"message": …, "signature": …, "pcrs": ["…hex", …]}}
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.attest.evidence import Evidence
from strongroom.attest.tpm_keys import (
    AttestationKey,
    Public,
    Signature,
    parse_public,
    parse_signature,
    parse_spki,
)
from strongroom.attest.tpm_structures import HASHES, Attest, parse_attest
from strongroom.errors import MalformedEvidence
from strongroom.format.encoding import b64url, dump_json, parse_json, unb64url_text

__all__ = ["TpmEvidence"]

_OURS: Final = {"ak_public", "quote", "signature", "pcrs"}
_COCO: Final = {"ak_public", "tpm_quote"}
_COCO_QUOTE: Final = {"message", "signature", "pcrs"}
_INDEX: Final = re.compile(r"0|[1-9][0-9]?")
_PCRS: Final = 24


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """The parts, parsed and not verified.

    Attributes:
        message: the bytes that are signed.
        attest: what they say.
        signature: over them.
        key: the attestation key.
        public: its public area; None in the spelling of Confidential Containers.
        pcrs: bank → index → value, all PCRs that the quote selects and no other.
        ek_certificate: DER, as the machine has it; nothing ties it to the key before an enrolment.
    """

    message: bytes
    attest: Attest
    signature: Signature
    key: AttestationKey
    public: Public | None
    pcrs: Mapping[str, Mapping[int, bytes]]
    ek_certificate: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> TpmEvidence:
        """Parse either spelling.

        Raises:
            MalformedEvidence: it is neither, or a structure in it is none.
        """
        try:
            members = parse_json(data)
            names = set(members)
            if names == _COCO:
                return cls._parse_coco(members)
            if not _OURS <= names <= _OURS | {"ek_certificate"}:
                raise ValueError("has other members than " + ", ".join(sorted(_OURS)))
            return cls._parse_ours(members)
        except ValueError as error:
            raise MalformedEvidence(f"The evidence of the TPM {error}.") from None

    @classmethod
    def _parse_ours(cls, members: Mapping[str, Any]) -> TpmEvidence:
        public = parse_public(unb64url_text(members["ak_public"]))
        message = unb64url_text(members["quote"])
        signature = parse_signature(unb64url_text(members["signature"]))
        attest = parse_attest(message)
        pcrs = {
            bank: {_index(index): _hex(value, bank) for index, value in _object(values).items()}
            for bank, values in _object(members["pcrs"]).items()
        }
        selected = {selection.bank: set(selection.indices) for selection in attest.selections}
        if {bank: set(values) for bank, values in pcrs.items()} != selected:
            raise ValueError("gives other PCRs than are quoted")
        certificate = unb64url_text(members["ek_certificate"]) if "ek_certificate" in members else None
        return cls(message, attest, signature, public.key, public, pcrs, certificate)

    @classmethod
    def _parse_coco(cls, members: Mapping[str, Any]) -> TpmEvidence:
        quote = _object(members["tpm_quote"])
        if set(quote) != _COCO_QUOTE:
            raise ValueError("has other members in tpm_quote than message, signature, pcrs")
        key = parse_spki(_base64(members["ak_public"]))
        message = _base64(quote["message"])
        signature = parse_signature(_base64(quote["signature"]))
        attest = parse_attest(message)
        values = quote["pcrs"]
        if not isinstance(values, list) or len(values) != _PCRS:
            raise ValueError(f"does not have {_PCRS} PCRs")
        bank = [_hex(value, "sha256") for value in values]
        if [selection.bank for selection in attest.selections] != ["sha256"]:
            raise ValueError("is not about the bank sha256")
        # Those that were not quoted are what anybody likes.
        pcrs = {"sha256": {index: bank[index] for index in attest.selections[0].indices}}
        return cls(message, attest, signature, key, None, pcrs)

    @staticmethod
    def build(
        ak_public: bytes,
        quote: bytes,
        signature: bytes,
        pcrs: Mapping[str, Mapping[int, bytes]],
        ek_certificate: bytes | None = None,
    ) -> Evidence:
        """Evidence in our spelling, from the structures as the TPM gives them."""
        members: dict[str, Any] = {
            "ak_public": b64url(ak_public),
            "quote": b64url(quote),
            "signature": b64url(signature),
            "pcrs": {
                bank: {str(index): value.hex() for index, value in values.items()}
                for bank, values in pcrs.items()
            },
        }
        if ek_certificate is not None:
            members["ek_certificate"] = b64url(ek_certificate)
        return Evidence("tpm", dump_json(members))


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("has another value where an object belongs")
    return value


def _index(text: str) -> int:
    if not _INDEX.fullmatch(text) or int(text) >= _PCRS:
        raise ValueError("names a PCR that there is not")
    return int(text)


def _hex(text: object, bank: str) -> bytes:
    size = hashlib.new(bank).digest_size if bank in HASHES.values() else 0
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]+", text) or len(text) != 2 * size:
        raise ValueError("has a value of a PCR that is none of its bank")
    return bytes.fromhex(text)


def _base64(text: object) -> bytes:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise ValueError("is not base64 where it must be")
    return data
