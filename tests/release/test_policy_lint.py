"""Remarks on policies that are valid: each with the path of what should be meant."""

import pytest
from made_claims import NOW, document, requirement

from strongroom.release.lint import lint
from strongroom.release.policy import Policy

GOOD = document(
    requirement("tdx"), lease={"seconds": 3600, "max_holders": 8}, not_after="2026-06-01T00:00:00Z"
)


def warnings(doc, **options):
    remarks = lint(doc, now=options.pop("now", NOW), **options)
    assert {remark.level for remark in remarks} <= {"warning"}
    assert all(remark.text.endswith(".") for remark in remarks)
    return [remark.path for remark in remarks]


def without(doc_requirement, *names):
    return {name: value for name, value in doc_requirement.items() if name not in names}


def test_a_policy_without_a_remark():
    assert warnings(GOOD) == []
    everything = document(
        requirement("tdx", **{"with": [requirement("nvidia")]}),
        *(requirement(kind) for kind in ("sgx", "snp", "azure-vtpm", "nitro", "tpm", "jwt")),
        lease={"max_holders": 1},
    )
    assert warnings(everything) == []


def relaxed(until="2026-04-01T00:00:00Z", **members):
    return [{"status": "OutOfDate", "until": until, **members}]


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({"test_roots": True}, ["test_roots"]),
        ({"shadow": True}, ["shadow"]),
        ({"lease": {"seconds": 86401, "max_holders": 1}}, ["lease.seconds"]),
        ({"lease": {"seconds": 60}}, ["lease.max_holders"]),
        ({"lease": {"max_holders": 1, "attest_again_after": 8 * 86400}}, ["lease.attest_again_after"]),
        ({"lease": {"max_holders": 1, "renew": False, "attest_again_after": 8 * 86400}}, []),
        ({"not_after": "2026-03-01T12:00:00Z"}, ["not_after"]),
        ({"keys": ["models/llama/", "models/llama/70b", "models/llama/13b/"]}, ["keys[1]", "keys[2]"]),
        ({"any": [requirement("tdx"), requirement("mtls")]}, ["any[1]"]),
        ({"any": [requirement("mtls"), requirement("snp"), requirement("oidc")]}, ["any[0]", "any[2]"]),
        ({"any": [requirement("mtls")]}, []),
        ({"any": [without(requirement("tdx"), "platforms")]}, ["any[0]"]),
        ({"any": [without(requirement("snp"), "platforms")]}, ["any[0]"]),
        ({"any": [without(requirement("tdx"), "tcb")]}, ["any[0].tcb"]),
        ({"any": [requirement("tdx", tcb={"min_eval": 18, "status": relaxed()})]}, ["any[0].tcb.status"]),
        ({"any": [requirement("tdx", tcb={"min_eval": 18, "status": relaxed(advisories=["INTEL-SA-00001"])})]}, []),
        ({"any": [requirement("tdx", tcb={"min_eval": 18, "status": relaxed("2026-03-01T12:00:00Z", advisories=["INTEL-SA-00001"])})]}, ["any[0].tcb.status"]),
        ({"any": [requirement("tdx", tcb={"min_eval": 18, "status": relaxed("2026-12-01T12:00:00Z", advisories=["INTEL-SA-00001"])})]}, ["any[0].tcb.status"]),
        ({"any": [without(requirement("snp"), "min_tcb")]}, ["any[0]"]),
        ({"any": [requirement("snp", min_tcb={"of": "reported", "snp": 1})]}, ["any[0].min_tcb"]),
        ({"any": [requirement("snp", min_tcb={"of": "launch", "snp": 1})]}, []),
        ({"any": [without(requirement("snp"), "product")]}, ["any[0]"]),
        ({"any": [without(requirement("snp"), "vmpl")]}, ["any[0]"]),
        ({"any": [without(requirement("tpm"), "ak")]}, ["any[0]"]),
        ({"any": [requirement("tdx", **{"with": [without(requirement("nvidia"), "driver")]})]}, ["any[0].with[0]"]),
        ({"any": [requirement("tdx", **{"with": [requirement("nvidia", measurements=["match", "no-reference"])]})]}, ["any[0].with[0].measurements"]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_remarks(change, paths):
    assert warnings({**GOOD, **change}) == paths


def test_test_roots_are_shouted():
    (remark,) = lint({**GOOD, "test_roots": True}, now=NOW)
    assert "TEST ROOTS" in remark.text
    assert remark.to_json() == {"level": "warning", "path": "test_roots", "text": remark.text}


def test_without_a_clock_nothing_is_late():
    doc = {**GOOD, "not_after": "2020-01-01T00:00:00Z"}
    assert [remark.path for remark in lint(doc)] == []
    assert [remark.path for remark in lint(doc, now=NOW)] == ["not_after"]


def test_a_policy_beside_others():
    others = [Policy.parse({**GOOD, "id": "older", "keys": ["models/"]}), Policy.parse(GOOD)]
    (remark,) = lint(GOOD, others=others)
    assert (remark.level, remark.path) == ("error", "keys")
    assert "older" in remark.text
    assert lint({**GOOD, "shadow": True}, others=others)[0].level == "warning"
