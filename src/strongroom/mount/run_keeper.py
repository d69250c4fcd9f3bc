"""The processes between ``strongroom run`` and the command that it runs.

::

    strongroom run      has the keys, shows the models, passes signals
    └── keeper          outlives a killed strongroom run, and cleans up after it
        └── first       process 1 of a process namespace: its end ends all below
            └── command

A process namespace, and not a subreaper, since the kernel itself keeps that promise: kill -9 of any of
these ends everything that the command has started, and what daemonised itself too. Nor can the command
find the process that has the keys. Where there is no such namespace, the keeper is the parent of the
command and adopts what it leaves behind.

All are forked before the first key is read, have one thread, and end when the socket to
``strongroom run`` does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from strongroom.crypto.secret import wipe_bytes
from strongroom.mount import private
from strongroom.mount.private import Privacy
from strongroom.mount.tmpfs import remove

__all__ = ["Command", "Keeper"]

_KILLED: Final = 128 + signal.SIGKILL
_NOT_FOUND: Final = 127
_NOT_RUNNABLE: Final = 126
# As shells and env(1) have them.
_LAUNCH: Final = 0
"""A byte to the keeper; others are signals for the command."""


@dataclass(frozen=True)
class Command:
    """What is run, and how.

    Attributes:
        arguments: the program first.
        environment: all of it.
        directory: of the run.
        native_code: whether machine code may be run from what is mounted there.
    """

    arguments: list[str]
    environment: Mapping[str, str]
    directory: str
    native_code: bool = False


class Keeper:
    """Starts the processes; as a context manager ends them.

    Args:
        command: started by :meth:`launch`.
        privacy: what this process has entered, or will let them enter.
    """

    def __init__(self, command: Command, privacy: Privacy) -> None:
        self._control, theirs = socket.socketpair()
        if privacy < Privacy.PROCESSES:
            private.adopt_orphans()  # in case the keeper is killed
        self._code: int | None = None
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            code = _KILLED
            with suppress(BaseException):
                code = _keep(command, privacy, theirs, parent)
            os._exit(code)
        theirs.close()

    def launch(self) -> None:
        """Start the command; what it is to see is there."""
        self.send(_LAUNCH)

    def send(self, number: int) -> None:
        """Send the command a signal; from a signal handler too."""
        with suppress(OSError):  # it has ended
            self._control.send(bytes([number]))

    def wait(self) -> int:
        """Wait until the command has ended and nothing of it is left.

        Returns:
            Its exit code; 128 and the number of the signal that killed it.
        """
        if self._code is None:
            self._wait_for_end()
            _, status = os.waitpid(self._pid, 0)
            self._code = _exit_code(status)
            if os.WIFSIGNALED(status):
                private.end_children()
        return self._code

    def _wait_for_end(self) -> None:
        """Wait until nobody has the other end of the socket, by poll.

        A signal that comes just before ``waitpid``, or to another thread, would not end that, and its handler
        be called when the command has ended.
        """
        if self._control.fileno() < 0:
            return
        signalled, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        try:
            poll = select.poll()
            poll.register(signalled, select.POLLIN)
            poll.register(self._control, 0)  # its end is told all the same
            while all(descriptor == signalled for descriptor, _ in poll.poll()):
                os.read(signalled, 4096)
        finally:
            signal.set_wakeup_fd(before)
            os.close(signalled)
            os.close(write_end)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._control.close()
        self.wait()


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _keep(command: Command, privacy: Privacy, control: socket.socket, parent: int) -> int:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _close_others(control.fileno())
    _forget(command.environment)
    if privacy < Privacy.PROCESSES:
        private.adopt_orphans()
        code = _supervise(command, privacy, control, mask)
        private.end_children()
    else:
        private.enter_processes()
        first = os.fork()
        if first == 0:
            code = _KILLED
            with suppress(BaseException):
                private.die_with_parent()
                code = _supervise(command, privacy, control, mask)
            os._exit(code)
        control.close()
        code = _exit_code(os.waitpid(first, 0)[1])
    if os.getppid() != parent:
        remove(command.directory)
    return code


def _close_others(keep: int) -> None:
    os.closerange(3, keep)
    os.closerange(max(3, keep + 1), os.sysconf("SC_OPEN_MAX"))


def _forget(environment: Mapping[str, str]) -> None:
    """Wipe the variables that the command does not get: it may look into this process if it is root's."""
    given = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
    secret = [name for name, value in os.environb.items() if given.get(name) != value]
    values = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    starts = ctypes.cast(values, ctypes.POINTER(ctypes.c_void_p))
    index = 0
    while line := values[index]:
        if line.partition(b"=")[0] in secret:
            ctypes.memset(starts[index] or 0, 0, len(line))
        wipe_bytes(line)
        index += 1
    for name in secret:
        wipe_bytes(os.environb[name])


def _supervise(command: Command, privacy: Privacy, control: socket.socket, mask: set[int]) -> int:
    """Start the command when told to, pass it signals, reap what it leaves; returns its exit code."""
    ended, wakeup = socket.socketpair()
    for one in (ended, wakeup):
        one.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    poll = select.poll()
    for one in (control, ended):
        poll.register(one, select.POLLIN)
    child, early = 0, list[int]()
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == ended.fileno():
                ended.recv(4096)
                code = _reap(child)
                if code is not None:
                    return code
                continue
            numbers = control.recv(4096)
            if not numbers:
                return _KILLED
            for number in numbers:
                if number == _LAUNCH:
                    child = _start(command, privacy, mask)
                    for kept in early:
                        os.kill(child, kept)
                elif child:
                    os.kill(child, number)
                else:
                    early.append(number)


def _reap(child: int) -> int | None:
    """Reap whatever has ended; the exit code of ``child`` if it is among it."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == child:
                return _exit_code(found[1])
    return None


def _start(command: Command, privacy: Privacy, mask: set[int]) -> int:
    child = os.fork()
    if child:
        return child
    code = _NOT_RUNNABLE
    try:
        private.die_with_parent()
        if privacy > Privacy.NONE:
            private.protect(command.directory, native_code=command.native_code)
        if privacy == Privacy.PROCESSES:
            private.mount_processes()
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores the last two, and what is ignored would be inherited.
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # One that has come already ends this process as it would end the command.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execvpe(command.arguments[0], command.arguments, dict(command.environment))  # noqa: S606 - what the user asks to be run
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        os.write(2, f"error: {command.arguments[0]}: {reason}.\n".encode(errors="backslashreplace"))
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            code = _NOT_FOUND
    finally:
        os._exit(code)
