"""What vouches for a report of SEV-SNP: the certificates of its key, and AMD's revocation list.

They come with the evidence (DER, PEM, or the certificate table of an extended report, as firmware and
configfs-tsm hand it out) or from a source of endorsements. Nothing is verified here.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from strongroom.attest.certificates import is_crl, load_certificates, load_crl
from strongroom.attest.endorsements import EndorsementSource, Wanted
from strongroom.attest.limits import MAX_ENDORSEMENT_COUNT
from strongroom.attest.snp_report import PRODUCTS, Product, Report
from strongroom.errors import MalformedEvidence, MissingEndorsement, Unavailable

__all__ = ["SIGNER_NAMES", "Brought", "common_name", "find_authority", "find_crls", "find_key"]

SIGNER_NAMES: Final = {"vcek": "SEV-VCEK", "vlek": "SEV-VLEK"}
"""Common names of the certificates of keys that sign reports."""

_AUTHORITY_NAMES: Final = {"vcek": "SEV-{}", "vlek": "SEV-VLEK-{}"}
_ENTRY: Final = struct.Struct("<16sII")
_GUIDS: Final = [
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"),  # VCEK
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),  # VLEK
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),  # ASK
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),  # ARK
    uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"),  # CRL
]
# AMD's tools write them as uuid_parse() does; some hosts in the order of Microsoft.
_KNOWN: Final = frozenset({guid.bytes for guid in _GUIDS} | {guid.bytes_le for guid in _GUIDS})
_COMPONENTS: Final = {
    "fmc": "fmc",
    "bootloader": "bl",
    "tee": "tee",
    "snp": "snp",
    "microcode": "ucode",
}


@dataclass(frozen=True, slots=True)
class Brought:
    """What came with the evidence, each thing once."""

    certificates: Sequence[x509.Certificate]
    crls: Sequence[x509.CertificateRevocationList]

    @classmethod
    def parse(cls, endorsements: Iterable[bytes]) -> Brought:
        """Sort endorsements.

        Raises:
            MalformedEvidence: one is neither a certificate, a revocation list nor a certificate table.
        """
        certificates: list[x509.Certificate] = []
        crls: list[x509.CertificateRevocationList] = []
        for data in (part for one in endorsements for part in _parts(one)):
            if is_crl(data):
                crls.append(load_crl(data))
            else:
                certificates += [one for one in load_certificates(data) if one not in certificates]
        return cls(certificates, crls)


def _parts(data: bytes) -> list[bytes]:
    """The parts of a certificate table; itself, if it is none."""
    if data[:16] not in _KNOWN:
        return [data]
    parts: list[bytes] = []
    for at in range(0, len(data) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, size = _ENTRY.unpack_from(data, at)
        if guid == bytes(16):
            return parts
        if not size or offset + size > len(data) or len(parts) == MAX_ENDORSEMENT_COUNT:
            break
        # Hosts may put anything else there: that is not for us.
        if guid in _KNOWN:
            parts.append(data[offset : offset + size])
    raise MalformedEvidence("The certificate table of the report is cut off, or has no end.")


def common_name(name: x509.Name) -> str:
    """The common name, or an empty text."""
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def _named(certificates: Iterable[x509.Certificate], name: str) -> list[x509.Certificate]:
    return [one for one in certificates if common_name(one.subject) == name]


def find_key(report: Report, brought: Brought, source: EndorsementSource | None) -> x509.Certificate:
    """The certificate of the key that the report says has signed it.

    Raises:
        MissingEndorsement: it did not come, and the source does not have it.
        MalformedEvidence: there are several.
    """
    name = SIGNER_NAMES[report.signer]
    found = _named(brought.certificates, name)
    if len(found) > 1:
        raise MalformedEvidence(f"Several certificates of the name {name} came with the report.")
    return found[0] if found else _fetch_key(report, source)


def _fetch_key(report: Report, source: EndorsementSource | None) -> x509.Certificate:
    if report.signer == "vlek":
        raise MissingEndorsement(
            "The certificate of the VLEK did not come with the report.",
            hint="AMD gives it to the cloud provider alone: take an extended report.",
        )
    if source is None:
        raise MissingEndorsement(
            "The certificate of the VCEK did not come with the report.",
            hint="Send it along with the evidence, or configure a source of endorsements.",
        )
    if not report.chip_id.strip(b"\0"):
        raise MissingEndorsement(
            "The report does not name its processor, and its certificate did not come with it."
        )
    # A report of version 2 does not name its product, and is of one of the first two.
    products = [report.product] if report.version >= 3 else [PRODUCTS["Milan"], PRODUCTS["Genoa"]]
    for product in products:
        if product is None:
            break
        try:
            data = source.fetch(_wanted_key(report, product))
        except MissingEndorsement:
            continue
        found = _named(load_certificates(data), SIGNER_NAMES["vcek"])
        if len(found) == 1:
            return found[0]
    raise MissingEndorsement("The certificate of the VCEK that signed the report is not to be had.")


def _wanted_key(report: Report, product: Product) -> Wanted:
    tcb = report.tcb("reported", product)
    members = {_COMPONENTS[component]: str(number) for component, number in tcb.items()}
    hwid = report.chip_id[: product.hwid_size].hex()
    return Wanted("amd-vcek", {"product": product.name, "hwid": hwid, **members})


def find_authority(
    report: Report, product: Product, brought: Brought, source: EndorsementSource | None
) -> x509.Certificate:
    """The certificate of the ASK or ASVK: what has issued the key's.

    Raises:
        MissingEndorsement: it did not come, and the source does not have it.
    """
    name = _AUTHORITY_NAMES[report.signer].format(product.name)
    found = _named(brought.certificates, name)
    if not found and source is not None:
        wanted = Wanted("amd-chain", {"product": product.name, "signer": report.signer})
        found = _named(load_certificates(source.fetch(wanted)), name)
    if not found:
        raise MissingEndorsement(
            f"AMD's certificate {name} did not come with the report.",
            hint="Send it along with the evidence, or configure a source of endorsements.",
        )
    return found[0]


def find_crls(
    report: Report, product: Product, brought: Brought, source: EndorsementSource | None
) -> list[x509.CertificateRevocationList]:
    """AMD's revocation lists; see :func:`strongroom.attest.snp.verify` for the rule.

    Raises:
        MissingEndorsement: a source is there, does not have it, and none came with the evidence.
        Unavailable: the source does not answer, and none came with the evidence.
    """
    if source is None:
        return list(brought.crls)
    # Asked for even if one came along: which of two lists that both hold is looked at is not for
    # whoever sends the evidence to say.
    wanted = Wanted("amd-crl", {"product": product.name, "signer": report.signer})
    try:
        return [*brought.crls, load_crl(source.fetch(wanted))]
    except (MissingEndorsement, Unavailable):
        if brought.crls:
            return list(brought.crls)
        raise
