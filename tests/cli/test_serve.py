"""``strongroom serve``: from the command line to an answer, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import onnx
import pytest
from onnx import TensorProto, helper

from .conftest import PROGRAM

X = [[float(one) for one in range(16)]]


@pytest.fixture
def served(cli, here):
    """A sealed identity model, its key, and how to start a server: log and ports."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "m.onnx"
    )
    assert cli("keygen", "-o", "key.txt").code == 0
    assert cli("seal", "m.onnx", "-o", "m.sealed", "-k", "key.txt").code == 0
    started = []

    def start(*arguments, **environment):
        command = [PROGRAM, "serve", "--rest-port", "0", "--grpc-port", "0", "--drain-seconds", "0"]
        with open("log", "wb") as log:
            process = subprocess.Popen(
                [*command, *arguments], stderr=log, env={**os.environ, **environment}
            )
        started.append(process)
        end = time.monotonic() + 60
        while True:
            # Of the last line there may be a part.
            whole = (here / "log").read_text().rpartition("\n")[0]
            lines = [json.loads(line) for line in whole.splitlines()]
            listening = [line for line in lines if line["event"] == "listening"]
            settled = [line for line in lines if line.get("state") == "AVAILABLE" or line.get("code")]
            if listening and settled:
                return process, listening[0]["rest_port"], settled[0]
            assert process.poll() is None, (here / "log").read_text()
            assert time.monotonic() < end, (here / "log").read_text()
            time.sleep(0.05)

    yield start
    for one in started:
        one.kill()
        one.wait()


def ask(port, path, body=None):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", body, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_sealed_model_answers_until_the_end(served, here):
    process, port, settled = served("m=m.sealed", "-k", "key.txt", "--batch", "8:1")
    assert settled["state"] == "AVAILABLE"
    status, content = ask(port, "/v1/models/m:predict", json.dumps({"instances": X}).encode())
    assert (status, json.loads(content)) == (200, {"predictions": X})
    assert ask(port, "/readyz")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert b'"POST /v1/models/m:predict"' in (here / "log").read_bytes()


def test_a_signal_whose_exception_was_dropped_at_the_start_ends_it(served, here):
    lost = """
import signal, sys
from strongroom.cli import process

process.prepare()
try:
    signal.raise_signal(signal.SIGTERM)
except BaseException:
    pass  # as C code does that is imported
sys.exit(process.run(sys.argv[1:]))
"""
    free = ("--rest-port", "0", "--grpc-port", "0")
    done = subprocess.run(
        [sys.executable, "-c", lost, "serve", *free, "m=m.sealed", "-k", "key.txt"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1])["event"] == "stopped"


def test_a_model_without_its_key_says_so(served, here):
    _, port, settled = served("m=m.sealed", STRONGROOM_KEY_FILE=str(here / "nowhere"))
    assert settled["state"] != "AVAILABLE"
    assert settled["message"]
    assert ask(port, "/readyz")[0] == 503
    assert ask(port, "/healthz")[0] == 200


def test_the_process_leaves_no_core_dump_and_shows_no_key(served, here):
    process, _, settled = served("m=m.sealed", "-k", "key.txt")
    assert settled["state"] == "AVAILABLE"
    with open(f"/proc/{process.pid}/limits") as file:
        assert re.search(r"Max core file size +0 ", file.read())
    # The key that opens models, in the one spelling that a command line or a log could have.
    secret = (here / "key.txt").read_bytes().strip()
    for name in ("cmdline", "environ"):
        with open(f"/proc/{process.pid}/{name}", "rb") as file:
            assert secret not in file.read()
    assert secret not in (here / "log").read_bytes()


def test_all_addresses_of_either_kind(served):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    _, port, _ = served("m=m.sealed", "-k", "key.txt", "--host", "::")
    for host in ("::1", "127.0.0.1"):
        with socket.create_connection((host, port), timeout=60) as one:
            one.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            with one.makefile("rb") as answer:
                assert answer.read().startswith(b"HTTP/1.1 200 ")


def test_a_key_in_place_of_a_configuration_is_not_shown(served, cli, here):
    secret = (here / "key.txt").read_text().strip()
    for option in ("--model-config-file", "--config", "--ssl-config-file"):
        found = cli("serve", "m=m.sealed", option, "key.txt")
        assert found.code in (2, 4)
        assert "key.txt" in found.error()
        assert secret not in found.error()


def test_models_of_files(served, here):
    (here / "models.yaml").write_text("models: [{name: a, path: m.sealed, key: key.txt}]\n")
    _, port, settled = served("--config", "models.yaml", "--no-access-log")
    assert (settled["model"], settled["state"]) == ("a", "AVAILABLE")
    assert ask(port, "/v2/models/a/ready")[0] == 200
    assert '"event":"request"' not in (here / "log").read_text()


def test_what_is_asked_for_wrongly(cli, here):
    free = ("--rest-port", "0", "--grpc-port", "0")
    for arguments, says in (
        ((), "no model to serve"),
        (("m",), "does not say which model"),
        (("m=a", "m=b"), "two models m"),
        (("m=a", "--batch", "many"), "--batch is N or N:MS"),
        (("m=a", "--poll", "-1"), "takes 0 to 86400 seconds"),
        (("m=a", "--admin", "root"), "--admin is subject"),
        (("m=a", "--admin", "anybody", "--admin", "name:a"), "--admin is subject"),
        (("m=a", "--admin", "token-sha256:sesame"), "has 64 hexadecimal digits"),
        (("m=a", "--tls-cert", "c.pem"), "takes a certificate and its key"),
        (("m=a", "--rest-port", "70000"), "from 0 to 65535"),
        (("m=a", "--rest-port", "8500"), "a port each"),
        (("m=a", "--rest_api_port", "8500"), "a port each"),
        (("m=a", "--port=70000"), "from 0 to 65535"),
        (("--model_config_file", "nowhere.config"), "nowhere.config"),
        (("m=a", "--management-host", "::1"), "takes a --management-port"),
        (("m=a", "--admin", "subject:CN=a"), "clients show none"),
        (("m=a", "--max-request-bytes", "1"), "1024"),
        (("m=a", "--tls-cert", "c.pem", "--tls-key", "k.pem"), "c.pem"),
        (("m=a", "--tls-cert", "c.pem", "--tls-key", "https://keys.example/tls"), "no URL"),
        (("m=a", *free, "--otlp-endpoint", "localhost:4318"), "no URL of a collector"),
    ):
        found = cli("serve", *arguments)
        assert found.code == 2, found
        assert says in found.error()


def test_a_port_that_is_taken(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = cli("serve", "m=a", "--rest-port", port, "--grpc-port", "0")
    assert found.code == 7
    assert f"port {port}: address already in use" in found.error()
    assert "take another port" in found.err


HIDE = """
import sys
from importlib.machinery import PathFinder
hidden, *sys.argv[1:] = sys.argv[1:]
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Without if one is PathFinder else one for one in sys.meta_path]
for name in [one for one in sys.modules if one.partition(".")[0] == hidden]:
    del sys.modules[name]
from strongroom.cli import main
main()
"""


@pytest.mark.parametrize("package", ["google", "grpc", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(here, package):
    command = [sys.executable, "-c", HIDE, package, "serve", "m=m.sealed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "A model server needs packages that are not installed." in done.stderr
    assert 'pip install "strongroom[serve]"' in done.stderr
