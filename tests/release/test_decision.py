"""Decisions: what is listed must match, whatever is listed; what nobody can relax is attacked one by one."""

import copy
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_claims import (
    FULL,
    IDENTITY,
    NOW,
    PRIMARY,
    PRIMARY_KINDS,
    SECONDARY,
    VALUES,
    asked,
    claims,
    digits,
    document,
    presented,
    requirement,
)

from strongroom.attest.requirements_kinds import KINDS
from strongroom.errors import InvalidPolicy, StrongroomError
from strongroom.release.decision import CODES, decide, evaluate, renew
from strongroom.release.lease import lease_end
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy
from strongroom.release.stored_claims import claims_from_json


def decided(doc, *pieces, key=None, **changes):
    return decide(Policy.parse(doc), key or asked(), presented(*pieces, **changes))


def failed(decision):
    return [finding.path for finding in decision.findings if not finding.ok]


def test_the_tables_here_have_every_kind_and_every_member():
    assert set(FULL) == set(VALUES) == set(KINDS)
    for kind, members in FULL.items():
        missing = set(KINDS[kind].members) - set(members)
        if kind == "azure-vtpm":  # on an Intel, below
            missing -= set(KINDS["tdx"].members)
        assert missing <= {"includes", "claims", "platforms"}, kind


@pytest.mark.parametrize("kind", PRIMARY_KINDS)
def test_claims_meet_a_policy_that_lists_all_they_say(kind):
    decision = decided(document(requirement(kind)), claims(kind))
    assert (decision.allowed, decision.code, decision.matched, failed(decision)) == (
        True,
        "",
        "any[0]",
        [],
    )


def on_an_intel(**values):
    said = {**VALUES["tdx"], "ak": digits("d", 32), "pcr": {"4": digits("e", 32)}, **values}
    return claims("azure-vtpm", values=said)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"mr_td": digits("e", 48)}, "any[0].mr_td"),
        ({"mr_td": None}, "any[0].mr_td"),
        ({"pcr": {"4": digits("1", 32)}}, "any[0].pcr.4"),
        ({"tcb_status": "OutOfDate"}, "any[0].tcb.status"),
        ({"tcb_status": None}, "any[0].tcb.status"),
        ({"td_attributes": "0100001000000000"}, "evidence[0].debug"),
    ],
)
def test_azure_on_an_intel(values, path):
    wanted = {
        "kind": "azure-vtpm",
        "mr_td": digits("1", 48),
        "pcr": {"4": digits("e", 32)},
        "platforms": ["ak:" + digits("d", 32)],
    }
    assert decided(document(wanted), on_an_intel()).allowed
    assert failed(decided(document(wanted), on_an_intel(**values))) == [path]
    # One processor's evidence does not pass for the other's.
    assert "any[0].mr_td" in failed(decided(document(wanted), claims("azure-vtpm")))
    amd = document(requirement("azure-vtpm"))
    assert "any[0].measurement" in failed(decided(amd, on_an_intel()))
    assert "any[0].tcb.status" in failed(decided(amd, on_an_intel(tcb_status="OutOfDate")))


def test_gpus_beside_a_cpu():
    doc = document(requirement("tdx", **{"with": [requirement("nvidia")]}))
    decision = decided(doc, claims("tdx"), claims("nvidia"))
    assert decision.allowed, failed(decision)


def leaves(value, path=()):
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, (*path, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, member in enumerate(value):
            yield from leaves(member, (*path, index))
    else:
        yield path, value


def changed(value):
    """The value with as little as possible of it changed, and values that are easily taken for it."""
    if isinstance(value, bool):
        return [not value, int(value), str(value), None]
    if isinstance(value, int):
        return [value + 1, value - 1, str(value), float(value), None, bool(value)]
    if isinstance(value, str):
        last = "0" if value[-1] != "0" else "1"
        return [value[:-1] + last, value[:-1], value + "0", value.upper() + " ", [value], None, ""]
    return [[], None, "", ["something else"]]


def with_value(values, path, value):
    values = copy.deepcopy(values)
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return values


# Claims that minimums and allow-lists are met by in more than one way, or that no member lists.
NOT_LISTED = {
    "ppid": "another name of the machine may be listed",
    "piid": "another name of the machine may be listed",
    "chip_id": "the verifier's platform is listed",
    "debug": "a rule, below",
    "args": "a list of which one entry must be there",
    "groups": "a list of which one entry must be there",
    "san": "a list of which one entry must be there",
    "audience": "a list of which one entry must be there",
    "advisories": "below",
    "tcb_status": "below",
    "tee": "not listed in min_tcb",
    "launch": "another TCB",
    "reported": "another TCB",
}


def one_change():
    for kind in FULL:
        for path, value in leaves(VALUES[kind]):
            if any(name in NOT_LISTED for name in path):
                continue
            for other in changed(value):
                yield kind, path, value, other


CHANGES = list(one_change())


def test_there_are_changes_of_every_kind():
    assert {kind for kind, *_ in CHANGES} == set(FULL)
    assert len(CHANGES) > 500


@pytest.mark.parametrize("kind", FULL)
def test_any_single_change_of_a_listed_claim_refuses(kind):
    if kind == "nvidia":
        policy = Policy.parse(document(requirement("tdx", **{"with": [requirement("nvidia")]})))
    else:
        policy = Policy.parse(document(requirement(kind)))
    for of, path, value, other in CHANGES:
        if of != kind:
            continue
        made = claims(kind, values=with_value(VALUES[kind], path, other))
        pieces = [claims("tdx"), made] if kind == "nvidia" else [made]
        decision = decide(policy, asked(), presented(*pieces))
        minimum = isinstance(value, int) and type(other) is int and other > value
        if minimum and path[-1] in ("isv_svn", "config_svn", "guest_svn", "tcb_eval", *MINIMA):
            assert decision.allowed, (kind, path, other)
        elif path[-1] == "vmpl" and type(other) is int and other == 1:
            assert decision.allowed  # it is listed
        else:
            assert not decision.allowed, (kind, path, other)
            assert decision.code in ("policy", "evidence")
            json.dumps(decision.to_json())


MINIMA = ("bootloader", "snp", "microcode")


@given(st.sampled_from(PRIMARY_KINDS), st.data())
@settings(max_examples=150, deadline=None)
def test_any_part_of_the_list_allows_and_names_its_findings(kind, data):
    """A policy that lists some of what the claims say allows, if it is a policy at all."""
    members = data.draw(st.lists(st.sampled_from(sorted(FULL[kind])), min_size=1, unique=True))
    doc = document({"kind": kind, **{name: FULL[kind][name] for name in members}})
    try:
        policy = Policy.parse(doc)
    except InvalidPolicy:
        assert not any(set(needed) <= set(members) for needed in KINDS[kind].needs)
        return
    decision = decide(policy, asked(), presented(claims(kind)))
    assert decision.allowed
    looked_at = {finding.path for finding in decision.findings}
    for name in members:
        assert any(path.startswith(f"any[0].{name}") for path in looked_at)
    assert decide(policy, asked(), presented(claims(kind))) == decision


def test_every_alternative_is_looked_at_and_says_where_it_fails():
    doc = document(
        requirement("snp"),
        requirement("tdx", mr_td=digits("e", 48)),
        requirement("tdx", xfam=digits("e", 8), mr_owner=digits("e", 48)),
    )
    decision = decided(doc, claims("tdx"))
    assert (decision.allowed, decision.code, decision.matched) == (False, "policy", None)
    assert set(failed(decision)) == {"any[0].kind", "any[1].mr_td", "any[2].xfam", "any[2].mr_owner"}
    finding = next(one for one in decision.findings if one.path == "any[1].mr_td")
    assert (finding.found, finding.expected) == (digits("1", 48), digits("e", 48))
    assert decided({**doc, "any": [*doc["any"], requirement("tdx")]}, claims("tdx")).matched == "any[3]"


EVIDENCE = [kind for kind in PRIMARY_KINDS if kind not in IDENTITY]


@pytest.mark.parametrize("kind", EVIDENCE)
@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"debug": True}, "evidence", "debug"),
        ({"debug": None}, "evidence", "debug"),
        ({"test_root": True}, "evidence", "root"),
        ({"faults": ["Bit 17 of the guest policy is zero."]}, "evidence", "faults"),
        ({"not_after": NOW - timedelta(seconds=1)}, "evidence", "not_after"),
        ({"bound": bytes(64)}, "binding", "bound"),
        ({"bound": PRIMARY[:63]}, "binding", "bound"),
        ({"bound": PRIMARY + b"\0"}, "binding", "bound"),
        ({"bound": b""}, "binding", "bound"),
        ({"bound": SECONDARY}, "binding", "bound"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_nobody_can_relax(kind, change, code, path):
    # With test_roots in the policy: it alone does not open the door.
    decision = decided(document(requirement(kind), test_roots=True), claims(kind, **change))
    assert (decision.allowed, decision.code, decision.matched) == (False, code, None)
    assert failed(decision) == [f"evidence[0].{path}"]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("sgx", ("attributes",), "0700000000000000e700000000000000"),
        ("tdx", ("td_attributes",), "0100001000000000"),
        ("tdx", ("td_attributes",), "8000001000000000"),
        ("tdx", ("td_attributes",), "nonsense"),
        ("snp", ("policy", "debug"), True),
        ("azure-vtpm", ("policy", "debug"), True),
        ("nitro", ("pcr", "0"), digits("0", 48)),
        ("nitro", ("pcr", "0"), None),
    ],
)
def test_debug_is_seen_in_the_values_even_where_a_verifier_says_otherwise(kind, path, value):
    members = {"nitro": {"pcr": {"8": digits("3", 48)}}}.get(kind, {})
    wanted = requirement(kind, **members)
    for name in ("attributes", "td_attributes"):
        wanted.pop(name, None)
    made = claims(kind, values=with_value(VALUES[kind], path, value))
    decision = decided(document(wanted), made)
    assert (decision.allowed, decision.code, failed(decision)) == (
        False,
        "evidence",
        ["evidence[0].debug"],
    )


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("policy", [False, True])
def test_test_roots_need_the_server_and_the_policy(server, policy):
    doc = document(requirement("tdx"), test_roots=policy)
    decision = decided(doc, claims("tdx", test_root=True), allow_test_roots=server)
    assert decision.allowed == (server and policy)


@pytest.mark.parametrize(
    "expected", [{}, {"tdx": b""}, {"snp": PRIMARY}, {"tdx": PRIMARY[::-1]}], ids=str
)
def test_nothing_that_is_expected_is_nothing_that_is_bound(expected):
    for bound in (b"", PRIMARY, SECONDARY):
        decision = decided(document(), claims("tdx", bound=bound), expected_primary=expected)
        assert (decision.allowed, decision.code) == (False, "binding")


def test_secondary_evidence_is_bound_as_secondary_whatever_is_expected_of_its_kind():
    doc = document(requirement("tdx", **{"with": [requirement("tpm")]}))
    expected = {"tdx": PRIMARY, "tpm": PRIMARY}
    good, bad = claims("tpm", bound=SECONDARY), claims("tpm", bound=PRIMARY)
    assert decided(doc, claims("tdx"), good, expected_primary=expected).allowed
    assert decided(doc, claims("tdx"), bad, expected_primary=expected).code == "binding"


@pytest.mark.parametrize("found", [True, 5.0, "5", [5], None])
def test_a_minimum_is_met_by_a_number_alone(found):
    doc = document(requirement("sgx", min_svn=1))
    made = claims("sgx", values={**VALUES["sgx"], "isv_svn": found})
    assert failed(decided(doc, made)) == ["any[0].min_svn"]


def test_the_last_moment_of_validity():
    made = claims("tdx")
    assert decided(document(), made, now=made.not_after).allowed
    assert not decided(document(), made, now=made.not_after + timedelta(microseconds=1)).allowed


WITH_GPU = document(requirement("tdx", **{"with": [requirement("nvidia")]}))


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([claims("tdx")], "policy"),
        ([claims("nvidia")], "binding"),
        ([claims("nvidia"), claims("tdx")], "binding"),
        ([claims("tdx"), claims("nvidia", bound=PRIMARY)], "binding"),
        ([claims("tdx"), claims("nvidia", bound=b"")], "binding"),
        ([claims("tdx"), claims("nvidia", debug=True)], "evidence"),
        ([claims("tdx"), claims("nvidia", test_root=True)], "evidence"),
        ([claims("tdx"), claims("nvidia", faults=["not secure"])], "evidence"),
        ([claims("tdx"), claims("nvidia", not_after=NOW - timedelta(1))], "evidence"),
        ([claims("tdx"), claims("nvidia", values={"devices": []})], "policy"),
        ([claims("tdx"), claims("nvidia", values={})], "policy"),
        ([claims("tdx"), claims("nvidia", values={"devices": "HOPPER"})], "policy"),
        ([claims("tdx"), claims("nvidia"), claims("nvidia")], "policy"),
        ([claims("tdx", bound=bytes(64)), claims("nvidia")], "binding"),
        ([claims("snp"), claims("nvidia")], "policy"),
    ],
)
def test_gpus_that_are_not_vouched_for_or_not_as_wanted(pieces, code):
    decision = decided(WITH_GPU, *pieces)
    assert (decision.allowed, decision.code) == (False, code), failed(decision)


def gpus(*devices):
    base = VALUES["nvidia"]["devices"][0]
    return claims("nvidia", values={"devices": [{**base, **one} for one in devices]})


def test_gpus_in_one_piece_of_evidence_or_in_several():
    one, other = {"device": digits("d", 32)}, {"device": digits("e", 32)}
    assert decided(WITH_GPU, claims("tdx"), gpus(one), gpus(other)).allowed
    # Twice the same is not two, in however many pieces; and a good one does not excuse a bad one.
    for pieces in ([gpus(one), gpus(one)], [gpus(one, one)], [gpus(one, other, other)], [gpus(one)]):
        assert not decided(WITH_GPU, claims("tdx"), *pieces).allowed
    bad = {**other, "measurements": "mismatch"}
    for pieces in ([gpus(one), gpus(bad)], [gpus(bad, one)]):
        assert failed(decided(WITH_GPU, claims("tdx"), *pieces)) == ["any[0].with[0].measurements"]
    relayed = replace(gpus(other), bound=bytes(32))
    assert decided(WITH_GPU, claims("tdx"), gpus(one), relayed).code == "binding"


@pytest.mark.parametrize("state", ["mismatch", "no-reference", "Match", True, None])
def test_gpus_must_match_their_reference_unless_the_policy_says_otherwise(state):
    wanted = requirement("nvidia", count=1)
    del wanted["measurements"]
    made = gpus({"measurements": state})
    doc = document(requirement("tdx", **{"with": [wanted]}))
    assert failed(decided(doc, claims("tdx"), made)) == ["any[0].with[0].measurements"]
    if state in ("mismatch", "no-reference"):
        wanted["measurements"] = ["match", state]
        assert decided(document(requirement("tdx", **{"with": [wanted]})), claims("tdx"), made).allowed


def test_a_count_of_gpus_without_identity_is_no_count():
    pair = gpus({"device": None}, {"device": None})
    wanted = requirement("nvidia")
    del wanted["device"]
    doc = document(requirement("tdx", **{"with": [wanted]}))
    assert failed(decided(doc, claims("tdx"), pair)) == ["any[0].with[0].count"]


def test_evidence_that_no_policy_asks_for_does_not_count():
    bad = claims("nvidia", bound=b"", debug=True)
    assert decided(document(), claims("tdx"), bad).allowed


def test_a_tpm_beside_a_cpu_and_an_identity_beside_both():
    doc = document(requirement("tdx", **{"with": [requirement("tpm"), requirement("mtls")]}))
    tpm = claims("tpm", bound=SECONDARY)
    assert decided(doc, claims("tdx"), tpm, claims("mtls")).allowed
    assert decided(doc, claims("tdx"), tpm).code == "policy"
    assert decided(doc, claims("tdx"), claims("tpm"), claims("mtls")).code == "binding"
    other = claims("mtls", values={**VALUES["mtls"], "sha256": digits("0", 32)})
    assert decided(doc, claims("tdx"), tpm, other).code == "policy"


def test_identities_count_only_where_an_alternative_asks_for_them():
    for kind in IDENTITY:
        assert decided(document(requirement(kind)), claims(kind)).allowed
        assert decided(document(), claims(kind)).code == "policy"
        assert decided(document(requirement(kind)), claims("tdx")).code == "policy"
        # The identity stands behind the evidence that came along.
        assert decided(document(requirement(kind)), claims("tdx"), claims(kind)).allowed
        assert not decided(document(requirement(kind)), claims(kind, debug=True)).allowed
        old = claims(kind, not_after=NOW - timedelta(1))
        assert decided(document(requirement(kind)), old).code == "evidence"


def test_evidence_counts_in_the_first_place_alone():
    assert decided(document(), claims("mtls"), claims("tdx")).code == "policy"
    assert not decided(document(), claims("snp"), claims("tdx")).allowed


def test_two_identities_of_a_kind_must_both_be_as_wanted():
    other = claims("mtls", values={**VALUES["mtls"], "sha256": digits("0", 32)})
    assert not decided(document(requirement("mtls")), claims("mtls"), other).allowed
    assert not decided(document(requirement("mtls")), other, claims("mtls")).allowed


def test_nothing_presented():
    decision = decided(document(requirement("mtls")))
    assert (decision.allowed, decision.code, failed(decision)) == (False, "evidence", ["evidence"])


@pytest.mark.parametrize(
    "name",
    ["ppid:" + digits("9", 16), "piid:" + digits("a", 16)],
)
def test_an_evicted_machine_by_any_of_its_names(name):
    wanted = requirement("tdx")
    del wanted["platforms"]
    decision = decided(document(wanted), claims("tdx"), evicted=frozenset({name, "ak:00"}))
    assert (decision.allowed, decision.code) == (False, "evicted")
    # Nor with another alternative, beside which its evidence stands.
    doc = document(wanted, requirement("mtls"))
    decision = decided(doc, claims("tdx"), claims("mtls"), evicted=frozenset({name}))
    assert (decision.allowed, decision.code, decision.matched) == (False, "evicted", None)


def test_an_evicted_gpu():
    evicted = frozenset({"device:" + digits("e", 32)})
    decision = decided(WITH_GPU, claims("tdx"), claims("nvidia"), evicted=evicted)
    assert decision.code == "evicted"
    assert decided(WITH_GPU, claims("tdx"), claims("nvidia"), evicted=frozenset({"device:00"})).allowed


@pytest.mark.parametrize(
    "change",
    [
        {"platform": None},
        {"platform": "ppid:" + digits("0", 16)},
        {"platform": "chip_id:" + digits("9", 16)},
    ],
)
def test_machines_that_are_not_listed(change):
    values = {**VALUES["tdx"], "ppid": digits("0", 16), "piid": None}
    decision = decided(document(), claims("tdx", values=values, **change))
    assert failed(decision) == ["any[0].platforms"]


def test_a_masked_chip_id_names_nobody():
    zero = digits("0", 64)
    doc = document(requirement("snp", platforms=["chip_id:" + zero]))
    made = claims("snp", values={**VALUES["snp"], "chip_id": zero}, platform=None)
    assert failed(decided(doc, made)) == ["any[0].platforms"]
    open_doc = requirement("snp")
    del open_doc["platforms"]
    assert decided(document(open_doc), made, evicted=frozenset({"chip_id:" + zero})).allowed


def tcb(**members):
    return requirement("tdx", tcb=members) if members else requirement("tdx", tcb={"min_eval": 1})


RELAXED = {"status": "OutOfDate", "until": "2026-03-01T12:00:01Z"}


@pytest.mark.parametrize(
    ("members", "status", "advisories", "ok"),
    [
        ({"min_eval": 18}, "UpToDate", [], True),
        ({"min_eval": 18}, "OutOfDate", [], False),
        ({"min_eval": 18}, "SWHardeningNeeded", [], False),
        ({"min_eval": 18}, "Revoked", [], False),
        ({"min_eval": 18}, "uptodate", [], False),
        ({"min_eval": 18}, "", [], False),
        ({"min_eval": 18}, None, [], False),
        ({"min_eval": 18}, ["UpToDate"], [], False),
        ({"min_eval": 19}, "UpToDate", [], False),
        ({"status": [RELAXED]}, "UpToDate", [], True),
        ({"status": RELAXED}, "OutOfDate", ["INTEL-SA-00001"], True),
        ({"status": [{**RELAXED, "until": "2026-03-01T12:00:00Z"}]}, "OutOfDate", [], False),
        ({"status": [{**RELAXED, "until": "2026-03-01T12:00:00Z"}]}, "UpToDate", [], True),
        ({"status": [RELAXED]}, "SWHardeningNeeded", [], False),
        (
            {"status": [{**RELAXED, "advisories": ["INTEL-SA-00001"]}]},
            "OutOfDate",
            ["INTEL-SA-00001"],
            True,
        ),
        ({"status": [{**RELAXED, "advisories": ["INTEL-SA-00001"]}]}, "OutOfDate", [], True),
        (
            {"status": [{**RELAXED, "advisories": ["INTEL-SA-00001"]}]},
            "OutOfDate",
            ["INTEL-SA-00001", "INTEL-SA-00002"],
            False,
        ),
        ({"status": [{**RELAXED, "advisories": ["INTEL-SA-00001"]}]}, "OutOfDate", None, False),
        ({"advisories_deny": ["INTEL-SA-00001"]}, "UpToDate", ["INTEL-SA-00001"], False),
        ({"advisories_deny": ["INTEL-SA-00001"]}, "UpToDate", ["INTEL-SA-00002"], True),
        ({"advisories_deny": ["INTEL-SA-00001"]}, "UpToDate", None, False),
    ],
)
def test_tcb_status(members, status, advisories, ok):
    values = {**VALUES["tdx"], "tcb_status": status, "advisories": advisories}
    decision = decided(document(tcb(**members)), claims("tdx", values=values))
    assert decision.allowed == ok, failed(decision)
    assert all(path.startswith("any[0].tcb.") for path in failed(decision))


def test_without_a_word_on_tcb_only_up_to_date_is_taken():
    for kind in ("sgx", "tdx"):
        wanted = requirement(kind)
        del wanted["tcb"]
        assert decided(document(wanted), claims(kind)).allowed
        for status in ("SWHardeningNeeded", "OutOfDate", None):
            values = {**VALUES[kind], "tcb_status": status}
            decision = decided(document(wanted), claims(kind, values=values))
            assert failed(decision) == ["any[0].tcb.status"]


@pytest.mark.parametrize(("of", "snp", "ok"), [("committed", 23, True), ("committed", 24, False), ("launch", 24, True), ("launch", 25, False), ("reported", 25, True)])  # fmt: skip
def test_min_tcb_is_of_the_tcb_that_is_named(of, snp, ok):
    doc = document(requirement("snp", min_tcb={"of": of, "snp": snp}))
    assert decided(doc, claims("snp")).allowed == ok


def test_min_tcb_of_what_the_product_does_not_have():
    doc = document(requirement("snp", min_tcb={"of": "committed", "fmc": 0}))
    assert failed(decided(doc, claims("snp"))) == ["any[0].min_tcb.fmc"]


@pytest.mark.parametrize(
    ("key", "members", "code"),
    [
        ({"key": KeyName("models/other", 3)}, {}, "no-policy"),
        ({"key": KeyName("models/llama", 3)}, {}, "no-policy"),
        ({"key": KeyName("models/llama2/70b", 3)}, {}, "no-policy"),
        ({"state": "revoked"}, {}, "revoked"),
        ({"state": "destroyed"}, {}, "revoked"),
        ({"state": ""}, {}, "revoked"),
        ({"state": "ACTIVE"}, {}, "revoked"),
        ({"state": "deprecated"}, {}, ""),
        ({"key": KeyName("models/llama/70b")}, {}, "policy"),
        ({"key": KeyName("models/llama/70b", 2)}, {}, "policy"),
        ({"key": KeyName("models/llama/70b", 4)}, {}, "policy"),
        ({"key": KeyName("models/llama/70b", 2)}, {"versions": ["current", 2]}, ""),
        ({"key": KeyName("models/llama/70b", 1)}, {"versions": ["current", 2]}, "policy"),
        ({"key": KeyName("models/llama/70b", 3)}, {"versions": [2]}, "policy"),
        ({"key": KeyName("models/llama/70b", 2)}, {"versions": {"min": 2}}, ""),
        ({"key": KeyName("models/llama/70b", 1)}, {"versions": {"min": 2}}, "policy"),
        ({"key": KeyName("models/llama/70b", 4)}, {"versions": {"min": 2}}, "policy"),
        ({"bundle": bytes(16)}, {}, "bundle"),
        ({"bundle": b""}, {}, "bundle"),
        ({"bundle": b"", "registered": b""}, {}, "bundle"),
        ({"registered": bytes(16)}, {}, "bundle"),
        ({"registered": None}, {}, ""),
        ({"registered": None, "current_bundle": bytes(16)}, {}, "bundle"),
        # Nobody says what was registered for another version than the current one.
        (
            {"registered": None, "key": KeyName("models/llama/70b", 2)},
            {"versions": {"min": 1}},
            "bundle",
        ),
        ({}, {"revoked_bundles": ["AAECAwQFBgcICQoLDA0ODw"]}, "revoked"),
        ({}, {"revoked_bundles": ["AAAAAAAAAAAAAAAAAAAAAA"]}, ""),
        ({}, {"not_before": "2026-03-01T12:00:01Z"}, "not-yet"),
        ({}, {"not_before": "2026-03-01T12:00:00Z"}, ""),
        ({}, {"not_after": "2026-03-01T12:00:00Z"}, "expired"),
        ({}, {"not_after": "2026-03-01T13:00:01+01:00"}, ""),
    ],
)
def test_the_key_and_the_window(key, members, code):
    decision = decided(document(**members), claims("tdx"), key=asked(**key))
    assert (decision.allowed, decision.code) == (not code, code), failed(decision)
    assert bool(failed(decision)) == bool(code)
    assert code in (*CODES, "")


def test_who_has_not_proved_himself_learns_nothing_of_the_key():
    revoked, wrong = asked(state="revoked", bundle=bytes(16)), claims("tdx", bound=bytes(64))
    decision = decided(document(), wrong, key=revoked)
    assert decision.code == "binding"
    assert {"key.state", "key.bundle", "evidence[0].bound"} <= set(failed(decision))


def test_evaluate_is_the_evidence_and_the_window_alone():
    policy = Policy.parse(document(not_after="2026-03-02T00:00:00Z"))
    assert evaluate(policy, presented(claims("tdx"))).allowed
    late = presented(claims("tdx", not_after=NOW + timedelta(5)), now=NOW + timedelta(2))
    assert evaluate(policy, late).code == "expired"
    assert evaluate(policy, presented(claims("snp"))).code == "policy"
    elsewhere = presented(claims("tdx", bound=b"another request"))
    assert evaluate(policy, elsewhere).allowed
    assert decide(policy, asked(), elsewhere).code == "binding"
    assert evaluate(policy, presented(claims("tdx", not_after=NOW - timedelta(1)))).code == "evidence"


class TestRenewal:
    """Nothing is bound to the request of then, and nothing vouched for it until today."""

    def renewed(self, doc, made, *, after=timedelta(hours=2), **changes):
        stored = claims_from_json(json.loads(json.dumps(made.to_json())))
        assert stored.to_json() == made.to_json()
        now = presented(stored, now=NOW + after, expected_primary={}, **changes)
        return renew(Policy.parse(doc), changes.pop("key", asked()), now, NOW)

    def test_what_was_acceptable_still_is(self):
        assert self.renewed(document(), claims("tdx")).allowed

    def test_the_policy_of_today_is_asked(self):
        newer = document(requirement("tdx", mr_td=digits("e", 48)), version=2)
        assert self.renewed(newer, claims("tdx")).code == "policy"

    def test_a_deadline_passes(self):
        relaxed = tcb(status=[{**RELAXED, "until": "2026-03-01T13:00:00Z"}])
        made = claims("tdx", values={**VALUES["tdx"], "tcb_status": "OutOfDate"})
        assert self.renewed(document(relaxed), made, after=timedelta(minutes=30)).allowed
        assert self.renewed(document(relaxed), made).code == "policy"

    @pytest.mark.parametrize(
        "change", [{"debug": True}, {"test_root": True}, {"faults": ["something"]}], ids=str
    )
    def test_the_rules_hold(self, change):
        assert self.renewed(document(), claims("tdx", **change)).code == "evidence"

    def test_an_eviction(self):
        decision = self.renewed(
            document(), claims("tdx"), evicted=frozenset({"ppid:" + digits("9", 16)})
        )
        assert decision.code == "evicted"

    def test_after_a_while_it_must_attest_again(self):
        lease = {"seconds": 60, "attest_again_after": 7200}
        doc = document(lease=lease)
        assert self.renewed(doc, claims("tdx"), after=timedelta(seconds=7199)).allowed
        assert self.renewed(doc, claims("tdx")).code == "attest-again"
        # A clock that was set back says nothing of how long ago it was.
        assert self.renewed(doc, claims("tdx"), after=-timedelta(seconds=60)).code == "attest-again"

    def test_a_lease_that_is_not_renewed(self):
        doc = document(lease={"seconds": 60, "renew": False})
        assert self.renewed(doc, claims("tdx"), after=timedelta(0)).code == "attest-again"

    def test_a_key_that_was_revoked_meanwhile(self):
        stored = presented(claims("tdx"), now=NOW + timedelta(hours=1))
        decision = renew(Policy.parse(document()), asked(state="revoked"), stored, NOW)
        assert decision.code == "revoked"


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "tdx"},
        {**claims("tdx").to_json(), "debug": 0},
        {**claims("tdx").to_json(), "test_root": None},
        {**claims("tdx").to_json(), "bound": "zz"},
        {**claims("tdx").to_json(), "not_after": "2026-03-01"},
        {**claims("tdx").to_json(), "values": None},
        {**claims("tdx").to_json(), "faults": None},
    ],
    ids=lambda record: str(record)[:30],
)
def test_claims_on_record_that_are_not_whole(record):
    with pytest.raises(StrongroomError):
        claims_from_json(record)


def test_a_lease_ends_with_what_vouches_for_it_and_with_its_policy():
    hour, minutes = timedelta(hours=1), timedelta(minutes=1)
    ends = (NOW + 30 * minutes).isoformat().replace("+00:00", "Z")
    plain = Policy.parse(document(lease={"seconds": 3600}))
    ending = Policy.parse(document(lease={"seconds": 3600}, not_after=ends))
    long, short = (claims("tdx", not_after=NOW + left) for left in (5 * hour, 20 * minutes))
    assert lease_end(plain, [long], NOW) == NOW + hour
    assert lease_end(plain, [long, short], NOW) == NOW + 20 * minutes
    assert lease_end(ending, [long], NOW) == NOW + 30 * minutes
    assert lease_end(ending, [long, short], NOW) == NOW + 20 * minutes
    assert lease_end(plain, [], NOW) == NOW + hour


def test_what_is_proved_is_bound_to_the_request_or_an_identity():
    cpu, identity = claims("tdx"), claims("mtls")
    gpu = replace(claims("nvidia"), bound=SECONDARY)
    elsewhere = bytes(64)
    for shown, proved in (
        ([cpu, gpu, identity], [cpu, gpu, identity]),
        ([cpu, replace(gpu, bound=elsewhere), gpu, identity], [cpu, gpu, identity]),
        ([replace(cpu, bound=elsewhere), gpu, identity], [identity]),
        ([replace(cpu, bound=SECONDARY), identity], [identity]),
        ([replace(cpu, bound=elsewhere), cpu, identity], [identity]),
        ([identity], [identity]),
        ([cpu], [cpu]),
        ([], []),
    ):
        assert presented(*shown).proved() == proved


def test_a_long_list_does_not_fill_the_record():
    many = [f"ppid:{number:032x}" for number in range(1, 4001)]
    decision = decided(document(requirement("tdx", platforms=many)), claims("tdx"))
    assert not decision.allowed
    finding = next(one for one in decision.findings if one.path == "any[0].platforms")
    assert finding.expected == {"one_of": 4000}
    assert len(json.dumps(decision.to_json())) < 20_000
