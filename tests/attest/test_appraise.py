"""Recorded evidence, verified and then appraised: by what it says, by that with one digit changed, by the rules."""

import json
from datetime import timedelta

import pytest
from recorded import fixed_time, read

from strongroom.attest.appraise import all_ok, appraise, binding_rule, eviction_rule, rules
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import Finding, lookup
from strongroom.attest.requirements import parse_requirement
from strongroom.attest.requirements_checks import identities
from strongroom.attest.requirements_values import Problems
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import InvalidPolicy

pytest.importorskip("dcap_qvl")
pytest.importorskip("cbor2")

RECORDED = {
    "sgx": ("dcap/sgx_v3.bin", ["dcap/collateral/sgx_00A067110000.json"]),
    "tdx": ("dcap/tdx_v4.bin", ["dcap/collateral/tdx_B0C06F000000.json"]),
    "tdx-v5": ("dcap/tdx_v5.bin", ["dcap/collateral/tdx_90C06F000000.json"]),
    "snp": ("snp/genoa_v5.bin", ["snp/genoa_v5.vek", "snp/roots/genoa_ask_ark_asvk.pem"]),
    "snp-turin": ("snp/turin_v5.bin", ["snp/turin_v5.vek", "snp/roots/turin_ask_ark_asvk.pem"]),
    "snp-milan": ("snp/milan_v2.bin", ["snp/milan_v2.vek", "snp/roots/milan_ask_ark_asvk.pem"]),
    "snp-vlek": ("snp/milan_v2_vlek.bin", ["snp/milan_v2_vlek.vek", "snp/roots/milan_ask_ark_asvk.pem"]),
    "snp-debug": ("snp/milan_v2_debug.bin", ["snp/milan_v2_debug.vek", "snp/roots/milan_ask_ark_asvk.pem"]),
    "nitro": ("nitro/user_data.cose", []),
    "nitro-debug": ("nitro/debug.cose", []),
    "azure-vtpm": ("azure/snp_vtpm_v2.json", ["snp/roots/milan_ask_ark_asvk.pem"]),
}  # fmt: skip


def claims_of(name):
    file, endorsements = RECORDED[name]
    kind = "azure-vtpm" if name == "azure-vtpm" else name.partition("-")[0]
    evidence = Evidence(kind, read(file), tuple(map(read, endorsements)))
    return verify(evidence, Context(fixed_time(file), production()))


LISTED = {
    "sgx": ("mr_enclave", "mr_signer", "attributes", "config_id", "isv_family_id", "fmspc"),
    "tdx": (
        *("mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "mr_signer_seam"),
        *("td_attributes", "xfam", "fmspc"),
    ),
    "snp": (
        *("measurement", "host_data", "family_id", "image_id", "id_key_digest", "author_key_digest"),
        *("vmpl", "product", "signer"),
    ),
    "nitro": ("module_id",),
}
LISTED["azure-vtpm"] = (*LISTED["snp"], "ak")


def requirement_of(claims):
    """All that can be listed of what the evidence says."""
    kind, values = claims.kind, claims.values
    listed = {name: values[name] for name in LISTED[kind]}
    if kind == "sgx":
        listed |= {"prod_id": values["isv_prod_id"], "min_svn": values["isv_svn"]}
        status = {"status": values["tcb_status"], "until": "2030-01-01T00:00:00Z"}
        listed["tcb"] = {"status": [{**status, "advisories": values["advisories"]}]}
    if kind == "tdx":
        listed["rtmr"] = {str(index): values[f"rtmr{index}"] for index in range(4)}
        listed["tcb"] = {"min_eval": values["tcb_eval"]}
    if kind in ("snp", "azure-vtpm"):
        listed["min_tcb"] = {"of": "committed", **values["tcb"]["committed"]}
        listed["guest_policy"] = {
            name: values["policy"][name] for name in ("smt", "migrate_ma", "single_socket")
        }
        listed["platform_info"] = dict(values["platform_info"])
        listed["min_guest_svn"] = values["guest_svn"]
    if kind in ("nitro", "azure-vtpm"):
        listed["pcr"] = dict(values["pcr"])
    if identities(claims):
        listed["platforms"] = [identities(claims)[-1]]
    return {"kind": kind, **json.loads(json.dumps(listed))}


def parsed(members):
    problems = Problems()
    requirement = parse_requirement(members, "any[0]", problems)
    problems.raise_first()
    return requirement


@pytest.fixture(scope="module", params=[name for name in RECORDED if "debug" not in name])
def recording(request):
    claims = claims_of(request.param)
    return claims, fixed_time(RECORDED[request.param][0])


def test_recorded_evidence_is_acceptable_by_all_it_says(recording):
    claims, now = recording
    findings = appraise(parsed(requirement_of(claims)), claims, (), now)
    assert [one for one in findings if not one.ok] == []
    assert len(findings) > 3
    assert all_ok(rules(claims, "evidence[0]", now, test_roots=False))


def leaves(value, path=()):
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, (*path, name))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from leaves(member, (*path, index))
    else:
        yield path, value


def put(members, path, value):
    members = json.loads(json.dumps(members))
    inner = members
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return members


def test_one_digit_changed_in_the_list_and_it_is_not(recording):
    claims, now = recording
    members = requirement_of(claims)
    for path, value in leaves(members):
        if path[0] in ("kind", "tcb", "min_tcb") and path[-1] in ("kind", "status", "until", "of"):
            continue
        if path[:2] == ("tcb", "status"):
            continue
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = value + 1
        else:
            digit = "1" if value[-1] != "1" else "2"
            other = {"Genoa": "Milan", "Turin": "Milan", "Milan": "Turin", "vcek": "vlek", "vlek": "vcek"}.get(
                value, value[:-1] + digit
            )  # fmt: skip
        try:
            requirement = parsed(put(members, path, other))
        except InvalidPolicy:
            assert value in (3, 255), path  # there is no fourth privilege level
            continue
        bad = [one for one in appraise(requirement, claims, (), now) if not one.ok]
        expected = "platforms" if path[0] == "platforms" else ".".join(map(str, path))
        assert [one.path for one in bad] == [f"any[0].{expected}"], path
        assert "\n" not in bad[0].text


@pytest.mark.parametrize("name", ["snp-debug", "nitro-debug"])
def test_a_valid_signature_under_debug_is_refused(name):
    claims, now = claims_of(name), fixed_time(RECORDED[name][0])
    bad = [one for one in rules(claims, "evidence[0]", now, test_roots=True) if not one.ok]
    assert [one.path for one in bad] == ["evidence[0].debug"]


def test_the_status_that_a_library_merely_returns_is_refused():
    claims, now = claims_of("sgx"), fixed_time("dcap/sgx_v3.bin")
    requirement = parsed({"kind": "sgx", "mr_enclave": claims.values["mr_enclave"]})
    (bad,) = [one for one in appraise(requirement, claims, (), now) if not one.ok]
    assert (bad.path, bad.found) == ("any[0].tcb.status", "ConfigurationAndSWHardeningNeeded")


def test_a_deadline_on_recorded_evidence():
    claims, now = claims_of("sgx"), fixed_time("dcap/sgx_v3.bin")
    requirement = parsed(requirement_of(claims))
    later = now.replace(year=2030, month=1, day=1)
    assert all_ok(appraise(requirement, claims, (), later - timedelta(seconds=1)))
    assert not all_ok(appraise(requirement, claims, (), later))


def test_a_leased_key_names_no_machine():
    claims = claims_of("snp-vlek")
    assert identities(claims) == ()
    members = requirement_of(claims) | {"platforms": ["chip_id:" + "00" * 64]}
    bad = [one for one in appraise(parsed(members), claims, (), fixed_time("snp/milan_v2_vlek.bin")) if not one.ok]  # fmt: skip
    assert [one.path for one in bad] == ["any[0].platforms"]


def test_evidence_of_another_machine_of_the_same_kind(recording):
    claims, now = recording
    for name in RECORDED:
        if "debug" in name:
            continue
        other = claims_of(name)
        if other.kind == claims.kind and other.digest != claims.digest:
            assert not all_ok(appraise(parsed(requirement_of(other)), claims, (), now))


def test_rules_one_by_one():
    claims = claims_of("tdx")
    assert binding_rule(claims, "e", claims.bound).ok
    for expected in (None, b"", bytes(64), claims.bound[:-1], claims.bound + b"\0"):
        assert not binding_rule(claims, "e", expected).ok
    assert eviction_rule(claims, "e", frozenset({"ppid:" + "00" * 16})).ok
    assert not eviction_rule(claims, "e", frozenset({claims.platform})).ok
    assert all_ok(rules(claims, "e", None, test_roots=False))
    late = rules(claims, "e", claims.not_after + timedelta(seconds=1), test_roots=False)
    assert [one.path for one in late if not one.ok] == ["e.not_after"]


def test_nothing_looked_at_is_nothing_found_good():
    assert not all_ok([])
    assert not all_ok([Finding(True, "a", 1, 1, ""), Finding(False, "b", 1, 2, "")])
    assert all_ok([Finding(True, "a", 1, 1, "")])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (("a", "b"), 1),
        (("l", "0"), "x"),
        (("l", "1"), None),
        (("l", "-1"), None),
        (("l", "x"), None),
        (("a", "b", "c"), None),
        (("n",), None),
        (("z",), None),
    ],
)
def test_values_by_path(path, found):
    values = {"a": {"b": 1}, "l": ["x"], "n": None}
    said = lookup(values, path)
    assert (repr(said) == "nothing") if found is None else said == found
