"""Specs of collectors, and the choice among those that are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from strongroom.attest.collect import Collector, open_collector
from strongroom.attest.collect.auto import find_collector
from strongroom.attest.registry import KINDS
from strongroom.errors import MissingExtra, NotFound, UsageError


@pytest.mark.parametrize(
    "spec",
    ["", "tpm2", "software", "tsm:", "exec", "exec:", "nvidia:0", "auto:tsm", "TSM", "tsm;key=1"],
)
def test_a_spec_that_is_none(spec):
    with pytest.raises(UsageError):
        open_collector(spec)


@pytest.mark.parametrize("spec", ["tsm", "gramine", "nitro"])
def test_default_places_are_those_of_the_kernel(spec):
    """None of them is here; the error names the place."""
    with pytest.raises(NotFound) as caught:
        open_collector(spec)
    assert ("/sys/kernel/config/tsm/report" if spec == "tsm" else "/dev/") in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["tpm:swtpm;handle=1", "tpm:swtpm;key=x", "tpm;key=-1", "tpm;key=0x100000000", "tpm;key", "tpm;"],
)
def test_options_of_a_tpm_that_are_none(spec):
    with pytest.raises(UsageError, match=r"Options of tpm|names no collector"):
        open_collector(spec)


def test_a_tpm_by_default_and_with_options():
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    assert open_collector("tpm")._tcti == "device:/dev/tpmrm0"
    collector = open_collector("tpm;key=0x81000003;certificate=0x1C101D0")
    assert (collector._tcti, collector._key, collector._certificate) == (
        *("device:/dev/tpmrm0", 0x81000003),
        0x1C101D0,
    )
    assert open_collector("tpm:swtpm:host=::1,port=2321;key=1")._tcti == "swtpm:host=::1,port=2321"


def test_collectors_are_collectors_of_known_kinds():
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    for spec in ("tpm", "nvidia"):
        collector = open_collector(spec)
        assert isinstance(collector, Collector)
        assert collector.kind in KINDS


def test_auto_where_there_is_nothing(tmp_path):
    with pytest.raises(NotFound, match="nothing on this machine") as caught:
        find_collector(str(tmp_path))
    for place in ("/dev/attestation", "/sys/kernel/config/tsm/report", "/dev/nsm", "/dev/tpmrm0"):
        assert place in (caught.value.hint or "")


def test_auto_takes_a_tpm_last(tmp_path):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tpmrm0").touch()
    collector = find_collector(str(tmp_path))
    assert (collector.kind, collector._tcti) == ("tpm", f"device:{tmp_path}/dev/tpmrm0")
    (tmp_path / "dev/nsm").touch()
    assert find_collector(str(tmp_path)).kind == "nitro"


def test_a_tpm_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(MissingExtra) as caught:
        open_collector("tpm")
    assert "tpm" in (caught.value.hint or "")


def test_no_package_is_imported_before_it_is_needed():
    code = (
        "import sys, strongroom.attest.collect, strongroom.attest.collect.auto, strongroom.attest.tpm\n"
        "import strongroom.attest.tpm_credential\n"
        "print(sorted({'tpm2_pytss', 'pynvml', 'cbor2', 'dcap_qvl', 'lxml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
