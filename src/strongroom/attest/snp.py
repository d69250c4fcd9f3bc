"""AMD SEV-SNP: attestation reports, verified up to the root key of the product that is pinned.

The chain is ARK → ASK → VCEK for a processor's own key, ARK → ASVK → VLEK for one that is leased to a
cloud provider; all of AMD's signatures are RSA-PSS, that of the report is ECDSA P-384.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.attest.certificates import (
    UNREADABLE,
    check_chain,
    check_not_revoked,
    extensions_of,
    load_certificate,
)
from strongroom.attest.crl_numbers import crl_numbers
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.snp_coco import parse_coco
from strongroom.attest.snp_endorsements import (
    Brought,
    common_name,
    find_authority,
    find_crls,
    find_key,
)
from strongroom.attest.snp_report import CHIP_ID_SIZE, PRODUCTS, Product, Report, parse_report
from strongroom.attest.verify import Context
from strongroom.errors import MissingEndorsement, NotAuthentic

__all__ = ["describe", "verify"]

_AMD: Final = "1.3.6.1.4.1.3704.1"
_PRODUCT: Final = f"{_AMD}.2"
_HWID: Final = f"{_AMD}.4"
_CSP_ID: Final = f"{_AMD}.5"
_LEVELS: Final = {
    "bootloader": f"{_AMD}.3.1",
    "tee": f"{_AMD}.3.2",
    "snp": f"{_AMD}.3.3",
    "microcode": f"{_AMD}.3.8",
    "fmc": f"{_AMD}.3.9",
}
_INTEGER, _IA5, _UTF8 = 0x02, 0x16, 0x0C


def verify(evidence: Evidence, context: Context) -> Claims:
    """The claims of a report; see :func:`.verify.verify`.

    ``evidence.data`` is the report, or the JSON object that agents of Confidential Containers send.
    Its endorsements are certificates (DER, PEM, the table of an extended report) and revocation lists;
    certificates that are missing are asked for.

    Revocation: every list that is at hand must be AMD's, hold now, and name neither the key nor its
    issuer. Where ``context.endorsements`` is set, a list is required: it is asked for each time, and
    only where it has none does the one that came with the evidence do. With no source and none
    brought, the chain is believed without; the claim ``revocation`` is then ``unchecked``, and
    otherwise ``checked``. AMD's lists name issuers: its keys all have the serial number 0.

    ``platform`` is ``chip_id:…``: of a VCEK as its certificate says, of a VLEK as the report says,
    None where it does not.
    """
    report, parts = _parse(evidence)
    return verify_report(
        report, Brought.parse([*parts, *evidence.endorsements]), evidence.kind, context
    )


def verify_report(report: Report, brought: Brought, kind: str, context: Context) -> Claims:
    """As :func:`verify`, for a report inside of other evidence, whose ``kind`` the claims get."""
    key = find_key(report, brought, context.endorsements)
    product = _product(report, key)
    pinned = context.roots.amd.get(product.name)
    if pinned is None:
        raise NotAuthentic(f"No root of AMD for {product.name} is believed here.")
    authority = find_authority(report, product, brought, context.endorsements)
    crls = find_crls(report, product, brought, context.endorsements)
    not_after = check_chain(key, [authority], load_certificate(pinned), context.now, crls)
    for crl in crls:
        check_not_revoked(key, crl)
    said = _extensions(key)
    chip_id, csp_id = _check_key(report, product, said)
    _check_signature(report, key)
    values = {
        **report.values(product),
        "chip_id": chip_id,
        "csp_id": csp_id,
        "revocation": "checked" if crls else "unchecked",
    }
    return Claims(
        kind,
        values,
        report.report_data,
        report.debug,
        f"chip_id:{chip_id}" if chip_id else None,
        not_after,
        context.roots.test,
        tuple(report.faults),
        crl_numbers(crls, test_root=context.roots.test),
    )


def describe(evidence: Evidence) -> dict[str, Any]:
    """What a report says, for people; nothing of it is verified.

    Raises:
        MalformedEvidence: it is no report, or of a product that is not known.
    """
    report, parts = _parse(evidence)
    try:
        product = _product(
            report, find_key(report, Brought.parse([*parts, *evidence.endorsements]), None)
        )
    except (MissingEndorsement, NotAuthentic):
        product = report.product or PRODUCTS["Milan"]
    return {
        **report.values(product),
        "chip_id": report.chip_id.hex(),
        "debug": report.debug,
        "report_data": report.report_data.hex(),
    }


def _parse(evidence: Evidence) -> tuple[Report, list[bytes]]:
    if evidence.data[:1] == b"{":
        data, parts = parse_coco(evidence.data)
        return parse_report(data), parts
    return parse_report(evidence.data), []


def _product(report: Report, key: x509.Certificate) -> Product:
    """That of the certificate's issuer, which the report must not contradict."""
    issuer = common_name(key.issuer)
    prefix = "SEV-VLEK-" if report.signer == "vlek" else "SEV-"
    product = PRODUCTS.get(issuer.removeprefix(prefix)) if issuer.startswith(prefix) else None
    if product is None:
        raise NotAuthentic("The key of the report was not issued for a product of AMD that is known.")
    if report.version >= 3 and report.product is not product:
        raise NotAuthentic(f"The report is of another processor than {product.name}, as its key is.")
    return product


def _extensions(key: x509.Certificate) -> dict[str, bytes]:
    """OID → content, of AMD's own ones; that they can be read is known from the check of the chain."""
    return {
        extension.oid.dotted_string: extension.value.value
        for extension in extensions_of(key)
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }


def _check_key(
    report: Report, product: Product, said: dict[str, bytes]
) -> tuple[str | None, str | None]:
    """The certificate is for this report: product, versions, chip. Returns chip and provider."""
    # Milan-B0 is a stepping of Milan.
    if _text(said, _PRODUCT).split("-")[0] != product.name:
        raise NotAuthentic("The certificate of the key is of another product than its issuer.")
    for component, number in report.tcb("reported", product).items():
        if _number(said, _LEVELS[component]) != number:
            raise NotAuthentic(
                f"The key is of another TCB version than the report: {component} is {number} there,"
                f" and {_number(said, _LEVELS[component])} in its certificate."
            )
    reported = report.chip_id.hex() if report.chip_id.strip(b"\0") else None
    if report.signer == "vlek":
        provider = _text(said, _CSP_ID)
        if _HWID in said or not provider:
            raise NotAuthentic("The certificate of the VLEK does not name a cloud provider.")
        return reported, provider
    hwid = said.get(_HWID, b"")
    if len(hwid) != product.hwid_size or not hwid.strip(b"\0") or _CSP_ID in said:
        raise NotAuthentic("The certificate of the VCEK does not name its processor.")
    chip_id = hwid.ljust(CHIP_ID_SIZE, b"\0").hex()
    # A host can hide the processor's number from reports; the key is that processor's all the same.
    if reported not in (None, chip_id):
        raise NotAuthentic("The key belongs to another processor than the report says.")
    return chip_id, None


def _value(said: dict[str, bytes], oid: str, tags: tuple[int, ...]) -> bytes:
    """The content of a short DER value."""
    data = said.get(oid, b"")
    if len(data) < 3 or data[0] not in tags or data[1] != len(data) - 2 or data[1] > 0x7F:
        raise NotAuthentic(f"The certificate of the key lacks the extension {oid}, or it is no value.")
    return data[2:]


def _number(said: dict[str, bytes], oid: str) -> int:
    return int.from_bytes(_value(said, oid, (_INTEGER,)), "big", signed=True)


def _text(said: dict[str, bytes], oid: str) -> str:
    text = _value(said, oid, (_IA5, _UTF8))
    if not text.isascii() or not text.decode().isprintable():
        raise NotAuthentic(f"The extension {oid} of the key's certificate is not text.")
    return text.decode()


def _check_signature(report: Report, key: x509.Certificate) -> None:
    try:
        public = key.public_key()
    except UNREADABLE:
        raise NotAuthentic("The key that signed the report cannot be used.") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
        raise NotAuthentic("The key that signed the report is not one of the curve P-384.")
    try:
        public.verify(encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise NotAuthentic("The report does not have the signature of its key.") from None
