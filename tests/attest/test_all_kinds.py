"""All evidence through the one path, and what must be refused, by name."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from datetime import timedelta

import all_kinds
import pytest
from all_kinds import BOUND, NOW, Case, recorded_cases, synthetic, synthetic_cases
from recorded import MANIFEST

from strongroom.attest.appraise import all_ok, appraise, binding_rule, parse_requirement, rules
from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.attest.registry import KINDS, PRIMARY
from strongroom.attest.requirements_values import Problems
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import EvidenceError, InvalidPolicy, MalformedEvidence, NotAuthentic

CASES = [*recorded_cases(), *synthetic_cases()]
GOOD = [case for case in CASES if case.refused is None]
SYNTHETIC = [case.name for case in synthetic_cases()]


def name_of(case: Case) -> str:
    return case.name


# --- the table --------------------------------------------------------------------------------------


def test_all_that_was_recorded_and_every_kind_is_in_the_table():
    recorded = {name for name, entry in MANIFEST.items() if entry["kind"] in all_kinds.EVIDENCE_KINDS}
    assert {case.name for case in recorded_cases()} == recorded | {"tpm/q.msg"}
    assert {case.evidence.kind for case in synthetic_cases()} == set(KINDS)
    assert {case.evidence.kind for case in recorded_cases()} == set(KINDS)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_verifying_gives(case):
    if case.refused is not None:
        with pytest.raises(case.refused, match=case.reason):
            verify(case.evidence, case.context)
        return
    claims = verify(case.evidence, case.context)
    assert claims.kind == case.evidence.kind
    assert claims.debug is case.debug
    assert claims.bound == case.bound
    assert case.says.items() <= claims.values.items()
    assert (claims.platform or "").startswith(case.platform or "")
    if case.platform is None:
        assert claims.platform is None or case.evidence.kind == "jwt"
    assert claims.test_root is case.context.roots.test
    assert claims.not_after >= case.context.now
    assert claims.not_after.utcoffset() is not None
    assert not claims.faults


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_claims_can_be_written_down_and_are_always_the_same(case):
    claims = verify(case.evidence, case.context)
    assert json.loads(json.dumps(claims.to_json())) == claims.to_json()
    assert verify(case.evidence, case.context).digest == claims.digest
    sent = Evidence.from_json(json.loads(json.dumps(case.evidence.to_json())))
    assert verify(sent, case.context).digest == claims.digest
    hexadecimal = re.compile(r"[0-9A-Fa-f]{40,}")

    def texts(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from texts(one)
        elif isinstance(value, str):
            yield value

    # The values of a token are its issuer's, to the letter.
    if case.evidence.kind != "jwt":
        assert all(
            text == text.lower() for text in texts(dict(claims.values)) if hexadecimal.fullmatch(text)
        )


# --- whom nobody believes ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", synthetic_cases(), ids=name_of)
def test_a_test_root_is_refused_in_production(case):
    if not case.rootless:
        with pytest.raises(EvidenceError):
            verify(case.evidence, Context(case.context.now, production()))
    claims = verify(case.evidence, case.context)
    assert claims.test_root
    found = {
        finding.path: finding.ok for finding in rules(claims, "evidence[0]", NOW, test_roots=False)
    }
    assert found.pop("evidence[0].root") is False
    assert all(found.values())
    assert all_ok(rules(claims, "evidence[0]", NOW, test_roots=True))


@pytest.mark.parametrize("case", [case for case in recorded_cases() if not case.rootless], ids=name_of)
def test_real_evidence_is_refused_under_test_roots(case):
    roots = production()
    for name in SYNTHETIC:
        _, made = synthetic(name)
        roots = replace(
            roots,
            intel=made.intel if made.intel != production().intel else roots.intel,
            amd={**roots.amd, **{p: r for p, r in made.amd.items() if r != production().amd[p]}},
            nitro=made.nitro if made.nitro != production().nitro else roots.nitro,
            nvidia_device=made.nvidia_device if name == "nvidia" else roots.nvidia_device,
            nvidia_rim=made.nvidia_rim if name == "nvidia" else roots.nvidia_rim,
            issuers=made.issuers or roots.issuers,
            test=True,
        )
    with pytest.raises(NotAuthentic):
        verify(case.evidence, replace(case.context, roots=roots))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_evidence_of_one_kind_is_none_of_another(case):
    for kind in KINDS:
        if kind != case.evidence.kind:
            with pytest.raises(EvidenceError):
                verify(replace(case.evidence, kind=kind), case.context)


def test_evidence_of_kinds_that_nobody_knows_is_refused():
    for kind in ("software", "SNP", "snp ", "", "tdx\0", "none"):
        with pytest.raises(MalformedEvidence, match="not known"):
            verify(Evidence(kind, b"x"), Context(NOW, production()))


def test_evidence_of_a_gpu_does_not_stand_alone():
    assert set(KINDS) - PRIMARY == {"nvidia"}


# --- when -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in GOOD if not case.rootless], ids=name_of)
def test_what_vouches_for_evidence_must_hold_now(case):
    claims = verify(case.evidence, case.context)
    with pytest.raises(NotAuthentic):
        verify(case.evidence, replace(case.context, now=case.context.now - timedelta(days=365 * 20)))
    if claims.not_after.year == 9999:
        # NVIDIA's certificates of devices have no end.
        assert case.evidence.kind == "nvidia"
        return
    with pytest.raises(NotAuthentic):
        verify(case.evidence, replace(case.context, now=claims.not_after + timedelta(minutes=2)))
    late = rules(claims, "evidence[0]", claims.not_after + timedelta(seconds=1), test_roots=True)
    assert [finding.path for finding in late if not finding.ok][-1:] == ["evidence[0].not_after"]


# --- debug, and what evidence is bound to -------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgx", "tdx", "azure-tdx"])
def test_debug_is_refused_by_the_verifier(name):
    evidence, roots = synthetic(name, debug=True)
    with pytest.raises(NotAuthentic, match="debug"):
        verify(evidence, Context(NOW, roots))


@pytest.mark.parametrize("name", ["snp-Milan-vcek", "snp-Turin-vlek", "nitro", "azure-snp", "jwt"])
def test_debug_is_refused_by_the_rules(name):
    evidence, roots = synthetic(name, debug=True)
    claims = verify(evidence, Context(NOW, roots))
    assert claims.debug
    refused = [
        finding for finding in rules(claims, "evidence[0]", NOW, test_roots=True) if not finding.ok
    ]
    assert [finding.path for finding in refused] == ["evidence[0].debug"]


@pytest.mark.parametrize("name", ["snp/milan_v2_debug.bin", "nitro/debug.cose"])
def test_recorded_debug_machines_are_refused_by_the_rules(name):
    (case,) = (case for case in recorded_cases() if case.name == name)
    claims = verify(case.evidence, case.context)
    refused = [
        one for one in rules(claims, "evidence[0]", case.context.now, test_roots=False) if not one.ok
    ]
    assert [finding.path for finding in refused] == ["evidence[0].debug"]


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_good_evidence_passes_the_rules_and_is_bound_to_one_thing(case):
    claims = verify(case.evidence, case.context)
    found = rules(claims, "evidence[0]", case.context.now, test_roots=True)
    assert all_ok(found) is not case.debug
    assert binding_rule(claims, "evidence[0]", case.bound).ok
    other = bytes([case.bound[0] ^ 1]) + case.bound[1:]
    for wanted in (other, case.bound[:-1], case.bound + b"\0", b"", None):
        assert not binding_rule(claims, "evidence[0]", wanted).ok


@pytest.mark.parametrize("name", SYNTHETIC)
def test_relayed_evidence_is_bound_to_something_else(name):
    """The same machine, a good measurement, another challenge."""
    evidence, roots = synthetic(name, bytes(32))
    assert not binding_rule(verify(evidence, Context(NOW, roots)), "evidence[0]", BOUND).ok


def test_a_status_that_verifying_returns_is_not_accepted_by_default():
    made = all_kinds.intel()
    collateral = made.collateral("tdx", status="OutOfDate")
    evidence = replace(made.evidence("tdx", BOUND, mr_td=b"\x11" * 48), endorsements=(collateral,))
    claims = verify(evidence, Context(NOW, made.roots(production())))
    assert claims.values["tcb_status"] == "OutOfDate"
    wanted = {"kind": "tdx", "mr_td": claims.values["mr_td"], "mr_config_id": "22" * 48}
    refused = [one for one in appraise(required(wanted), claims, (), NOW) if not one.ok]
    assert any("TCB status is OutOfDate" in finding.text for finding in refused)


# --- what policies can list ---------------------------------------------------------------------------


def required(members):
    problems = Problems()
    requirement = parse_requirement(members, "any[0]", problems)
    problems.raise_first()
    return requirement


def snp_members(values):
    """A requirement that lists everything that claims of SEV-SNP say."""
    same = ("measurement", "host_data", "family_id", "image_id", "id_key_digest", "author_key_digest")
    policy = {name: value for name, value in values["policy"].items() if isinstance(value, bool)}
    policy.pop("debug")
    return {
        **{name: values[name] for name in (*same, "vmpl", "product", "signer")},
        **({"csp_id": values["csp_id"]} if values["csp_id"] else {}),
        "min_guest_svn": values["guest_svn"],
        "guest_policy": policy,
        "platform_info": values["platform_info"],
        "min_tcb": {"of": "committed", **values["tcb"]["committed"]},
    }


def members_of(case, claims):
    values = claims.values
    if case.evidence.kind == "snp":
        return snp_members(values)
    if case.evidence.kind == "azure-vtpm" and "mr_td" not in values:
        return {**snp_members(values), "ak": values["ak"], "pcr": values["pcr"]}
    if case.evidence.kind == "nitro":
        return {"pcr": values["pcr"], "module_id": values["module_id"]}
    return None


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_policies_and_claims_have_the_same_names(case):
    """Of SEV-SNP, Azure and Nitro, whose claims are all plain values."""
    claims = verify(case.evidence, case.context)
    members = members_of(case, claims)
    if members is None:
        assert case.evidence.kind in ("sgx", "tdx", "nvidia", "jwt", "tpm") or "mr_td" in claims.values
        return
    platforms = [claims.platform] if claims.platform else []
    whole = {"kind": claims.kind, **members, **({"platforms": platforms} if platforms else {})}
    if claims.kind == "nitro" and case.debug:
        # PCRs that are zero identify nobody: no policy can list them.
        with pytest.raises(InvalidPolicy):
            required(whole)
        return
    assert all_ok(appraise(required(whole), claims, (), case.context.now))
    for name, value in members.items():
        if isinstance(value, str) and len(value) >= 64:
            other = {**whole, name: ("0" if value[0] != "0" else "1") + value[1:]}
            found = appraise(required(other), claims, (), case.context.now)
            assert [finding.path for finding in found if not finding.ok] == [f"any[0].{name}"]


# --- bytes that somebody has changed ------------------------------------------------------------------


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_changed_evidence_says_the_same_or_nothing(case):
    """Some quotes can be changed and still verify: never so that the claims are others."""

    def said(claims):
        # The name of a TPM's key covers more of its public area than its signature vouches for.
        members = claims.to_json()
        return {**members, "values": {**members["values"], "ak_name": None}}

    claims = verify(case.evidence, case.context)
    chance = random.Random(case.name)
    data = case.evidence.data
    for _ in range(120):
        at = chance.randrange(len(data))
        end = at + chance.choice((0, 1, 1, 1, 4, 64))
        fill = chance.choice((b"", b"\0", b"\xff", b"A", b'"', chance.randbytes(end - at)))
        changed = replace(case.evidence, data=data[:at] + fill + data[end:])
        try:
            found = verify(changed, case.context)
        except EvidenceError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 1000
        else:
            assert said(found) == said(claims)


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_changed_endorsements_refuse_or_change_nothing_that_a_machine_says(case):
    claims = verify(case.evidence, case.context)
    chance = random.Random(case.name)
    for _ in range(40 if case.evidence.endorsements else 0):
        which = chance.randrange(len(case.evidence.endorsements))
        changed = bytearray(case.evidence.endorsements[which])
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        endorsements = [*case.evidence.endorsements]
        endorsements[which] = bytes(changed)
        try:
            found = verify(replace(case.evidence, endorsements=endorsements), case.context)
        except EvidenceError as error:
            assert str(error).isprintable()
        else:
            assert (found.bound, found.debug, found.platform) == (
                claims.bound,
                claims.debug,
                claims.platform,
            )
            # A manifest or a revocation list that cannot be read may leave only less to say.
            for name, value in found.values.items():
                assert value == claims.values[name] or name in ("revocation", "devices")


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_cut_evidence_is_refused(case):
    data = case.evidence.data
    for size in sorted(
        {0, 1, 2, 3, 4, 16, 48, len(data) - 1, *range(7, len(data) - 1, len(data) // 25)}
    ):
        # Zeros behind a quote and white space behind JSON are nothing.
        if data[size:].strip(b"\0\n"):
            with pytest.raises(EvidenceError):
                verify(replace(case.evidence, data=data[:size]), case.context)


@pytest.mark.parametrize("kind", KINDS)
def test_oversized_evidence_is_refused_before_anybody_parses_it(kind):
    context = Context(NOW, production())
    for data in (b"", b"\0" * (MAX_EVIDENCE + 1), b"[" * (MAX_EVIDENCE + 1)):
        with pytest.raises(MalformedEvidence, match=r"is empty|has more than"):
            verify(Evidence(kind, data), context)
    half = bytes(MAX_ENDORSEMENTS // 2 + 1)
    with pytest.raises(MalformedEvidence, match="Endorsements have more than"):
        verify(Evidence(kind, b"x", (half, half)), context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"{}",
        b"[]",
        b"null",
        b"[" * 60000,
        b'{"a":' * 10000,
        b"\x81" * 60000,
        b"\x9f" * 60000,
        b"\xff" * 60000,
        b"0\x84\xff\xff\xff\xff" + b"\0" * 100,
        b"\0" * MAX_EVIDENCE,
        b"." * 60000,
        b"A" * 60000,
    ],
    ids=lambda data: f"{data[:6]!r}x{len(data)}",
)
def test_junk_of_any_size_is_refused_in_our_own_words(kind, data):
    with pytest.raises(EvidenceError) as caught:
        verify(Evidence(kind, data), Context(NOW, production()))
    assert str(caught.value).isprintable()


def test_one_quote_in_two_spellings_is_one_identity():
    (case,) = (case for case in recorded_cases() if case.name == "dcap/tdx_v4.bin")
    padded = replace(case.evidence, data=case.evidence.data + bytes(100))
    assert padded.digest != case.evidence.digest
    assert verify(padded, case.context).digest == verify(case.evidence, case.context).digest
