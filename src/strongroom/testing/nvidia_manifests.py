"""Reference manifests in NVIDIA's format, signed by anybody."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.testing.authority import Authority

__all__ = ["manifest_xml", "sign_manifest"]


def manifest_xml(version: str, values: Mapping[int, Sequence[bytes]], product: str = "GH100") -> str:
    """A manifest without its signature."""
    lines = []
    for index, allowed in sorted(values.items()):
        said = " ".join(f'ns2:Hash{n}="{value.hex()}"' for n, value in enumerate(allowed))
        lines.append(
            f'<ns0:Resource type="Measurement" index="{index}" active="True"'
            f' alternatives="{len(allowed)}" {said} name="Measurement_{index}" size="48"/>'
        )
    swid = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
    return (
        f'<SoftwareIdentity xmlns="{swid}" xmlns:ns0="{swid}"'
        ' xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" name="TEST" tagId="test" version="1.0">'
        f'<ns0:Meta colloquialVersion="{version}" product="{product}"/>'
        f"<ns0:Payload>{''.join(lines)}</ns0:Payload></SoftwareIdentity>"
    )


def sign_manifest(xml: str, chain: Sequence[Authority]) -> bytes:
    """``xml`` with the signature of the first of ``chain`` before its end."""
    from lxml import etree

    def canonical(element: Any) -> bytes:
        result: bytes = etree.tostring(element, method="c14n", with_comments=False, with_tail=False)
        return result

    root = etree.fromstring(xml.encode())
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    enveloped = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
    digest = base64.b64encode(hashlib.sha384(canonical(root)).digest()).decode()
    certificates = "".join(
        "<ds:X509Certificate>"
        + base64.b64encode(one.certificate.public_bytes(Encoding.DER)).decode()
        + "</ds:X509Certificate>"
        for one in chain
    )
    signature = etree.fromstring(
        '<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:SignedInfo>'
        f'<ds:CanonicalizationMethod Algorithm="{c14n}"/>'
        '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{enveloped}"/>'
        f'<ds:Transform Algorithm="{c14n}"/></ds:Transforms>'
        '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
        f"<ds:SignatureValue/><ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo>"
        "</ds:Signature>"
    )
    root.append(signature)
    signature[1].text = base64.b64encode(chain[0].sign(canonical(signature[0]))).decode()
    result: bytes = etree.tostring(root)
    return result
