"""``strongroom attest``: the verdict, its reasons and its exit code."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.cli.attest_describe import describe
from strongroom.cli.attest_show import flat
from strongroom.errors import EvidenceError
from strongroom.format.encoding import b64url
from strongroom.testing.intel import KEYS_FILE, ROOT_FILE, IntelPki

DATA = Path(__file__).parents[1] / "attest" / "data"
DCAP = DATA / "dcap"
MANIFEST = {one["file"]: one for one in json.loads((DATA / "manifest.json").read_text())["files"]}
BOUND = bytes(range(64))
MR_TD = b"\x17" * 48
RTMR = b"\x2a" * 48
TD = {"mr_td": MR_TD, "rtmr2": RTMR}
POLICY = {
    "id": "digits",
    "version": 1,
    "keys": ["digits"],
    "test_roots": True,
    "any": [
        {
            "kind": "tdx",
            "mr_td": [MR_TD.hex()],
            "rtmr": {"2": [RTMR.hex()]},
            "tcb": {"status": ["UpToDate"]},
        }
    ],
}


@pytest.fixture(scope="module")
def pki():
    return IntelPki.create(datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def test_root(pki, here):
    pki.save(here / "pki")
    return here / "pki" / ROOT_FILE


@pytest.fixture
def evidence(pki, here):
    """A file with evidence of a trust domain, bound to BOUND."""
    path = here / "evidence.json"
    path.write_text(json.dumps(pki.evidence("tdx", BOUND, **TD).to_json()))
    return path


def write_policy(here, **changes):
    path = here / "policy.json"
    path.write_text(json.dumps({**POLICY, **changes}))
    return path


def recorded(name, *more):
    entry = MANIFEST[name]
    arguments = ["--kind", entry["tee"].lower(), "--evidence", DATA / name]
    if entry["collateral"]:
        arguments += ["--endorsements", DATA / entry["collateral"]]
    if entry["fixed_time"]:
        arguments += ["--at", entry["fixed_time"]]
    return [*arguments, *more]


@pytest.mark.parametrize("name", ["dcap/sgx_v3.bin", "dcap/tdx_v4.bin", "dcap/tdx_v5.bin"])
def test_recorded_evidence_is_authentic(cli, name):
    entry = MANIFEST[name]
    done = cli("attest", "verify", *recorded(name, "--report-data", entry["report_data"], "--json"))
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["authentic"] is True
    assert said["acceptable"] is None
    assert said["claims"]["values"]["tcb_status"] == entry["expected"]["status"]
    assert len(said["digest"]) == 64


def test_a_verdict_for_people(cli):
    entry = MANIFEST["dcap/sgx_v3.bin"]
    done = cli("attest", "verify", *recorded("dcap/sgx_v3.bin"))
    assert done.code == 0
    assert entry["measurements"]["mr_enclave"] in done.out
    assert "not compared: there is no --report-data" in done.out
    assert "ConfigurationAndSWHardeningNeeded" in done.err
    bound = cli(
        "attest", "verify", *recorded("dcap/sgx_v3.bin", "--report-data", "48656c6c6f2c20776f726c6421")
    )
    assert bound.code == 0
    assert "(as expected)" in bound.out


OTHERS = {
    "snp/milan_v2.bin": ("snp", ["snp/milan_v2.vek", "snp/roots/milan_ask_ark_asvk.pem"]),
    "snp/milan_v2_vlek.bin": ("snp", ["snp/milan_v2_vlek.vek", "snp/roots/milan_ask_ark_asvk.pem"]),
    "snp/genoa_v5.bin": ("snp", ["snp/genoa_v5.vek", "snp/roots/genoa_ask_ark_asvk.pem"]),
    "snp/turin_v5.bin": ("snp", ["snp/turin_v5.vek", "snp/roots/turin_ask_ark_asvk.pem"]),
    "snp/milan_v2_debug.bin": ("snp", ["snp/milan_v2_debug.vek", "snp/roots/milan_ask_ark_asvk.pem"]),
    "azure/snp_vtpm_v0.json": ("azure-vtpm", ["snp/roots/milan_ask_ark_asvk.pem"]),
    "nitro/user_data.cose": ("nitro", []),
    "nitro/debug.cose": ("nitro", []),
}


@pytest.mark.parametrize("name", OTHERS)
def test_recorded_evidence_of_other_kinds(cli, name):
    kind, endorsements = OTHERS[name]
    arguments = ["--kind", kind, "--evidence", DATA / name, "--at", MANIFEST[name]["fixed_time"]]
    for one in endorsements:
        arguments += ["--endorsements", DATA / one]
    done = cli("attest", "verify", *arguments, "--json")
    assert done.out, done.err
    said = json.loads(done.out)
    assert said["authentic"] is True
    debug = "debug" in name
    assert said["claims"]["debug"] is debug
    assert done.code == (6 if debug else 0)
    assert said["acceptable"] is (False if debug else None)
    shown = cli("attest", "show", "--kind", kind, DATA / name)
    assert shown.code == 0, shown.err
    assert shown.out.count("NOT VERIFIED") == 2


def test_debug_is_said_without_a_policy(cli):
    name = "nitro/debug.cose"
    at = MANIFEST[name]["fixed_time"]
    done = cli("attest", "verify", "--kind", "nitro", "--evidence", DATA / name, "--at", at)
    assert done.code == 6
    assert any(line.startswith("  FAIL evidence.debug") for line in done.out.splitlines())


def test_show_of_tokens_and_gpus(cli, here):
    token = cli("attest", "show", "--kind", "jwt", DATA / "tokens/gcp_confidential_space.jwt")
    assert "claims.hwmodel" in token.out
    from strongroom.attest.nvidia_evidence import write_devices

    report, chain = ((DATA / f"nvidia/h100.{end}").read_bytes() for end in ("report", "pem"))
    (here / "gpu.json").write_bytes(write_devices([(report, chain)]))
    gpu = cli("attest", "show", "--kind", "nvidia", "gpu.json")
    assert MANIFEST["nvidia/h100.report"]["nonce"] in gpu.out
    for kind in ("jwt", "nvidia", "snp", "nitro", "tpm", "azure-vtpm"):
        (here / "nonsense").write_bytes(b"\x00\x01nonsense")
        assert cli("attest", "show", "--kind", kind, "nonsense").code == 6, kind


def test_a_token_of_nobody_known_is_refused(cli):
    token = DATA / "tokens/gcp_confidential_space.jwt"
    assert cli("attest", "verify", "--kind", "jwt", "--evidence", token).code == 6


@pytest.mark.parametrize(
    "name", ["dcap/sgx_v3_debug.bin", "dcap/tdx_v4_debug.bin", "dcap/tdx_v4_out_of_date.bin"]
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_recorded_evidence_that_is_refused(cli, name, form):
    done = cli("attest", "verify", *recorded(name, *form))
    assert done.code == 6
    assert ("debug mode" if "debug" in name else "from the future") in done.error()
    if form:
        said = json.loads(done.out)
        assert (said["authentic"], said["acceptable"]) == (False, None)
        assert said["reason"] == done.error()
    else:
        assert "authentic" not in done.out


def test_the_time_is_now_where_none_is_given(cli):
    arguments = recorded("dcap/tdx_v4.bin")
    done = cli("attest", "verify", *arguments[: arguments.index("--at")])
    assert done.code == 6
    assert "has expired" in done.error()
    assert cli("attest", "verify", *arguments[:-1], "yesterday").code == 2
    assert cli("attest", "verify", *arguments[:-1], "2025-07-10T00:00:00").code == 2


def test_another_challenge_is_refused(cli):
    for option, value in (("--report-data", "00"), ("--challenge", "Hello, world!")):
        done = cli("attest", "verify", *recorded("dcap/sgx_v3.bin", option, value))
        assert done.code == 6
        assert "bound to other report data" in done.error()
    for wrong in ("", "zz", "00" * 65, "0"):
        assert cli("attest", "verify", *recorded("dcap/sgx_v3.bin", "--report-data", wrong)).code == 2
    both = recorded("dcap/sgx_v3.bin", "--report-data", "00", "--challenge", "x")
    assert cli("attest", "verify", *both).code == 2


def test_a_prefix_of_the_report_data_is_not_the_report_data(cli, evidence, test_root):
    verify = ["attest", "verify", "--evidence", evidence, "--test-root", test_root]
    assert cli(*verify, "--report-data", BOUND.hex()).code == 0
    assert cli(*verify, "--report-data", BOUND[:32].hex()).code == 6


def test_evidence_under_a_test_root_is_refused_unless_asked_for_loudly(cli, evidence, test_root):
    assert cli("attest", "verify", "--evidence", evidence).code == 6
    done = cli("attest", "verify", "--evidence", evidence, "--test-root", test_root)
    assert done.code == 0
    assert "TEST ROOT" in done.err
    assert "TEST ROOT" in done.out
    said = cli("attest", "verify", "--evidence", evidence, "--test-root", test_root, "--json")
    assert json.loads(said.out)["claims"]["test_root"] is True
    nonsense = cli("attest", "verify", "--evidence", evidence, "--test-root", evidence)
    assert nonsense.code == 2


def test_a_policy_that_accepts(cli, here, evidence, test_root):
    policy = write_policy(here)
    arguments = ["--evidence", evidence, "--test-root", test_root, "--policy", policy]
    done = cli("attest", "verify", *arguments)
    assert done.code == 0, done.err
    assert "acceptable by the policy: any[0] holds" in done.out
    assert "FAIL" not in done.out
    assert any("mr_td" in line and line.startswith("  ok") for line in done.out.splitlines())
    said = json.loads(cli("attest", "verify", *arguments, "--json").out)
    assert said["acceptable"] is True
    assert said["decision"]["matched"] == "any[0]"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"any": [{"kind": "tdx", "mr_td": ["11" * 48], "rtmr": {"2": [RTMR.hex()]}}]}, "any[0].mr_td"),
        ({"any": [{"kind": "sgx", "mr_enclave": ["11" * 32]}]}, "any[0].kind"),
        ({"test_roots": False}, "root"),
        ({"not_after": "2026-01-01T00:00:00Z"}, "not_after"),
    ],
)
def test_a_policy_that_refuses_says_why_line_by_line(cli, here, evidence, test_root, change, path):
    policy = write_policy(here, **change)
    arguments = ["--evidence", evidence, "--test-root", test_root, "--policy", policy]
    done = cli("attest", "verify", *arguments)
    assert done.code == 6
    assert "not acceptable" in done.error()
    assert any(line.startswith("not acceptable (") for line in done.out.splitlines())
    assert any(line.startswith("  FAIL") and path in line for line in done.out.splitlines()), done.out
    again = cli("attest", "verify", *arguments, "--json")
    assert again.code == 6
    assert json.loads(again.out)["acceptable"] is False


def test_an_out_of_date_machine_is_authentic_and_not_acceptable(cli, here, pki, test_root):
    quote = pki.tdx_quote(BOUND, **TD)
    old = Evidence("tdx", quote, (pki.collateral("tdx", status="OutOfDate"),))
    path = here / "old.json"
    path.write_text(json.dumps(old.to_json()))
    arguments = ["--evidence", path, "--test-root", test_root]
    alone = cli("attest", "verify", *arguments)
    assert alone.code == 0
    assert "its TCB is OutOfDate" in alone.err
    judged = cli("attest", "verify", *arguments, "--policy", write_policy(here))
    assert judged.code == 6
    assert "OutOfDate" in judged.out


def test_a_policy_that_is_none_is_refused_before_anything(cli, here, evidence, test_root):
    arguments = ["--evidence", evidence, "--test-root", test_root, "--policy"]
    assert cli("attest", "verify", *arguments, write_policy(here, any=[])).code == 6
    (here / "p.toml").write_text("id = ")
    assert cli("attest", "verify", *arguments, here / "p.toml").code == 2
    assert cli("attest", "verify", *arguments, here / "absent.json").code == 2


def test_a_policy_in_toml(cli, here, evidence, test_root):
    (here / "p.toml").write_text(
        'id = "digits"\nversion = 1\nkeys = ["digits"]\ntest_roots = true\n'
        f'[[any]]\nkind = "tdx"\nmr_td = ["{MR_TD.hex()}"]\nrtmr.2 = ["{RTMR.hex()}"]\n'
    )
    arguments = ["--evidence", evidence, "--test-root", test_root, "--policy", here / "p.toml"]
    assert cli("attest", "verify", *arguments).code == 0


def test_endorsements_of_files_take_the_place_of_those_in_the_evidence(
    cli, here, pki, evidence, test_root
):
    future = here / "future.json"
    future.write_bytes(pki.collateral("tdx", issued=pki.now + timedelta(days=2)))
    arguments = ["--evidence", evidence, "--test-root", test_root]
    assert cli("attest", "verify", *arguments).code == 0
    done = cli("attest", "verify", *arguments, "--endorsements", future)
    assert done.code == 6
    assert "from the future" in done.error()


def test_endorsements_of_a_directory(cli, here):
    from strongroom.attest.endorsements import Wanted
    from strongroom.attest.sources.naming import path_of

    arguments = recorded("dcap/tdx_v4.bin")
    collateral = arguments[arguments.index("--endorsements") + 1]
    place = (
        here
        / "known"
        / path_of(Wanted("intel", {"tee": "tdx", "fmspc": "B0C06F000000", "ca": "platform"}))
    )
    (here / "empty").mkdir()
    arguments[arguments.index("--endorsements") + 1] = here / "known"
    place.parent.mkdir(parents=True)
    assert cli("attest", "verify", *arguments).code == 6
    place.write_bytes(collateral.read_bytes())
    done = cli("attest", "verify", *arguments)
    assert done.code == 0, done.err
    assert cli("attest", "verify", *arguments, "--endorsements", here / "empty").code == 2


def test_the_kind_is_needed_for_raw_bytes_and_must_agree(cli, evidence, test_root):
    raw = DCAP / "tdx_v4.bin"
    assert "--kind" in cli("attest", "show", raw).hint()
    assert cli("attest", "show", raw, "--kind", "tdx").code == 0
    assert cli("attest", "show", raw, "--kind", "sgx").code == 6
    assert cli("attest", "show", raw, "--kind", "abacus").code == 2
    assert cli("attest", "show", evidence, "--kind", "sgx").code == 2
    assert cli("attest", "show", evidence).code == 0


def test_show_says_twice_that_nothing_is_verified(cli, evidence):
    done = cli("attest", "show", evidence)
    lines = done.out.splitlines()
    assert "NOT VERIFIED" in lines[0]
    assert "NOT VERIFIED" in lines[-1]
    assert MR_TD.hex() in done.out
    said = json.loads(cli("attest", "show", evidence, "--json").out)
    assert said["verified"] is False
    assert said["says"]["mr_td"] == MR_TD.hex()


def test_malformed_and_oversized_files_are_refused(cli, here):
    path = here / "evidence"
    path.write_bytes(b"\x04\x00")
    assert cli("attest", "verify", "--kind", "tdx", "--evidence", path).code == 6
    path.write_bytes(b"")
    assert cli("attest", "show", "--kind", "tdx", path).code == 6
    path.write_bytes(bytes(MAX_EVIDENCE + 1))
    assert cli("attest", "verify", "--kind", "tdx", "--evidence", path).code == 6
    path.write_bytes(bytes(10 << 20))
    assert cli("attest", "show", "--kind", "tdx", path).code == 2
    path.write_text(json.dumps({"kind": "tdx", "data": "*"}))
    assert cli("attest", "show", path).code == 6
    assert cli("attest", "show", here / "absent").code == 2


def node(place, *arguments):
    program = [sys.executable, "-m", "strongroom.testing.synthetic_node", place, *arguments]
    return "exec:" + shlex.join(map(str, program))


def test_collected_evidence_is_what_was_asked_for(cli, here, test_root):
    source = node(test_root.parent, "--mr-td", MR_TD.hex(), "--rtmr2", RTMR.hex())
    done = cli("attest", "collect", "--from", source, "--challenge", "today", "-o", "e.json")
    assert done.code == 0, done.err
    verify = ["attest", "verify", "--evidence", "e.json", "--test-root", test_root]
    assert cli(*verify, "--challenge", "today", "--policy", write_policy(here)).code == 0
    assert cli(*verify, "--challenge", "yesterday").code == 6
    again = ["attest", "collect", "--from", source, "--report-data", BOUND.hex(), "-o", "e.json"]
    assert cli(*again).code == 2
    assert cli(*again, "--force").code == 0
    assert cli(*verify, "--report-data", BOUND.hex()).code == 0


def test_evidence_bound_to_nothing_is_not_collected(cli, here, test_root):
    done = cli("attest", "collect", "--from", node(test_root.parent), "-o", "e.json")
    assert done.code == 2
    assert "bound to something" in done.error()
    assert not (here / "e.json").exists()


def test_the_keys_of_the_test_pki_are_never_taken_for_a_root(cli, evidence, test_root):
    keys = test_root.parent / KEYS_FILE
    assert cli("attest", "verify", "--evidence", evidence, "--test-root", keys).code == 2


def test_control_characters_of_a_file_do_not_reach_the_terminal(cli, here, pki, evidence):
    members = json.loads(evidence.read_text())
    evidence.write_text(json.dumps({**members, "kind": "tdx\x1b[2J"}))
    done = cli("attest", "show", evidence)
    assert done.code != 0
    assert "\x1b" not in done.out + done.err


def test_evidence_that_was_changed_is_refused(cli, here, pki, test_root):
    good = pki.evidence("tdx", BOUND, **TD)
    data = bytearray(good.data)
    data[48 + 136] ^= 1
    path = here / "changed.json"
    path.write_text(json.dumps(replace(good, data=bytes(data)).to_json()))
    assert cli("attest", "verify", "--evidence", path, "--test-root", test_root).code == 6


def anything():
    from hypothesis import strategies as st

    token = st.lists(st.binary(max_size=40).map(b64url), min_size=1, max_size=4).map(".".join)
    leaf = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | token
    tree = st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["devices", "report", "certificates", "JWT", "a"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
    return (
        tree.map(lambda value: json.dumps(value).encode())
        | st.binary(max_size=200)
        | token.map(str.encode)
    )


@pytest.mark.parametrize("kind", ["nvidia", "jwt"])
def test_whatever_bytes_are_described_or_refused(kind):
    from hypothesis import given, settings

    @settings(max_examples=300, deadline=None)
    @given(data=anything())
    def check(data):
        try:
            said = describe(Evidence(kind, data or b"x"))
        except EvidenceError:
            return
        assert all(isinstance(name, str) and isinstance(value, str) for name, value in flat(said))

    check()


def test_errors_say_what_to_do(cli, here):
    (here / "plain.txt").write_bytes(b"hello")
    quote = DATA / "dcap/tdx_v4.bin"
    missing = cli("attest", "verify", "--kind", "tdx", "--evidence", quote)
    assert "hint: Give it with --endorsements" in missing.err
    for verb in (["verify", "--evidence"], ["show"]):
        wrong = cli("attest", *verb, "plain.txt", "--kind", "tdx")
        assert "hint: Is it evidence of the kind tdx?" in wrong.err
    arguments = ("attest", "verify", "--kind", "snp", "--evidence", DATA / "snp/milan_v3.bin")
    other = cli(*arguments, "--endorsements", "plain.txt")
    assert "This is not a certificate: it is neither PEM nor DER." in other.err
    assert "Is it evidence" not in other.err
