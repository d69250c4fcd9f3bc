from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from nvidia_cases import NONCE, pki
from recorded import MANIFEST, read

from strongroom.attest.certificates import load_certificates
from strongroom.attest.chains import chain_to
from strongroom.attest.nvidia_dice import _members, _parse, dice_of
from strongroom.attest.nvidia_report import MAX_REPORT, Opaque, parse_report
from strongroom.attest.roots import production
from strongroom.errors import MalformedEvidence, NotAuthentic
from strongroom.testing.authority import Authority

GOOD = read("nvidia/h100.report")


def test_the_recorded_report() -> None:
    report = parse_report(GOOD)
    assert sorted(report.measurements) == list(range(1, 65))
    assert report.signed + report.signature == GOOD
    assert report.text(Opaque.PROJECT) == "1010"
    assert report.vbios == "96.00.9F.00.01"
    switch = parse_report(read("nvidia/ls10_switch.report"))
    assert (len(switch.measurements), switch.vbios) == (31, "96.10.73.00.01")


def test_every_length_but_its_own_is_refused() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(MalformedEvidence):
            parse_report(GOOD[:size])
    for more in (1, 96, 4000):
        with pytest.raises(MalformedEvidence):
            parse_report(GOOD + bytes(more))


def test_size_is_bounded_before_anything_is_read() -> None:
    with pytest.raises(MalformedEvidence, match="more than"):
        parse_report(bytes(MAX_REPORT + 1))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 0x12),  # SPDM version of the request
        (1, 0xE1),  # another request
        (2, 0x00),  # a request for an answer without signature
        (3, 0x01),  # a request for one block only
        (37, 0x12),  # SPDM version of the response
        (38, 0x61),  # another response
        (41, 63),  # one block less than there are
        (41, 65),
        (41, 0),
        (42, 0xBF),  # a shorter record
        (44, 0x01),  # a record of 65 KB more
        (45, 0x00),  # block number 0
        (45, 0x02),  # a number twice
        (46, 0x02),  # no DMTF measurement
        (47, 0x34),  # sizes that contradict each other
        (50, 0x00),
    ],
)
def test_fields_that_are_not_what_they_should_be(at: int, value: int) -> None:
    bad = bytearray(GOOD)
    assert bad[at] != value
    bad[at] = value
    with pytest.raises(MalformedEvidence):
        parse_report(bytes(bad))


def test_a_field_said_twice_is_refused() -> None:
    report = pki().gpu().report(NONCE)
    second = bytes([3, 0, 4, 0]) + b"9.9\x00"
    at = report.rindex(bytes([21, 0, 1, 0, 0x55]))
    size_at = 37 + 8 + int.from_bytes(report[42:45], "little") + 32
    size = int.from_bytes(report[size_at : size_at + 2], "little") + len(second)
    bad = (
        report[:size_at] + size.to_bytes(2, "little") + report[size_at + 2 : at] + second + report[at:]
    )
    with pytest.raises(MalformedEvidence):
        parse_report(bad)


def test_versions_are_plain_text() -> None:
    for text in ("1.2\n3", "1.2\x1b[0m", "580é"):
        report = parse_report(pki().gpu().report(NONCE, opaque={3: text.encode()}))
        with pytest.raises(MalformedEvidence, match="not text"):
            report.text(Opaque.DRIVER_VERSION)


@given(st.binary(max_size=400))
def test_anything_is_parsed_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_report(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_parsed_or_refused(at: int, mask: int) -> None:
    bad = bytearray(GOOD)
    bad[at] ^= mask
    try:
        report = parse_report(bytes(bad))
    except MalformedEvidence:
        return
    assert report.signed + report.signature == bytes(bad)


def test_firmware_ids_of_both_forms() -> None:
    for model in ("GH100 A01 GSP BROM", "GB100 A01 GSP BROM"):
        gpu = pki().gpu(model)
        dice = dice_of(gpu.leaf.certificate)
        assert (dice.fwid, dice.flags) == (gpu.fwid, ())
    assert dice_of(pki().gpu("GB100", flags=0xF0).leaf.certificate).flags == (
        "not secure",
        "in recovery",
        "debug",
    )


def test_the_recorded_firmware_id_of_a_blackwell() -> None:
    chain = load_certificates(read("nvidia/gb100.pem"))
    at = datetime(2026, 7, 1, tzinfo=UTC)
    assert chain_to(chain, production().nvidia_device, at)[0][:-1] == list(chain)
    dice = dice_of(chain[0])
    assert dice.fwid.hex() == MANIFEST["nvidia/gb100.pem"]["expected"]["fwid"]
    assert dice.flags == ()


@pytest.mark.parametrize("name", ["h100", "gb100"])
def test_a_firmware_id_is_parsed_strictly(name: str) -> None:
    (good,) = [
        one.value.value
        for one in load_certificates(read(f"nvidia/{name}.pem"))[0].extensions
        if one.oid.dotted_string.startswith("2.23.133.5.4.1")
    ]
    fwid = _parse(good).fwid
    for size in range(len(good)):
        with pytest.raises((ValueError, IndexError)):
            _parse(good[:size])
    with pytest.raises((ValueError, IndexError)):
        _parse(good + b"\x00")
    at = good.index(fwid)
    for bad in (good[: at - 1] + b"\x2f" + good[at:], good[: at - 13] + b"\x31" + good[at - 12 :]):
        with pytest.raises((ValueError, IndexError)):
            _parse(bad)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80\x00\x00",  # no definite length
        b"\x30\x81\x02\x05\x00",  # longer than necessary
        b"\x30\x81\x7f" + bytes(0x7F),
        b"\x30\x82\x00\xff" + bytes(0xFF),
        b"\x30\x83\x00\x00\x02\x05\x00",
        b"\x30\x83\x01\x00\x00" + bytes(1 << 16),
        b"\x30\x84\xff\xff\xff\xff",
        b"\x1f\x81\x05\x00",  # a tag of several bytes
        b"\x30\x02\x05",
        b"\x30\x82\x01",
        b"\x30",
    ],
)
def test_der_has_one_spelling(data: bytes) -> None:
    assert list(_members(b"\x30\x81\x80" + bytes(0x80))) == [(0x30, bytes(0x80))]
    assert list(_members(b"\x30\x82\x01\x00" + bytes(0x100))) == [(0x30, bytes(0x100))]
    with pytest.raises((ValueError, IndexError)):
        list(_members(data))


def test_blackwells_members_stand_there_once() -> None:
    def value(*members: tuple[int, bytes]) -> bytes:
        inside = b"".join(bytes([tag, len(content)]) + content for tag, content in members)
        return b"\x30\x81" + bytes([len(inside)]) + inside

    said = bytes.fromhex("303d 06096086480165030402020430") + bytes(range(48))
    maker, fwid, flags = (0x80, b"NVIDIA" * 20), (0xA6, said), (0x87, b"\x00\x90")
    assert _parse(value(maker, fwid, flags)).flags == ("debug",)
    assert _parse(value(maker, fwid)).flags == ()
    for bad in (
        (maker, fwid, flags, (0x87, b"\x00\x80")),
        (maker, fwid, fwid),
        (maker, fwid, (0x87, b"")),
        (maker, fwid, (0x87, b"\x00")),
        (maker, (0xA6, said[:-1]), flags),
        (maker, (0xA6, b""), flags),
    ):
        with pytest.raises((ValueError, IndexError)):
            _parse(value(*bad))


def test_a_certificate_with_two_firmware_ids() -> None:
    (one,) = [
        extension
        for extension in pki().gpu().leaf.certificate.extensions
        if extension.oid.dotted_string == "2.23.133.5.4.1"
    ]
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), one.value.value)
    both = [(one.value, False), (other, False)]
    leaf = Authority.make("leaf", pki().since, pki().until, ca=False, extensions=both)
    with pytest.raises(NotAuthentic, match="what firmware"):
        dice_of(leaf.certificate)


def test_a_certificate_without_a_firmware_id() -> None:
    for certificate in load_certificates(read("nvidia/gb100.pem"))[1:]:
        with pytest.raises(NotAuthentic, match="what firmware"):
            dice_of(certificate)
