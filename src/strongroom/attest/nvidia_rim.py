"""Reference integrity manifests (RIM) of NVIDIA: what a driver or a VBIOS measures, signed.

A RIM is a SWID tag (ISO/IEC 19770-2) with an enveloped XML signature, ECDSA P-384 with SHA-384, by a
chain under NVIDIA's CoRIM root. Only this one form of signature is taken: one signature, over the
whole document. What is read are the canonical bytes that the signature covers, parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cryptography import x509

from strongroom.attest.nvidia_signature import SIGNATURE, verify_enveloped
from strongroom.errors import MalformedEvidence, MissingExtra

__all__ = ["MAX_RIM", "Rim", "parse_rim", "verify_rim", "version_of"]

MAX_RIM: Final = 128 << 10
"""Bytes. Real ones have 20 KB."""

_MAX_INDEX: Final = 254
_MAX_ALTERNATIVES: Final = 64
_HASH_SIZE: Final = 48
_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_XML: Final = "{http://www.w3.org/XML/1998/namespace}"


_HEX: Final = re.compile(r"[0-9a-fA-F]{96}")


@dataclass(frozen=True, slots=True)
class Rim:
    """One manifest, whose signature is known to be right once :func:`verify_rim` returned it.

    Attributes:
        version: of the driver or VBIOS, upper case.
        product: the chip, such as GH100.
        measurements: index of each active measurement, from 0 on → the values that are allowed.
        not_after: until when its signer's chain holds.
        chain: the signer's certificates, leaf first, root last.
    """

    version: str
    product: str
    measurements: Mapping[int, Sequence[bytes]] = field(repr=False)
    not_after: datetime
    chain: Sequence[x509.Certificate] = field(repr=False)


def parse_rim(data: bytes) -> Any:
    """The root element of a manifest. Nothing is authentic yet; for choosing by version only.

    Raises:
        MalformedEvidence: not plain XML, too large, or with a document type or entities.
        MissingExtra: lxml is not installed.
    """
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtra("Reading a reference manifest", "attest") from None
    if len(data) > MAX_RIM:
        raise MalformedEvidence(f"A reference manifest has more than {MAX_RIM} bytes.")
    # The encoding is fixed, so that no other one can hide a document type from the line below.
    if b"\x00" in data or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise MalformedEvidence("A reference manifest has a document type, and must not.")
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        raise MalformedEvidence("The reference manifest is not XML.") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise MalformedEvidence("A reference manifest has a document type, and must not.")
    return root


def version_of(root: Any) -> str:
    """The version that a manifest says it is for, upper case.

    Raises:
        MalformedEvidence: it says none.
    """
    return _attribute(_only(root, _SWID + "Meta"), "colloquialVersion").upper()


def verify_rim(root: Any, trusted: bytes, now: datetime) -> Rim:
    """Verify the signature of a manifest that :func:`parse_rim` read, and return what it says.

    Args:
        root: the element; it is changed.
        trusted: PEM of the root to which the signer's chain must lead.
        now: the moment for which the chain must be valid.

    Raises:
        MalformedEvidence: not a manifest, or signed in another form.
        NotAuthentic: the signature, the chain or a date speaks against it.
    """
    _refuse_foreign(root)
    found = verify_enveloped(root, _only(root, SIGNATURE), trusted, now)
    signed = parse_rim(found.content)
    return Rim(
        version=version_of(signed),
        product=_attribute(_only(signed, _SWID + "Meta"), "product"),
        measurements=_measurements(_only(signed, _SWID + "Payload")),
        not_after=found.not_after,
        chain=found.chain,
    )


def _refuse_foreign(root: Any) -> None:
    """One document element, one signature, nothing on which the canonical forms differ."""
    if root.tag != _SWID + "SoftwareIdentity":
        raise MalformedEvidence("This XML is not a reference manifest.")
    signatures = 0
    for element in root.iter():
        if not isinstance(element.tag, str):
            raise MalformedEvidence("A reference manifest has a processing instruction or an entity.")
        signatures += element.tag == SIGNATURE
        if any(name.startswith(_XML) for name in element.attrib):
            raise MalformedEvidence("A reference manifest has an attribute of XML itself.")
    if signatures != 1:
        raise MalformedEvidence(f"A reference manifest has one signature, and this one {signatures}.")


def _measurements(payload: Any) -> dict[int, tuple[bytes, ...]]:
    seen: set[int] = set()
    active: dict[int, tuple[bytes, ...]] = {}
    for resource in payload:
        if resource.tag != _SWID + "Resource" or resource.get("type") != "Measurement":
            raise MalformedEvidence("The reference manifest has something else than measurements.")
        index = _number(resource, "index", _MAX_INDEX)
        if index in seen:
            raise MalformedEvidence("The reference manifest has a measurement twice.")
        seen.add(index)
        count = _number(resource, "alternatives", _MAX_ALTERNATIVES)
        values = [_attribute(resource, f"{_HASH}{n}") for n in range(count)]
        if (
            not values
            or resource.get("size") != str(_HASH_SIZE)
            or not all(map(_HEX.fullmatch, values))
        ):
            raise MalformedEvidence("A measurement of the reference manifest is not SHA-384.")
        state = resource.get("active")
        if state not in {"True", "False"}:
            raise MalformedEvidence("A measurement of the reference manifest is neither on nor off.")
        if state == "True":
            active[index] = tuple(map(bytes.fromhex, values))
    if not active:
        raise MalformedEvidence("The reference manifest has no measurement.")
    return active


def _only(parent: Any, tag: str) -> Any:
    found = [child for child in parent if child.tag == tag]
    if len(found) != 1:
        raise MalformedEvidence(f"A reference manifest has one {tag.split('}')[-1]}.")
    return found[0]


def _attribute(element: Any, name: str) -> str:
    value = element.get(name)
    if not value:
        raise MalformedEvidence(f"The reference manifest does not say {name.split('}')[-1]}.")
    return str(value)


def _number(element: Any, name: str, limit: int) -> int:
    text = _attribute(element, name)
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > limit:
        raise MalformedEvidence(f"A number in the reference manifest is not usable: {name}.")
    return int(text)
