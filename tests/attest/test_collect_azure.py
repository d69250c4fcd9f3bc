"""A confidential virtual machine like Azure's: a real TPM (swtpm) with the paravisor's report in it, which
a synthetic processor has made for the key of this TPM."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from swtpm import Tpm, TpmMaker, require_swtpm, switched_on

from strongroom.attest.collect import open_collector
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.tpm_keys import parse_public
from strongroom.attest.verify import Context, verify
from strongroom.errors import NotAuthentic, NotFound, UsageError
from strongroom.testing.amd import SnpPki
from strongroom.testing.azure import AzureMachine
from strongroom.testing.intel import IntelPki

NOW = datetime.now(UTC)
BOUND = hashlib.sha256(b"challenge").digest()
RESTRICTED = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"


class _PublicHalf:
    """Stands for the key of the machine, whose private half is in the TPM."""

    def __init__(self, key) -> None:
        self._key = key

    def public_key(self):
        return self._key


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    require_swtpm()
    return TpmMaker(tmp_path_factory.mktemp("azure")).make("one")


@pytest.fixture
def tpm(state, tmp_path):
    with switched_on(state, tmp_path) as running:
        yield running


def make_key(tpm: Tpm, folder):
    context = str(folder / "key.ctx")
    tpm._run(
        "createprimary", "-C", "e", "-G", "rsa2048:rsassa-sha256:null", "-a", RESTRICTED, "-c", context
    )
    tpm.tool("evictcontrol", "-C", "o", "-c", context, "0x81000003")
    tpm.tool("readpublic", "-c", "0x81000003", "-o", str(folder / "public"))
    return parse_public((folder / "public").read_bytes()).key


def put_report(tpm: Tpm, folder, report: bytes) -> None:
    # swtpm has room for 2048 bytes; in Azure zeros follow up to 2600.
    report = report.rstrip(b"\x00")
    (folder / "report").write_bytes(report)
    tpm.tool("nvdefine", "-C", "o", "-s", str(len(report)), "0x1400001")
    tpm.tool("nvwrite", "-C", "o", "-i", str(folder / "report"), "0x1400001")


def machine_of(pki, key) -> AzureMachine:
    return replace(AzureMachine.create(pki), key=_PublicHalf(key))


def report_of(machine: AzureMachine) -> bytes:
    runtime = machine.runtime()
    return machine.hcl_report(runtime, machine.pki.report(hashlib.sha256(runtime).digest()))


def test_the_quote_and_the_report_verify_together(tpm, tmp_path):
    pki = SnpPki.create(NOW)
    machine = machine_of(pki, make_key(tpm, tmp_path))
    put_report(tpm, tmp_path, report_of(machine))
    tpm.extend(11, hashlib.sha256(b"kernel").digest())
    evidence = open_collector(f"azure:{tpm.tcti}").collect(BOUND)
    brought = Evidence(evidence.kind, evidence.data, (pki.key_der, pki.chain_pem, pki.crl()))
    claims = verify(brought, Context(NOW, machine.roots(production())))
    assert claims.bound == BOUND
    expected = hashlib.sha256(bytes(32) + hashlib.sha256(b"kernel").digest()).hexdigest()
    assert claims.values["pcr"]["11"] == expected
    assert claims.platform == f"ak:{claims.values['ak']}"


def test_a_report_for_another_tpm_is_no_evidence(tpm, tmp_path):
    """Whoever copies the report of a confidential machine into his own TPM has not got its key."""
    make_key(tpm, tmp_path)
    put_report(tpm, tmp_path, report_of(AzureMachine.create(SnpPki.create(NOW))))
    with pytest.raises(UsageError, match="not the one that the processor vouches for"):
        open_collector(f"azure:{tpm.tcti}").collect(BOUND)


def test_a_report_that_vouches_for_something_else_is_refused_by_the_verifier(tpm, tmp_path):
    pki = SnpPki.create(NOW)
    machine = machine_of(pki, make_key(tpm, tmp_path))
    put_report(tpm, tmp_path, machine.hcl_report(machine.runtime(), pki.report(bytes(64))))
    evidence = open_collector(f"azure:{tpm.tcti}").collect(BOUND)
    brought = Evidence(evidence.kind, evidence.data, (pki.key_der, pki.chain_pem, pki.crl()))
    with pytest.raises(NotAuthentic, match="another virtual TPM"):
        verify(brought, Context(NOW, machine.roots(production())))


def test_a_machine_with_tdx(tpm, tmp_path):
    machine = machine_of(IntelPki.create(NOW), make_key(tpm, tmp_path))
    put_report(tpm, tmp_path, machine.hcl_report(machine.runtime(), bytes(1024)))
    with pytest.raises(UsageError, match="TDX") as caught:
        open_collector(f"azure:{tpm.tcti}").collect(BOUND)
    assert "exec:" in (caught.value.hint or "")


def test_a_report_that_is_none(tpm, tmp_path):
    make_key(tpm, tmp_path)
    put_report(tpm, tmp_path, b"x" * 2000)
    with pytest.raises(UsageError, match="form that is not known"):
        open_collector(f"azure:{tpm.tcti}").collect(BOUND)


def test_a_machine_that_is_not_azures(tpm, tmp_path):
    with pytest.raises(NotFound, match="no confidential machine of Azure"):
        open_collector(f"azure:{tpm.tcti}").collect(BOUND)
    put_report(tpm, tmp_path, report_of(AzureMachine.create(SnpPki.create(NOW))))
    with pytest.raises(NotFound, match="no key at 0x81000003"):
        open_collector(f"azure:{tpm.tcti}").collect(BOUND)
