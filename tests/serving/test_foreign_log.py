"""What libraries write past Python, in the log."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from strongroom.serving.foreign_log import foreign_lines_logged
from strongroom.web.logs import configure_logging, log


@pytest.fixture
def said(capfd):
    """The lines of standard error since then, which are JSON all of them."""
    with open(2, "w", closefd=False) as stream:
        configure_logging(stream)
        yield lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_words_become_lines_and_lines_stay(said):
    with foreign_lines_logged("library"):
        os.write(2, b"I0000 words that are no JSON: \xff\n")
        other = threading.Thread(target=lambda: log.warning("another thread's", value=1))
        other.start()
        other.join()
        os.write(2, b"without an end")
    log.info("afterwards")
    first, second, third, fourth = said()
    assert (first["event"], first["library"], first["level"]) == ("said", "library", "info")
    assert first["line"] == "I0000 words that are no JSON: \ufffd"
    assert (second["event"], second["level"], second["value"]) == ("another thread's", "warning", 1)
    assert third["line"] == "without an end"
    assert fourth["event"] == "afterwards"


def test_what_was_said_before_a_failure(said):
    with pytest.raises(ImportError), foreign_lines_logged("library"):
        os.write(2, b"why\n")
        raise ImportError
    (line,) = said()
    assert line["line"] == "why"


def test_without_memory_files(said, capfd, monkeypatch):
    def none(name):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", none)
    with foreign_lines_logged("library"):
        os.write(2, b"words\n")
    assert capfd.readouterr().err == "words\n"


def test_without_a_log():
    """As in the servers of others: nothing is written that was not there before."""
    program = (
        "import os\n"
        "from strongroom.serving.foreign_log import foreign_lines_logged\n"
        "with foreign_lines_logged('library'):\n"
        "    os.write(2, b'words')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == (b"", b"words")


def test_without_a_standard_error():
    """What has its number meanwhile, as a port may, keeps it."""
    program = (
        "import os\n"
        "from strongroom.serving.foreign_log import foreign_lines_logged\n"
        "from strongroom.web.logs import configure_logging\n"
        "configure_logging()\n"
        "reader, writer = os.pipe()\n"
        "assert 2 in (reader, writer)\n"
        "with foreign_lines_logged('library'):\n"
        "    os.write(writer, b'mine')\n"
        "    print(os.read(reader, 9))\n"
    )
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.stdout == "b'mine'\n"
