"""Logs that cannot be written: a full disk, a pipe without a reader, no stream at all; nobody's request fails."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import sys
from contextlib import contextmanager, suppress

import pytest
from front_process import DOUBLED, PREDICT

from strongroom.serving.access_log import AccessLog
from strongroom.web.logs import configure_logging, log, log_request


@contextmanager
def full_disk():
    with suppress(OSError), open("/dev/full", "w") as stream:
        yield stream


@contextmanager
def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(OSError), open(writer, "w") as stream:
        yield stream


@contextmanager
def closed_file():
    stream = open(os.devnull, "w")  # noqa: SIM115  closed here
    stream.close()
    yield stream


@pytest.mark.parametrize("where", [full_disk, pipe_without_reader, closed_file])
def test_streams_that_take_nothing(where, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as for the standard library's own lines
    with where() as stream:
        configure_logging(stream)
        for _ in range(3):
            log.info("an event", value=1)
            log.error("a fault")
            log_request(method="GET", path="/x", status=200, ms=0.1)
            logging.getLogger("library").warning("a line")


@pytest.mark.parametrize("where", [full_disk, pipe_without_reader])
def test_a_log_of_requests_that_takes_nothing(where):
    with where() as stream:
        requests = AccessLog(stream.buffer)
        for _ in range(3):
            requests.request("tfs", "GET /x", 200, 0.1, "127.0.0.1", None, "m", 1, 0)
            requests.flush()


def test_no_standard_error(monkeypatch):
    """``2>&-``: Python has no stream then."""
    monkeypatch.setattr(sys, "stderr", None)
    configure_logging()
    log.info("an event")
    log_request(method="GET", path="/x", status=200, ms=0.1)
    logging.getLogger("library").warning("a line")
    requests = AccessLog()
    requests.request("tfs", "GET /x", 200, 0.1, "127.0.0.1", None, "m", 1, 0)
    requests.flush()


class Tight(io.StringIO):
    """Has room again after a while."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_where_there_is_room_again_lines_are_whole():
    stream = Tight()
    configure_logging(stream)
    log.info("lost")
    stream.full = False
    log.info("kept")
    log_request(method="GET", path="/x", status=200, ms=0.1)
    assert [json.loads(one)["event"] for one in stream.getvalue().splitlines()] == ["kept", "request"]


def test_a_server_whose_disk_is_full(start):
    """It answers, and ends in order."""
    server = start()
    size = server.log.stat().st_size
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, size))
    for _ in range(3):
        status, _, content = server.ask("POST", "/v1/models/m:predict", PREDICT)
        assert (status, json.loads(content)) == (200, DOUBLED)
        assert server.ask("POST", "/v1/models/none:predict", PREDICT)[0] == 404
    assert server.stop() == 0
    assert server.log.stat().st_size == size
