"""Invariant: any bytes are a policy, or raise InvalidPolicy as lint says it; a policy that is one never allows a machine that breaks a rule."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import atheris

with atheris.instrument_imports(include=["strongroom", "json", "tomllib"]):
    import seeds

    from strongroom.attest.evidence import Claims
    from strongroom.errors import InvalidPolicy
    from strongroom.release.approvals import overlapping, policy_statement
    from strongroom.release.decision import Presented, evaluate
    from strongroom.release.lint import lint
    from strongroom.release.policy import Policy
    from strongroom.release.policy_text import read_policy

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SERVER = bytes(32)
TDX = {
    "mr_td": "ab" * 48,
    "rtmr1": "cd" * 48,
    "tcb_status": "UpToDate",
    "advisories": [],
    "tcb_eval": 18,
}
GOOD = Claims("tdx", TDX, b"", False, "ppid:" + "ef" * 16, NOW + timedelta(days=1))
MTLS = Claims("mtls", {"subject": "CN=a", "san": ["dns:a"], "sha256": "ab" * 32}, b"", False, None, NOW)
BAD = [
    replace(GOOD, debug=True),
    replace(GOOD, test_root=True),
    replace(GOOD, faults=["a fault"]),
    replace(GOOD, not_after=NOW - timedelta(days=1)),
    replace(GOOD, values={**TDX, "mr_td": "00" * 48, "rtmr1": "00" * 48, "tcb_status": "Revoked"}),
    replace(GOOD, values={}),
]

DOCUMENTS = [
    {"id": "p", "version": 1, "keys": ["a/", "b"], "any": [{"kind": "mtls", "subject": "CN=a"}]},
    {
        "id": "p",
        "version": 2,
        "keys": ["a/"],
        "any": [
            {
                "kind": "tdx",
                "mr_td": "ab" * 48,
                "rtmr": {"1": ["cd" * 48]},
                "tcb": {
                    "status": [{"status": "OutOfDate", "until": "2027-01-01T00:00:00Z"}],
                    "min_eval": 17,
                    "advisories_deny": ["INTEL-SA-00001"],
                },
                "platforms": ["ppid:" + "ef" * 16],
                "with": [{"kind": "nvidia", "arch": "HOPPER", "count": 8}],
            },
            {
                "kind": "snp",
                "measurement": "ab" * 48,
                "min_tcb": {"of": "committed", "snp": 23},
                "guest_policy": {"smt": True},
            },
            {"kind": "nitro", "pcr": {"0": "ab" * 48}},
            {
                "kind": "jwt",
                "issuer": "i",
                "claims": {"a": {"b": [1, True, "c"]}},
                "includes": {"d": "e"},
            },
        ],
        "lease": {"seconds": 60, "max_holders": 2, "renew": True, "attest_again_after": 60},
        "versions": {"min": 2},
        "revoked_bundles": ["AAAAAAAAAAAAAAAAAAAAAA"],
        "not_before": "2026-01-01T00:00:00Z",
        "approvals": {
            "needed": 1,
            "approvers": {"ann": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        },
        "shadow": False,
        "test_roots": False,
    },
]
TOML = (
    b'id = "p"\nversion = 1\nkeys = ["k"]\nnot_after = 2027-01-01T00:00:00Z\n'
    b'[[any]]\nkind = "mtls"\nsubject = "CN=a"\n'
)


def examples():
    """One byte for the form, then the text."""
    for document in DOCUMENTS:
        yield b"\0" + json.dumps(document).encode()
        yield b"\0" + json.dumps(document, indent=1).encode()
    yield b"\1" + TOML


def presented(*claims: Claims) -> Presented:
    return Presented(NOW, claims, {}, b"", allow_test_roots=False)


def target(data: bytes) -> None:
    if not data:
        return
    try:
        document = read_policy(data[1:], toml=data[0] & 1 == 1)
    except InvalidPolicy as error:
        message, path = str(error), error.path
        assert message.isprintable()
        assert path == "the document"
        return
    errors = [remark for remark in lint(document, now=NOW) if remark.level == "error"]
    try:
        policy = Policy.parse(document)
    except InvalidPolicy as error:
        message, path = str(error), error.path
        assert message.isprintable()
        assert path in [remark.path for remark in errors]
        return
    assert not errors
    assert Policy.parse(policy.to_json()) == policy
    assert policy_statement(policy, policy, SERVER) != policy_statement(policy, None, SERVER)
    assert not overlapping(policy, [policy])
    assert not policy.covers("")
    for claims in BAD:
        assert not evaluate(policy, presented(claims)).allowed
    assert not evaluate(policy, presented()).allowed
    for claims in ((GOOD,), (MTLS,), (GOOD, MTLS)):
        decision = evaluate(policy, presented(*claims))
        assert decision.allowed == (not decision.code)
        json.dumps(decision.to_json())


if __name__ == "__main__":
    seeds.fuzz(target, examples())
