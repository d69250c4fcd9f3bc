"""Evidence by a program: for TEEs that have no collector here, and for machines elsewhere.

The program reads what to bind to as one line of hexadecimal from its standard input, and writes the
evidence as JSON, in the form of evidence files, to its standard output.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from functools import cached_property
from typing import IO, Final

from strongroom.attest.collect.base import checked
from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.errors import NotFound, Unavailable, UsageError
from strongroom.format.encoding import parse_json

__all__ = ["ExecCollector"]

_TIMEOUT: Final = 60.0
"""Seconds; a quote of TDX takes up to five."""

_MAX_OUTPUT: Final = (MAX_EVIDENCE + MAX_ENDORSEMENTS) * 3 // 2
_MAX_MESSAGE: Final = 2000
"""Bytes of what the program says on its standard error that are shown: the last ones."""


class ExecCollector:
    """Runs a program for each piece of evidence; no shell is in between.

    Args:
        command: program and arguments, quoted as for a shell.
        timeout: seconds until the program is stopped.

    Raises:
        UsageError: there is no command, or a quote in it is not closed.
    """

    def __init__(self, command: str, *, timeout: float = _TIMEOUT) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"The command of exec: cannot be read: {error}.") from None
        if not self._words:
            raise UsageError("exec: needs a command.", hint="Such as exec:/usr/local/bin/quote --tdx")
        self._timeout = timeout

    @cached_property
    def kind(self) -> str:
        """Of the program's evidence, which it is asked for once: bound to zeros, good for nothing else."""
        return self._run(bytes(32)).kind

    def collect(self, bound: bytes) -> Evidence:
        evidence = self._run(checked(bound))
        if evidence.kind != self.kind:
            raise Unavailable(
                f"{self._words[0]} gave evidence of the kind {evidence.kind}, and {self.kind} before."
            )
        return evidence

    def _run(self, bound: bytes) -> Evidence:
        output = self._output(bound.hex().encode() + b"\n")
        try:
            members = parse_json(output)
        except ValueError as error:
            raise Unavailable(f"The output of {self._words[0]} {error}.") from None
        return Evidence.from_json(members)

    def _output(self, line: bytes) -> bytes:
        try:
            # A session of its own, so that what the program starts is stopped with it.
            process = subprocess.Popen(  # noqa: S603 - the owner's own command, no shell
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise NotFound(f"There is no program {self._words[0]}.") from None
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise UsageError(f"{self._words[0]} cannot be run: {reason}.") from None
        with process:
            return self._talk(process, line)

    def _talk(self, process: subprocess.Popen[bytes], line: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        output, said = _Reader(process.stdout, process), _Reader(process.stderr, process)
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(self._timeout, stop)
        timer.start()
        try:
            # If it has ended already, its status says why.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.close()
            output.join()
            said.join()
            status = process.wait()
        finally:
            timer.cancel()
            _kill(process)
        name = self._words[0]
        if late.is_set():
            raise Unavailable(f"{name} did not end within {self._timeout:g} seconds.", hint=said.tail())
        if output.overflow or said.overflow:
            raise Unavailable(f"{name} writes more than {_MAX_OUTPUT} bytes.")
        if status != 0:
            raise Unavailable(f"{name} failed with status {status}.", hint=said.tail())
        return output.data()


class _Reader(threading.Thread):
    """Reads a stream to its end; stops the program where that is too far."""

    def __init__(self, stream: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._process = process
        self._parts: list[bytes] = []
        self.overflow = False
        self.start()

    def run(self) -> None:
        left = _MAX_OUTPUT
        while part := self._stream.read1(1 << 16):  # type: ignore[attr-defined]
            left -= len(part)
            if left < 0:
                self.overflow = True
                _kill(self._process)
                return
            self._parts.append(part)

    def data(self) -> bytes:
        return b"".join(self._parts)

    def tail(self) -> str | None:
        """The end of it, as a hint."""
        text = self.data()[-_MAX_MESSAGE:].decode("utf-8", "replace").strip()
        return f"It said: {' '.join(text.split())}" if text else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Once it has been waited for, its number may be somebody else's.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
