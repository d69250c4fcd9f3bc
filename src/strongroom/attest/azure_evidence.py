"""Evidence of Azure's confidential virtual machines, as it travels; nothing is verified here.

Between host and guest stands Microsoft's paravisor (HCL). At boot it makes a key of its virtual TPM and
gets a report of the processor for it, which lies in the TPM (NV index 0x01400001). Whatever is fresh is in a
quote of that TPM. The form is that of Confidential Containers::

    {"version": 1 or 2, "tpm_quote": {"message", "signature", "pcrs"}: hexadecimal,
     "hcl_report": base64url, "vcek" or "td_quote": base64url, DER or a quote}

and their older one without a version, which has lists of numbers for bytes and PEM for the VCEK.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from strongroom.attest.snp_report import REPORT_SIZE
from strongroom.attest.tpm_structures import Attest, parse_attest
from strongroom.errors import MalformedEvidence
from strongroom.format.encoding import parse_json, unb64url_text

__all__ = ["AzureEvidence", "HclReport"]

_PCRS: Final = 24
_MAGIC: Final = b"HCLA"
_HEADER: Final = struct.Struct("<4sII")
_REPORT_AT: Final = 0x20
_DATA_AT: Final = _REPORT_AT + REPORT_SIZE
_DATA_HEADER: Final = struct.Struct("<5I")
_SHA256: Final = 1
_TYPES: Final = {2: "snp", 4: "tdx"}
_AK: Final = "HCLAkPub"
_RSA_BITS: Final = range(2048, 4097)
_EXPONENT: Final = 65537
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True)
class HclReport:
    """What the paravisor has got from the processor.

    Attributes:
        tee: ``snp`` or ``tdx``.
        report: of the processor, 1184 bytes; of TDX a TDREPORT, which only its own machine can check.
        runtime: the bytes whose SHA-256 the report carries.
        key: of the virtual TPM, as ``runtime`` says.
        configuration: of the virtual machine, as ``runtime`` says.
    """

    tee: str
    report: bytes = field(repr=False)
    runtime: bytes = field(repr=False)
    key: rsa.RSAPublicKey
    configuration: Mapping[str, Any]

    @classmethod
    def parse(cls, data: bytes) -> HclReport:
        """Parse the content of the NV index.

        Raises:
            ValueError: it is something else; says what, as a predicate.
        """
        if len(data) < _DATA_AT + _DATA_HEADER.size:
            raise ValueError("has an HCL report that is cut off")
        magic, version, total = _HEADER.unpack_from(data)
        size, data_version, kind, algorithm, length = _DATA_HEADER.unpack_from(data, _DATA_AT)
        if magic != _MAGIC or version != 1 or data_version != 1:
            raise ValueError("has an HCL report of a form that is not known")
        start, end = _DATA_AT + _DATA_HEADER.size, _DATA_AT + size
        if total != end or size != _DATA_HEADER.size + length or len(data) < end:
            raise ValueError("has an HCL report that is cut off")
        if data[end:].strip(b"\0"):
            raise ValueError("has something behind the end of its HCL report")
        if kind not in _TYPES or algorithm != _SHA256:
            raise ValueError("has an HCL report of another processor or hash than is known")
        runtime = data[start:end]
        members = parse_json(runtime)
        configuration = members.get("vm-configuration")
        if not isinstance(configuration, dict):
            raise ValueError("has an HCL report without the configuration of the machine")
        return cls(_TYPES[kind], data[_REPORT_AT:_DATA_AT], runtime, _key(members), configuration)


@dataclass(frozen=True, slots=True)
class AzureEvidence:
    """The parts, parsed and not verified.

    Attributes:
        hcl: the paravisor's report.
        message: the bytes that the virtual TPM has signed.
        attest: what they say.
        signature: over them; RSA, PKCS #1 v1.5, SHA-256.
        pcrs: index → value, all of which the quote selects and no other.
        vcek: certificate of the processor's key, DER or PEM; None if it did not come along.
        td_quote: of TDX; None if it did not come along.
    """

    hcl: HclReport
    message: bytes = field(repr=False)
    attest: Attest
    signature: bytes = field(repr=False)
    pcrs: Mapping[int, bytes]
    vcek: bytes | None = field(default=None, repr=False)
    td_quote: bytes | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, data: bytes) -> AzureEvidence:
        """Parse any of the forms.

        Raises:
            MalformedEvidence: it is none of them, or a structure in it is none.
        """
        try:
            members = parse_json(data)
            if "version" in members:
                version = members.pop("version")
                if type(version) is not int or version not in (1, 2):
                    raise ValueError("is of a version that is not known")
                return cls._build(members, _hex, _base64)
            # The oldest has names of its own for SEV-SNP, and not for TDX.
            if {"quote", "report"} <= set(members):
                old = {"tpm_quote": members.pop("quote"), "hcl_report": members.pop("report")}
                members = {**old, **members} if not set(old) & set(members) else {}
            return cls._build(members, _list, _list)
        except ValueError as error:
            raise MalformedEvidence(f"The evidence of the virtual machine {error}.") from None

    @classmethod
    def _build(cls, members: dict[str, Any], digits: Any, binary: Any) -> AzureEvidence:
        if (
            not {"tpm_quote", "hcl_report"}
            <= set(members)
            <= {"tpm_quote", "hcl_report", "vcek", "td_quote"}
        ):
            raise ValueError("does not consist of tpm_quote, hcl_report and vcek or td_quote")
        quote = members["tpm_quote"]
        if not isinstance(quote, dict) or set(quote) != {"message", "signature", "pcrs"}:
            raise ValueError("has other members in tpm_quote than message, signature, pcrs")
        values = quote["pcrs"]
        if not isinstance(values, list) or len(values) != _PCRS:
            raise ValueError(f"does not have {_PCRS} PCRs")
        message = digits(quote["message"])
        attest = parse_attest(message)
        if [selection.bank for selection in attest.selections] != ["sha256"]:
            raise ValueError("quotes other PCRs than those of the bank sha256")
        # Those that were not quoted are what anybody likes.
        pcrs = {index: digits(values[index]) for index in attest.selections[0].indices}
        vcek, td_quote = members.get("vcek"), members.get("td_quote")
        return cls(
            hcl=HclReport.parse(binary(members["hcl_report"])),
            message=message,
            attest=attest,
            signature=digits(quote["signature"]),
            pcrs=pcrs,
            vcek=None if vcek is None else _pem(vcek) or binary(vcek),
            td_quote=None if td_quote is None else binary(td_quote),
        )


def _key(members: Mapping[str, Any]) -> rsa.RSAPublicKey:
    keys = members.get("keys")
    found = (
        [one for one in keys if isinstance(one, dict) and one.get("kid") == _AK]
        if isinstance(keys, list)
        else []
    )
    if len(found) != 1 or found[0].get("kty") != "RSA" or found[0].get("key_ops") != ["sign"]:
        raise ValueError(f"has an HCL report without one key {_AK}")
    exponent, modulus = (int.from_bytes(_base64(found[0].get(name)), "big") for name in ("e", "n"))
    if exponent != _EXPONENT or modulus.bit_length() not in _RSA_BITS:
        raise ValueError("has a key of its virtual TPM that is not accepted")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _hex(text: object) -> bytes:
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise ValueError("has no hexadecimal digits where they belong")
    return bytes.fromhex(text)


def _base64(text: object) -> bytes:
    """Base64url, with padding or without."""
    if not isinstance(text, str):
        raise ValueError("is not base64url where it must be")
    bare = text.rstrip("=")
    if text not in (bare, bare + "=" * (-len(bare) % 4)):
        raise ValueError("is not base64url where it must be")
    return unb64url_text(bare)


def _list(values: object) -> bytes:
    if not isinstance(values, list) or not all(type(one) is int and 0 <= one < 256 for one in values):
        raise ValueError("has no list of bytes where one belongs")
    return bytes(values)


def _pem(text: object) -> bytes | None:
    if isinstance(text, str) and text.startswith("-----BEGIN "):
        return text.encode()
    return None
