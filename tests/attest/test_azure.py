"""Confidential virtual machines of Azure: recorded evidence, and every link of its chain attacked."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.azure_evidence import AzureEvidence
from strongroom.attest.azure_vtpm import describe
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import EvidenceError, MalformedEvidence, MissingEndorsement, NotAuthentic
from strongroom.format.encoding import b64url
from strongroom.testing.amd import SnpPki
from strongroom.testing.azure import AzureMachine
from strongroom.testing.intel import IntelPki

NOW = datetime(2026, 7, 1, tzinfo=UTC)
SAMPLES = [name for name, entry in MANIFEST.items() if entry["kind"] == "azure-snp-vtpm"]
CHAIN = read("snp/roots/milan_ask_ark_asvk.pem")
BOUND = {
    "azure/snp_vtpm_v0.json": b"challenge",
    "azure/snp_vtpm_v2.json": bytes.fromhex(
        "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef"
    ),
}


def recorded(name: str) -> Evidence:
    return Evidence("azure-vtpm", read(name), (CHAIN,))


def recorded_context(name: str) -> Context:
    return Context(fixed_time(name), production())


@cache
def machine(tee: str = "snp") -> AzureMachine:
    pki = SnpPki.create(NOW) if tee == "snp" else IntelPki.create(NOW)
    return AzureMachine.create(pki, pcrs={7: b"\x77" * 32, 11: b"\x11" * 32})


def context(made: AzureMachine | None = None, **changes) -> Context:
    return replace(Context(NOW, (made or machine()).roots(production())), **changes)


@pytest.mark.parametrize("name", SAMPLES)
def test_recorded_evidence_verifies(name):
    claims = verify(recorded(name), recorded_context(name))
    assert claims.kind == "azure-vtpm"
    assert claims.bound == BOUND[name]
    assert claims.values["product"] == "Milan"
    assert claims.values["vmpl"] == 0
    assert set(claims.values["pcr"]) == {str(index) for index in range(24)}
    assert claims.values["vm"]["secure_boot"] is True
    assert claims.platform == f"ak:{claims.values['ak']}"
    assert len(claims.values["chip_id"]) == 128
    assert not claims.debug
    assert not claims.faults
    assert not claims.test_root
    json.dumps(claims.to_json())
    assert len(claims.digest) == 32


@pytest.mark.parametrize("name", SAMPLES)
def test_before_and_after_its_time_and_under_other_roots_it_is_refused(name):
    claims = verify(recorded(name), recorded_context(name))
    for now in (claims.not_after + timedelta(seconds=1), datetime(2021, 1, 1, tzinfo=UTC)):
        with pytest.raises(NotAuthentic, match="not valid now"):
            verify(recorded(name), Context(now, production()))
    with pytest.raises(NotAuthentic):
        verify(recorded(name), context(now=fixed_time(name)))
    with pytest.raises(MissingEndorsement):
        verify(replace(recorded(name), endorsements=()), recorded_context(name))


def parts_of(name: str) -> tuple[dict, bytearray, bytearray, bytearray]:
    members = json.loads(read(name))
    quote = members["quote"] if "quote" in members else members["tpm_quote"]
    if "quote" in members:
        return (
            members,
            bytearray(members["report"]),
            bytearray(quote["message"]),
            bytearray(quote["signature"]),
        )
    hcl = AzureEvidence.parse(read(name)).hcl
    assert hcl.tee == "snp"
    report = bytearray(urlsafe_b64decode(members["hcl_report"]))
    return members, report, bytearray.fromhex(quote["message"]), bytearray.fromhex(quote["signature"])


def with_parts(members: dict, report: bytes, message: bytes, signature: bytes) -> Evidence:
    if "quote" in members:
        quote = {**members["quote"], "message": list(message), "signature": list(signature)}
        members = {**members, "report": list(report), "quote": quote}
    else:
        quote = {**members["tpm_quote"], "message": message.hex(), "signature": signature.hex()}
        members = {**members, "hcl_report": b64url(report), "tpm_quote": quote}
    return Evidence("azure-vtpm", json.dumps(members).encode(), (CHAIN,))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_byte_of_report_quote_and_signature_counts(name, which):
    members, *parts = parts_of(name)
    verify(with_parts(members, *parts), recorded_context(name))
    survivors = []
    for at in range(len(parts[which])):
        parts[which][at] ^= 1 << at % 8
        try:
            verify(with_parts(members, *parts), recorded_context(name))
        except EvidenceError as error:
            assert str(error).isprintable()
        else:
            survivors.append(at)
        parts[which][at] ^= 1 << at % 8
    # Type and status of the request, and a reserved field: no part of the report, and used for nothing.
    assert survivors == (list(range(0x0C, 0x20)) if which == 0 else [])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_pcr_counts(name):
    members = json.loads(read(name))
    quote = members["quote"] if "quote" in members else members["tpm_quote"]
    for index in range(24):
        kept = quote["pcrs"][index]
        quote["pcrs"][index] = quote["pcrs"][index - 1]
        if quote["pcrs"][index] == kept:
            continue
        with pytest.raises(NotAuthentic, match="PCR"):
            verify(
                Evidence("azure-vtpm", json.dumps(members).encode(), (CHAIN,)), recorded_context(name)
            )
        quote["pcrs"][index] = kept


def test_a_synthetic_machine_verifies_and_says_so():
    evidence = machine().evidence(b"n" * 32)
    claims = verify(evidence, context())
    assert claims.test_root
    assert claims.bound == b"n" * 32
    assert claims.values["pcr"]["7"] == "77" * 32
    assert claims.values["revocation"] == "checked"
    assert claims.values["vm"] == {
        "secure_boot": True,
        "console_enabled": False,
        "tpm_enabled": True,
        "vm_id": "00000000-0000-0000-0000-000000000000",
    }
    with pytest.raises(NotAuthentic):
        verify(evidence, Context(NOW, production()))


def test_only_what_was_quoted_is_claimed():
    claims = verify(machine().evidence(b"n", indices=(7, 11)), context())
    assert claims.values["pcr"] == {"7": "77" * 32, "11": "11" * 32}


def test_a_debug_machine_is_told():
    assert verify(machine().with_parts(debug=True).evidence(b""), context()).debug


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_a_report_that_the_guest_has_got_for_itself_vouches_for_nothing(vmpl):
    with pytest.raises(NotAuthentic, match="not made for the paravisor"):
        verify(machine().with_parts(vmpl=vmpl).evidence(b""), context())


def test_the_report_is_bound_to_the_key_of_the_tpm():
    other = AzureMachine.create(machine().pki)
    for bad in (
        machine().evidence(b"", runtime=other.runtime()),
        machine().evidence(b"", report_data=b"\0" * 64),
        machine().evidence(b"", report_data=hashlib.sha256(machine().runtime()).digest() + b"x"),
    ):
        with pytest.raises(NotAuthentic):
            verify(bad, context())
    mine = json.loads(machine().evidence(b"").data)
    mine["tpm_quote"] = json.loads(other.evidence(b"").data)["tpm_quote"]
    with pytest.raises(NotAuthentic, match="has not signed"):
        verify(replace(machine().evidence(b""), data=json.dumps(mine).encode()), context())


def test_a_document_that_was_changed_with_its_key_is_refused():
    members, report, message, signature = parts_of(SAMPLES[0])
    other = AzureMachine.create(machine().pki)
    message, signature = other.quote(b"challenge")
    at = 0x20 + 1184
    forged = other.hcl_report(other.runtime(), bytes(report[0x20:at]))
    zeros = [[0] * 32] * 24
    members = {**members, "quote": {**members["quote"], "pcrs": zeros}}
    with pytest.raises(NotAuthentic, match="another virtual TPM"):
        verify(with_parts(members, forged, message, signature), recorded_context(SAMPLES[0]))


@pytest.mark.parametrize(
    "runtime",
    [
        b"",
        b"[]",
        b"{}",
        machine().runtime(keys=[]),
        machine().runtime(keys={}),
        machine().runtime(keys=[{"kid": "HCLAkPub"}]),
        machine().runtime(keys=[*json.loads(machine().runtime())["keys"] * 2]),
        machine().runtime(keys=[{**json.loads(machine().runtime())["keys"][0], "kty": "EC"}]),
        machine().runtime(
            keys=[{**json.loads(machine().runtime())["keys"][0], "key_ops": ["encrypt"]}]
        ),
        machine().runtime(keys=[{**json.loads(machine().runtime())["keys"][0], "e": "AQ"}]),
        machine().runtime(keys=[{**json.loads(machine().runtime())["keys"][0], "n": "AQAB"}]),
        machine().runtime(keys=[{**json.loads(machine().runtime())["keys"][0], "n": "!"}]),
        machine().runtime(**{"vm-configuration": []}),
    ],
)
def test_documents_without_one_good_key_are_refused(runtime):
    with pytest.raises(MalformedEvidence):
        verify(machine().evidence(b"", runtime=runtime), context())


def test_weak_keys_of_a_virtual_tpm_are_refused():
    (key,) = json.loads(machine().runtime())["keys"]
    short = rsa.generate_private_key(65537, 1024).public_key().public_numbers().n
    for weak in ({**key, "n": b64url(short.to_bytes(128, "big"))}, {**key, "e": "Aw"}):
        with pytest.raises(MalformedEvidence, match="is not accepted"):
            verify(machine().evidence(b"", runtime=machine().runtime(keys=[weak])), context())


def test_pcrs_of_another_bank_are_refused():
    message, _ = machine().quote(b"")
    selection = bytes.fromhex("00000001000b03ffffff")
    assert message.count(selection) == 1
    message = message.replace(selection, bytes.fromhex("00000001000c03ffffff"))
    signature = machine().key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    good = json.loads(machine().evidence(b"").data)["tpm_quote"]
    quote = {**good, "message": message.hex(), "signature": signature.hex()}
    with pytest.raises(MalformedEvidence, match="bank sha256"):
        verify(machine().evidence(b"", changes={"tpm_quote": quote}), context())


def test_pcrs_of_a_second_bank_are_refused():
    message, _ = machine().quote(b"")
    one = bytes.fromhex("00000001000b03ffffff")
    assert message.count(one) == 1
    message = message.replace(one, bytes.fromhex("00000002000b03ffffff000c03ffffff"))
    signature = machine().key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    good = json.loads(machine().evidence(b"").data)["tpm_quote"]
    quote = {**good, "message": message.hex(), "signature": signature.hex()}
    with pytest.raises(MalformedEvidence, match="than those of the bank sha256"):
        verify(machine().evidence(b"", changes={"tpm_quote": quote}), context())


def test_base64url_has_its_padding_or_none():
    report = json.loads(machine().evidence(b"").data)["hcl_report"]
    assert len(report) % 4 == 3
    padded = machine().evidence(b"n", changes={"hcl_report": report + "="})
    assert verify(padded, context()).bound == b"n"
    for wrong in (report + "==", report + "===", "=" + report, report[:-1] + "="):
        with pytest.raises(MalformedEvidence, match="base64url"):
            verify(machine().evidence(b"", changes={"hcl_report": wrong}), context())


def test_nothing_stands_behind_the_report_of_the_paravisor():
    hcl = machine().hcl_report(machine().runtime(), machine().pki.report(b""))
    for report, reason in (
        (hcl[:-1] + b"x", "behind the end"),
        (b"HCLB" + hcl[4:], "form that is not known"),
        (hcl[:4] + b"\x02" + hcl[5:], "form that is not known"),
        (hcl[:8] + b"\x00" + hcl[9:], "cut off"),
        (hcl[:1220] + b"\x02" + hcl[1221:], "form that is not known"),
        (hcl[:1232] + bytes([hcl[1232] ^ 1]) + hcl[1233:], "cut off"),
    ):
        with pytest.raises(MalformedEvidence, match=reason):
            verify(machine().evidence(b"", changes={"hcl_report": b64url(report)}), context())


def test_odd_values_of_the_configuration_are_left_out():
    configuration = {"secure-boot": "yes\n", "console-enabled": 1, "vmUniqueId": "x" * 65, "more": True}
    runtime = machine().runtime(**{"vm-configuration": configuration})
    assert verify(machine().evidence(b"", runtime=runtime), context()).values["vm"] == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"version": True},
        {"version": None},
        {"version": "2"},
        {"tpm_quote": None},
        {"tpm_quote": []},
        {"tpm_quote": {}},
        {"hcl_report": None},
        {"hcl_report": "!"},
        {"hcl_report": ""},
        {"hcl_report": 5},
        {"hcl_report": "AAAA="},
        {"vcek": "!"},
        {"vcek": "AAAA"},
        {"vcek": "-----BEGIN CERTIFICATE-----"},
        {"more": 1},
    ],
)
def test_members_that_do_not_belong_are_refused(changes):
    with pytest.raises(MalformedEvidence):
        verify(machine().evidence(b"", changes=changes), context())


@pytest.mark.parametrize(
    "quote",
    [
        {"message": ""},
        {"message": "FF"},
        {"message": "ff54"},
        {"message": 1},
        {"signature": "00"},
        {"signature": None},
        {"pcrs": []},
        {"pcrs": ["00" * 32] * 23},
        {"pcrs": [*json.loads(machine().evidence(b"").data)["tpm_quote"]["pcrs"], "00" * 32]},
        {"pcrs": ["00"] * 24},
        {"pcrs": [None] * 24},
        {"pcrs": {}},
    ],
)
def test_quotes_that_are_none_are_refused(quote):
    good = json.loads(machine().evidence(b"").data)["tpm_quote"]
    with pytest.raises(EvidenceError):
        verify(machine().evidence(b"", changes={"tpm_quote": {**good, **quote}}), context())


def test_cut_off_and_oversized_evidence_is_refused():
    data = read("azure/snp_vtpm_v2.json")
    for size in range(0, len(data), 97):
        with pytest.raises(MalformedEvidence):
            verify(
                Evidence("azure-vtpm", data[:size], (CHAIN,)),
                recorded_context("azure/snp_vtpm_v2.json"),
            )
    with pytest.raises(MalformedEvidence):
        verify(
            Evidence("azure-vtpm", data.ljust(65537), (CHAIN,)),
            recorded_context("azure/snp_vtpm_v2.json"),
        )
    members, report, message, signature = parts_of("azure/snp_vtpm_v2.json")
    for size in (0, 4, 0x20, 0x4C0, 0x4D3, 0x4D4, 2345):
        with pytest.raises(MalformedEvidence):
            verify(
                with_parts(members, report[:size], message, signature),
                recorded_context("azure/snp_vtpm_v2.json"),
            )


def test_another_hash_or_processor_is_refused():
    made = machine()
    runtime = made.runtime()
    for algorithm in (0, 2, 3):
        hcl = made.hcl_report(runtime, made.pki.report(b""), algorithm=algorithm)
        with pytest.raises(MalformedEvidence, match="hash"):
            verify(made.evidence(b"", changes={"hcl_report": b64url(hcl)}), context())


# --- TDX --------------------------------------------------------------------------------------------


def test_a_machine_with_tdx_is_vouched_for_by_its_quote():
    made = machine("tdx").with_parts(mr_td=b"\x42" * 48)
    claims = verify(made.evidence(b"n" * 32), context(made))
    assert claims.kind == "azure-vtpm"
    assert claims.bound == b"n" * 32
    assert claims.values["mr_td"] == "42" * 48
    assert claims.values["tcb_status"] == "UpToDate"
    assert claims.values["pcr"]["7"] == "77" * 32
    assert claims.platform == f"ak:{claims.values['ak']}"
    with pytest.raises(NotAuthentic):
        verify(made.evidence(b""), Context(NOW, production()))


def test_a_machine_with_tdx_and_no_quote_or_another_one_is_refused():
    made = machine("tdx")
    with pytest.raises(MissingEndorsement, match="not made into a quote"):
        verify(made.evidence(b"", changes={"td_quote": None}), context(made))
    with pytest.raises(NotAuthentic, match="another virtual TPM"):
        verify(made.evidence(b"", report_data=bytes(64)), context(made))
    with pytest.raises(NotAuthentic, match="debug"):
        verify(made.with_parts(debug=True).evidence(b""), context(made))
    with pytest.raises(MissingEndorsement):
        verify(replace(made.evidence(b""), endorsements=()), context(made))


def test_describe_reads_without_believing():
    said = describe(recorded("azure/snp_vtpm_v0.json"))
    assert said["tee"] == "snp"
    assert bytes.fromhex(said["report_data"]) == b"challenge"
    with pytest.raises(MalformedEvidence):
        describe(Evidence("azure-vtpm", b"{}"))
