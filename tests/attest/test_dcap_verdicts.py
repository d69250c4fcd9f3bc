"""Every verdict on quotes in the real format, under a PKI that is made for the test."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from endless import endless

from strongroom.attest import dcap
from strongroom.attest.certificate_parsing import load_crl
from strongroom.attest.dcap_collateral import Collateral
from strongroom.attest.dcap_quote import Quote
from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import MalformedEvidence, MissingEndorsement, NotAuthentic, Unavailable
from strongroom.testing.intel import IntelPki
from strongroom.testing.intel_quote import sign_quote, td_body

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PKI = IntelPki.create(NOW)
ROOTS = PKI.roots(production())
CONTEXT = Context(NOW, ROOTS)
BOUND = bytes(range(64))
KINDS = ["sgx", "tdx"]

RETURNED = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]


def quote(kind: str, pki: IntelPki = PKI, **parts) -> bytes:
    return (pki.tdx_quote if kind == "tdx" else pki.sgx_quote)(BOUND, **parts)


def verdict(kind: str, *, pki: IntelPki = PKI, context: Context = CONTEXT, **collateral):
    return verify(Evidence(kind, quote(kind, pki), (pki.collateral(kind, **collateral),)), context)


class Source:
    """One that has ``answer``, or raises it."""

    def __init__(self, answer):
        self.answer = answer

    def fetch(self, wanted):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_does_not_choose_its_collateral(kind):
    """Collateral holds for a month: what a revoked machine kept from before is not asked for."""
    brought = Evidence(kind, quote(kind), (PKI.collateral(kind),))
    assert not verify(brought, CONTEXT).debug
    today = Source(PKI.collateral(kind, revoked=["pck"]))
    with pytest.raises(NotAuthentic, match="revoked"):
        verify(brought, replace(CONTEXT, endorsements=today))


@pytest.mark.parametrize("error", [MissingEndorsement("None."), Unavailable("Away.")])
def test_collateral_that_was_brought_counts_where_the_source_has_none(error):
    context = replace(CONTEXT, endorsements=Source(error))
    assert verify(Evidence("tdx", quote("tdx"), (PKI.collateral("tdx"),)), context)
    with pytest.raises(type(error)):
        verify(Evidence("tdx", quote("tdx")), context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_the_collateral_of_its_ca_is_asked_for(kind, ca):
    pki = IntelPki.create(NOW, ca=ca)
    asked = []

    class Known(Source):
        def fetch(self, wanted):
            asked.append(wanted)
            return super().fetch(wanted)

    context = Context(NOW, pki.roots(production()), Known(pki.collateral(kind)))
    assert verify(Evidence(kind, quote(kind, pki)), context)
    members = {"tee": kind, "fmspc": pki.fmspc.hex().upper(), "ca": ca}
    assert asked == [Wanted("intel", members)]


def test_a_certificate_that_does_not_say_its_model():
    certificates = {**PKI.certificates, "pck": PKI.certificates["tcb"]}
    other = replace(PKI, certificates=certificates)
    context = replace(CONTEXT, endorsements=Source(PKI.collateral("tdx")))
    with pytest.raises(NotAuthentic, match="does not say its model"):
        verify(Evidence("tdx", quote("tdx", other)), context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", RETURNED)
def test_a_status_is_a_claim(kind, status):
    claims = verdict(kind, status=status, advisories=["INTEL-SA-00002", "INTEL-SA-00001"])
    assert claims.values["tcb_status"] == status
    assert claims.values["advisories"] == ["INTEL-SA-00001", "INTEL-SA-00002"]
    assert claims.values["tcb_eval"] == 20
    assert claims.values["tcb_date"] == "2024-03-13T00:00:00Z"
    assert claims.bound == BOUND
    assert claims.test_root
    assert claims.not_after == NOW + timedelta(days=30, hours=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_of_the_quoting_enclave_counts(kind):
    assert verdict(kind, qe_status="OutOfDate").values["tcb_status"] == "OutOfDate"
    with pytest.raises(NotAuthentic, match="Revoked"):
        verdict(kind, qe_status="Revoked")


@pytest.mark.parametrize("kind", KINDS)
def test_the_older_date_of_platform_and_quoting_enclave_counts(kind):
    assert verdict(kind, tcb_date="2025-01-01T00:00:00Z").values["tcb_date"] == "2024-03-13T00:00:00Z"
    assert verdict(kind, tcb_date="2023-01-01T00:00:00Z").values["tcb_date"] == "2023-01-01T00:00:00Z"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"status": "Revoked"}, "Revoked"),
        ({"status": "NobodyKnows"}, "TcbInfo"),
        ({"revoked": ["pck"]}, "PCK certificate of this platform is revoked"),
        ({"revoked": ["ca"]}, "CA of this platform's PCK certificate is revoked"),
        ({"revoked": ["tcb"]}, "certificate chain"),
        ({"fmspc": bytes(6)}, "(?i)fmspc"),
        ({"issued": NOW - timedelta(days=31)}, "CRL of the root has expired"),
        ({"issued": NOW - timedelta(days=31), "crl_issued": NOW}, "TCB info has expired"),
        ({"issued": NOW + timedelta(seconds=1)}, "CRL of the root is from the future"),
        ({"crl_issued": NOW + timedelta(days=5)}, "CRL of the root is from the future"),
        ({"issued": NOW + timedelta(days=1), "crl_issued": NOW}, "TCB info is from the future"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_verdict_that_refuses(kind, what, words):
    with pytest.raises(NotAuthentic, match=words):
        verdict(kind, **what)


@pytest.mark.parametrize("who", ["pck", "ca"])
def test_the_library_refuses_what_is_revoked_as_well(monkeypatch, who):
    monkeypatch.setattr(Collateral, "check_revoked", lambda self, chain: None)
    with pytest.raises(NotAuthentic, match="does not verify"):
        verdict("tdx", revoked=[who])


@pytest.mark.parametrize("part", ["pck_crl", "qe_identity"])
def test_each_part_of_the_collateral_is_asked_for_its_date(part):
    fresh = json.loads(PKI.collateral("tdx"))
    for issued, words in ((-40, "expired"), (2, "from the future")):
        other = json.loads(PKI.collateral("tdx", issued=NOW + timedelta(days=issued)))
        mixed = {**fresh, **{name: other[name] for name in other if name.startswith(part)}}
        with pytest.raises(NotAuthentic, match=words):
            verify(Evidence("tdx", quote("tdx"), (json.dumps(mixed).encode(),)), CONTEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_debug_is_refused_although_all_is_signed(kind):
    evidence = Evidence(kind, quote(kind, debug=True), (PKI.collateral(kind),))
    with pytest.raises(NotAuthentic, match="debug mode"):
        verify(evidence, CONTEXT)


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_the_tud_byte_is_debug(bit):
    attributes = bytes([1 << bit, 0, 0, 0x10, 0, 0, 0, 0])
    evidence = Evidence("tdx", quote("tdx", td_attributes=attributes), (PKI.collateral("tdx"),))
    with pytest.raises(NotAuthentic, match="debug mode"):
        verify(evidence, CONTEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_an_expired_pck_is_refused(kind):
    short = IntelPki.create(NOW, pck_days=2)
    context = Context(NOW + timedelta(days=2, seconds=1), short.roots(production()))
    with pytest.raises(NotAuthentic, match=r"platform \(PCK\) has expired"):
        verdict(kind, pki=short, context=context)
    in_time = verdict(kind, pki=short, context=replace(context, now=NOW))
    assert in_time.not_after == NOW + timedelta(days=2)


@pytest.mark.parametrize("kind", KINDS)
def test_intels_root_does_not_vouch_for_it(kind):
    with pytest.raises(NotAuthentic):
        verdict(kind, context=Context(NOW, production()))


@pytest.mark.parametrize("kind", KINDS)
def test_another_root_does_not_vouch_for_it(kind):
    other = IntelPki.create(NOW)
    with pytest.raises(NotAuthentic):
        verdict(kind, context=Context(NOW, other.roots(production())))
    # Neither with the collateral of the one and the quote of the other.
    for quoted, vouched in ((PKI, other), (other, PKI)):
        with pytest.raises(NotAuthentic):
            verify(Evidence(kind, quote(kind, quoted), (vouched.collateral(kind),)), CONTEXT)


def test_the_parts_of_two_quotes_do_not_mix():
    first, second = quote("tdx"), PKI.tdx_quote(bytes(64), mr_td=b"\1" * 48)
    mixed = second[:632] + first[632:]
    with pytest.raises(NotAuthentic):
        verify(Evidence("tdx", mixed, (PKI.collateral("tdx"),)), CONTEXT)


def test_collateral_of_sgx_does_not_vouch_for_tdx():
    for kind, other in (("tdx", "sgx"), ("sgx", "tdx")):
        with pytest.raises(NotAuthentic):
            verify(Evidence(kind, quote(kind), (PKI.collateral(other),)), CONTEXT)


def test_measurements_and_platform_are_claims():
    parts = {f"rtmr{index}": bytes([index + 1]) * 48 for index in range(4)}
    machine = PKI.another(ppid=b"\xaa" * 16, piid=b"\xbb" * 16)
    evidence = Evidence(
        "tdx", quote("tdx", machine, mr_td=b"\7" * 48, **parts), (PKI.collateral("tdx"),)
    )
    values = verify(evidence, CONTEXT).values
    assert values["mr_td"] == "07" * 48
    assert [values[f"rtmr{index}"] for index in range(4)] == [
        f"{index:02x}" * 48 for index in range(1, 5)
    ]
    assert (values["ppid"], values["piid"]) == ("aa" * 16, "bb" * 16)
    assert verify(evidence, CONTEXT).platform == "ppid:" + "aa" * 16
    enclave = quote("sgx", mr_enclave=b"\1" * 32, mr_signer=b"\2" * 32, isv_prod_id=3, isv_svn=515)
    values = verify(Evidence("sgx", enclave, (PKI.collateral("sgx"),)), CONTEXT).values
    assert (values["mr_enclave"], values["mr_signer"]) == ("01" * 32, "02" * 32)
    assert (values["isv_prod_id"], values["isv_svn"]) == (3, 515)


@pytest.mark.parametrize(
    ("ppid", "platform"), [(bytes(16), "piid:" + "01" * 16), (b"\2" * 16, "ppid:" + "02" * 16)]
)
def test_a_ppid_of_zeros_identifies_nobody(ppid, platform):
    machine = PKI.another(ppid=ppid, piid=b"\1" * 16)
    assert verdict("tdx", pki=machine).platform == platform
    nobody = PKI.another(ppid=bytes(16), piid=bytes(16))
    assert verdict("tdx", pki=nobody).platform is None


def test_another_quote_of_one_machine_is_another_identity():
    first = verdict("tdx")
    second = verify(Evidence("tdx", PKI.tdx_quote(bytes(64)), (PKI.collateral("tdx"),)), CONTEXT)
    assert first.digest != second.digest
    assert first.platform == second.platform
    # Signed anew, ECDSA gives other bytes; what is said is the same.
    assert quote("tdx") != quote("tdx")
    assert verdict("tdx").digest == first.digest


@pytest.mark.parametrize(
    "collateral",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"tcb_info": "{}", "tcb_info": "{}"}',
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"{" * 100_000,
    ],
    ids=["empty", "nothing", "list", "bytes", "twice", "pem", "deep"],
)
def test_what_is_no_collateral_vouches_for_nothing(collateral):
    with pytest.raises(MissingEndorsement, match="not Intel's collateral"):
        verify(Evidence("tdx", quote("tdx"), (collateral,)), CONTEXT)


@pytest.mark.parametrize("name", json.loads(PKI.collateral("tdx")))
@pytest.mark.parametrize("value", [None, 1, "", "00", "zz", "{}", "é", ["x"], {"a": 1}])
def test_every_member_of_the_collateral_can_be_wrong(name, value):
    members = {**json.loads(PKI.collateral("tdx")), name: value}
    with pytest.raises((MissingEndorsement, NotAuthentic)):
        verify(Evidence("tdx", quote("tdx"), (json.dumps(members).encode(),)), CONTEXT)


@pytest.mark.parametrize("name", json.loads(PKI.collateral("tdx")))
def test_every_member_of_the_collateral_is_needed(name):
    members = json.loads(PKI.collateral("tdx"))
    del members[name]
    with pytest.raises(MissingEndorsement, match=name):
        verify(Evidence("tdx", quote("tdx"), (json.dumps(members).encode(),)), CONTEXT)


def test_oversized_evidence_is_not_looked_at():
    for data, endorsements in ((bytes(MAX_EVIDENCE + 1), ()), (b"x", (bytes(MAX_ENDORSEMENTS + 1),))):
        with pytest.raises(MalformedEvidence, match="more than"):
            verify(Evidence("tdx", data, endorsements), CONTEXT)


def test_fetched_collateral_is_bounded_too():
    class Source:
        def fetch(self, wanted):
            return b" " * MAX_ENDORSEMENTS + PKI.collateral("tdx")

    with pytest.raises(MissingEndorsement, match="more than"):
        verify(Evidence("tdx", quote("tdx")), replace(CONTEXT, endorsements=Source()))


class PanicException(BaseException):
    """Named as the one of pyo3, that is a BaseException too."""


@pytest.mark.parametrize(
    "raised", [PanicException("index out of bounds"), ValueError("x\n y"), TypeError()]
)
def test_whatever_the_library_raises_is_an_error_of_ours(monkeypatch, raised):
    import dcap_qvl

    class Verifier:
        def __init__(self, root_ca_der=None):
            raise raised

    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", Verifier)
    with pytest.raises(NotAuthentic, match="does not verify") as caught:
        verdict("tdx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_what_stops_a_process_passes(monkeypatch, raised):
    import dcap_qvl

    def stop(data):
        raise raised

    monkeypatch.setattr(dcap_qvl, "parse_quote", stop)
    with pytest.raises(type(raised)):
        verdict("tdx")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"report": {}}', '{"report": {"TD10": {}}, "tcb": {}}']
)
def test_a_verdict_that_cannot_be_read_is_none(monkeypatch, text):
    class Found:
        def to_json(self):
            return text

    monkeypatch.setattr(dcap, "_verify", lambda *arguments: Found())
    with pytest.raises(NotAuthentic):
        verdict("tdx")


@pytest.mark.parametrize(
    ("kind", "name", "offset", "size"),
    [
        ("tdx", "rtmr3", 376, 48),
        ("tdx", "mr_td", 137, 48),
        ("tdx", "report_data", 519, 64),
        ("sgx", "mr_signer", 64, 32),
        ("sgx", "report_data", 319, 64),
    ],
)
def test_what_the_library_verified_is_what_we_read(monkeypatch, kind, name, offset, size):
    """If the two ever read a quote differently, nobody believes it."""
    from strongroom.attest import dcap_quote

    at = {"tdx": (4, 0x81), "sgx": (3, 0)}[kind]
    _, length, parts = dcap_quote._BY_TEE[at]
    shifted = {**parts, name: (offset, size)}
    monkeypatch.setattr(dcap_quote, "_BY_TEE", {**dcap_quote._BY_TEE, at: (kind, length, shifted)})
    own = {
        "tdx": {"rtmr1": b"\1" * 48, "mr_td": bytes(range(48))},
        "sgx": {"mr_enclave": b"\1" * 32, "mr_signer": b"\2" * 32},
    }
    evidence = Evidence(kind, quote(kind, **own[kind]), (PKI.collateral(kind),))
    with pytest.raises(NotAuthentic, match="read in two ways"):
        verify(evidence, CONTEXT)


def test_a_report_without_a_measurement_is_not_the_one_we_read():
    parsed = dcap.parse(Evidence("tdx", quote("tdx")))
    for report in ({}, {"mr_enclave": None}, {"xfam": parsed.values["xfam"]}):
        with pytest.raises((NotAuthentic, KeyError)):
            dcap._check_same_report(parsed, {"report": {"New": {**report, "report_data": BOUND.hex()}}})


# In the order of Intel's structures, each with its size; those without a name are reserved.
SGX_REPORT = [
    *(("cpu_svn", 16), ("misc_select", 4), ("", 12), ("isv_ext_prod_id", 16), ("attributes", 16)),
    *(("mr_enclave", 32), ("", 32), ("mr_signer", 32), ("", 32), ("config_id", 64)),
    *(("isv_prod_id", 2), ("isv_svn", 2), ("config_svn", 2), ("", 42), ("isv_family_id", 16)),
    ("report_data", 64),
]
TD_REPORT = [
    *(("tee_tcb_svn", 16), ("mr_seam", 48), ("mr_signer_seam", 48), ("seam_attributes", 8)),
    *(("td_attributes", 8), ("xfam", 8), ("mr_td", 48), ("mr_config_id", 48), ("mr_owner", 48)),
    *(("mr_owner_config", 48), ("rtmr0", 48), ("rtmr1", 48), ("rtmr2", 48), ("rtmr3", 48)),
    ("report_data", 64),
]
TD15_REPORT = [*TD_REPORT, ("tee_tcb_svn2", 16), ("mr_service_td", 48)]


@pytest.mark.parametrize(
    ("head", "parts"),
    [
        (b"\3\0\2\0\0\0\0\0", SGX_REPORT),
        (b"\4\0\2\0\x81\0\0\0", TD_REPORT),
        (b"\5\0\2\0\x81\0\0\0", TD_REPORT),
        (b"\5\0\2\0\x81\0\0\0", TD15_REPORT),
    ],
    ids=["sgx", "tdx-4", "tdx-5", "tdx-5-td15"],
)
def test_every_field_is_read_where_intel_puts_it(head, parts):
    size = sum(length for _, length in parts)
    # Neighbours differ, so that a field which is a byte off is another one.
    body = bytes(at * 37 % 256 ^ at // 256 for at in range(size))
    kind = b"" if head[0] < 5 else (2 if size == 584 else 3).to_bytes(2, "little")
    sized = size.to_bytes(4, "little") if kind else b""
    parsed = Quote.parse(head.ljust(48, b"\0") + kind + sized + body + bytes(4))
    expected, at = {}, 0
    for name, length in parts:
        expected[name], at = body[at : at + length], at + length
    assert parsed.report_data == expected.pop("report_data")
    expected.pop("", None)
    found = {
        name: one.to_bytes(len(expected[name]), "little")
        if isinstance(one, int)
        else bytes.fromhex(one)
        for name, one in parsed.values.items()
    }
    assert found == expected


def test_the_numbers_of_both_revocation_lists_are_claimed():
    for kind in KINDS:
        assert len(verdict(kind).crls) == 2
        assert all(issuer.startswith("test: ") for issuer in verdict(kind).crls)


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize("member", ["issueDate", "nextUpdate"])
def test_dates_of_the_collateral_have_a_time_zone(name, member):
    members = json.loads(PKI.collateral("tdx"))
    said = json.loads(members[name])
    said[member] = said[member].removesuffix("Z")
    with pytest.raises(MissingEndorsement, match="no time zone"):
        Collateral.parse(json.dumps({**members, name: json.dumps(said)}).encode())


@pytest.mark.parametrize("name", ["pck_crl", "root_ca_crl"])
def test_revocation_lists_of_the_collateral_have_an_end(name):
    members = json.loads(PKI.collateral("tdx"))
    key = ec.generate_private_key(ec.SECP256R1())
    made = endless(load_crl(bytes.fromhex(members[name])), key)
    with pytest.raises(MissingEndorsement, match="does not say until when"):
        Collateral.parse(json.dumps({**members, name: made.hex()}).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_needs_no_collateral(kind):
    described = dcap.describe(Evidence(kind, quote(kind, debug=True)))
    assert described["debug"] is True
    assert described["report_data"] == BOUND.hex()
    assert described["version"] == (4 if kind == "tdx" else 3)


@pytest.mark.parametrize("version", [4, 5])
def test_both_versions_of_tdx_say_the_same(version):
    evidence = Evidence(
        "tdx", quote("tdx", version=version, mr_td=b"\7" * 48), (PKI.collateral("tdx"),)
    )
    claims = verify(evidence, CONTEXT)
    assert claims.bound == BOUND
    assert claims.values["mr_td"] == "07" * 48
    assert claims.values["tcb_status"] == "UpToDate"
    assert ("mr_service_td" in claims.values) is (version == 5)
    assert dcap.describe(evidence)["version"] == version
    with pytest.raises(NotAuthentic, match="debug mode"):
        verify(Evidence("tdx", quote("tdx", version=version, debug=True)), CONTEXT)


def test_sgx_has_one_version():
    for version in (4, 5):
        data = version.to_bytes(2, "little") + quote("sgx")[2:]
        with pytest.raises(MalformedEvidence, match="known form"):
            verify(Evidence("sgx", data, (PKI.collateral("sgx"),)), CONTEXT)


@pytest.mark.parametrize(
    ("body", "size"), [(1, 648), (2, 648), (3, 584), (3, 0), (3, 2**32 - 1), (4, 648), (0, 648)]
)
def test_the_body_of_version_5_has_the_size_of_its_type(body, size):
    data = bytearray(quote("tdx", version=5))
    data[48:54] = body.to_bytes(2, "little") + size.to_bytes(4, "little")
    with pytest.raises(MalformedEvidence):
        verify(Evidence("tdx", bytes(data), (PKI.collateral("tdx"),)), CONTEXT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 2**31, 2**32 - 1])
def test_the_signature_has_the_size_that_the_quote_says(kind, size):
    at = 48 + (584 if kind == "tdx" else 384)
    data = quote(kind)
    assert int.from_bytes(data[at : at + 4], "little") == len(data) - at - 4
    data = data[:at] + size.to_bytes(4, "little") + data[at + 4 :]
    with pytest.raises(MalformedEvidence):
        verify(Evidence(kind, data, (PKI.collateral(kind),)), CONTEXT)


@pytest.mark.parametrize("version", [0, 1, 2, 5, 6, 255, 65535])
def test_unknown_versions_are_malformed(version):
    data = version.to_bytes(2, "little") + quote("tdx")[2:]
    with pytest.raises(MalformedEvidence):
        dcap.describe(Evidence("tdx", data))


def test_a_saved_pki_is_the_same_and_says_what_it_is(tmp_path):
    PKI.save(tmp_path / "pki")
    loaded = IntelPki.load(tmp_path / "pki")
    evidence = Evidence("tdx", quote("tdx", loaded), (loaded.collateral("tdx"),))
    assert verify(evidence, CONTEXT).digest == verdict("tdx").digest
    files = sorted((tmp_path / "pki").iterdir())
    assert all("NOT-FOR-PRODUCTION" in file.name for file in files)
    keys = next(file for file in files if "KEYS" in file.name)
    assert keys.stat().st_mode & 0o777 == 0o600
    from strongroom.errors import AlreadyExists, NotFound

    with pytest.raises(AlreadyExists):
        PKI.save(tmp_path / "pki")
    keys.write_text("{}")
    with pytest.raises(NotFound, match="no saved PKI"):
        IntelPki.load(tmp_path / "pki")
    with pytest.raises(NotFound):
        IntelPki.load(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Of version 10; a negative serial number; a date that is none.
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a"),
        (b"\x02\x14", b"\x02\x14\xff"),
        (b"260228", b"269928"),
    ],
)
def test_certificates_that_cannot_be_read_are_refused(old, new):
    der = PKI.certificates["pck"].public_bytes(Encoding.DER)
    place = der.index(old)
    changed = der[:place] + new + der[place + len(new) :]
    assert len(changed) == len(der)
    bad = (
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed) + b"-----END CERTIFICATE-----\n"
    )
    rest = PKI.certificates["ca"].public_bytes(Encoding.PEM) + PKI.root_pem
    signed = sign_quote(
        td_body(BOUND, {}),
        tdx=True,
        attestation=PKI.keys["attestation"],
        pck=PKI.keys["pck"],
        chain=bad + rest,
        qe_svn=8,
        version=4,
    )
    with pytest.raises((MalformedEvidence, NotAuthentic)):
        verify(Evidence("tdx", signed, (PKI.collateral("tdx"),)), CONTEXT)
