"""The places of root keys, real where there is one: SoftHSM, moto's KMS, swtpm; and the fake of Vault.

Fixtures named ``…_source`` give the source of a root key that is not there yet, and what opens it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ports import held_port, listens

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "canary-pin-4821"


@pytest.fixture
def file_source(tmp_path):
    return f"file:{tmp_path}/root.json", "correct horse"


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory):
    if not SOFTHSM.exists() or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed")
    place = tmp_path_factory.mktemp("softhsm")
    (place / "tokens").mkdir()
    (place / "conf").write_text(f"directories.tokendir = {place}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(place / "conf")
    for label in ("keys", "others", "pins"):
        subprocess.run(
            [
                "softhsm2-util",
                "--init-token",
                "--free",
                "--label",
                label,
                "--so-pin",
                "0000",
                "--pin",
                PIN,
            ],
            check=True,
            capture_output=True,
        )
    yield place
    del os.environ["SOFTHSM2_CONF"]


@pytest.fixture
def pkcs11_source(softhsm):
    label = os.urandom(4).hex()
    return f"pkcs11:token=keys;object={label}?module-path={SOFTHSM}", PIN


@pytest.fixture(scope="module")
def moto():
    port = held_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json").close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def aws_source(moto, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    return f"aws-kms:alias/{os.urandom(4).hex()}?region=eu-central-1&endpoint={moto}", None


@pytest.fixture
def transit():
    from strongroom.testing.vault import TransitServer

    with TransitServer() as server:
        yield server


@pytest.fixture
def vault_source(transit, monkeypatch):
    monkeypatch.setenv("VAULT_ADDR", transit.url)
    monkeypatch.delenv("VAULT_TOKEN", raising=False)
    return f"vault:transit/{os.urandom(4).hex()}", transit.token


@pytest.fixture(scope="module")
def tpm_state(tmp_path_factory):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm is not installed")
    place = tmp_path_factory.mktemp("tpms")
    for name in ("one", "two"):
        (place / name).mkdir()
        subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(place / name), "--createek"],
            check=True,
            capture_output=True,
        )
    return place


def tcti(state):
    return f"swtpm:path={state}/socket"


@pytest.fixture
def tpm(tpm_state, tmp_path):
    processes = []
    for name in ("one", "two"):
        state = tmp_path / name
        shutil.copytree(tpm_state / name, state)
        command = [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={state}",
            "--flags",
            "not-need-init",
        ]
        command += ["--server", f"type=unixio,path={state}/socket", "--flags", "startup-clear"]
        command += ["--ctrl", f"type=unixio,path={state}/socket.ctrl"]
        processes.append(subprocess.Popen(command))
        while not listens(state / "socket"):
            assert processes[-1].poll() is None
            time.sleep(0.02)
    yield tmp_path
    for one in processes:
        one.kill()
        one.wait()


@pytest.fixture
def tpm_source(tpm):
    return f"tpm:{tpm}/root.json?tcti={tcti(tpm / 'one')}", "correct horse"
