"""AWS Nitro Enclaves: attestation documents, verified up to the pinned root of AWS."""

from __future__ import annotations

from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.attest.certificates import UNREADABLE, check_chain, extensions_of, load_certificate
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.nitro_document import PCR_SIZE, Document, parse_document
from strongroom.attest.verify import Context
from strongroom.errors import NotAuthentic

__all__ = ["describe", "verify"]

_HALF: Final = 48


def verify(evidence: Evidence, context: Context) -> Claims:
    """The claims of a document; see :func:`.verify.verify`.

    It brings its own chain, of which the first certificate must be the pinned root. The certificate of
    its key holds for three hours, and with it the claims. Endorsements are not used.

    ``bound`` is the user data; where there are none, the nonce; where there is none either, empty, which
    nothing is ever bound to. ``debug``: PCR0 is zero, as PCR0 to PCR2 are in the documents of enclaves that
    were started in debug mode, with a valid signature. ``platform`` is ``nitro:`` and the instance's id.
    """
    document = parse_document(evidence.data)
    root = load_certificate(context.roots.nitro)
    first, *rest = (load_certificate(one) for one in document.cabundle)
    if first != root:
        raise NotAuthentic(
            "The document leads to another root than that of AWS which is believed here."
        )
    leaf = load_certificate(document.certificate)
    not_after = check_chain(leaf, rest[::-1], root, context.now)
    _check_signer(leaf)
    if not leaf.not_valid_before_utc <= document.time <= leaf.not_valid_after_utc:
        raise NotAuthentic("The document was made when the certificate of its key did not hold.")
    _check_signature(document, leaf)
    return Claims(
        evidence.kind,
        {"module_id": document.module_id, "pcr": _pcr_values(document)},
        document.user_data or document.nonce or b"",
        document.pcrs[0] == bytes(PCR_SIZE),
        f"nitro:{document.instance_id}",
        not_after,
        context.roots.test,
    )


def describe(evidence: Evidence) -> dict[str, Any]:
    """What a document says, for people; nothing of it is verified.

    Raises:
        MalformedEvidence: it is none.
    """
    document = parse_document(evidence.data)

    def shown(data: bytes | None) -> str | None:
        return None if data is None else data.hex()

    return {
        "module_id": document.module_id,
        "time": document.time.isoformat(),
        "debug": document.pcrs[0] == bytes(PCR_SIZE),
        "pcr": _pcr_values(document),
        "user_data": shown(document.user_data),
        "nonce": shown(document.nonce),
        "public_key": shown(document.public_key),
    }


def _pcr_values(document: Document) -> dict[str, str]:
    return {str(index): document.pcrs[index].hex() for index in sorted(document.pcrs)}


def _check_signer(leaf: x509.Certificate) -> None:
    """It signs, and issues nothing."""
    try:
        usage = extensions_of(leaf).get_extension_for_class(x509.KeyUsage).value
        authority = extensions_of(leaf).get_extension_for_class(x509.BasicConstraints).value.ca
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise NotAuthentic(
            "The certificate of the document's key does not say what it is for."
        ) from None
    if not usage.digital_signature or authority:
        raise NotAuthentic("The certificate of the document's key is not one for signing documents.")


def _check_signature(document: Document, leaf: x509.Certificate) -> None:
    try:
        key = leaf.public_key()
    except UNREADABLE:
        raise NotAuthentic("The key of the document cannot be used.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotAuthentic("The key of the document is not one of the curve P-384.")
    r, s = (
        int.from_bytes(part, "big") for part in (document.signature[:_HALF], document.signature[_HALF:])
    )
    try:
        key.verify(encode_dss_signature(r, s), document.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise NotAuthentic("The document does not have the signature of its key.") from None
