"""Runs a command that sees sealed models as files, and that nobody else sees."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal

from strongroom.errors import StrongroomError, UsageError
from strongroom.mount import fuse, private
from strongroom.mount.private import Privacy
from strongroom.mount.run_keeper import Command, Keeper
from strongroom.mount.tmpfs import clear, placed, run_directory
from strongroom.mount.tree import Tree

if TYPE_CHECKING:
    from strongroom.mount.run_ready import Readiness

__all__ = ["MODELS", "PLACEHOLDER", "Backend", "Job", "command_environment", "run"]

Backend = Literal["fuse", "tmpfs", "auto"]

MODELS: Final = "STRONGROOM_MODELS"
PLACEHOLDER: Final = "{models}"
_OWN: Final = "STRONGROOM_"

_PASSED: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH),
)
_OF_TERMINALS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        arguments: the command; ``{models}`` in them is replaced by the directory of the models.
        environment: for the command, without secrets; ``{models}`` in values that are in ``added``.
        added: further variables.
        open_tree: opens the models when they are needed, and closes them afterwards.
        backend: ``fuse`` decrypts what is read; ``tmpfs`` puts all files in memory before the start, and
            then forgets the keys; ``auto`` takes the first that is possible.
        ready: with ``tmpfs``, when to remove the files.
        native_code: let machine code be run and mapped from the directory.
        preload: with ``fuse``, decrypt all files into the page cache in the background.
        say: told of what happens, in a sentence.
        warn: told of what is weaker here than elsewhere, in a sentence.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    added: Mapping[str, str]
    open_tree: Callable[[], AbstractContextManager[Tree]]
    backend: Backend
    ready: Readiness | None
    native_code: bool
    preload: bool
    say: Callable[[str], None]
    warn: Callable[[str], None]

    def command(self, directory: str) -> Command:
        """The command, once it is known where its models are."""
        arguments = [one.replace(PLACEHOLDER, directory) for one in self.arguments]
        added = {name: text.replace(PLACEHOLDER, directory) for name, text in self.added.items()}
        environment = {**self.environment, MODELS: directory, **added}
        return Command(arguments, environment, directory, self.native_code)


def command_environment(
    environ: Mapping[str, str], keys: Sequence[str] = (), unset: Sequence[str] = ()
) -> dict[str, str]:
    """``environ`` without what holds keys and tokens, or says where they are.

    That is all of strongroom's variables, those that ``keys`` names (``env:NAME``), and those of ``unset``,
    in which ``*`` stands for anything. Others stay: no key of a model comes from them, and a server that
    reads from a cloud needs its credentials.
    """
    named = {one.removeprefix("env:") for one in keys if one.startswith("env:")}
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OWN)
        and name not in named
        and not any(fnmatchcase(name, one) for one in unset)
    }


def run(job: Job) -> int:
    """Run a command with models; it and all it has started have ended afterwards, and nothing is left.

    The process must have one thread; it stays in the namespaces that it enters.

    Returns:
        The exit code of the command; 128 and the number of the signal that killed it.

    Raises:
        UsageError: FUSE was asked for and cannot be used.
        StrongroomError: a model cannot be opened, or, with ``tmpfs``, is not authentic; the command was not
            started.
    """
    with run_directory() as directory:
        privacy = private.possible(directory)
        backend = _chosen(job, privacy)
        if privacy > Privacy.NONE:
            private.enter_mounts()
        with Keeper(job.command(directory), privacy) as keeper, ExitStack() as stack:
            _provide(job, backend, privacy, directory, stack)
            # Before the command is there: who sees it may send it a signal at once.
            with _signals_passed(keeper.send), _cleared_when_ready(job, directory):
                keeper.launch()
                return keeper.wait()


def _chosen(job: Job, privacy: Privacy) -> Backend:
    if job.ready is not None and job.backend == "fuse":
        raise UsageError(
            "With FUSE no files lie anywhere that could be wiped.", hint="Use --backend tmpfs."
        )
    if job.preload and (job.backend == "tmpfs" or job.ready):
        raise UsageError(
            "With tmpfs all files are in memory before the program starts.", hint="Leave out --preload."
        )
    problem = "mounting is not allowed here" if privacy == Privacy.NONE else fuse.available()
    if job.backend == "fuse" and problem:
        raise UsageError(f"FUSE cannot be used: {problem}.", hint="Use --backend tmpfs.")
    if job.backend != "auto":
        return job.backend
    return "tmpfs" if problem or job.ready else "fuse"


def _provide(job: Job, backend: Backend, privacy: Privacy, directory: str, stack: ExitStack) -> None:
    """Have the models at ``directory``, until ``stack`` is left where they are read from there later."""
    tree = stack.enter_context(job.open_tree())
    if backend == "fuse":
        # Nobody but the command and what it starts can get there, under whatever user they run.
        options = {
            "allow_other": True,
            "allow_native_code": job.native_code,
            "preload": job.preload,
        }
        try:
            stack.enter_context(fuse.mounted(tree, directory, **options))
        except UsageError:
            if job.backend == "fuse":
                raise
        else:
            job.say(f"Models are shown at {directory}.")
            return
    placed(tree, directory, private=privacy > Privacy.NONE, native_code=job.native_code)
    stack.close()  # wipes the keys
    job.say(f"Models are in memory at {directory}.")
    if privacy == Privacy.NONE:
        job.warn("Nothing can be mounted here: other programs of this user can read the models.")
        if _swaps():
            job.warn("They may be swapped to a disk: switch swap off, or encrypt it.")


def _swaps() -> bool:
    try:
        with open("/proc/swaps", encoding="ascii", errors="replace") as file:
            return len(file.readlines()) > 1
    except OSError:
        return True


@contextmanager
def _signals_passed(send: Callable[[int], None]) -> Iterator[None]:
    def pass_on(number: int, frame: object) -> None:
        if not _from_terminal(number):
            send(number)

    before = {
        one: signal.signal(one, pass_on)
        for one in _PASSED
        if signal.getsignal(one) != signal.SIG_IGN  # as nohup asks; the command ignores it too
    }
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _from_terminal(number: int) -> bool:
    """Whether a terminal sent it: to the command as well, which is in the same process group.

    A handler in Python is not told who sent a signal; these come from elsewhere only where somebody
    interrupts a program in the foreground by its number.
    """
    if number not in _OF_TERMINALS:
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextmanager
def _cleared_when_ready(job: Job, directory: str) -> Iterator[None]:
    if job.ready is None:
        yield
        return
    ready, stop = job.ready, threading.Event()

    def watch() -> None:
        if ready.wait(stop):
            try:
                clear(directory)
                job.say("The command is ready; the files of its models are gone.")
            except StrongroomError as error:
                job.warn(error.message)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
