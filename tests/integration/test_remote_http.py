"""Sealed models on a web server: what is asked for, what is refused, and that nothing wrong comes out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback

import pytest
from remote_servers import contents

import strongroom
from strongroom.errors import (
    HeaderTampered,
    IntegrityError,
    ManifestMismatch,
    NotFound,
    NotSealed,
    StorageError,
    Truncated,
    Unavailable,
    UsageError,
)
from strongroom.model import http

BIG = 1 << 20
"""Requests of at least this many bytes are for contents and not for headers."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(http, "RETRY_AFTER", (0.0, 0.0, 0.0))


@pytest.fixture
def file_url(web, sealed_file):
    web.files["/weights.bin.sealed"] = sealed_file.read_bytes()
    return web.url + "/weights.bin.sealed"


@pytest.fixture
def model_url(web, sealed):
    web.files |= {f"/models/v1.sealed/{path}": data for path, data in contents(sealed).items()}
    return web.url + "/models/v1.sealed"


def test_a_file_opens_reads_and_verifies(file_url, plain, key):
    with strongroom.open(file_url, key=key) as model:
        assert list(model.files) == ["weights.bin"]
        assert model.read() == (plain / "weights.bin").read_bytes()
        assert model.verify() == 40_000_000
    assert strongroom.inspect(file_url).files[0].size == 40_000_000


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_directory_opens_with_names_that_a_url_must_encode(model_url, slash, plain, key, tmp_path):
    with strongroom.open(model_url + slash, key=key) as model:
        assert set(model.files) == set(contents(plain))
        assert model.verify() == sum(map(len, contents(plain).values()))
    strongroom.unseal(model_url + slash, tmp_path / "plain", key=key)
    assert contents(tmp_path / "plain") == contents(plain)


def test_a_plain_file_is_sealed_from_the_server(web, plain, key, tmp_path):
    web.files["/a dir/weights.bin"] = (plain / "weights.bin").read_bytes()
    strongroom.seal(f"{web.url}/a%20dir/weights.bin?token=x", tmp_path / "out.sealed", key=key)
    with strongroom.open(tmp_path / "out.sealed", key=key) as model:
        assert list(model.files) == ["weights.bin"]
        assert model.read() == (plain / "weights.bin").read_bytes()
    assert max(request.size for request in web.requests) <= 4 << 20


def test_opening_asks_for_the_head_and_the_last_segment(web, file_url, key):
    with strongroom.open(file_url, key=key):
        pass
    assert web.requests[0].start == 0
    assert len(web.requests) == 2
    assert web.asked <= (64 << 10) + BIG


def test_a_small_read_asks_for_one_segment(web, file_url, plain, key):
    with strongroom.open(file_url, key=key) as model:
        web.requests.clear()
        buffer = bytearray(100)
        assert model.read_into(None, buffer, 20_000_000) == 100
    assert bytes(buffer) == (plain / "weights.bin").read_bytes()[20_000_000:20_000_100]
    assert [request.size for request in web.requests] == [BIG]


def test_a_large_read_is_eight_requests_at_once(web, file_url, plain, key):
    meeting = threading.Barrier(8)

    def wait_for_the_others(request):
        if request.size and request.size > BIG:
            meeting.wait(timeout=60)  # broken, and so a failed request, if the others never come

    with strongroom.open(file_url, key=key) as model:
        web.fault = wait_for_the_others
        buffer = bytearray(8 * (4 << 20) - 200)
        model.read_into(None, buffer)
    assert bytes(buffer) == (plain / "weights.bin").read_bytes()[: len(buffer)]
    assert not meeting.broken


def test_no_byte_is_asked_for_twice_when_all_is_loaded(web, file_url, sealed_file, key):
    with strongroom.open(file_url, key=key) as model:
        model.load()
    assert web.asked <= sealed_file.stat().st_size + (64 << 10) + BIG


@pytest.mark.parametrize("fault", ["503", "429", "drop", "short"])
def test_what_passes_is_retried(web, file_url, plain, key, fault):
    seen: dict[int, int] = {}

    def three_times(request):
        seen[request.start] = seen.get(request.start, 0) + 1
        return fault if seen[request.start] <= 3 else None

    web.fault = three_times
    with strongroom.open(file_url, key=key) as model:
        web.fault = lambda request: three_times(request) if request.start == 0 else None
        seen.clear()
        assert model.read() == (plain / "weights.bin").read_bytes()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("500", Unavailable),
        ("503", Unavailable),
        ("drop", Unavailable),
        ("short", Unavailable),
        ("less", StorageError),
        ("more", StorageError),
        ("other", StorageError),
        ("shrunk", Truncated),
        ("whole", UsageError),
        ("sizeless", UsageError),
        ("gzip", UsageError),
        ("403", UsageError),
        ("404", NotFound),
        ("416", Truncated),
        ("418", StorageError),
    ],
)
def test_what_stays_is_an_error_and_no_byte_comes_out(web, file_url, key, fault, expected):
    with strongroom.open(file_url, key=key) as model:
        web.fault = lambda request: fault if request.size and request.size > BIG else None
        web.requests.clear()
        buffer = bytearray(10_000_000)
        with pytest.raises(expected) as caught:
            model.read_into(None, buffer)
        # What was decrypted before the failure is authentic; the failed ranges stay untouched.
        assert buffer[:BIG] == bytes(BIG)
        assert caught.value.exit_code in {2, 5, 7}
        tries = [request.start for request in web.requests].count(web.requests[0].start)
        # Four, and aiohttp repeats a GET once when a connection that it kept turns out to be closed.
        assert tries <= 8


def test_a_passing_failure_is_tried_four_times_and_not_more(web, file_url, key):
    web.fault = lambda request: "503"
    with pytest.raises(Unavailable, match=r"the server answered 503, 4 times"):
        strongroom.open(file_url, key=key)
    assert len(web.requests) == 4


def test_a_server_without_ranges_is_refused_before_the_body_is_read(web, file_url, key):
    web.fault = lambda request: "whole"
    with pytest.raises(UsageError, match="does not answer range requests") as caught:
        strongroom.open(file_url, key=key)
    assert "local copy" in caught.value.hint


def test_nobody_listens(key):
    with pytest.raises(Unavailable, match=r"ClientConnectorError\), 4 times"):
        strongroom.open("http://127.0.0.1:1/model.sealed", key=key)


def test_a_flipped_byte_is_found(web, file_url, key):
    data = bytearray(web.files["/weights.bin.sealed"])
    data[10_000_000] ^= 1
    web.files["/weights.bin.sealed"] = bytes(data)
    with strongroom.open(file_url, key=key) as model, pytest.raises(IntegrityError, match="segment 9"):
        model.read()


def test_a_cut_file_is_found(web, file_url, key):
    web.files["/weights.bin.sealed"] = web.files["/weights.bin.sealed"][:-1]
    with pytest.raises(IntegrityError):
        strongroom.open(file_url, key=key)
    web.files["/weights.bin.sealed"] = web.files["/weights.bin.sealed"][:4096]
    with pytest.raises((IntegrityError, strongroom.errors.FormatError)):
        strongroom.open(file_url, key=key)


def test_a_file_that_is_replaced_while_it_is_open_gives_no_mixture(web, file_url, plain, key, tmp_path):
    other = tmp_path / "other.sealed"
    strongroom.seal(plain / "weights.bin", other, key=key)
    with strongroom.open(file_url, key=key) as model:
        web.files["/weights.bin.sealed"] = other.read_bytes()
        with pytest.raises(IntegrityError):
            model.read()


def test_a_missing_member_is_a_mismatch(web, model_url, key):
    del web.files["/models/v1.sealed/weights.bin.sealed"]
    with strongroom.open(model_url, key=key) as model, pytest.raises(ManifestMismatch, match="missing"):
        model.read("weights.bin")


def test_a_header_of_another_model_is_refused(web, model_url, sealed_file, key):
    web.files["/models/v1.sealed/weights.bin.sealed"] = sealed_file.read_bytes()
    with (
        strongroom.open(model_url, key=key) as model,
        pytest.raises((ManifestMismatch, HeaderTampered)),
    ):
        model.read("weights.bin")


def test_what_is_not_sealed_is_said_so(web, key):
    web.files |= {"/index.html": b"<html>", "/empty": b""}
    for name in ("index.html", "empty"):
        with pytest.raises(NotSealed):
            strongroom.open(f"{web.url}/{name}", key=key)
    with pytest.raises(NotFound, match=r"nothing\.sealed: nothing is there"):
        strongroom.open(f"{web.url}/nothing.sealed", key=key)
    with pytest.raises(NotSealed, match=r"no MANIFEST\.sealed"):
        strongroom.open(f"{web.url}/folder/", key=key)


def test_a_server_that_answers_every_path_with_a_page_is_no_model(web, key, sealed_file):
    class Everything(dict):
        def get(self, name, default=None):
            return b"<html>" * 2000

    web.files = Everything()
    with pytest.raises(NotSealed):
        strongroom.open(f"{web.url}/any/model.sealed", key=key)


def test_the_query_of_a_signed_url_goes_with_every_request_unchanged(web, model_url, key):
    token = "sig=a%2Fb%3D%3D&se=2026-01-01T00%3A00%3A00Z"
    with strongroom.open(f"{model_url}?{token}", key=key) as model:
        model.read("config.json")
    assert {request.query for request in web.requests} == {token}
    assert web.requests[0].path == "/models/v1.sealed"


@pytest.mark.parametrize("fault", ["500", "403", "404", "whole", "drop", "418", "more"])
def test_no_error_tells_the_secrets_of_a_url(web, file_url, key, fault):
    web.fault = lambda request: fault
    url = file_url.replace("//", "//user:hunter2@", 1) + "?X-Amz-Signature=sesame#fragment"
    with pytest.raises(strongroom.StrongroomError) as caught:
        strongroom.open(url, key=key)
    error = caught.value
    told = (
        "".join(traceback.format_exception(error)) + repr(error) + repr(error.hint) + str(vars(error))
    )
    for secret in ("hunter2", "sesame", "user:"):
        assert secret not in told
    assert "weights.bin.sealed" in str(error)


def test_the_name_of_an_open_model_tells_no_secrets(file_url, key):
    with strongroom.open(file_url + "?sig=sesame", key=key) as model:
        assert "sesame" not in f"{model!r} {model.name}"


def test_headers_come_from_the_configuration_of_fsspec(web, file_url, key, monkeypatch):
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer sesame"}})
    with strongroom.open(file_url, key=key) as model:
        model.read()
    assert {request.headers.get("Authorization") for request in web.requests} == {"Bearer sesame"}


def test_options_that_cannot_be_used_are_said_so(file_url, key, monkeypatch):
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "http", {"header": {"Authorization": "Bearer sesame"}})
    with pytest.raises(UsageError, match="options that fsspec is configured with") as caught:
        strongroom.open(file_url, key=key)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def test_headers_come_from_the_environment(web, file_url, key):
    code = (
        "import sys, strongroom\n"
        "with strongroom.open(sys.argv[1], key=bytes.fromhex(sys.stdin.read())) as model: model.read()\n"
    )
    environment = os.environ | {"FSSPEC_HTTP": '{"headers": {"Authorization": "Bearer sesame"}}'}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, file_url],
        input=key.hex(),
        text=True,
        env=environment,
        check=True,
    )
    assert {request.headers.get("Authorization") for request in web.requests} == {"Bearer sesame"}


@pytest.mark.parametrize("source", ["path", "directory"])
def test_nothing_is_written_by_http(web, plain, model_url, key, source):
    with pytest.raises(UsageError, match="nothing can be written by HTTP"):
        strongroom.seal(
            plain if source == "directory" else plain / "config.json", f"{web.url}/new", key=key
        )
    with pytest.raises(UsageError, match="nothing can be written by HTTP"):
        strongroom.rewrap(model_url, key=key, new_key=os.urandom(32))
    with pytest.raises(UsageError, match="cannot be listed"):
        strongroom.seal(f"{web.url}/folder/", "/nonexistent/out", key=key)


def test_peak_memory_of_a_load_is_bounded(web, key, tmp_path):
    """The model, and the requests under way: not the model twice."""
    size = 192 << 20
    (tmp_path / "big.bin").write_bytes(bytes(size))
    strongroom.seal(tmp_path / "big.bin", tmp_path / "big.sealed", key=key)
    web.files["/big.sealed"] = (tmp_path / "big.sealed").read_bytes()
    code = (
        "import sys, strongroom\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(status.split('VmHWM:')[1].split()[0]) << 10\n"
        "with strongroom.open(sys.argv[1], key=bytes.fromhex(sys.stdin.read())) as model:\n"
        "    before = peak()\n"
        "    model.load() if sys.argv[2] == 'load' else model.verify()\n"
        "    print(peak() - before)\n"
    )
    for verb, bound in (("load", size + (64 << 20)), ("verify", 160 << 20)):
        done = subprocess.run(
            [sys.executable, "-c", code, web.url + "/big.sealed", verb],
            input=key.hex(),
            text=True,
            check=True,
            stdout=subprocess.PIPE,
        )
        print(verb, int(done.stdout) - (size if verb == "load" else 0) >> 20, "MiB")
        assert int(done.stdout) < bound, verb
