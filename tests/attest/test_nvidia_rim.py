from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from nvidia_cases import AT, DRIVER_ID, NOW, VBIOS_ID, pki
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.nvidia_measurements import differing
from strongroom.attest.nvidia_report import parse_report
from strongroom.attest.nvidia_rim import MAX_RIM, Rim, parse_rim, verify_rim, version_of
from strongroom.attest.roots import production
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic
from strongroom.testing.authority import Authority
from strongroom.testing.nvidia_manifests import manifest_xml, sign_manifest

OLD = ("nvidia/Driver_RIM_test_no_gpu.swidtag", "nvidia/1010_0200_882_96005E0001_PROD.swidtag")
FITTING = (f"nvidia/{DRIVER_ID}.xml", f"nvidia/{VBIOS_ID}.xml")
VALUE = hashlib.sha384(b"value").digest()


def check(data: bytes, now: datetime = NOW, root: bytes | None = None) -> Rim:
    return verify_rim(parse_rim(data), root or pki().rim_root.pem, now)


def good() -> bytes:
    return pki().manifest("580.1", {0: [VALUE], 7: [VALUE, bytes(48)]})


def signed(xml: str, chain: list[Authority] | None = None) -> bytes:
    return sign_manifest(xml, chain or [pki().rim_signer, pki().rim_issuer])


@pytest.mark.parametrize("name", OLD + FITTING)
def test_recorded_manifests(name: str) -> None:
    rim = check(read(name), fixed_time(name), production().nvidia_rim)
    assert len(rim.measurements) == MANIFEST[name]["expected"]["active"]
    assert rim.product == "GH100"


def test_the_old_manifests_do_not_fit_the_recorded_report() -> None:
    report = parse_report(read("nvidia/h100.report"))
    at = fixed_time(OLD[0])
    old = [check(read(name), at, production().nvidia_rim) for name in OLD]
    assert differing(report, old[:1]) == [*(7, 21, 22, 25, 26, 27, 29, 30, 31, 32, 34, 36, 37, 39, 40)]
    assert differing(report, old[1:]) == [1, 2, 9, 11]
    fitting = [check(read(name), AT, production().nvidia_rim) for name in FITTING]
    assert differing(report, fitting) == []
    assert len(differing(report, [old[0], fitting[1]])) == 15


def test_two_manifests_for_one_index_are_refused() -> None:
    report = parse_report(read("nvidia/h100.report"))
    rim = check(read(FITTING[0]), AT, production().nvidia_rim)
    with pytest.raises(NotAuthentic, match="same measurement"):
        differing(report, [rim, rim])


@pytest.mark.parametrize("name", FITTING)
def test_every_part_of_a_recorded_manifest_is_signed(name: str) -> None:
    data = read(name)
    place = data.index(b"<ds:KeyInfo")
    # Where a change of one character is a change of what is said: not white space, not a quote.
    offsets = [at for at in range(0, place, 37) if chr(data[at]).isalnum()]
    assert len(offsets) > 300
    for at in offsets:
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(EvidenceError):
            check(bytes(bad), AT, production().nvidia_rim)


def test_spelling_alone_is_not_signed() -> None:
    """Canonical XML: quotes, the order of attributes and an empty element's form change nothing."""
    other = good().replace(b'type="Measurement"', b"type='Measurement' ").replace(b'"/>', b'"  />')
    assert other != good()
    assert check(other).measurements == check(good()).measurements


@pytest.mark.parametrize("days", [-2, 4000])
def test_validity(days: int) -> None:
    with pytest.raises(NotAuthentic, match="not valid now"):
        check(good(), NOW + timedelta(days=days))


def test_another_root_is_refused() -> None:
    with pytest.raises(NotAuthentic):
        check(good(), root=production().nvidia_rim)
    with pytest.raises(NotAuthentic):
        check(good(), root=pki().device_root.pem)


def test_a_signer_under_another_root_is_refused() -> None:
    root = Authority.make("TEST CoRIM signing Root CA", pki().since, pki().until)
    signer = Authority.make("TEST RIM Signer", pki().since, pki().until, root, ca=False)
    xml = manifest_xml("580.1", {0: [VALUE]})
    for chain in ([signer, root], [signer], [signer, pki().rim_issuer], [root]):
        with pytest.raises(NotAuthentic):
            check(signed(xml, chain))


def test_a_signer_cannot_appoint_another() -> None:
    below = Authority.make("below", pki().since, pki().until, pki().rim_signer, ca=False)
    with pytest.raises(NotAuthentic):
        check(signed(manifest_xml("1", {0: [VALUE]}), [below, pki().rim_signer, pki().rim_issuer]))


# Hostile XML.

BOMB = (
    b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)


@pytest.mark.parametrize(
    "prefix",
    [
        b"<!DOCTYPE r>",
        BOMB,
        b'<!DOCTYPE r SYSTEM "file:///etc/passwd">',
        b'<!DOCTYPE r [<!ENTITY % x SYSTEM "http://127.0.0.1:1/x">%x;]>',
        b'<?xml version="1.0"?><!DOCTYPE r>',
    ],
)
def test_document_types_are_refused(prefix: bytes) -> None:
    with pytest.raises(MalformedEvidence, match="document type"):
        parse_rim(prefix + good())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"])
def test_other_encodings_hide_nothing(encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + BOMB.decode() + good().decode()
    with pytest.raises(EvidenceError):
        check(text.encode(encoding))


def test_a_declared_encoding_is_not_followed() -> None:
    text = '<?xml version="1.0" encoding="utf-7"?>' + "+ADwAIQ-DOCTYPE r+AD4-" + good().decode()
    with pytest.raises(EvidenceError):
        check(text.encode())


def test_an_entity_without_a_document_type() -> None:
    with pytest.raises(MalformedEvidence):
        check(good().replace(b'name="TEST"', b'name="&a;"'))


def test_size_is_bounded() -> None:
    with pytest.raises(MalformedEvidence, match="more than"):
        parse_rim(b"<a>" + b" " * MAX_RIM + b"</a>")


def test_depth_is_bounded() -> None:
    with pytest.raises(MalformedEvidence):
        parse_rim(b"<a>" * 20000)


def test_processing_instructions_and_xml_attributes_are_refused() -> None:
    xml = manifest_xml("580.1", {0: [VALUE]})
    for bad in (
        xml.replace("<ns0:Payload>", "<ns0:Payload><?php 1?>"),
        xml.replace('name="TEST"', 'name="TEST" xml:lang="en"'),
        xml.replace("<ns0:Payload>", '<ns0:Payload xml:base="http://x/">'),
    ):
        with pytest.raises(MalformedEvidence):
            check(signed(bad))


def test_a_manifest_without_a_canonical_form_is_refused() -> None:
    for bad in (
        good().replace(b"<ns0:Payload>", b'<ns0:Payload xmlns:x="a/b">'),
        good().replace(b"<ds:SignedInfo>", b'<ds:SignedInfo xmlns:x="a/b">'),
    ):
        with pytest.raises(MalformedEvidence, match="canonical form"):
            check(bad)


def test_comments_change_nothing_that_is_said() -> None:
    """Canonical XML leaves comments out, so a parser that reads text up to one reads another text."""
    data = good()
    digest = data.index(b"<ds:DigestValue>") + len(b"<ds:DigestValue>") + 4
    commented = data[:digest] + b"<!-- -->" + data[digest:]
    assert check(commented).measurements == check(data).measurements


def evil() -> str:
    return manifest_xml("580.1", {0: [bytes(48)]})


def test_wrapping_the_signed_manifest_into_another() -> None:
    genuine = good().decode()
    inside = evil().replace("<ns0:Payload>", f"{genuine}<ns0:Payload>")
    with pytest.raises(EvidenceError):
        check(inside.encode())
    # The signature at the place where it is looked for, the signed document beside it.
    signature = genuine[genuine.index("<ds:Signature") : genuine.index("</SoftwareIdentity>")]
    for body in (
        evil().replace("</SoftwareIdentity>", f"{signature}</SoftwareIdentity>"),
        evil().replace("</SoftwareIdentity>", f"<x>{genuine}</x>{signature}</SoftwareIdentity>"),
        evil().replace(
            "</SoftwareIdentity>",
            signature.replace("</ds:Signature>", f"<ds:Object>{genuine}</ds:Object></ds:Signature>")
            + "</SoftwareIdentity>",
        ),
    ):
        with pytest.raises(EvidenceError):
            check(body.encode())


def test_two_payloads_or_metas_are_refused() -> None:
    xml = manifest_xml("580.1", {0: [VALUE]})
    payload = xml[xml.index("<ns0:Payload>") : xml.index("</SoftwareIdentity>")]
    for bad in (
        xml.replace("</SoftwareIdentity>", payload + "</SoftwareIdentity>"),
        xml.replace("<ns0:Payload>", '<ns0:Meta colloquialVersion="9" product="x"/><ns0:Payload>'),
    ):
        with pytest.raises(MalformedEvidence):
            check(signed(bad))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('URI=""', 'URI="#x"'),
        ('URI=""', 'URI="http://127.0.0.1:1/x"'),
        ('<ds:Reference URI="">', "<ds:Reference>"),
        ("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384"),
        ("xmldsig-more#ecdsa-sha384", "xmldsig-more#rsa-sha384"),
        ("xmldsig-more#sha384", "xmldsig#sha1"),
        ("xmldsig#enveloped-signature", "xmldsig#base64"),
        ("2006/12/xml-c14n11", "TR/2001/REC-xml-c14n-20010315#WithComments"),
        (
            "<ds:Transforms>",
            '<ds:Transforms><ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"/>',
        ),
        ("</ds:SignedInfo>", '<ds:Reference URI=""/></ds:SignedInfo>'),
        ("</ds:Signature>", "<ds:Object/></ds:Signature>"),
        ("<ds:KeyInfo>", "<ds:KeyInfo><ds:KeyName>x</ds:KeyName>"),
        ("<ds:X509Data>", "<ds:X509Data/><ds:X509Data>"),
        ("<ds:SignatureValue>", "<ds:SignatureValue>!"),
    ],
)
def test_other_forms_of_signature_are_refused(old: str, new: str) -> None:
    data = good().decode()
    assert old in data
    with pytest.raises(MalformedEvidence):
        check(data.replace(old, new).encode())


def test_a_second_or_no_signature_is_refused() -> None:
    data = good()
    start, end = data.index(b"<ds:Signature "), data.index(b"</SoftwareIdentity>")
    with pytest.raises(MalformedEvidence, match="one signature"):
        check(data[:end] + data[start:end] + data[end:])
    with pytest.raises(MalformedEvidence, match="one signature"):
        check(data[:start] + data[end:])


def test_without_certificates_or_with_many() -> None:
    xml = manifest_xml("580.1", {0: [VALUE]})
    with pytest.raises(MalformedEvidence):
        check(signed(xml, [pki().rim_signer] + [pki().rim_issuer] * 8))
    data = good().decode()
    bare = data[: data.index("<ds:X509Certificate>")] + data[data.index("</ds:X509Data>") :]
    with pytest.raises(MalformedEvidence):
        check(bare.encode())


def test_text_after_the_signature_is_signed() -> None:
    tail = good().replace(b"</ds:Signature>", b"</ds:Signature> ")
    with pytest.raises(NotAuthentic, match="changed"):
        check(tail)


def test_a_signature_with_text_after_it_verifies() -> None:
    """As some writers indent."""
    root = etree.fromstring(good())
    root[-1].tail = "\n"
    xml = manifest_xml("580.1", {0: [VALUE], 7: [VALUE, bytes(48)]})
    indented = signed(xml.replace("</SoftwareIdentity>", "\n</SoftwareIdentity>"))
    moved = indented.replace(b"\n<ds:Signature", b"<ds:Signature").replace(
        b"</ds:Signature>", b"</ds:Signature>\n"
    )
    assert moved != indented
    assert check(moved).measurements == check(indented).measurements == check(good()).measurements


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('index="0"', 'index="-1"'),
        ('index="0"', 'index="255"'),
        ('index="0"', 'index="7"'),
        ('index="0"', 'index="٣"'),
        ('alternatives="1"', 'alternatives="0"'),
        ('alternatives="1"', 'alternatives="2"'),
        ('alternatives="1"', 'alternatives="999"'),
        ('active="True"', 'active="true"'),
        ('size="48"', 'size="32"'),
        (VALUE.hex(), VALUE.hex()[:-2]),
        (VALUE.hex(), "zz" + VALUE.hex()[2:]),
        ('type="Measurement"', 'type="File"'),
        ("<ns0:Resource", "<ns0:Directory"),
        ("ns2:Hash0", "Hash0"),
        ("xmlenc#sha384", "xmlenc#sha256"),
        ('colloquialVersion="580.1"', ""),
        ('product="GH100"', ""),
        ("<ns0:Payload>", "<ns0:Evidence/><ns0:Payload>"),
    ],
)
def test_signed_and_not_understood(old: str, new: str) -> None:
    """Not even NVIDIA's signature makes sense of what has none; the last one here is only ignored."""
    xml = manifest_xml("580.1", {0: [VALUE], 7: [VALUE]})
    assert old in xml
    data = signed(xml.replace(old, new))
    if "Evidence" in new:
        assert check(data).version == "580.1"
        return
    with pytest.raises(MalformedEvidence):
        check(data)


def test_a_manifest_without_measurements_is_refused() -> None:
    with pytest.raises(MalformedEvidence, match="no measurement"):
        check(signed(manifest_xml("580.1", {})))
    with pytest.raises(MalformedEvidence, match="no measurement"):
        check(signed(manifest_xml("580.1", {0: [VALUE]}).replace('"True"', '"False"')))


def test_signature_of_another_key_or_size() -> None:
    data = good().decode()
    start = data.index("<ds:SignatureValue>") + len("<ds:SignatureValue>")
    end = data.index("</ds:SignatureValue>")
    for value in (bytes(96), bytes(95), b"", b"\xff" * 96):
        text = base64.b64encode(value).decode()
        with pytest.raises(EvidenceError):
            check((data[:start] + text + data[end:]).encode())


@given(st.binary(max_size=200))
def test_anything_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        check(data)


@given(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4))
def test_any_change_is_refused_or_means_nothing(at: int, insert: bytes) -> None:
    data = good_once()
    at %= len(data)
    try:
        rim = check(data[:at] + insert + data[at:])
    except EvidenceError:
        return
    assert (rim.version, rim.measurements) == ("580.1", {0: (VALUE,), 7: (VALUE, bytes(48))})


_GOOD: list[bytes] = []


def good_once() -> bytes:
    if not _GOOD:
        _GOOD.append(good())
    return _GOOD[0]


def test_version_is_read_before_anything_is_verified() -> None:
    assert version_of(parse_rim(read(FITTING[1]))) == "96.00.9F.00.01"
    assert check(read(FITTING[1]), datetime(2025, 1, 1, tzinfo=UTC), production().nvidia_rim).not_after
