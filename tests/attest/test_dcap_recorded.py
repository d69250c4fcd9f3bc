"""Quotes that real machines made, against Intel's own collateral and root, at the time of recording."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import dcap_qvl
import pytest
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import MalformedEvidence, MissingEndorsement, NotAuthentic
from strongroom.testing.intel import IntelPki

GOOD = ["dcap/sgx_v3.bin", "dcap/tdx_v4.bin", "dcap/tdx_v5.bin"]
OUT_OF_DATE = "dcap/tdx_v4_out_of_date.bin"
DEBUG = ["dcap/sgx_v3_debug.bin", "dcap/tdx_v4_debug.bin"]


def evidence_of(name: str) -> Evidence:
    entry = MANIFEST[name]
    collateral = (read(entry["collateral"]),) if entry["collateral"] else ()
    return Evidence(entry["tee"].lower(), read(name), collateral)


def context_of(name: str, **changes) -> Context:
    return replace(Context(fixed_time(name), production()), **changes)


def test_every_recorded_quote_is_tried_here():
    quotes = {name for name, entry in MANIFEST.items() if entry["kind"] == "dcap-quote"}
    assert quotes == {*GOOD, *DEBUG, OUT_OF_DATE}


@pytest.mark.parametrize("name", GOOD)
def test_a_recorded_quote_has_the_recorded_verdict(name):
    entry = MANIFEST[name]
    claims = verify(evidence_of(name), context_of(name))
    assert claims.kind == entry["tee"].lower()
    assert claims.values["tcb_status"] == entry["expected"]["status"]
    assert claims.values["advisories"] == entry["expected"]["advisories"]
    measurements = dict(entry["measurements"])
    for index, value in enumerate(measurements.pop("rt_mr", [])):
        measurements[f"rtmr{index}"] = value
    assert measurements.items() <= claims.values.items()
    assert claims.bound.hex() == entry["report_data"]
    assert claims.values["fmspc"] == entry["fmspc"].lower()
    assert claims.platform == f"ppid:{claims.values['ppid']}"
    assert len(claims.values["ppid"]) == 32
    assert not claims.debug
    assert not claims.test_root
    assert not claims.faults
    said = json.loads(read(entry["collateral"]))
    ends = [json.loads(said[part])["nextUpdate"] for part in ("tcb_info", "qe_identity")]
    # The CRLs of these samples hold as long as the statements do, or longer.
    assert claims.not_after.strftime("%Y-%m-%dT%H:%M:%SZ") <= min(ends)
    json.dumps(claims.to_json())
    assert len(claims.digest) == 32


def test_collateral_is_fetched_when_the_evidence_brings_none():
    name = "dcap/tdx_v4.bin"
    asked = []

    class Source:
        def fetch(self, wanted: Wanted) -> bytes:
            asked.append(wanted)
            return read(MANIFEST[name]["collateral"])

    alone = replace(evidence_of(name), endorsements=())
    fetched = verify(alone, context_of(name, endorsements=Source()))
    assert fetched == verify(evidence_of(name), context_of(name))
    assert asked == [Wanted("intel", {"tee": "tdx", "fmspc": "B0C06F000000", "ca": "platform"})]


@pytest.mark.parametrize("name", [*GOOD, OUT_OF_DATE])
def test_collateral_is_asked_for_as_the_library_would(name):
    asked = []

    class Source:
        def fetch(self, wanted: Wanted) -> bytes:
            asked.append(wanted)
            raise MissingEndorsement("None.")

    with pytest.raises(MissingEndorsement):
        verify(replace(evidence_of(name), endorsements=()), context_of(name, endorsements=Source()))
    quote = dcap_qvl.parse_quote(read(name))
    members = {"tee": MANIFEST[name]["tee"].lower(), "fmspc": quote.fmspc(), "ca": quote.ca()}
    assert asked == [Wanted("intel", members)]


def test_without_collateral_nothing_is_believed():
    name = "dcap/tdx_v4.bin"
    with pytest.raises(MissingEndorsement, match="not at hand"):
        verify(replace(evidence_of(name), endorsements=()), context_of(name))


# dcap-qvl accepts revocation lists that begin in the future, and would return OutOfDate here: the CRLs of
# this recorded collateral are three months younger than its TCB info. We refuse it for that.
# test_dcap_verdicts.py has OutOfDate with collateral of one piece.
def test_crls_from_the_future_are_refused():
    with pytest.raises(NotAuthentic, match=r"CRL .* is from the future") as caught:
        verify(evidence_of(OUT_OF_DATE), context_of(OUT_OF_DATE))
    assert "clock" in caught.value.hint


def test_when_those_crls_have_begun_the_tcb_info_has_ended():
    later = fixed_time(OUT_OF_DATE) + timedelta(days=120)
    with pytest.raises(NotAuthentic, match="TCB info has expired"):
        verify(evidence_of(OUT_OF_DATE), context_of(OUT_OF_DATE, now=later))


@pytest.mark.parametrize("name", DEBUG)
def test_debug_is_refused_and_named(name):
    context = Context(fixed_time("dcap/tdx_v4.bin"), production())
    with pytest.raises(NotAuthentic, match="debug mode"):
        verify(evidence_of(name), context)


@pytest.mark.parametrize("name", GOOD)
def test_before_and_after_its_time_the_collateral_is_refused(name):
    context = context_of(name)
    claims = verify(evidence_of(name), context)
    last = replace(context, now=claims.not_after - timedelta(seconds=1))
    assert verify(evidence_of(name), last) == claims
    with pytest.raises(NotAuthentic, match="has expired: it held until"):
        verify(evidence_of(name), replace(context, now=claims.not_after))
    with pytest.raises(NotAuthentic, match="from the future"):
        verify(evidence_of(name), replace(context, now=context.now - timedelta(days=60)))


@pytest.mark.parametrize("name", GOOD)
def test_a_test_root_does_not_vouch_for_real_quotes(name):
    roots = IntelPki.create(fixed_time(name)).roots(production())
    with pytest.raises(NotAuthentic):
        verify(evidence_of(name), context_of(name, roots=roots))


@pytest.mark.parametrize("name", GOOD)
def test_the_kind_is_that_of_the_quote(name):
    evidence = evidence_of(name)
    other = {"sgx": "tdx", "tdx": "sgx"}[evidence.kind]
    with pytest.raises(MalformedEvidence, match=f"says {other}, and is a quote of {evidence.kind}"):
        verify(replace(evidence, kind=other), context_of(name))


def test_collateral_for_another_machine_or_tee_is_refused():
    name = "dcap/tdx_v4.bin"
    for other in ("dcap/collateral/tdx_90C06F000000.json", "dcap/collateral/sgx_00A067110000.json"):
        with pytest.raises(NotAuthentic):
            verify(replace(evidence_of(name), endorsements=(read(other),)), context_of(name))


@pytest.mark.parametrize("name", GOOD)
def test_a_buffer_of_8000_bytes_is_accepted_and_nothing_but_zeros(name):
    evidence, context = evidence_of(name), context_of(name)
    claims = verify(evidence, context)
    padded = evidence.data.ljust(8000, b"\0")
    assert verify(replace(evidence, data=padded), context).digest == claims.digest
    for junk in (padded[:-1] + b"\1", evidence.data + b"\0\0x", evidence.data + evidence.data):
        with pytest.raises(MalformedEvidence, match="behind the end"):
            verify(replace(evidence, data=junk), context)


@pytest.mark.parametrize("name", GOOD)
def test_a_cut_quote_is_malformed(name):
    evidence, context = evidence_of(name), context_of(name)
    end = len(evidence.data.rstrip(b"\0"))
    for size in [*range(1, 700, 7), end // 2, end - 1]:
        with pytest.raises(MalformedEvidence):
            verify(replace(evidence, data=evidence.data[:size]), context)


def test_every_changed_bit_of_the_signed_part_is_noticed():
    name = "dcap/tdx_v4.bin"
    evidence, context = evidence_of(name), context_of(name)
    length = range(48 + 584, 48 + 584 + 4)
    # Header, TD report, signature and attestation key.
    for place in set(range(length.stop + 128)) - set(length):
        changed = bytearray(evidence.data)
        changed[place] ^= 1 << (place % 8)
        with pytest.raises((NotAuthentic, MalformedEvidence)):
            verify(replace(evidence, data=bytes(changed)), context)


def test_malleated_quotes_have_one_identity():
    """The library accepts quotes that were changed in the PEM framing and the root that is sent along."""
    name = "dcap/tdx_v4.bin"
    evidence, context = evidence_of(name), context_of(name)
    digest = verify(evidence, context).digest
    others = set()
    for place in [*range(48 + 584, 48 + 584 + 4), *range(48 + 584 + 4 + 128, len(evidence.data), 3)]:
        changed = bytearray(evidence.data)
        changed[place] ^= 1 << (place % 7)
        try:
            claims = verify(replace(evidence, data=bytes(changed)), context)
        except (NotAuthentic, MalformedEvidence):
            continue
        assert claims.digest == digest, place
        others.add(bytes(changed))
    # Otherwise this test proves nothing.
    assert len(others) > 50
    assert evidence.data not in others


def test_certificates_that_are_sent_along_have_no_say_in_the_identity():
    name = "dcap/tdx_v5.bin"
    evidence, context = evidence_of(name), context_of(name)
    claims = verify(evidence, context)
    # It ends before the collateral does, and vouches for nothing.
    extra = IntelPki.create(context.now, pck_days=1).certificates["pck"]
    from cryptography.hazmat.primitives.serialization import Encoding

    collateral = json.loads(evidence.endorsements[0])
    collateral["pck_crl_issuer_chain"] += extra.public_bytes(Encoding.PEM).decode()
    changed = replace(evidence, endorsements=(json.dumps(collateral).encode(),))
    assert verify(changed, context).digest == claims.digest
