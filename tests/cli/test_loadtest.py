import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

_WHY = "a load test needs the extra loadtest"
pytest.importorskip("uvloop", reason=_WHY)
pytest.importorskip("grpc", reason=_WHY)
pytest.importorskip("numpy", reason=_WHY)

STUB = Path(__file__).parents[1] / "loadtest" / "model_stub.py"
QUERY = re.compile(
    r"query: insecure channel, task \d+, batch 2, loop_idx \d+, latency\(ms\) \d+\.\d, tps: \d+\.\d"
)


@pytest.fixture(scope="module")
def url():
    """Of a small server, in a process of its own."""
    process = subprocess.Popen([sys.executable, str(STUB)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def test_the_options_of_the_reference(cli, url):
    done = cli("loadtest", "-url", url, "--model", "m", "-batch", 2, "-cnum", 3, "-loop", 4)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len([line for line in lines if QUERY.fullmatch(line)]) == 12
    summary = next(line for line in lines if line.startswith("summary: "))
    assert re.fullmatch(
        r"summary: cnum 3, batch 2, e2e time\(s\) [\d.]+, average latency\(ms\) [\d.]+, tps: [\d.]+",
        summary,
    )
    assert re.search(r"p50 [\d.]+, p90 [\d.]+, p99 [\d.]+, p99.9 [\d.]+, max", done.out)
    assert "queries: 12 answered, 0 failed" in lines


def test_quiet_and_json(cli, url):
    done = cli("loadtest", url, "--model", "m", "--cnum", 2, "--loop", 3, "-q")
    assert "query:" not in done.out and "summary:" in done.out
    said = json.loads(
        cli("loadtest", url, "--model", "m", "-cnum", 2, "-loop=3", "--json", "--api", "tfs").out
    )
    assert (said["answered"], said["failed"], said["connections"]) == (6, {}, 2)
    assert set(said["latency_ms"]) == {"mean", "min", "p50", "p90", "p99", "p99.9", "max"}
    assert said["open_loop"] is None


def test_an_open_loop(cli, url):
    done = cli("loadtest", url, "--model", "m", "--rate", 100, "--seconds", 0.5, "--json")
    said = json.loads(done.out)
    assert said["answered"] == 50
    assert said["open_loop"]["unsent"] == 0


def test_a_chart(cli, url, here):
    pytest.importorskip("matplotlib", reason="the chart needs the extra plot")
    arguments = (
        "loadtest",
        url,
        "--model",
        "m",
        "-cnum",
        2,
        "-loop",
        20,
        "-q",
        "--plot",
        "latency.png",
    )
    assert cli(*arguments).code == 0
    assert (here / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert cli(*arguments).code == 2
    assert cli(*arguments, "--force").code == 0
    assert cli(*arguments[:-1], "latency.bmp").code == 2


def test_a_file_and_a_token(cli, url, here):
    (here / "a.json").write_text(json.dumps([[0.5] * 16]))
    (here / "token").write_text("abc\n")
    common = ("loadtest", url, "--model", "m", "-cnum", 1, "-loop", 2, "-q", "--input")
    assert cli(*common, "a.json", "--token-file", "token").code == 0
    assert cli(*common, "a.json", "-batch", 3).code == 0
    assert cli(*common, "missing.json").code == 2
    assert cli(*common, "a.json", "--random").code == 2
    (here / "token").write_text("")
    assert cli(*common, "a.json", "--token-file", "token").code == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("http://127.0.0.1:1", "--model", "m"), 7),
        (("grpc://127.0.0.1:1", "--model", "m", "--timeout", "2"), 7),
        (("ftp://x", "--model", "m"), 2),
        (("localhost",), 2),
        (("--model", "m"), 2),
        (("localhost", "--model", "m", "-key", "missing"), 2),
        (("localhost", "--model", "m", "--shape", "x"), 2),
        (("localhost", "--model", "m", "--shape", "x=1,a"), 2),
        (("localhost", "--model", "m", "--rate", "0"), 2),
        (("localhost", "--model", "m", "-batch", "0"), 2),
        (("localhost", "--model", "m", "-bach", "1"), 2),
        (("localhost", "--model", "m", "--plot", "nowhere/a.png"), 2),
    ],
    ids=range(12),
)
def test_what_is_refused(cli, arguments, code):
    done = cli("loadtest", *arguments)
    assert done.code == code, done.err
    done.error()
    assert not done.out


def test_a_model_that_is_not_there(cli, url):
    done = cli("loadtest", url, "--model", "other")
    assert done.code == 2
    assert done.error() == "The server answers HTTP 404: there is no such model."


def inferences(url):
    with urllib.request.urlopen(f"{url}/inferences", timeout=60) as answer:
        return int(answer.read())


@pytest.mark.parametrize("json_wanted", [False, True], ids=["text", "json"])
def test_ctrl_c_gives_the_summary_so_far(url, json_wanted):
    program = Path(sys.executable).with_name("strongroom")
    arguments = [program, "loadtest", url, "--model", "m", "-loop", "0", "-cnum", "2", "-q"]
    before = inferences(url)
    process = subprocess.Popen(
        arguments + ["--json"] * json_wanted,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while inferences(url) < before + 1000:  # far more than warm up
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err == ""
    if json_wanted:
        said = json.loads(out)
        assert said["interrupted"] and said["answered"] > 0
    else:
        assert out.startswith("summary: cnum 2, ")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_ctrl_c_before_the_server_has_said_anything(scheme):
    program = Path(sys.executable).with_name("strongroom")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [program, "loadtest", url, "--model", "m"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            connection, _ = silent.accept()
            with connection:
                time.sleep(0.5)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert out.startswith(b"summary: ") and b"0 answered" in out
    assert err == b""
