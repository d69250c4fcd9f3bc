"""Enveloped XML signatures, in the one form in which NVIDIA signs its reference manifests.

One signature over the whole document, ECDSA P-384 with SHA-384, canonical XML; certificates inside.
What comes out are the bytes that were signed: nothing else of the document may be read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.attest.certificates import load_certificate
from strongroom.attest.chains import chain_to
from strongroom.attest.limits import MAX_CERTIFICATES
from strongroom.errors import MalformedEvidence, NotAuthentic

__all__ = ["SIGNATURE", "Signed", "verify_enveloped"]

_DSIG: Final = "{http://www.w3.org/2000/09/xmldsig#}"
SIGNATURE: Final = _DSIG + "Signature"
_ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_C14N: Final = frozenset(
    {"http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"}
)
"""Both give the same bytes for a document without xml: attributes, and others are refused."""
_HALF: Final = 48
"""Bytes of r, and of s."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed, and by whom.

    Attributes:
        content: canonical bytes of the document without its signature.
        chain: certificates of the signer, leaf first, root last.
        not_after: until when they hold.
    """

    content: bytes = field(repr=False)
    chain: Sequence[x509.Certificate] = field(repr=False)
    not_after: datetime


def verify_enveloped(root: Any, signature: Any, trusted: bytes, now: datetime) -> Signed:
    """Verify the signature of a document.

    Args:
        root: its element; it is changed. It has no attribute of XML itself, on which the two kinds of
            canonical XML differ.
        signature: the only one in it, a child of ``root``.
        trusted: PEM of the root to which the signer's chain must lead.
        now: the moment for which the chain must be valid.

    Raises:
        MalformedEvidence: it is signed in another form.
        NotAuthentic: the signature, the chain or a date speaks against it.
    """
    signed_info, value, key_info = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    digest = _check_signed_info(signed_info)
    chain, until = chain_to(_certificates(key_info), trusted, now)
    # Canonical before it is cut loose: the namespaces that its ancestors declare belong to it.
    _check_signature(chain[0], _base64(value), _canonical(signed_info))
    _detach(signature)
    content = _canonical(root)
    if hashlib.sha384(content).digest() != digest:
        raise NotAuthentic("The reference manifest was changed after it was signed.")
    return Signed(content, chain, until)


def _check_signed_info(signed_info: Any) -> bytes:
    """The digest of the whole document, where the signature says in the one known form that it covers it."""
    method, how, reference = _children(
        signed_info, "CanonicalizationMethod", "SignatureMethod", "Reference"
    )
    transforms, digest_method, digest = _children(
        reference, "Transforms", "DigestMethod", "DigestValue"
    )
    chosen = [transform.get("Algorithm") for transform in transforms]
    if (
        method.get("Algorithm") not in _C14N
        or how.get("Algorithm") != _ECDSA_SHA384
        or reference.get("URI") != ""
        or digest_method.get("Algorithm") != _SHA384
        or len(chosen) != 2
        or chosen[0] != _ENVELOPED
        or chosen[1] not in _C14N
        or any(len(transform) for transform in (*transforms, method))
    ):
        raise MalformedEvidence("The reference manifest is not signed as a whole, in the known form.")
    return _base64(digest)


def _certificates(key_info: Any) -> list[x509.Certificate]:
    (data,) = _children(key_info, "X509Data")
    if not 0 < len(data) <= MAX_CERTIFICATES:
        raise MalformedEvidence("The reference manifest does not bring its signer's certificates.")
    return [load_certificate(_base64(one)) for one in _children(data, *["X509Certificate"] * len(data))]


def _check_signature(leaf: x509.Certificate, signature: bytes, content: bytes) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotAuthentic("The reference manifest is not signed by a P-384 key.")
    if len(signature) != 2 * _HALF:
        raise NotAuthentic("The signature of the reference manifest has another size.")
    r, s = (int.from_bytes(part) for part in (signature[:_HALF], signature[_HALF:]))
    try:
        key.verify(encode_dss_signature(r, s), content, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise NotAuthentic("The signature of the reference manifest is wrong.") from None


def _detach(signature: Any) -> None:
    """Take the signature out, and leave the text after it."""
    parent, before = signature.getparent(), signature.getprevious()
    if signature.tail:
        if before is None:
            parent.text = (parent.text or "") + signature.tail
        else:
            before.tail = (before.tail or "") + signature.tail
    parent.remove(signature)


def _canonical(element: Any) -> bytes:
    from lxml import etree

    try:
        result: bytes = etree.tostring(element, method="c14n", with_comments=False, with_tail=False)
    except etree.LxmlError:
        # Such as: the name of a namespace is a relative URL.
        raise MalformedEvidence("The reference manifest has no canonical form.") from None
    return result


def _children(parent: Any, *names: str) -> list[Any]:
    """The children of a part of the signature: these, in this order, and no other."""
    if [child.tag for child in parent] != [_DSIG + name for name in names]:
        raise MalformedEvidence("The reference manifest is not signed in the known form.")
    return list(parent)


def _base64(element: Any) -> bytes:
    try:
        return base64.b64decode("".join((element.text or "").split()), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedEvidence("The reference manifest is not signed in the known form.") from None
