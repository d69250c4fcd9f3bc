"""The program that stands for a machine with a TEE."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import NotAuthentic

NODE = [sys.executable, "-m", "strongroom.testing.synthetic_node"]


def node(*arguments, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NODE, *map(str, arguments)], input=said, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node") / "pki"
    made = node(folder, "--init", "--ppid", "0d" * 16)
    assert made.returncode == 0, made.stderr
    assert "TEST-ROOT-NOT-FOR-PRODUCTION" in made.stdout
    return folder


def context(place) -> Context:
    (root,) = place.glob("*ROOT*.pem")
    return Context(datetime.now(UTC), replace(production(), intel=root.read_bytes(), test=True))


def test_it_answers_report_data_with_evidence(place):
    bound = os.urandom(64)
    answer = node(place, "--mr-td", "17" * 48, "--rtmr2", "2a" * 48, said=bound.hex() + "\n")
    assert answer.returncode == 0, answer.stderr
    claims = verify(Evidence.from_json(json.loads(answer.stdout)), context(place))
    assert claims.bound == bound
    assert claims.values["mr_td"] == "17" * 48
    assert claims.values["rtmr2"] == "2a" * 48
    assert claims.platform == "ppid:" + "0d" * 16
    assert claims.test_root


def test_it_can_be_an_enclave_of_a_bad_state(place):
    said = "00" * 32
    answer = node(place, "--kind", "sgx", "--tcb-status", "OutOfDate", "--isv-svn", 7, said=said)
    claims = verify(Evidence.from_json(json.loads(answer.stdout)), context(place))
    assert (claims.values["tcb_status"], claims.values["isv_svn"]) == ("OutOfDate", 7)
    assert claims.bound == bytes(64)
    debug = Evidence.from_json(json.loads(node(place, "--debug", said=said).stdout))
    with pytest.raises(NotAuthentic, match="debug"):
        verify(debug, context(place))


def test_it_refuses_what_it_does_not_understand(place, tmp_path):
    for said in ("", "zz", "00" * 65):
        assert node(place, said=said).returncode == 2
    assert node(place, "--mr-td", "00", said="00").returncode == 2
    assert node(place, "--init").returncode == 2
    absent = node(tmp_path, said="00")
    assert absent.returncode == 2
    assert "no such file" in absent.stderr
    assert not absent.stdout
