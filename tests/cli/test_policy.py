"""policy lint, test, explain: what they print, what they exit with, on recorded evidence."""

import json
from pathlib import Path

import pytest

pytest.importorskip("dcap_qvl")

DATA = Path(__file__).parents[1] / "attest" / "data"
MR_TD = (
    "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407de03ae6dc5f87f27428b2538873118b7"
)
RTMR1 = (
    "0084452c01668329d4bc06acdf58a7205c26743304509973949e5619bf81a6a7aea8c323c173019b3093d54e579e9378"
)
MR_ENCLAVE = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
TDX = ("--evidence", f"tdx:{DATA}/dcap/tdx_v4.bin")
COLLATERAL = ("--endorsements", DATA / "dcap/collateral/tdx_B0C06F000000.json")
AT = ("--at", "2025-07-10T00:00:00Z")


def document(*alternatives, **members):
    default = {"kind": "tdx", "mr_td": MR_TD, "rtmr": {"1": RTMR1}}
    return {
        "id": "llama-prod",
        "version": 3,
        "keys": ["models/llama/"],
        "any": list(alternatives) or [default],
        **members,
    }


@pytest.fixture
def policy(here):
    def write(*alternatives, name="policy.json", **members):
        (here / name).write_text(json.dumps(document(*alternatives, **members)))
        return name

    return write


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_lint_of_a_policy_with_warnings(cli, policy):
    result = cli("policy", "lint", policy())
    assert result.code == 0
    first, *rest = lines(result.out)
    assert first.startswith("policy.json: llama-prod version 3, SHA-256 ")
    assert [line.split()[:2] for line in rest] == [
        ["warning", "lease.max_holders:"],
        ["warning", "any[0]:"],
        ["warning", "any[0].tcb:"],
    ]
    assert cli("policy", "lint", policy(), "--strict").code == 6


def test_lint_of_a_policy_without_remarks(cli, policy):
    name = policy(
        {"kind": "mtls", "sha256": "ab" * 32}, lease={"seconds": 60, "max_holders": 1}, name="a.json"
    )
    result = cli("policy", "lint", name, "--strict")
    assert (result.code, lines(result.out)[1:]) == (0, ["no remarks"])


def test_lint_says_every_error(cli, policy):
    name = policy({"kind": "tdx", "mr_td": "*", "rtmr": {}}, {"kind": "snp"}, nonsense=1)
    result = cli("policy", "lint", name)
    assert result.code == 6
    assert result.error().startswith("The policy is not valid: any[0].mr_td ")
    assert result.hint() == "3 more errors."
    assert {line.split()[1] for line in lines(result.out)[1:]} == {
        "any[0].mr_td",
        "any[0].rtmr",
        "any[1]",
        "nonsense",
    }


def test_lint_as_json(cli, policy):
    result = cli("policy", "lint", policy(), "--json")
    said = json.loads(result.out)
    assert said["valid"] is True
    assert len(bytes.fromhex(said["digest"])) == 32
    assert {remark["level"] for remark in said["remarks"]} == {"warning"}
    bad = cli("policy", "lint", policy(shadow=1), "--json")
    assert bad.code == 6
    assert json.loads(bad.out)["valid"] is False
    assert json.loads(bad.out)["digest"] is None
    assert json.loads(bad.out)["remarks"] == [
        {"level": "error", "path": "shadow", "text": "shadow is neither true nor false."}
    ]


def test_lint_beside_another_policy(cli, policy, here):
    other = document(keys=["models/"]) | {"id": "older"}
    (here / "older.json").write_text(json.dumps(other))
    result = cli("policy", "lint", policy(), "--beside", "older.json")
    assert result.code == 6
    assert "older guards already" in result.error()
    assert cli("policy", "lint", policy(shadow=True), "--beside", "older.json").code == 0


def test_lint_of_toml(cli, here):
    (here / "p.toml").write_text(
        'id = "p"\nversion = 1\nkeys = ["k"]\nnot_after = 2020-01-01T00:00:00Z\n'
        f'[[any]]\nkind = "mtls"\nsha256 = "{"ab" * 32}"\n[lease]\nmax_holders = 1\n'
    )
    result = cli("policy", "lint", "p.toml")
    assert (result.code, lines(result.out)[1:]) == (
        0,
        ["warning not_after: The policy has ended: it releases nothing."],
    )
    earlier = cli("policy", "lint", "p.toml", "--at", "2019-12-31T00:00:00Z")
    assert lines(earlier.out)[1:] == ["no remarks"]


@pytest.mark.parametrize(
    ("text", "name"), [("{", "p.json"), ('{"id": 1, "id": 2}', "p.json"), ("id =", "p.toml"), ("[]", "p.json")]
)  # fmt: skip
def test_files_that_are_no_documents(cli, here, text, name):
    (here / name).write_text(text)
    result = cli("policy", "lint", name)
    assert result.code == 2
    assert result.error().startswith(name)


def test_names_in_a_policy_cannot_repaint_the_screen(cli, here):
    (here / "p.json").write_text(json.dumps(document() | {"evil\x1b[31m\n": 1}))
    result = cli("policy", "lint", "p.json")
    assert result.code == 6
    assert "\x1b" not in result.out + result.err


def test_explain_shows_every_alternative_claim_by_claim(cli, policy):
    name = policy(
        {"kind": "tdx", "mr_td": MR_TD[:-1] + "8", "rtmr": {"1": RTMR1}},
        {"kind": "sgx", "mr_enclave": MR_ENCLAVE},
        {"kind": "tdx", "mr_td": MR_TD, "rtmr": {"1": RTMR1}, "tcb": {"min_eval": 1}},
    )
    result = cli("policy", "explain", name, *TDX, *COLLATERAL, *AT)
    assert (result.code, result.err) == (0, "")
    said = lines(result.out)
    assert said[0] == "llama-prod version 3: allowed, any[2] holds"
    assert "evidence[0] tdx" in said
    assert "any[0] tdx" in said
    assert f"FAIL mr_td mr_td is {MR_TD}, not {MR_TD[:-1]}8." in said
    assert "any[1] sgx" in said
    assert "FAIL kind The evidence is of the kind tdx, not sgx." in said
    assert "any[2] tdx holds" in said
    assert f"ok rtmr.1 rtmr1 is {RTMR1}." in said
    assert "ok tcb.status The TCB status is UpToDate." in said


def test_explain_as_json_is_the_decision(cli, policy):
    result = cli("policy", "explain", policy(), *TDX, *COLLATERAL, *AT, "--json")
    said = json.loads(result.out)
    assert (said["policy"], said["version"], said["allowed"], said["code"]) == (
        "llama-prod",
        3,
        True,
        "",
    )
    assert said["matched"] == "any[0]"
    found = {finding["path"]: finding for finding in said["findings"]}
    assert found["any[0].mr_td"]["found"] == found["any[0].mr_td"]["expected"] == MR_TD
    assert said["claims"][0]["values"]["mr_td"] == MR_TD
    # What it is bound to was made for another request, and is not compared.
    assert "evidence[0].bound" not in found


def test_explain_of_a_refusal(cli, policy):
    name = policy({"kind": "tdx", "mr_td": MR_TD, "rtmr": {"1": MR_TD}})
    result = cli("policy", "explain", name, *TDX, *COLLATERAL, *AT)
    assert result.code == 6
    assert lines(result.out)[0] == "llama-prod version 3: refused (policy)"
    assert result.error() == "The policy does not allow this machine the keys."


@pytest.mark.parametrize("expected", ["allow", "deny"])
@pytest.mark.parametrize("good", [True, False])
def test_test_compares_with_what_is_expected(cli, policy, expected, good):
    name = policy({"kind": "tdx", "mr_td": MR_TD if good else RTMR1, "rtmr": {"1": RTMR1}})
    result = cli("policy", "test", name, *TDX, *COLLATERAL, *AT, "--expect", expected)
    assert result.code == (0 if good == (expected == "allow") else 6)
    said = lines(result.out)
    if good:
        assert said == ["llama-prod version 3: allowed, any[0] holds"]
    else:
        assert said[0] == "llama-prod version 3: refused (policy)"
        assert [line.split()[:2] for line in said[1:]] == [["FAIL", "any[0].mr_td"]]


RECORDED = [
    ("tdx:dcap/tdx_v4_debug.bin", "dcap/collateral/tdx_50806F000000.json", "2023-07-01T00:00:00Z"),
    ("tdx:dcap/tdx_v4.bin", "dcap/collateral/tdx_B0C06F000000.json", "2026-07-01T00:00:00Z"),
    ("sgx:dcap/sgx_v3.bin", "dcap/collateral/sgx_00A067110000.json", "2025-07-10T00:00:00Z"),
]


@pytest.mark.parametrize(("evidence", "endorsements", "at"), RECORDED)
def test_recorded_evidence_that_must_be_refused(cli, policy, evidence, endorsements, at):
    kind, _, file = evidence.partition(":")
    name = policy(
        {"kind": "tdx", "mr_td": MR_TD, "rtmr": {"1": RTMR1}}, {"kind": "sgx", "mr_enclave": MR_ENCLAVE}
    )
    arguments = (
        "--evidence",
        f"{kind}:{DATA / file}",
        "--endorsements",
        DATA / endorsements,
        "--at",
        at,
    )
    assert cli("policy", "test", name, *arguments, "--expect", "deny").code == 0
    result = cli("policy", "test", name, *arguments)
    assert result.code == 6
    said = json.loads(cli("policy", "test", name, *arguments, "--json").out)
    assert (said["allowed"], said["expected"]) == (False, "allow")
    assert [finding for finding in said["findings"] if not finding["ok"]]


def test_evidence_that_nothing_vouches_for_is_no_denial(cli, policy):
    result = cli("policy", "test", policy(), *TDX, *AT, "--expect", "deny")
    assert result.code == 6
    assert "collateral" in result.error()


def test_claims_on_record(cli, policy, here):
    shown = cli(
        *("attest", "verify", "--kind", "tdx", "--evidence", DATA / "dcap/tdx_v4.bin"),
        *(*COLLATERAL, *AT, "--json"),
    )
    (here / "verified.json").write_text(shown.out)
    (here / "claims.json").write_text(json.dumps(json.loads(shown.out)["claims"]))
    for file in ("verified.json", "claims.json"):
        assert cli("policy", "test", policy(), "--claims", file, *AT).code == 0
    # Later, what vouched for it has ended.
    assert "evidence" in lines(cli("policy", "test", policy(), "--claims", "claims.json").out)[0]
    mtls = {
        "kind": "mtls",
        "values": {"sha256": "ab" * 32},
        "bound": "",
        "debug": False,
        "platform": None,
        "not_after": "2030-01-01T00:00:00Z",
        "test_root": False,
        "faults": [],
    }
    (here / "mtls.json").write_text(json.dumps(mtls))
    both = policy(
        {
            "kind": "tdx",
            "mr_td": MR_TD,
            "rtmr": {"1": RTMR1},
            "with": [{"kind": "mtls", "sha256": "ab" * 32}],
        }
    )
    assert cli("policy", "test", both, "--claims", "claims.json", *AT).code == 6
    result = cli("policy", "explain", both, *TDX, *COLLATERAL, *AT, "--claims", "mtls.json")
    assert result.code == 0
    assert "any[0].with[0] mtls" in lines(result.out)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"kind": "tdx"}', '{"claims": {"kind": "tdx", "not_after": "soon"}}']
)
def test_files_that_are_no_claims(cli, policy, here, text):
    (here / "claims.json").write_text(text)
    result = cli("policy", "test", policy(), "--claims", "claims.json")
    assert result.code in (2, 6)
    assert result.error()


def test_wrong_usage(cli, policy, here):
    assert cli("policy", "test", policy()).code == 2
    assert cli("policy", "explain", policy(), *COLLATERAL).code == 2
    assert cli("policy", "test", policy(), *TDX, "--at", "noon").code == 2
    assert cli("policy", "test", policy(), "--evidence", DATA / "dcap/tdx_v4.bin").code == 2
    assert cli("policy", "test", "missing.json", *TDX).code == 2
    assert cli("policy", "test", policy(), *TDX, "--expect", "maybe").code == 2
    (here / "k.toml").write_text("x = 1")
    assert cli("policy", "test", policy(), *TDX, *COLLATERAL, "--config", "k.toml").code == 2
