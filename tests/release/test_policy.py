"""Documents that are no policy, each with the path of what is wrong; what one is read to."""

import copy
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_claims import BUNDLE, FULL, digits, document, requirement

from strongroom.attest.requirements_kinds import KINDS
from strongroom.errors import InvalidPolicy, StrongroomError
from strongroom.format.encoding import b64url, canonical_json
from strongroom.release.lint import lint
from strongroom.release.policy import Policy
from strongroom.release.policy_terms import LeaseTerms
from strongroom.release.policy_text import read_policy


def refused(doc, path):
    with pytest.raises(InvalidPolicy) as caught:
        Policy.parse(doc)
    assert caught.value.path == path, caught.value
    assert str(caught.value).isprintable()
    # Lint says the same, as an error.
    remarks = lint(doc)
    assert remarks
    assert {remark.level for remark in remarks} == {"error"}
    assert path in [remark.path for remark in remarks]
    return caught.value


def test_a_document_and_what_it_is_read_to():
    doc = document(
        lease={"seconds": 600, "max_holders": 8},
        not_before="2026-01-01T00:00:00+01:00",
        description="Llama in production",
    )
    policy = Policy.parse(doc)
    assert (policy.id, policy.version, policy.keys) == ("llama-prod", 1, ("models/llama/",))
    assert policy.lease == LeaseTerms(600, 8, True, 86400)
    assert policy.not_before.isoformat() == "2025-12-31T23:00:00+00:00"
    assert (policy.shadow, policy.test_roots, policy.approvals) == (False, False, None)
    assert policy.to_json() == doc
    assert policy.digest == hashlib.sha256(canonical_json(doc)).digest()
    assert Policy.parse(policy.to_json()) == policy
    # Order and spelling of the JSON are not the policy's; every member is.
    shuffled = dict(reversed(doc.items()))
    assert Policy.parse(shuffled).digest == policy.digest
    assert Policy.parse({**doc, "shadow": False}).digest != policy.digest


def test_descriptions_are_for_people():
    doc = document(requirement("tdx", description="any of the * machines"), description="*")
    assert Policy.parse(doc).to_json() == doc
    refused(document(requirement("tdx", description="")), "any[0].description")
    refused(document(requirement("tdx", description="a\x1b[31m")), "any[0].description")


@pytest.mark.parametrize(
    ("entries", "covered", "not_covered"),
    [
        (["a"], ["a"], ["a/b", "ab", "", "A"]),
        (["a/"], ["a/b", "a/b/c"], ["a", "ab", "ab/c", "b/a/c", ""]),
        (["a/b/"], ["a/b/c"], ["a/b", "a/c", "a/bc/d"]),
        (["a/b", "c/"], ["a/b", "c/a/b"], ["a/b/c", "a", "c"]),
    ],
)
def test_names_and_namespaces(entries, covered, not_covered):
    policy = Policy.parse({**document(), "keys": entries})
    assert all(map(policy.covers, covered))
    assert not any(map(policy.covers, not_covered))


@pytest.mark.parametrize("value", [None, [], "policy", 7, {}])
def test_no_document(value):
    refused(value, "the document")


@pytest.mark.parametrize("name", ["id", "version", "keys", "any"])
def test_a_member_that_is_missing(name):
    doc = document()
    del doc[name]
    refused(doc, name)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"id": ""}, "id"),
        ({"id": "../x"}, "id"),
        ({"id": 7}, "id"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"version": "1"}, "version"),
        ({"version": 1 << 40}, "version"),
        ({"keys": []}, "keys"),
        ({"keys": "models/llama/"}, "keys"),
        ({"keys": ["*"]}, "keys[0]"),
        ({"keys": ["models/llama/*"]}, "keys[0]"),
        ({"keys": ["a", "models/?"]}, "keys[1]"),
        ({"keys": ["/"]}, "keys[0]"),
        ({"keys": [""]}, "keys[0]"),
        ({"keys": ["a//"]}, "keys[0]"),
        ({"keys": ["a@3"]}, "keys[0]"),
        ({"keys": [None]}, "keys[0]"),
        ({"keys": ["a", "a"]}, "keys"),
        ({"any": []}, "any"),
        ({"any": {}}, "any"),
        ({"any": requirement("tdx")}, "any"),
        ({"any": [{}]}, "any[0]"),
        ({"any": [None]}, "any[0]"),
        ({"any": [{"kind": "tdx"}]}, "any[0]"),
        ({"any": [{"kind": "*"}]}, "any[0].kind"),
        ({"any": [{"kind": "any"}]}, "any[0].kind"),
        ({"any": [{"kind": "software"}]}, "any[0].kind"),
        ({"any": [{"kind": ["tdx"]}]}, "any[0].kind"),
        ({"any": [{"mr_td": digits("1", 48)}]}, "any[0].kind"),
        ({"any": [requirement("nvidia")]}, "any[0].kind"),
        ({"any": [requirement("tdx")] * 65}, "any"),
        ({"ayn": []}, "ayn"),
        ({"allow": True}, "allow"),
        ({"shadow": "yes"}, "shadow"),
        ({"shadow": 1}, "shadow"),
        ({"test_roots": None}, "test_roots"),
        ({"description": ""}, "description"),
        ({"not_before": "2026-03-01"}, "not_before"),
        ({"not_before": "2026-03-01T12:00:00"}, "not_before"),
        ({"not_after": "never"}, "not_after"),
        ({"not_after": 1790000000}, "not_after"),
        ({"not_after": "0001-01-01T00:00:00+23:59"}, "not_after"),
        ({"not_before": "2026-03-01T12:00:00Z", "not_after": "2026-03-01T12:00:00Z"}, "not_after"),
        ({"lease": {}}, "lease"),
        ({"lease": 3600}, "lease"),
        ({"lease": {"seconds": 9}}, "lease.seconds"),
        ({"lease": {"seconds": 31 * 86400}}, "lease.seconds"),
        ({"lease": {"seconds": 60.5}}, "the document"),
        ({"lease": {"max_holders": 0}}, "lease.max_holders"),
        ({"lease": {"max_holders": None}}, "lease.max_holders"),
        ({"lease": {"renew": 1}}, "lease.renew"),
        ({"lease": {"second": 60}}, "lease.second"),
        ({"lease": {"seconds": 60, "attest_again_after": 30}}, "lease.attest_again_after"),
        ({"lease": {"attest_again_after": 91 * 86400}}, "lease.attest_again_after"),
        ({"versions": []}, "versions"),
        ({"versions": "current"}, "versions"),
        ({"versions": ["any"]}, "versions[0]"),
        ({"versions": [0]}, "versions[0]"),
        ({"versions": [True]}, "versions[0]"),
        ({"versions": [3, 3]}, "versions"),
        ({"versions": {}}, "versions"),
        ({"versions": {"min": 0}}, "versions.min"),
        ({"versions": {"max": 2}}, "versions.max"),
        ({"revoked_bundles": []}, "revoked_bundles"),
        ({"revoked_bundles": b64url(BUNDLE)}, "revoked_bundles"),
        ({"revoked_bundles": [BUNDLE.hex()]}, "revoked_bundles[0]"),
        ({"revoked_bundles": [b64url(BUNDLE) + "=="]}, "revoked_bundles[0]"),
        ({"revoked_bundles": [7]}, "revoked_bundles[0]"),
        ({"Ключ": 1}, "the document"),
        ({"lease": {"seconds": 1 << 60}}, "the document"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_documents_that_are_no_policy(change, path):
    refused({**document(), **change}, path)


VALUE_FAULTS = [
    ([], "", "is an empty list"),
    ({}, "", ""),
    (None, "", ""),
    ("", "", ""),
    ("*", "", "is a wildcard"),
    ("any", "", ""),
    ("ANY", "", ""),
    ([None], "[0]", ""),
    (["*"], "[0]", "is a wildcard"),
    ([[]], "[0]", ""),
    ("a\nb", "", ""),
    ("x" * 501, "", ""),
]

LEAF_MEMBERS = [
    (kind, name)
    for kind, members in FULL.items()
    for name, value in members.items()
    if not isinstance(value, dict)
]


@pytest.mark.parametrize(("kind", "name"), LEAF_MEMBERS)
@pytest.mark.parametrize(("value", "where", "problem"), VALUE_FAULTS, ids=lambda value: str(value)[:20])
def test_values_that_are_none(kind, name, value, where, problem):
    wanted = requirement(kind, **{name: value})
    doc, start = document(wanted), "any[0]"
    if kind == "nvidia":
        doc, start = document(requirement("tdx", **{"with": [wanted]})), "any[0].with[0]"
    with pytest.raises(InvalidPolicy) as caught:
        Policy.parse(doc)
    # Numbers, truths and words of a list say what they are; whatever it is, it is about this member.
    assert caught.value.path in (f"{start}.{name}{where}", f"{start}.{name}"), caught.value


HEX_MEMBERS = [
    ("sgx", "mr_enclave", 32),
    ("sgx", "attributes", 16),
    ("sgx", "config_id", 64),
    ("tdx", "mr_td", 48),
    ("tdx", "xfam", 8),
    ("tdx", "fmspc", 6),
    ("snp", "measurement", 48),
    ("snp", "host_data", 32),
    ("tpm", "ak", 32),
    ("mtls", "sha256", 32),
]


@pytest.mark.parametrize(("kind", "name", "size"), HEX_MEMBERS)
def test_hexadecimal_of_another_length_or_spelling(kind, name, size):
    good = "ab" * size
    for bad in (
        good[:-2],
        good + "ab",
        good[:-1],
        good.upper(),
        "0x" + good[2:],
        good[:-1] + "g",
        " " + good[1:],
    ):
        error = refused(document(requirement(kind, **{name: bad})), f"any[0].{name}")
        refused(document(requirement(kind, **{name: [good, bad]})), f"any[0].{name}[1]")
        if bad == good.upper():
            assert "upper-case" in error.problem
    refused(document(requirement(kind, **{name: [good, good]})), f"any[0].{name}")
    Policy.parse(document(requirement(kind, **{name: [good, digits("1", size)]})))


@pytest.mark.parametrize("kind", [kind for kind in FULL if kind != "nvidia"])
def test_a_member_that_nobody_knows(kind):
    known = next(iter(FULL[kind]))
    error = refused(document(requirement(kind, **{known + "s": "x"})), f"any[0].{known}s")
    assert known in error.hint
    refused(document(requirement(kind, debug=True)), "any[0].debug")
    refused(document(requirement(kind, report_data="00")), "any[0].report_data")


IDENTITY_TABLE = {
    "sgx": (
        [["mr_enclave"], ["mr_signer", "prod_id", "min_svn"]],
        [["mr_signer"], ["mr_signer", "prod_id"], ["mr_signer", "min_svn"], ["prod_id", "min_svn", "attributes"], ["platforms", "fmspc", "tcb"]],
    ),
    "tdx": (
        [["mr_td", "rtmr"], ["mr_td", "mr_config_id"]],
        [["mr_td"], ["rtmr", "mr_config_id"], ["mr_td", "mr_seam", "xfam", "td_attributes", "tcb", "platforms"]],
    ),
    "snp": ([["measurement"]], [["host_data"], ["id_key_digest", "author_key_digest"], ["platforms", "min_tcb"]]),
    "azure-vtpm": (
        [["measurement", "pcr"], ["id_key_digest", "pcr"]],
        [["pcr"], ["ak", "pcr"], ["measurement"], ["measurement", "ak"], ["vm", "pcr"]],
    ),
    "nitro": ([["pcr"]], [["module_id"], ["platforms"]]),
    "tpm": ([["ak", "pcr"], ["platforms", "pcr"], ["ak_certified", "pcr"]], [["pcr"], ["ak"], ["pcr", "firmware_version"]]),
    "jwt": ([["issuer", "claims"], ["issuer", "includes"]], [["issuer"], ["claims"], ["issuer", "profile"]]),
    "mtls": ([["subject"], ["san"], ["sha256"]], []),
    "oidc": (
        [["issuer", "subject"], ["issuer", "claims"], ["issuer", "includes"]],
        [["issuer"], ["subject"], ["issuer", "audience"]],
    ),
    "kubernetes": (
        [["issuer", "namespace", "service_account"]],
        [["issuer", "namespace"], ["issuer", "service_account"], ["namespace", "service_account"], ["issuer", "claims"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IDENTITY_TABLE)
def test_a_requirement_identifies_something(kind):
    enough, too_little = IDENTITY_TABLE[kind]
    for members in enough:
        Policy.parse(document({"kind": kind, **{name: FULL[kind][name] for name in members}}))
    for members in [*too_little, []]:
        error = refused(
            document({"kind": kind, **{name: FULL[kind][name] for name in members}}), "any[0]"
        )
        assert error.problem == "identifies nothing"
        assert "lists" in error.hint


@pytest.mark.parametrize(
    "wanted",
    [
        {"kind": "sgx", "mr_enclave": digits("0", 32)},
        {"kind": "sgx", "mr_enclave": [digits("1", 32), digits("0", 32)]},
        {"kind": "tdx", "mr_td": digits("1", 48), "mr_config_id": digits("0", 48)},
        {"kind": "tdx", "mr_td": digits("1", 48), "rtmr": {"3": digits("0", 48)}},
        {"kind": "tdx", "mr_td": digits("0", 48), "rtmr": {"3": digits("1", 48)}},
        {"kind": "snp", "measurement": digits("0", 48)},
        {"kind": "nitro", "pcr": {"0": digits("0", 48)}},
        {"kind": "nitro", "pcr": {"8": digits("0", 48)}},
        {"kind": "tpm", "ak": digits("1", 32), "pcr": {"16": digits("0", 32)}},
        {"kind": "tpm", "ak": digits("1", 32), "pcr": {"17": digits("f", 32)}},
        {"kind": "mtls", "sha256": digits("0", 32)},
    ],
    ids=str,
)
def test_what_everybody_has_identifies_nobody(wanted):
    error = refused(document(wanted), "any[0]")
    assert "everybody has" in error.problem


def test_zero_beside_what_identifies():
    zero = requirement("tdx", rtmr={"2": digits("1", 48), "3": digits("0", 48)})
    assert Policy.parse(document(zero)).alternatives[0].kind == "tdx"
    refused(document({"kind": "nitro", "pcr": {"4": digits("1", 48)}}), "any[0]")


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"rtmr": {}}, "rtmr"),
        ({"rtmr": {"4": digits("1", 48)}}, "rtmr.4"),
        ({"rtmr": {"01": digits("1", 48)}}, "rtmr.01"),
        ({"rtmr": {"1": []}}, "rtmr.1"),
        ({"rtmr": [digits("1", 48)]}, "rtmr"),
        ({"rtmr": {"1": digits("1", 32)}}, "rtmr.1"),
        ({"rtmr1": digits("1", 48)}, "rtmr1"),
        ({"tcb": {}}, "tcb"),
        ({"tcb": {"status": []}}, "tcb.status"),
        ({"tcb": {"status": ["OutOfDate"]}}, "tcb.status[0]"),
        ({"tcb": {"status": "SWHardeningNeeded"}}, "tcb.status[0]"),
        ({"tcb": {"status": ["*"]}}, "tcb.status[0]"),
        ({"tcb": {"status": [{"status": "OutOfDate"}]}}, "tcb.status[0].until"),
        ({"tcb": {"status": [{"until": "2027-01-01T00:00:00Z"}]}}, "tcb.status[0].status"),
        ({"tcb": {"status": [{"status": "Revoked", "until": "2027-01-01T00:00:00Z"}]}}, "tcb.status[0].status"),
        ({"tcb": {"status": [{"status": "UpToDate", "until": "2027-01-01T00:00:00Z"}]}}, "tcb.status[0].status"),
        ({"tcb": {"status": [{"status": "OutOfDate", "until": "2027-01-01"}]}}, "tcb.status[0].until"),
        ({"tcb": {"status": [{"status": "OutOfDate", "until": "2027-01-01T00:00:00Z", "advisories": []}]}}, "tcb.status[0].advisories"),
        ({"tcb": {"status": [{"status": "OutOfDate", "until": "2027-01-01T00:00:00Z", "grace": 1}]}}, "tcb.status[0].grace"),
        ({"tcb": {"status": ["UpToDate", "UpToDate"]}}, "tcb.status"),
        ({"tcb": {"min_eval": 0}}, "tcb.min_eval"),
        ({"tcb": {"min_eval": "18"}}, "tcb.min_eval"),
        ({"tcb": {"advisories_deny": []}}, "tcb.advisories_deny"),
        ({"tcb": {"advisories_deny": ["CVE-2024-1"]}}, "tcb.advisories_deny[0]"),
        ({"tcb": {"grace_days": 14}}, "tcb.grace_days"),
        ({"platforms": []}, "platforms"),
        ({"platforms": ["*"]}, "platforms[0]"),
        ({"platforms": [digits("1", 16)]}, "platforms[0]"),
        ({"platforms": ["ppid:"]}, "platforms[0]"),
        ({"platforms": ["PPID:00"]}, "platforms[0]"),
        ({"platforms": {"piid": ["00"]}}, "platforms"),
        ({"with": []}, "with"),
        ({"with": {}}, "with"),
        ({"with": [{}]}, "with[0]"),
        ({"with": [requirement("snp")]}, "with[0].kind"),
        ({"with": [requirement("nvidia"), requirement("nvidia")]}, "with"),
        ({"with": [requirement("nvidia", **{"with": [requirement("mtls")]})]}, "with[0].with"),
        ({"with": [{"kind": "nvidia", "count": 1}]}, "with[0]"),
        ({"with": [requirement("nvidia", measurements=[])]}, "with[0].measurements"),
        ({"with": [requirement("nvidia", measurements="any")]}, "with[0].measurements"),
        ({"with": [{"kind": "nvidia", "arch": "HOPPER", "count": 1, "measurements": ["match", "no-reference"]}]}, "with[0].measurements"),
        ({"with": [requirement("nvidia", count=0)]}, "with[0].count"),
        ({"with": [requirement("nvidia", count=[8])]}, "with[0].count"),
        ({"with": [requirement("nvidia", secboot=False)]}, "with[0].secboot"),
    ],
    ids=lambda value: str(value)[:70],
)  # fmt: skip
def test_requirements_on_tdx_that_are_none(members, path):
    refused(document(requirement("tdx", **members)), f"any[0].{path}")


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        (requirement("snp", min_tcb={}), "min_tcb"),
        (requirement("snp", min_tcb={"of": "committed"}), "min_tcb"),
        (requirement("snp", min_tcb={"snp": 23}), "min_tcb.of"),
        (requirement("snp", min_tcb={"of": "current", "snp": 23}), "min_tcb.of"),
        (requirement("snp", min_tcb={"of": "committed", "snp": 256}), "min_tcb.snp"),
        (requirement("snp", min_tcb={"of": "committed", "ucode": 1}), "min_tcb.ucode"),
        (requirement("snp", guest_policy={"debug": True}), "guest_policy.debug"),
        (requirement("snp", guest_policy={"smt": 1}), "guest_policy.smt"),
        (requirement("snp", vmpl=4), "vmpl"),
        (requirement("snp", vmpl=False), "vmpl"),
        (requirement("snp", product="Rome"), "product"),
        (requirement("sgx", prod_id="3"), "prod_id"),
        (requirement("sgx", min_svn=[5]), "min_svn"),
        (requirement("sgx", min_svn=1 << 16), "min_svn"),
        (requirement("nitro", pcr={"32": digits("1", 48)}), "pcr.32"),
        (requirement("tpm", pcr={"24": digits("1", 32)}), "pcr.24"),
        (requirement("tpm", pcr={"7": digits("1", 20)}), "pcr.7"),
        (requirement("tpm", ak_certified=False), "ak_certified"),
        (requirement("tpm", ak=["sha256:" + digits("1", 32)]), "ak[0]"),
        (requirement("jwt", claims={}), "claims"),
        (requirement("jwt", claims={"a": {}}), "claims.a"),
        (requirement("jwt", claims={"a": []}), "claims.a"),
        (requirement("jwt", claims={"a": None}), "claims.a"),
        (requirement("jwt", claims={"a": "*"}), "claims.a"),
        (requirement("jwt", claims={"a": [{"b": 1}]}), "claims.a[0]"),
        (requirement("jwt", claims="hwmodel"), "claims"),
        (requirement("jwt", claims={"iss": "x"}), "claims.iss"),
        (requirement("jwt", claims={"exp": 1}), "claims.exp"),
        (requirement("jwt", claims={"eat_nonce": "x"}), "claims.eat_nonce"),
        (requirement("jwt", claims={"": "x"}), "claims"),
        (requirement("jwt", claims={"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}), "claims.a.b.c.d.e.f.g.h"),
        (requirement("mtls", **{"with": [requirement("nvidia")]}), "with[0].kind"),
        (requirement("mtls", **{"with": [requirement("mtls")]}), "with"),
        (requirement("oidc", **{"with": [requirement("tpm")]}), "with[0].kind"),
    ],
    ids=lambda value: str(value)[-80:],
)  # fmt: skip
def test_other_requirements_that_are_none(wanted, path):
    refused(document(wanted), f"any[0].{path}")


def test_lists_and_documents_that_are_too_long():
    many = [f"ppid:{number:032x}" for number in range(1, 4098)]
    refused(document(requirement("tdx", platforms=many)), "any[0].platforms")
    Policy.parse(document(requirement("tdx", platforms=many[:4096])))
    chips = [f"chip_id:{number:0128x}" for number in range(1, 4097)]
    refused(
        document(requirement("snp", platforms=chips), requirement("snp", platforms=chips)),
        "the document",
    )
    refused(document(description="x" * (1 << 20)), "the document")
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    refused({**document(), "lease": deep}, "the document")


def test_lint_says_everything_that_is_wrong():
    doc = {
        "version": 0,
        "keys": ["*"],
        "any": [requirement("tdx", mr_td="x", xfam=[]), requirement("nvidia"), {"kind": "snp"}],
        "lease": {"seconds": 1},
        "nonsense": 1,
    }
    paths = [remark.path for remark in lint(doc)]
    assert set(paths) == {
        "id",
        "version",
        "keys[0]",
        "any[0].mr_td",
        "any[0].xfam",
        "any[1].kind",
        "any[2]",
        "lease.seconds",
        "nonsense",
    }
    assert len(paths) == len(set(paths))


KEY = b64url(bytes(range(32)))


@pytest.mark.parametrize(
    ("approvals", "path"),
    [
        ({}, "approvals"),
        ({"needed": 1}, "approvals.approvers"),
        ({"needed": 1, "approvers": {}}, "approvals.approvers"),
        ({"needed": 0, "approvers": {"ann": KEY}}, "approvals.needed"),
        ({"needed": 2, "approvers": {"ann": KEY}}, "approvals.needed"),
        ({"approvers": {"ann": KEY}}, "approvals.needed"),
        ({"needed": True, "approvers": {"ann": KEY}}, "approvals.needed"),
        ({"needed": 1, "approvers": {"ann": KEY, "bob": KEY}}, "approvals.approvers"),
        ({"needed": 1, "approvers": {"an n": KEY}}, "approvals.approvers.an n"),
        ({"needed": 1, "approvers": {"ann": KEY[:-2]}}, "approvals.approvers.ann"),
        ({"needed": 1, "approvers": {"ann": b64url(bytes(32))}}, "approvals.approvers.ann"),
        ({"needed": 1, "approvers": {"ann": b64url(b"\x01" + bytes(31))}}, "approvals.approvers.ann"),
        ({"needed": 1, "approvers": {"ann": b64url(b"\x01" + bytes(30) + b"\x80")}}, "approvals.approvers.ann"),
        ({"needed": 1, "approvers": {"ann": b64url(b"\xee" + b"\xff" * 30 + b"\x7f")}}, "approvals.approvers.ann"),
        ({"needed": 1, "approvers": {"ann": 7}}, "approvals.approvers.ann"),
        ({"needed": 1, "approvers": {"ann": KEY}, "veto": ["ann"]}, "approvals.veto"),
    ],
    ids=str,
)  # fmt: skip
def test_approvals_that_are_none(approvals, path):
    refused(document(approvals=approvals), path)


TOML = """
id = "llama-prod"
version = 1
keys = ["models/llama/"]
not_after = 2027-01-01T00:00:00+01:00

[[any]]
kind = "sgx"
mr_enclave = "{enclave}"

[lease]
seconds = 600
""".replace("{enclave}", digits("1", 32))


def test_toml_and_json_are_one_policy():
    doc = read_policy(TOML.encode(), toml=True)
    policy = Policy.parse(doc)
    assert policy.not_after.isoformat() == "2026-12-31T23:00:00+00:00"
    assert Policy.parse(read_policy(json.dumps(doc).encode())).digest == policy.digest


@pytest.mark.parametrize(
    ("text", "toml"),
    [
        ('{"id": "a", "id": "b"}', False),
        ('{"id": NaN}', False),
        ('{"any": [{"kind": "tdx", "mr_td": "a", "mr_td": "b"}]}', False),
        ("[]", False),
        ("", False),
        ('{"a": ' * 40 + "1" + "}" * 40, False),
        ("\ufeff{}", False),
        ('id = "a"\nid = "b"', True),
        ("id = ", True),
        ("{}", True),
        ("a=" + "[" * 3000, True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_text_that_is_no_document(text, toml):
    with pytest.raises(InvalidPolicy) as caught:
        read_policy(text.encode(), toml=toml)
    assert caught.value.path == "the document"


def test_bytes_that_are_no_text():
    for toml in (False, True):
        with pytest.raises(InvalidPolicy):
            read_policy(b"\xff\xfe", toml=toml)
        with pytest.raises(InvalidPolicy):
            read_policy(b" " * (3 << 20), toml=toml)


def test_times_of_toml_without_a_zone_are_refused():
    for text in ("2027-01-01T00:00:00", "2027-01-01", "12:00:00"):
        doc = read_policy(TOML.replace("2027-01-01T00:00:00+01:00", text).encode(), toml=True)
        refused(doc, "not_after")
    refused(read_policy(TOML.replace("600", "600.0").encode(), toml=True), "the document")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 54) | st.text(max_size=8) | st.sampled_from(["*", KEY]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*"012", "kind", "status", "of", "min"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.sampled_from(sorted(set(FULL) - {"nvidia"})), st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_member_it_is_read_or_refused(kind, data):
    name = data.draw(st.sampled_from([*KINDS[kind].members, "with"]))
    doc = document(requirement(kind, **{name: data.draw(json_values)}))
    top = data.draw(
        st.none() | st.sampled_from(["lease", "versions", "approvals", "keys", "revoked_bundles"])
    )
    if top:
        doc[top] = data.draw(json_values)
    before = copy.deepcopy(doc)
    try:
        policy = Policy.parse(doc)
    except StrongroomError as error:
        assert isinstance(error, InvalidPolicy)
        assert [remark for remark in lint(doc) if remark.level == "error"]
    else:
        assert policy.to_json() == before
        assert not [remark for remark in lint(doc) if remark.level == "error"]
    assert doc == before
