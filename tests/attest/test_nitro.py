"""Documents of Nitro enclaves: recorded ones against the root of AWS, and every rule against a PKI like it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.evidence import Evidence
from strongroom.attest.nitro import describe
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic
from strongroom.testing.nitro import NitroPki

NOW = datetime(2026, 7, 1, tzinfo=UTC)
SAMPLES = [name for name, entry in MANIFEST.items() if entry["kind"] == "nitro-doc"]


def recorded(name: str) -> Evidence:
    return Evidence("nitro", read(name))


def recorded_context(name: str) -> Context:
    return Context(fixed_time(name), production())


@cache
def pki() -> NitroPki:
    return NitroPki.create(NOW)


def context(made: NitroPki | None = None, now: datetime = NOW) -> Context:
    return Context(now, (made or pki()).roots(production()))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_recorded_document_has_the_recorded_verdict(name):
    entry = MANIFEST[name]
    claims = verify(recorded(name), recorded_context(name))
    assert claims.debug is entry["expected"]["debug"]
    for register, value in entry["measurements"].items():
        assert claims.values["pcr"][register.removeprefix("pcr")] == value
    assert len(claims.values["pcr"]) == 16
    assert claims.bound.hex() == entry["report_data"]
    assert claims.values["module_id"].startswith(claims.platform.removeprefix("nitro:") + "-enc")
    assert claims.not_after - fixed_time(name) <= timedelta(hours=3)
    assert not claims.test_root
    assert not claims.faults
    json.dumps(claims.to_json())
    assert len(claims.digest) == 32


def test_both_a_good_and_a_debug_enclave_are_recorded():
    assert {MANIFEST[name]["expected"]["debug"] for name in SAMPLES} == {True, False}


@pytest.mark.parametrize("name", SAMPLES)
def test_before_and_after_its_three_hours_a_document_is_refused(name):
    claims = verify(recorded(name), recorded_context(name))
    last = replace(recorded_context(name), now=claims.not_after)
    assert verify(recorded(name), last) == claims
    for now in (
        claims.not_after + timedelta(seconds=1),
        fixed_time(name) - timedelta(seconds=5),
        NOW,
    ):
        with pytest.raises(NotAuthentic, match="not valid now"):
            verify(recorded(name), replace(last, now=now))


@pytest.mark.parametrize("name", SAMPLES)
def test_under_another_root_a_document_is_refused(name):
    with pytest.raises(NotAuthentic, match="another root"):
        verify(recorded(name), replace(recorded_context(name), roots=pki().roots(production())))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_byte_of_a_document_counts(name):
    evidence, where = recorded(name), recorded_context(name)
    verify(evidence, where)
    survivors = []
    for at in range(len(evidence.data)):
        changed = bytearray(evidence.data)
        changed[at] ^= 1 << at % 8
        try:
            verify(replace(evidence, data=bytes(changed)), where)
        except EvidenceError as error:
            assert str(error).isprintable()
            continue
        survivors.append(at)
    assert survivors == []


def test_cut_off_documents_are_refused():
    evidence = recorded("nitro/user_data.cose")
    for size in range(0, len(evidence.data), 7):
        with pytest.raises(MalformedEvidence):
            verify(
                replace(evidence, data=evidence.data[:size]), recorded_context("nitro/user_data.cose")
            )
    for junk in (b"\0", b"\xf6", evidence.data):
        with pytest.raises(MalformedEvidence):
            verify(
                replace(evidence, data=evidence.data + junk), recorded_context("nitro/user_data.cose")
            )


def test_a_synthetic_document_verifies_and_says_so():
    evidence = pki().evidence(b"bound", pcrs={8: b"\x88" * 48}, nonce=b"other", public_key=b"key")
    claims = verify(evidence, context())
    assert claims.test_root
    assert not claims.debug
    assert claims.bound == b"bound"
    assert claims.platform == "nitro:i-0123456789abcdef0"
    assert claims.values["pcr"]["0"] == "01" * 48
    assert claims.values["pcr"]["8"] == "88" * 48
    assert claims.not_after == NOW + timedelta(hours=3)
    with pytest.raises(NotAuthentic, match="another root"):
        verify(evidence, Context(NOW, production()))


@pytest.mark.parametrize(
    ("user_data", "nonce", "bound"),
    [
        (b"data", None, b"data"),
        (b"data", b"nonce", b"data"),
        (None, b"nonce", b"nonce"),
        (b"", b"nonce", b"nonce"),
        (None, None, b""),
        (b"u" * 512, b"n" * 512, b"u" * 512),
    ],
)
def test_what_a_document_is_bound_to(user_data, nonce, bound):
    made = pki().document(user_data, nonce=nonce)
    assert verify(Evidence("nitro", made), context()).bound == bound


def test_debug_is_told():
    assert verify(pki().evidence(b"", debug=True), context()).debug
    assert verify(pki().evidence(b"", pcrs={0: bytes(48)}), context()).debug


def test_a_tagged_document_is_the_same():
    plain = pki().document(b"x")
    assert verify(Evidence("nitro", b"\xd2" + plain), context()) == verify(
        Evidence("nitro", plain), context()
    )
    for tag in (b"\xd1", b"\xd8\x12", b"\xd2\xd2"):
        with pytest.raises(MalformedEvidence):
            verify(Evidence("nitro", tag + plain), context())


@pytest.mark.parametrize(
    "changes",
    [
        {"module_id": ""},
        {"module_id": 5},
        {"module_id": "i-0123456789abcdef0"},
        {"module_id": "../../x-enc0123456789abcdef"},
        {"module_id": None},
        {"digest": "SHA256"},
        {"digest": None},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": True},
        {"timestamp": 1 << 63},
        {"timestamp": "now"},
        {"pcrs": {}},
        {"pcrs": None},
        {"pcrs": [bytes(48)] * 3},
        {"pcrs": {0: bytes(48), 1: bytes(48)}},
        {"pcrs": {0: bytes(32), 1: bytes(48), 2: bytes(48)}},
        {"pcrs": {0: "0" * 48, 1: bytes(48), 2: bytes(48)}},
        {"pcrs": {0: bytes(48), 1: bytes(48), 2: bytes(48), 32: bytes(48)}},
        {"pcrs": {0: bytes(48), 1: bytes(48), 2: bytes(48), -1: bytes(48)}},
        {"pcrs": {0: bytes(48), 1: bytes(48), 2: bytes(48), "3": bytes(48)}},
        {"pcrs": {False: bytes(48), 1: bytes(48), 2: bytes(48)}},
        {"certificate": b""},
        {"certificate": b"x"},
        {"certificate": b"x" * 1025},
        {"certificate": None},
        {"cabundle": []},
        {"cabundle": None},
        {"cabundle": [b""]},
        {"cabundle": [b"x"]},
        {"cabundle": [b"x"] * 9},
        {"cabundle": {0: b"x"}},
        {"user_data": b"u" * 513},
        {"user_data": "text"},
        {"nonce": b"n" * 513},
        {"public_key": b"k" * 1025},
        {"nonce": cbor2.CBORTag(24, b"")},
    ],
)
def test_members_beyond_the_limits_are_refused(changes):
    with pytest.raises(MalformedEvidence):
        verify(Evidence("nitro", pki().document(b"", changes=changes)), context())


def payload_of(document: bytes) -> bytes:
    return cbor2.loads(document)[2]


def test_cbor_has_one_spelling():
    document = pki().document(b"x")
    protected, _, payload, signature = cbor2.loads(document)
    spellings = [
        b"\x9f" + document[1:] + b"\xff",  # an array without a length
        b"\x98\x04" + document[1:],  # a length that is longer than it must be
        cbor2.dumps([protected, {4: b"kid"}, payload, signature]),  # a header that nobody signed
        cbor2.dumps([protected, [], payload, signature]),
        cbor2.dumps([protected, {}, payload, signature, b""]),
        cbor2.dumps([protected, {}, payload]),
        cbor2.dumps([protected, {}, payload, signature + b"\0"]),
        cbor2.dumps([protected, {}, payload, signature[:-1]]),
        cbor2.dumps([protected, {}, None, signature]),
        cbor2.dumps([b"", {}, payload, signature]),
        cbor2.dumps({"protected": protected}),
        pki().sign(payload, algorithm=-7),
        pki().sign(payload + b"\0"),  # signed, with something behind it
        pki().sign(b""),
        pki().sign(cbor2.dumps([1])),
        pki().sign(b"\x81" * 200 + b"\0"),
        pki().sign(b"\x5b" + b"\xff" * 8),  # a string of 2^64 bytes
        pki().sign(b"\xd8\x1c\x81\xd8\x1d\x00"),  # a list that holds itself
    ]
    for spelling in spellings:
        with pytest.raises(MalformedEvidence):
            verify(Evidence("nitro", spelling), context())


def test_a_key_that_is_there_twice_is_refused():
    payload = payload_of(pki().document(b"x"))
    assert payload[0] == 0xA9
    twice = b"\xaa" + payload[1:] + cbor2.dumps("user_data") + cbor2.dumps(b"other")
    with pytest.raises(MalformedEvidence, match="Duplicate"):
        verify(Evidence("nitro", pki().sign(twice)), context())
    indefinite = b"\xbf" + payload[1:] + b"\xff"
    assert verify(Evidence("nitro", pki().sign(indefinite)), context()).bound == b"x"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (NitroPki.create(NOW, lengths={"region": 1}), "this long"),
        (NitroPki.create(NOW, lengths={"zone": 0}), "this long"),
        (NitroPki.create(NOW, curve=ec.SECP256R1()), "P-384"),
        (pki().at(NOW, authority=True), "not one for signing"),
        (pki().at(NOW, bare=True), "does not say what it is for"),
    ],
)
def test_chains_and_keys_that_break_a_rule_are_refused(made, reason):
    with pytest.raises(NotAuthentic, match=reason):
        verify(made.evidence(b""), context(made))


def test_a_chain_without_an_authority_or_with_one_of_somebody_else_is_refused():
    made, other = pki(), NitroPki.create(NOW)
    bundle = cbor2.loads(payload_of(made.document(b"")))["cabundle"]
    foreign = cbor2.loads(payload_of(other.document(b"")))["cabundle"]
    for changed in (
        bundle[:1],
        bundle[:-1],
        [bundle[0], *bundle[2:]],
        [bundle[0], *reversed(bundle[1:])],
        [bundle[0], *foreign[1:]],
        [*foreign],
        bundle[1:],
    ):
        with pytest.raises(NotAuthentic):
            verify(Evidence("nitro", made.document(b"", changes={"cabundle": changed})), context())


def test_a_document_signed_by_somebody_else_is_refused():
    other = pki().at(NOW)
    document = pki().document(b"", changes={"certificate": other._der("leaf")})
    with pytest.raises(NotAuthentic, match="signature of its key"):
        verify(Evidence("nitro", document), context())


def test_a_document_of_a_time_when_its_key_did_not_hold_is_refused():
    for moment in (NOW - timedelta(hours=1), NOW + timedelta(hours=4)):
        changes = {"timestamp": int(moment.timestamp() * 1000)}
        with pytest.raises(NotAuthentic, match="did not hold"):
            verify(Evidence("nitro", pki().document(b"", changes=changes)), context())


def test_describe_reads_without_believing():
    said = describe(recorded("nitro/debug.cose"))
    assert said["debug"]
    assert said["nonce"] is None
    assert said["user_data"] == "00" * 64
    assert said["time"].startswith("2025-12-25T08:20:46")
    with pytest.raises(MalformedEvidence):
        describe(Evidence("nitro", b"x"))
