"""The units as systemd runs them, with all that confines them: key server, key cache, model server, request."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import onnx
import pytest
from booted import ROOT, TIMEOUT, Machine, why_not
from onnx import TensorProto, helper

UNITS = ROOT / "deploy" / "systemd"
PASSPHRASE = "correct horse battery staple"
MEASURED = ("--mr-td", "11" * 48, "--rtmr0", "22" * 48)
KEYS = "/var/lib/strongroom-keyserver/keys"
SERVICES = ("strongroom-keyserver", "strongroom-keycache", "strongroom-serve@digits")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    made.close()


def write_model(place: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(place))


@pytest.fixture(scope="module")
def installed(machine):
    """The machine after all steps of the page, up to the first start."""
    share = machine.share
    for one in UNITS.iterdir():
        shutil.copy(one, share)
    write_model(share / "model.onnx")
    run = machine.run
    run("cp", *(f"/mnt/{one.name}" for one in UNITS.glob("*.service")), "/etc/systemd/system/")
    run("systemd-sysusers", "/mnt/sysusers.conf")
    run("systemd-tmpfiles", "--create", "/mnt/tmpfiles.conf")
    run("install", "-d", "-o", "strongroom-keyserver", "-m", "700", "/var/lib/strongroom-keyserver")
    run("install", "-m", "600", "/dev/stdin", "/etc/strongroom/kek-passphrase", input=PASSPHRASE + "\n")
    testing = "/opt/strongroom/bin/python3 -m strongroom.testing.synthetic_node /etc/strongroom/pki"
    run(*testing.split(), "--init")
    roots = "/etc/strongroom/pki/TEST-ROOT-NOT-FOR-PRODUCTION.intel.pem"
    run("chmod", "-R", "a+rX", "/etc/strongroom/pki")
    run(
        *("runuser", "-u", "strongroom-keyserver", "--", "strongroom", "keyserver", "init", KEYS),
        *("--url", "https://localhost:8443", "--passphrase-fd", "0", "--insecure-test-roots", roots),
        input=PASSPHRASE + "\n",
    )
    credential = "/run/credentials/strongroom-keyserver.service/kek-passphrase"
    run("sed", "-i", f'/^source = /a passphrase_file = "{credential}"', f"{KEYS}/keyserver.toml")
    # There is no load balancer to wait for.
    run("sed", "-i", "s/^\\[listen\\]/&\\ndrain_seconds = 0.0/", f"{KEYS}/keyserver.toml")
    options = "OPTIONS=--drain-seconds 0 --no-access-log\n"
    run("install", "-m", "644", "/dev/stdin", "/etc/strongroom/serve/digits.env", input=options)
    profile = json.loads(run("cat", f"{KEYS}/profile.json").stdout)
    node = json.dumps({**profile, "attester": f"exec:{testing} {' '.join(MEASURED)}"})
    run("install", "-m", "644", "/dev/stdin", "/etc/strongroom/keyserver.json", input=node)
    run("cp", "/mnt/keycache.toml", "/etc/strongroom/keycache.toml")
    models = (UNITS / "models.yaml").read_text().replace("resnet50", "digits")
    run("install", "-m", "644", "/dev/stdin", "/etc/strongroom/serve/digits.yaml", input=models)
    run("systemctl", "daemon-reload")
    machine.start("strongroom-keyserver")
    owner = {"STRONGROOM_KEYSERVER": f"{KEYS}/owner.json"}
    policy = {
        "id": "serving",
        "version": 1,
        "keys": ["digits"],
        "test_roots": True,
        "any": [{"kind": "tdx", "mr_td": MEASURED[1], "rtmr": {"0": MEASURED[3]}}],
    }
    (share / "policy.json").write_text(json.dumps(policy))
    run("strongroom", "policy", "put", "/mnt/policy.json", **owner)
    sealed = "/var/lib/strongroom-models/digits"
    run(
        "strongroom",
        "seal",
        "/mnt/model.onnx",
        "-o",
        sealed,
        "-r",
        "https://localhost:8443/digits",
        **owner,
    )
    run("chmod", "644", sealed)
    return machine


@pytest.fixture(scope="module")
def serving(installed):
    # It wants the key cache, which is started with it.
    installed.start("strongroom-serve@digits")
    installed.run("systemctl", "is-active", "strongroom-keycache")
    return installed


ASK = """
import json, sys, time, urllib.request
end = time.monotonic() + 60
while True:
    try:
        urllib.request.urlopen("http://127.0.0.1:8501/readyz", timeout=30).close()
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
body = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]}).encode()
with urllib.request.urlopen("http://127.0.0.1:8501/v1/models/digits:predict", body, timeout=30) as answer:
    print(answer.read().decode())
"""


def answered(machine):
    said = machine.run("/opt/strongroom/bin/python3", "-c", ASK)
    assert json.loads(said.stdout) == {"predictions": [[-1.0, -2.0, -3.0, -4.0]]}


@pytest.mark.slow
def test_a_request_is_answered_by_a_model_whose_key_came_all_the_way(serving):
    answered(serving)
    status = serving.run(
        "strongroom", "keycache", "status", "--socket", "/run/strongroom/keys.sock", "--json"
    )
    held = json.loads(status.stdout)
    assert [one["name"] for one in held["leases"]] == ["digits"]


def test_probes_of_the_manifests_are_answered(serving):
    for url in (
        "https://127.0.0.1:8443/healthz",
        "https://127.0.0.1:8443/readyz",
        "http://127.0.0.1:8501/healthz",
        "http://127.0.0.1:8501/readyz",
        "http://127.0.0.1:8501/metrics",
    ):
        serving.run("strongroom", "plumbing", "probe", url)
    # That of the key server is for auditors.
    assert (
        serving.run(
            "strongroom", "plumbing", "probe", "https://127.0.0.1:8443/metrics", check=False
        ).returncode
        == 7
    )


def test_only_who_is_allowed_has_keys(serving):
    verify = ("strongroom", "verify", "/var/lib/strongroom-models/digits")
    cache = {"STRONGROOM_KEYSERVER": "unix:///run/strongroom/keys.sock"}
    as_user = (
        "setpriv",
        "--reuid=strongroom-serve",
        "--regid=strongroom-models",
        "--clear-groups",
        "--",
    )
    serving.run(*as_user, *verify, **cache)
    # Nobody connects who is not in the group; who is in it has no key without being named.
    for user in (
        "--reuid=nobody --regid=nogroup --clear-groups",
        "--reuid=nobody --regid=strongroom-models --clear-groups",
    ):
        done = serving.run("setpriv", *user.split(), "--", *verify, check=False, **cache)
        assert (done.returncode, "may not" in done.stderr) == (4, True), done.stderr


MOUNTED = "strongroom-mount@digits"
FUSE = Path("/dev/fuse").exists() and " fuse" in Path("/proc/filesystems").read_text().replace(
    "\t", " "
)


@pytest.mark.skipif(not FUSE, reason="there is no FUSE here")
def test_models_are_mounted_for_one_user(serving):
    as_user = ("setpriv", "--reuid=strongroom-serve", "--regid=strongroom-models", "--clear-groups")
    shown = "/run/strongroom-mount/digits/model.onnx"
    serving.start(MOUNTED)
    serving.run(*as_user, "cmp", shown, "/mnt/model.onnx")
    assert serving.run("cat", shown, check=False).returncode == 1  # not even root
    process = serving.property(MOUNTED, "MainPID")
    status = serving.run("cat", f"/proc/{process}/status").stdout
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 1 << 21
    assert said["Uid"].split()[0] != "0"
    serving.run("systemctl", "kill", "--signal=KILL", MOUNTED)
    end = time.monotonic() + TIMEOUT
    while serving.run(*as_user, "cmp", shown, "/mnt/model.onnx", check=False).returncode:
        assert time.monotonic() < end, serving.log(MOUNTED)
        time.sleep(0.1)
    assert serving.property(MOUNTED, "NRestarts") == "1"
    serving.run("systemctl", "stop", MOUNTED)
    assert serving.run("ls", "/run/strongroom-mount/digits").stdout == ""
    assert serving.property(MOUNTED, "Result") == "success"


def test_services_are_confined(serving):
    for service in SERVICES:
        assert serving.property(service, "LimitCORE") == "0"
        process = serving.property(service, "MainPID")
        status = serving.run("cat", f"/proc/{process}/status").stdout
        said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert said["NoNewPrivs"] == "1"
        assert said["Seccomp"] == "2"
        assert int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 0
        assert said["Uid"].split()[0] != "0"
        into = ("nsenter", "--target", process, "--mount", "--")
        assert serving.run(*into, "touch", "/etc/strongroom/x", check=False).returncode == 1
        assert serving.run(*into, "ls", "-A", "/root", check=False).stdout == ""


def test_who_is_killed_comes_back(serving):
    for service in SERVICES:
        serving.run("systemctl", "kill", "--signal=KILL", service)
        end = time.monotonic() + TIMEOUT
        while serving.property(service, "NRestarts") != "1":
            assert time.monotonic() < end
            time.sleep(0.1)
        answered(serving)


def test_an_outage_of_the_key_server_is_not_noticed(serving):
    answered(serving)
    serving.run("systemctl", "stop", "strongroom-keyserver")
    serving.run("systemctl", "restart", "strongroom-serve@digits")
    answered(serving)
    serving.start("strongroom-keyserver")


def test_no_secret_is_in_a_log(serving):
    token = serving.run("cat", f"{KEYS}/owner.token").stdout.strip()
    for service in SERVICES:
        log = serving.log(service)
        assert log
        assert PASSPHRASE not in log
        assert token not in log


def test_all_of_them_end_in_order(serving):
    for service in reversed(SERVICES):
        serving.run("systemctl", "stop", service)
        assert serving.property(service, "Result") == "success", serving.log(service)
        assert serving.property(service, "ExecMainStatus") == "0", serving.log(service)
    # A key server whose passphrase is wrong is not started again and again.
    serving.run("install", "-m", "600", "/dev/stdin", "/etc/strongroom/kek-passphrase", input="wrong\n")
    assert serving.run("systemctl", "start", "strongroom-keyserver", check=False).returncode == 1
    assert serving.property("strongroom-keyserver", "ExecMainStatus") == "4"
    assert serving.property("strongroom-keyserver", "NRestarts") == "0"
    assert serving.property("strongroom-keyserver", "ActiveState") == "failed"
