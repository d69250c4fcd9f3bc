"""Evidence by a program: what it is given, what it may answer, and how it is stopped."""

from __future__ import annotations

import json
import shlex
import stat
import sys
import time

import pytest

from left_over import no_file_left_open, no_thread_left
from strongroom.attest.collect import open_collector
from strongroom.attest.collect.exec import ExecCollector
from strongroom.attest.evidence import Evidence
from strongroom.errors import MalformedEvidence, NotFound, Unavailable, UsageError
from strongroom.format.encoding import b64url

EVIDENCE = {"kind": "tdx", "data": b64url(b"quote")}


@pytest.fixture
def program(tmp_path):
    """Makes a program of some lines of Python; ``line`` is what it was given."""

    def make(body: str) -> str:
        path = tmp_path / "a program"
        path.write_text(
            f"#!{sys.executable}\nimport json, os, sys, time\nline = sys.stdin.readline()\n{body}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return f"'{path}'"

    return make


def test_a_program_is_given_hexadecimal_and_gives_evidence(program):
    command = program(
        "from strongroom.format.encoding import b64url\n"
        "json.dump({'kind': 'snp', 'data': b64url(bytes.fromhex(line)),"
        " 'endorsements': [b64url(' '.join(sys.argv[1:]).encode())]}, sys.stdout)"
    )
    collector = open_collector(f"exec:{command} one 'two three' $HOME")
    assert collector.kind == "snp"
    expected = Evidence("snp", b"\x00\xff", (b"one two three $HOME",))
    assert collector.collect(b"\x00\xff") == expected, "there is no shell in between"


def test_the_kind_is_asked_for_once(program, tmp_path):
    log = tmp_path / "log"
    command = program(f"open({str(log)!r}, 'a').write(line); print({json.dumps(EVIDENCE)!r})")
    collector = ExecCollector(command)
    assert not log.exists(), "nothing runs before it is needed"
    assert (collector.kind, collector.kind) == ("tdx", "tdx")
    collector.collect(b"\x01")
    assert log.read_text() == "00" * 32 + "\n01\n"


def test_a_program_that_changes_its_mind(program):
    command = program(
        f"print({json.dumps(EVIDENCE)!r}.replace('tdx', 'snp' if '01' in line else 'tdx'))"
    )
    with pytest.raises(Unavailable, match="the kind snp, and tdx before"):
        ExecCollector(command).collect(b"\x01")


def test_a_failure_says_what_the_program_said(program):
    command = program("print('no TEE\\x1b[31m here', file=sys.stderr); sys.exit(3)")
    with pytest.raises(Unavailable, match="failed with status 3") as caught:
        ExecCollector(command).collect(b"x")
    assert caught.value.hint == r"It said: no TEE\x1b[31m here"


def test_only_the_end_of_what_it_says_is_shown(program):
    command = program("print('x' * 100000 + 'the reason', file=sys.stderr); sys.exit(1)")
    with pytest.raises(Unavailable) as caught:
        ExecCollector(command).collect(b"x")
    assert (caught.value.hint or "").endswith("the reason")
    assert len(caught.value.hint or "") < 2100


def test_a_program_that_does_not_read(tmp_path):
    with pytest.raises(Unavailable, match="failed with status 1"):
        ExecCollector("false").collect(b"x")


@pytest.mark.parametrize("output", ["", "{", "[]", "null", '{"kind": "tdx"}\\n{}'])
def test_output_that_is_no_json_is_an_error(program, output):
    with pytest.raises((Unavailable, MalformedEvidence)):
        ExecCollector(program(f"print('{output}')")).collect(b"x")


@pytest.mark.parametrize(
    "members", [{}, {"kind": "tdx"}, {**EVIDENCE, "more": 1}, {**EVIDENCE, "data": "="}]
)
def test_output_that_is_no_evidence_is_an_error(program, members):
    with pytest.raises(MalformedEvidence):
        ExecCollector(program(f"print({json.dumps(members)!r})")).collect(b"x")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_that_writes_without_end_is_stopped(program, stream):
    with pytest.raises(Unavailable, match="writes more than"):
        ExecCollector(program(f"while True: sys.{stream}.write('x' * 65536)")).collect(b"x")


def test_a_program_that_does_not_end_is_stopped_with_what_it_has_started(tmp_path):
    """The child would hold the pipe open for an hour."""
    log = tmp_path / "pid"
    script = f"sleep 3600 & echo $! > '{log}'; echo waiting >&2; wait"
    for seconds in (2, 60):  # a busy machine may not have begun after two
        with pytest.raises(Unavailable, match=rf"did not end within {seconds} seconds") as caught:
            ExecCollector(shlex.join(["sh", "-c", script]), timeout=seconds).collect(b"x")
        if caught.value.hint is not None:
            break
    assert caught.value.hint == "It said: waiting"
    child = int(log.read_text())
    for _ in range(1000):
        if not alive(child):
            return
        time.sleep(0.05)
    pytest.fail("its child still runs")


def alive(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_leaves_a_child_with_its_output_behind_is_stopped():
    script = f"sleep 3600 & echo '{json.dumps(EVIDENCE)}'"
    with pytest.raises(Unavailable, match="did not end"):
        ExecCollector(shlex.join(["sh", "-c", script]), timeout=1).collect(b"x")


def test_no_thread_and_no_file_is_left(program):
    collector = ExecCollector(program(f"print({json.dumps(EVIDENCE)!r})"))
    collector.collect(b"x")
    with no_file_left_open(), no_thread_left():
        for _ in range(5):
            collector.collect(b"x")


@pytest.mark.parametrize("command", ["", "  ", "'unclosed"])
def test_a_command_that_is_none(command):
    with pytest.raises(UsageError):
        ExecCollector(command)


def test_a_program_that_is_not_there():
    with pytest.raises(NotFound, match="no program /nonexistent/quote"):
        ExecCollector("/nonexistent/quote").collect(b"x")


def test_a_program_that_cannot_be_run(tmp_path):
    path = tmp_path / "quote"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(UsageError, match="permission denied"):
        ExecCollector(str(path)).collect(b"x")


@pytest.mark.parametrize("size", [0, 65])
def test_nothing_or_too_much_cannot_be_bound(size):
    with pytest.raises(UsageError, match="1 to 64"):
        ExecCollector("true").collect(bytes(size))
