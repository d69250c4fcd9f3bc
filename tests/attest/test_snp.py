"""Reports of SEV-SNP: recorded ones against AMD's roots, and every rule against a PKI like AMD's."""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.snp import describe
from strongroom.attest.snp_report import PRODUCTS, parse_report
from strongroom.attest.verify import Context, verify
from strongroom.errors import (
    EvidenceError,
    MalformedEvidence,
    MissingEndorsement,
    NotAuthentic,
    ServerUnavailable,
    Unavailable,
)
from strongroom.testing.amd import SnpPki
from strongroom.testing.amd_coco import coco_fields

NOW = datetime(2026, 7, 1, tzinfo=UTC)
SAMPLES = [name for name, entry in MANIFEST.items() if entry["kind"] == "snp-report"]
DAY = timedelta(days=1)


def chain_of(product: str) -> bytes:
    return read(f"snp/roots/{product.lower()}_ask_ark_asvk.pem")


def recorded(name: str) -> Evidence:
    entry = MANIFEST[name]
    return Evidence("snp", read(name), (read(entry["vek"]), chain_of(entry["expected"]["product"])))


def recorded_context(name: str) -> Context:
    return Context(fixed_time(name), production())


@cache
def pki(product: str = "Milan", signer: str = "vcek") -> SnpPki:
    return SnpPki.create(NOW, product=product, signer=signer)


def context(made: SnpPki | None = None, **changes) -> Context:
    return replace(Context(NOW, (made or pki()).roots(production())), **changes)


class Source:
    """Has what it is given; remembers what it was asked."""

    def __init__(self, **answers: bytes | Exception) -> None:
        self.answers = answers
        self.asked: list[Wanted] = []

    def fetch(self, wanted: Wanted) -> bytes:
        self.asked.append(wanted)
        answer = self.answers.get(wanted.what.removeprefix("amd-"))
        if answer is None:
            raise MissingEndorsement("It is not here.")
        if isinstance(answer, Exception):
            raise answer
        return answer


# --- recorded ---------------------------------------------------------------------------------------


def test_the_samples_are_of_every_product_and_signer():
    seen = {
        (MANIFEST[name]["expected"]["product"], MANIFEST[name]["expected"]["kind"]) for name in SAMPLES
    }
    assert seen == {("Milan", "vcek"), ("Milan", "vlek"), ("Genoa", "vcek"), ("Turin", "vcek")}
    assert {MANIFEST[name]["expected"]["version"] for name in SAMPLES} == {2, 3, 5}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_recorded_report_has_the_recorded_verdict(name):
    entry = MANIFEST[name]
    expected = entry["expected"]
    claims = verify(recorded(name), recorded_context(name))
    assert claims.kind == "snp"
    assert claims.debug is expected["debug"] is claims.values["policy"]["debug"]
    assert claims.values["product"] == expected["product"]
    assert claims.values["signer"] == expected["kind"]
    assert claims.values["version"] == expected["version"]
    assert claims.values["vmpl"] == expected["vmpl"]
    assert claims.values["tcb"]["reported"] == expected["reported_tcb"]
    assert claims.values["measurement"] == entry["measurements"]["measurement"]
    assert claims.values["host_data"] == entry["measurements"]["host_data"]
    chip = entry["measurements"]["chip_id"]
    hidden = not chip.strip("0")
    assert claims.values["chip_id"] == (None if hidden else chip)
    assert claims.platform == (None if hidden else f"chip_id:{chip}")
    assert (claims.values["csp_id"] is None) is (expected["kind"] == "vcek")
    assert claims.bound.hex() == entry["report_data"]
    assert claims.values["revocation"] == "unchecked"
    assert not claims.test_root
    assert not claims.faults
    json.dumps(claims.to_json())
    assert len(claims.digest) == 32


def test_the_provider_of_a_leased_key_is_named():
    name = "snp/milan_v2_vlek.bin"
    assert (
        verify(recorded(name), recorded_context(name)).values["csp_id"]
        == "CN=cc-us-east-2.amazonaws.com"
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_before_and_after_its_time_a_recorded_report_is_refused(name):
    claims = verify(recorded(name), recorded_context(name))
    last = replace(recorded_context(name), now=claims.not_after)
    assert verify(recorded(name), last) == claims
    for now in (claims.not_after + timedelta(seconds=1), datetime(2020, 1, 1, tzinfo=UTC)):
        with pytest.raises(NotAuthentic, match="not valid now"):
            verify(recorded(name), replace(last, now=now))


@pytest.mark.parametrize("name", SAMPLES)
def test_under_the_root_of_a_test_or_of_another_product_a_recorded_report_is_refused(name):
    product = MANIFEST[name]["expected"]["product"]
    real = production()
    test = pki(product).roots(real)
    with pytest.raises(NotAuthentic):
        verify(recorded(name), replace(recorded_context(name), roots=test))
    other = "Genoa" if product != "Genoa" else "Milan"
    swapped = replace(real, amd={**real.amd, product: real.amd[other]})
    with pytest.raises(NotAuthentic, match="was not issued by"):
        verify(recorded(name), replace(recorded_context(name), roots=swapped))
    without = replace(real, amd={other: real.amd[other]})
    with pytest.raises(NotAuthentic, match="No root of AMD"):
        verify(recorded(name), replace(recorded_context(name), roots=without))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_byte_of_a_report_counts(name):
    evidence, where = recorded(name), recorded_context(name)
    survivors = []
    for at in range(len(evidence.data)):
        changed = bytearray(evidence.data)
        changed[at] ^= 1 << at % 8
        try:
            verify(replace(evidence, data=bytes(changed)), where)
        except EvidenceError:
            continue
        survivors.append(at)
    assert survivors == []


@pytest.mark.parametrize("name", ["snp/milan_v3.bin", "snp/milan_v2_vlek.bin", "snp/turin_v5.bin"])
def test_every_byte_of_the_certificate_of_the_key_counts(name):
    evidence, where = recorded(name), recorded_context(name)
    key, chain = evidence.endorsements
    for at in range(len(key)):
        changed = bytearray(key)
        changed[at] ^= 1 << at % 8
        with pytest.raises(EvidenceError):
            verify(replace(evidence, endorsements=(bytes(changed), chain)), where)


@pytest.mark.parametrize("size", [0, 1, 31, 671, 1183, 1185, 2048, 65536, 65537])
def test_cut_and_oversized_reports_are_refused(size):
    evidence = recorded("snp/milan_v3.bin")
    changed = replace(evidence, data=evidence.data[:size].ljust(size, b"\0"))
    with pytest.raises(MalformedEvidence):
        verify(changed, recorded_context("snp/milan_v3.bin"))


def test_describe_reads_without_believing():
    evidence = recorded("snp/turin_v5.bin")
    said = describe(evidence)
    assert said["product"] == "Turin"
    assert said["tcb"]["reported"]["fmc"] == 0
    assert said["report_data"] == MANIFEST["snp/turin_v5.bin"]["report_data"]
    assert describe(replace(evidence, endorsements=()))["product"] == "Turin"
    assert describe(Evidence("snp", read("snp/milan_v2.bin")))["product"] == "Milan"
    with pytest.raises(MalformedEvidence):
        describe(Evidence("snp", b"x" * 1184))


# --- synthetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("signer", ["vcek", "vlek"])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_product_signer_and_version_verifies(product, signer, version):
    made = pki(product, signer)
    evidence = made.evidence(
        b"bound", version=version, measurement=b"\x11" * 48, host_data=b"\x22" * 32
    )
    claims = verify(evidence, context(made))
    assert claims.test_root
    assert claims.bound == b"bound".ljust(64, b"\0")
    assert claims.values["product"] == product
    assert claims.values["signer"] == signer
    assert claims.values["version"] == version
    assert claims.values["measurement"] == "11" * 48
    assert claims.values["host_data"] == "22" * 32
    assert claims.values["tcb"]["reported"] == made.tcb
    assert claims.values["revocation"] == "checked"
    assert claims.values["csp_id"] == ("CN=cc-test.example" if signer == "vlek" else None)
    assert claims.not_after == NOW - timedelta(hours=1) + 30 * DAY
    assert ("launch_mit_vector" in claims.values) is (version == 5)
    with pytest.raises(NotAuthentic):
        verify(evidence, Context(NOW, production()))


def test_debug_and_the_bit_that_is_always_one_are_in_the_claims():
    claims = verify(pki().evidence(b"", debug=True), context())
    assert claims.debug
    assert not claims.faults
    assert claims.values["policy"] == {
        "abi_minor": 0,
        "abi_major": 0,
        "smt": True,
        "migrate_ma": False,
        "debug": True,
        "single_socket": False,
        "cxl_allow": False,
        "mem_aes_256_xts": False,
        "rapl_dis": False,
        "ciphertext_hiding_dram": False,
        "page_swap_disable": False,
    }
    (fault,) = verify(pki().evidence(b"", policy=0x10000), context()).faults
    assert "17" in fault


def test_the_versions_of_the_committed_tcb_and_the_levels_are_told_apart():
    claims = verify(pki().evidence(b"", committed={"snp": 20}, vmpl=2, guest_svn=7), context())
    assert claims.values["tcb"]["committed"]["snp"] == 20
    assert claims.values["tcb"]["reported"]["snp"] == 24
    assert (claims.values["vmpl"], claims.values["guest_svn"]) == (2, 7)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({0x0: struct.pack("<I", 1)}, "version 1"),
        ({0x0: struct.pack("<I", 6)}, "version 6"),
        ({0x30: struct.pack("<I", 4)}, "privilege level 4"),
        ({0x34: struct.pack("<I", 2)}, "algorithm 2"),
        ({0x48: struct.pack("<I", 2)}, "not signed"),
        ({0x48: struct.pack("<I", 7 << 2)}, "not signed"),
    ],
)
def test_reports_that_say_something_else_are_refused(changes, reason):
    with pytest.raises(MalformedEvidence, match=reason):
        verify(pki().evidence(b"", changes=changes), context())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({0x180: bytes([5, 0, 0, 0, 0, 0, 24, 219])}, "bootloader"),
        ({0x180: bytes([4, 1, 0, 0, 0, 0, 24, 219])}, "tee"),
        ({0x180: bytes([4, 0, 0, 0, 0, 0, 23, 219])}, "snp"),
        ({0x180: bytes([4, 0, 0, 0, 0, 0, 24, 220])}, "microcode"),
        ({0x1A0: b"\x99"}, "another processor"),
        ({0x188: bytes([0x19, 0x11])}, "another processor"),
        ({0x188: bytes([0x17, 0x01])}, "another processor"),
    ],
)
def test_a_report_that_the_certificate_of_its_key_contradicts_is_refused(changes, reason):
    with pytest.raises(NotAuthentic, match=reason):
        verify(pki().evidence(b"", changes=changes), context())


@pytest.mark.parametrize("signer", range(2, 8))
def test_signers_that_nobody_knows_have_signed_nothing(signer):
    report = bytearray(pki().report(b""))
    assert report[0x48] == 0
    report[0x48] = signer << 2
    with pytest.raises(MalformedEvidence, match="not signed"):
        verify(replace(pki().evidence(b""), data=bytes(report)), context())


def test_versions_and_vectors_are_read_where_amd_puts_them():
    report = bytearray(pki().report(b""))
    report[0] = 5
    whiches = {"current": 0x38, "reported": 0x180, "committed": 0x1E0, "launch": 0x1F0}
    for number, at in enumerate(whiches.values()):
        report[at] = 10 + number
    report[0x1F8:0x208] = bytes(range(16))
    values = parse_report(bytes(report)).values(PRODUCTS["Milan"])
    assert [values["tcb"][which]["bootloader"] for which in whiches] == [10, 11, 12, 13]
    assert values["launch_mit_vector"] == "0706050403020100"
    assert values["current_mit_vector"] == "0f0e0d0c0b0a0908"


def test_the_fmc_of_turin_is_compared():
    made = pki("Turin")
    with pytest.raises(NotAuthentic, match="fmc"):
        verify(made.evidence(b"", changes={0x180: b"\x02"}), context(made))


@pytest.mark.parametrize(
    ("signer", "extensions", "reason"),
    [
        ("vcek", {"2": b"\x16\x05Genoa"}, "another product than its issuer"),
        ("vcek", {"2": b"\x16\x06Milano"}, "another product than its issuer"),
        ("vcek", {"2": None}, r"lacks the extension .*\.2,"),
        ("vcek", {"2": b""}, r"lacks the extension .*\.2,"),
        ("vcek", {"2": b"\x16\x06Milan"}, r"lacks the extension .*\.2,"),
        ("vcek", {"2": b"\x04\x05Milan"}, r"lacks the extension .*\.2,"),
        ("vcek", {"2": b"\x16\x05Mil\xe4n"}, "is not text"),
        ("vcek", {"2": b"\x16\x06Milan\n"}, "is not text"),
        ("vcek", {"3.3": None}, r"lacks the extension .*\.3\.3,"),
        ("vcek", {"3.3": b"\x02\x01\x17"}, "snp is 24"),
        ("vcek", {"3.8": b"\x02\x01\xdb"}, "microcode is 219"),  # -37
        ("vcek", {"4": None}, "does not name its processor"),
        ("vcek", {"4": bytes(64)}, "does not name its processor"),
        ("vcek", {"4": bytes(range(1, 64))}, "does not name its processor"),
        ("vcek", {"4": b"\x04\x40" + bytes(range(1, 65))}, "does not name its processor"),
        ("vcek", {"5": b"\x16\x04CN=x"}, "does not name its processor"),
        ("vlek", {"5": None}, r"lacks the extension .*\.5,"),
        ("vlek", {"5": b"\x16\x00"}, r"lacks the extension .*\.5,"),
        ("vlek", {"4": bytes(range(1, 65))}, "does not name a cloud provider"),
    ],
)
def test_certificates_of_keys_that_say_something_else_are_refused(signer, extensions, reason):
    made = pki(signer=signer).another(chip_id=pki().chip_id, extensions=extensions)
    with pytest.raises(NotAuthentic, match=reason):
        verify(made.evidence(b""), context(made))


def test_a_key_of_another_curve_is_refused():
    for curve in (ec.SECP256R1(), ec.SECP521R1()):
        made = pki().another(chip_id=pki().chip_id, curve=curve)
        with pytest.raises(NotAuthentic, match="P-384"):
            verify(made.evidence(b""), context(made))


def test_the_processor_in_the_report_is_of_the_product_of_the_issuer():
    other = SnpPki.create(NOW, product="Genoa")
    made = replace(other, product="Milan")
    evidence = Evidence("snp", made.report(b""), (other.key_der, other.chain_pem))
    with pytest.raises(NotAuthentic, match="another processor"):
        verify(evidence, context(other))


def test_a_hidden_processor_is_known_by_its_key():
    claims = verify(pki().evidence(b"", hide_chip=True), context())
    assert claims.platform == f"chip_id:{pki().chip_id.hex()}"
    leased = pki(signer="vlek")
    assert verify(leased.evidence(b"", hide_chip=True), context(leased)).platform is None


def test_the_kinds_of_keys_are_not_mistaken_for_each_other():
    made, leased = pki(), pki(signer="vlek")
    says_vlek = replace(made.evidence(b""), data=made.report(b"", changes={0x48: struct.pack("<I", 4)}))
    with pytest.raises(MissingEndorsement, match="VLEK"):
        verify(says_vlek, context())
    says_vcek = replace(leased.evidence(b""), data=leased.report(b"", changes={0x48: bytes(4)}))
    with pytest.raises(MissingEndorsement, match="VCEK"):
        verify(says_vcek, context(leased))


def test_a_leased_key_is_issued_by_the_authority_for_leased_keys_alone():
    # The authority for processors' keys vouches for a VLEK, which is not its to give.
    made = replace(pki(), signer="vlek").another(chip_id=pki().chip_id)
    with pytest.raises(NotAuthentic, match="not issued for a product"):
        verify(made.evidence(b""), context(made))
    made = replace(pki(signer="vlek"), signer="vcek").another(chip_id=pki().chip_id)
    with pytest.raises(NotAuthentic, match="not issued for a product"):
        verify(made.evidence(b""), context(made))


@pytest.mark.parametrize("at", [0x330, 0x400, 0x49F])
def test_nothing_stands_behind_the_signature(at):
    report = bytearray(pki().report(b""))
    report[at] = 1
    with pytest.raises(MalformedEvidence, match="behind its signature"):
        verify(replace(pki().evidence(b""), data=bytes(report)), context())


def test_the_key_of_another_processor_is_refused():
    other = pki().another(chip_id=b"\x77" * 64)
    evidence = replace(pki().evidence(b""), endorsements=other.evidence(b"").endorsements)
    with pytest.raises(NotAuthentic, match="another processor"):
        verify(evidence, context())
    same = pki().another(chip_id=pki().chip_id)
    evidence = replace(pki().evidence(b""), endorsements=same.evidence(b"").endorsements)
    with pytest.raises(NotAuthentic, match="signature of its key"):
        verify(evidence, context())


def test_an_authority_in_the_place_of_the_key_is_refused():
    # Somebody with a VCEK cannot issue another one: it is no authority.
    made = pki()
    signed_by_key = replace(
        made,
        certificates={**made.certificates, "ask": made.certificates["vek"]},
        issuer_keys=made.issuer_keys,
    )
    with pytest.raises(MissingEndorsement):
        verify(Evidence("snp", made.report(b""), (made.key_der, signed_by_key.table("ask"))), context())


# --- endorsements -----------------------------------------------------------------------------------


def test_endorsements_come_as_der_pem_and_table():
    made = pki()
    expected = verify(made.evidence(b"x"), context())
    pem = made.certificates["vek"].public_bytes(Encoding.PEM)
    report = made.report(b"x")
    for endorsements in (
        (pem + made.chain_pem, made.crl()),
        (made.crl(), made.table("vek", "ask", "ark")),
        (made.table("vek", "ask"), made.crl()),
        (made.table("ark"), made.key_der, made.chain_pem, made.key_der, made.crl()),
    ):
        assert verify(Evidence("snp", report, endorsements), context()).digest == expected.digest


def test_a_table_in_the_byte_order_of_microsoft_is_read():
    table = pki().table("vek", "ask")
    swapped = b"".join(
        uuid.UUID(bytes=table[at : at + 16]).bytes_le + table[at + 16 : at + 24] for at in (0, 24)
    )
    assert verify(Evidence("snp", pki().report(b""), (swapped + table[48:],)), context())


def test_a_table_may_have_entries_that_nobody_knows():
    table = pki().table("vek", "ask")
    shifted = b"".join(
        table[at : at + 16]
        + struct.pack(
            "<II",
            struct.unpack_from("<I", table, at + 16)[0] + 24,
            *struct.unpack_from("<I", table, at + 20),
        )
        for at in (0, 24)
    )
    unknown = b"\x42" * 16 + struct.pack("<II", 96, 4)
    assert verify(Evidence("snp", pki().report(b""), (shifted + unknown + table[48:],)), context())


@pytest.mark.parametrize("cut", [16, 24, 40, 48, 71, 72, 100, 900, -1])
def test_tables_that_are_cut_off_are_refused(cut):
    with pytest.raises(EvidenceError):
        verify(Evidence("snp", pki().report(b""), (pki().table("vek", "ask")[:cut],)), context())


@pytest.mark.parametrize(
    "junk", [b"", b"\0", b"junk", b"0\x82\x05", b"-----BEGIN CERTIFICATE-----\n", b"0" * 70000]
)
def test_endorsements_that_are_none_are_refused(junk):
    evidence = pki().evidence(b"")
    with pytest.raises(MalformedEvidence):
        verify(replace(evidence, endorsements=(*evidence.endorsements, junk)), context())


def test_two_keys_are_refused():
    other = pki().another(chip_id=b"\x77" * 64)
    evidence = pki().evidence(b"")
    with pytest.raises(MalformedEvidence, match="Several"):
        verify(replace(evidence, endorsements=(*evidence.endorsements, other.key_der)), context())


def test_what_is_missing_is_fetched():
    made = pki()
    source = Source(vcek=made.key_der, chain=made.chain_pem, crl=made.crl())
    claims = verify(Evidence("snp", made.report(b"")), context(endorsements=source))
    assert claims.values["revocation"] == "checked"
    assert source.asked == [
        Wanted(
            "amd-vcek",
            {
                "product": "Milan",
                "hwid": made.chip_id.hex(),
                "bl": "4",
                "tee": "0",
                "snp": "24",
                "ucode": "219",
            },
        ),
        Wanted("amd-chain", {"product": "Milan", "signer": "vcek"}),
        Wanted("amd-crl", {"product": "Milan", "signer": "vcek"}),
    ]


def test_turin_is_asked_for_by_eight_bytes_and_with_its_fmc():
    made = pki("Turin")
    source = Source(vcek=made.key_der, chain=made.chain_pem, crl=made.crl())
    verify(Evidence("snp", made.report(b"")), context(made, endorsements=source))
    members = source.asked[0].members
    assert members["hwid"] == made.chip_id[:8].hex()
    assert members["fmc"] == "1"


def test_a_report_of_version_2_asks_for_both_products_that_it_may_be_of():
    made = pki("Genoa")

    class Picky(Source):
        def fetch(self, wanted):
            if wanted.members["product"] != "Genoa":
                self.asked.append(wanted)
                raise MissingEndorsement("It is not here.")
            return super().fetch(wanted)

    source = Picky(vcek=made.key_der, chain=made.chain_pem, crl=made.crl())
    claims = verify(Evidence("snp", made.report(b"", version=2)), context(made, endorsements=source))
    assert claims.values["product"] == "Genoa"
    assert [wanted.members["product"] for wanted in source.asked[:2]] == ["Milan", "Genoa"]


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence("snp", pki().report(b"")),
        Evidence("snp", pki().report(b""), (pki().key_der,)),
        Evidence("snp", pki().report(b""), (pki().chain_pem,)),
        Evidence("snp", pki(signer="vlek").report(b"")),
        Evidence("snp", pki().report(b"", hide_chip=True)),
        Evidence("snp", pki().report(b"", changes={0x188: b"\x42\x42"})),
    ],
)
def test_without_certificates_nothing_is_believed(evidence):
    for source in (None, Source()):
        with pytest.raises(MissingEndorsement):
            verify(evidence, context(endorsements=source))


def test_a_source_that_lies_is_not_believed():
    other = SnpPki.create(NOW)
    source = Source(vcek=other.key_der, chain=other.chain_pem, crl=other.crl())
    with pytest.raises(NotAuthentic):
        verify(Evidence("snp", other.report(b"")), context(endorsements=source))
    with pytest.raises(MalformedEvidence):
        verify(Evidence("snp", pki().report(b"")), context(endorsements=Source(vcek=b"junk")))
    with pytest.raises(MissingEndorsement):
        verify(Evidence("snp", pki().report(b"")), context(endorsements=Source(vcek=pki().chain_pem)))


# --- revocation -------------------------------------------------------------------------------------


def with_crl(made: SnpPki, *crls: bytes) -> Evidence:
    return Evidence("snp", made.report(b""), (made.key_der, made.chain_pem, *crls))


def test_with_no_source_and_no_list_the_claims_say_that_nobody_looked():
    claims = verify(with_crl(pki()), context())
    assert claims.values["revocation"] == "unchecked"
    assert claims.not_after == NOW + 365 * DAY


@pytest.mark.parametrize("revoked", ["ask", "vek"])
def test_what_is_revoked_is_refused(revoked):
    made = pki().another(chip_id=pki().chip_id, serial=4711)
    assert verify(with_crl(made, made.crl()), context()).values["revocation"] == "checked"
    with pytest.raises(NotAuthentic, match="has been revoked"):
        verify(with_crl(made, made.crl(revoked=[revoked])), context())
    with pytest.raises(NotAuthentic, match="has been revoked"):
        verify(with_crl(made), context(endorsements=Source(crl=made.crl(revoked=[revoked]))))


def test_the_number_of_the_list_is_claimed():
    claims = verify(with_crl(pki(), pki().crl(number=300)), context())
    assert list(claims.crls.values()) == [300]
    assert all(issuer.startswith("test: ") and "ARK-" in issuer for issuer in claims.crls)
    assert verify(with_crl(pki()), context()).crls == {}


def test_the_list_of_the_source_counts_whatever_the_evidence_brings():
    # An older list that still holds, and does not name the authority yet.
    source = Source(crl=pki().crl(revoked=["ask"]))
    with pytest.raises(NotAuthentic, match="has been revoked"):
        verify(with_crl(pki(), pki().crl()), context(endorsements=source))


@pytest.mark.parametrize(
    ("crl", "reason"),
    [
        (pki().crl(issued=NOW - 31 * DAY), "it ended"),
        (pki().crl(issued=NOW + DAY), "it holds from"),
        (pki().crl(by="ask"), "may not issue revocation lists"),
        (SnpPki.create(NOW).crl(), "signature"),
        (pki("Genoa").crl(), "not in the chain"),
    ],
)
def test_lists_that_do_not_hold_are_refused(crl, reason):
    with pytest.raises(NotAuthentic, match=reason):
        verify(with_crl(pki(), crl), context())
    with pytest.raises(NotAuthentic, match=reason):
        verify(with_crl(pki()), context(endorsements=Source(crl=crl)))


def test_where_a_source_is_configured_a_list_is_required():
    with pytest.raises(MissingEndorsement):
        verify(with_crl(pki()), context(endorsements=Source()))
    down = Source(crl=ServerUnavailable("It does not answer."))
    with pytest.raises(Unavailable):
        verify(with_crl(pki()), context(endorsements=down))
    for source in (Source(), down):
        claims = verify(with_crl(pki(), pki().crl()), context(endorsements=source))
        assert claims.values["revocation"] == "checked"


def test_claims_end_with_the_first_thing_that_ends():
    short = pki().another(chip_id=pki().chip_id, days=3)
    claims = verify(with_crl(short, short.crl()), context())
    assert claims.not_after == NOW + 3 * DAY
    claims = verify(with_crl(short, short.crl(days=2)), context())
    assert claims.not_after == NOW - timedelta(hours=1) + 2 * DAY


# --- Confidential Containers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_a_report_as_json_is_the_same_report(name):
    evidence = recorded(name)
    data = json.dumps(coco_fields(evidence.data)).encode()
    expected = verify(evidence, recorded_context(name))
    assert verify(replace(evidence, data=data), recorded_context(name)) == expected
    key, chain = evidence.endorsements
    sent = [{"cert_type": "VCEK", "data": list(key)}]
    data = json.dumps(coco_fields(evidence.data, sent)).encode()
    assert verify(Evidence("snp", data, (chain,)), recorded_context(name)) == expected


def test_every_member_of_a_report_as_json_counts():
    name = "snp/genoa_v5.bin"
    evidence = recorded(name)
    whole = coco_fields(evidence.data)
    for member, value in whole["attestation_report"].items():
        for other in (None, [], {}, "x", -1, 1 << 64, 1.5, True):
            changed = {**whole["attestation_report"], member: other}
            data = json.dumps({"attestation_report": changed}).encode()
            with pytest.raises(EvidenceError):
                verify(replace(evidence, data=data), recorded_context(name))
        if isinstance(value, int):
            changed = {**whole["attestation_report"], member: value ^ 1}
            data = json.dumps({"attestation_report": changed}).encode()
            with pytest.raises(EvidenceError):
                verify(replace(evidence, data=data), recorded_context(name))


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{}",
        b'{"attestation_report": null}',
        b'{"attestation_report": [1]}',
        b'{"attestation_report": {}, "attestation_report": {}}',
        json.dumps({**coco_fields(read("snp/milan_v3.bin")), "cert_chain": [None]}).encode(),
        json.dumps({**coco_fields(read("snp/milan_v3.bin")), "cert_chain": "x"}).encode(),
        json.dumps({**coco_fields(read("snp/milan_v3.bin")), "cert_chain": [{"data": [256]}]}).encode(),
        json.dumps(
            {**coco_fields(read("snp/milan_v3.bin")), "cert_chain": [{"data": []}] * 33}
        ).encode(),
    ],
)
def test_json_that_is_no_report_is_refused(data):
    with pytest.raises(MalformedEvidence):
        verify(replace(recorded("snp/milan_v3.bin"), data=data), recorded_context("snp/milan_v3.bin"))
