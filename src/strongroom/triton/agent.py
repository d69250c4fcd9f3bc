"""The actions of the repository agent. Called by ``native/agent.c``, from any thread of Triton.

A model is named by a number, the address of Triton's object for it: a reload has the old one and the new one at
the same time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from strongroom.errors import (
    ManifestMismatch,
    NotFound,
    StrongroomError,
    Unavailable,
    UsageError,
    os_errors,
    printable,
)
from strongroom.model.memory_directory import place_files
from strongroom.model.owned_directory import OwnedDirectory, sweep
from strongroom.model.reader import SealedModel, open_model
from strongroom.providers import sources
from strongroom.triton.parameters import Parameters, Wipe

__all__ = ["AgentError", "done", "load", "loaded", "start"]

CONFIG: Final = "config.pbtxt"
_CONFIGS: Final = "configs"
"""The folder in which ``--model-config-name`` chooses another one."""

UNBOUND: Final = "triton.config"
"""Member of ``meta``: with the value ``any``, the owner lets whoever loads the model say its configuration."""

_PREFIX: Final = "strongroom-triton-"
_INTERNAL, _NOT_FOUND, _INVALID, _UNAVAILABLE = 1, 2, 3, 4  # TRITONSERVER_Error_Code
_LOG_INFO, _LOG_WARN, _LOG_ERROR = 0, 1, 2  # TRITONSERVER_LogLevel


class AgentError(Exception):
    """What Triton is told: ``str()`` is its message, ``code`` its TRITONSERVER_Error_Code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Placed:
    place: OwnedDirectory
    wipe: Wipe


_placed: dict[int, _Placed] = {}
_going: list[OwnedDirectory] = []
"""What could not be removed: the next end of a load, or of a model, tries again."""

_lock = threading.Lock()


@contextmanager
def _told_to_triton() -> Iterator[None]:
    try:
        yield
    except StrongroomError as error:
        raise AgentError(f"strongroom: {_text(error)}", _code(error)) from None
    except BaseException as error:  # nothing may pass the border
        # Its text may hold anything.
        raise AgentError(f"strongroom: a bug: {_where(error)}", _INTERNAL) from None


def _text(error: StrongroomError) -> str:
    return f"{error.message} {error.hint}" if error.hint else error.message


def _code(error: StrongroomError) -> int:
    if isinstance(error, Unavailable):
        return _UNAVAILABLE
    if isinstance(error, NotFound):
        return _NOT_FOUND
    return _INVALID if isinstance(error, UsageError) else _INTERNAL


def _where(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    line = (
        f"{os.path.basename(traceback.tb_frame.f_code.co_filename)}:{traceback.tb_lineno}"
        if traceback
        else "?"
    )
    return f"{type(error).__name__} in {line}"


class _LogMessage(Protocol):
    def __call__(self, level: int, file: bytes, line: int, message: bytes, /) -> int | None: ...


def _log(level: int, message: str) -> None:
    """A line of Triton's log; nothing where this process is not Triton."""
    try:
        write: _LogMessage = ctypes.CDLL(None).TRITONSERVER_LogMessage
    except AttributeError:
        return
    write(level, b"strongroom", 0, printable(message).encode())


def start(model: int = 0) -> None:
    """Before the first model: what killed servers left in ``/dev/shm`` goes. ``model`` is none."""
    with _told_to_triton():
        _sweep(Parameters().directory)


def _sweep(directory: str) -> None:
    try:
        if found := sweep(directory, _PREFIX):
            _log(
                _LOG_WARN, f"strongroom: removed what servers had left that were killed: {found} models"
            )
    except NotFound:
        pass  # said when it is needed
    except StrongroomError as error:
        # It keeps no model from being served; the next load tries again.
        _log(_LOG_ERROR, f"strongroom: {_text(error)}")


def load(model: int, location: str, local: bool, said: Mapping[str, str]) -> str:
    """Decrypt a model into a private directory in memory; its path.

    Args:
        model: names it from now on.
        location: of the sealed model.
        local: whether that is a directory of this machine.
        said: the agent's parameters.

    Raises:
        AgentError: why not; nothing is left behind.
    """
    with _told_to_triton():
        parameters = Parameters.parse(said)
        if not local:
            raise UsageError(
                "The repository agent reads sealed models of local repositories.",
                hint="Copy the repository to a disk, which may be anybody's: it is sealed.",
            )
        _sweep(parameters.directory)
        with open_model(location, lambda: sources.identities(parameters.key_source())) as sealed:
            check_configuration(sealed, location)
            place = OwnedDirectory(parameters.directory, _PREFIX, sealed.size)
            try:
                place_files(sealed, sealed.files, place.path)
            except BaseException:
                # That something is left is said by the end of this load, which tries again.
                with suppress(StrongroomError):
                    _remove(place)
                raise
        with _lock:
            _placed[model] = _Placed(place, parameters.wipe)
        _log(
            _LOG_INFO,
            f"strongroom: {location}: {len(sealed.files)} files, {sealed.size} bytes, in {place.path}",
        )
        return place.path


def check_configuration(sealed: SealedModel, location: str) -> None:
    """Compare the configurations that lie in clear in ``location`` with those that were sealed.

    Triton has read them there before anything was authentic.

    Raises:
        ManifestMismatch: one differs, or its owner has not sealed it.
    """
    if sealed.meta.get(UNBOUND) == "any":
        return
    found = [CONFIG]
    configs = os.path.join(location, _CONFIGS)
    if os.path.isdir(configs):
        found += [
            f"{_CONFIGS}/{name}" for name in sorted(os.listdir(configs)) if name.endswith(".pbtxt")
        ]
    for path in found:
        if path not in sealed.files:
            raise ManifestMismatch(
                path,
                "the model was sealed without it",
                hint=f"Seal it with the model, --clear {path}; or with --meta {UNBOUND}=any, if whoever "
                "loads the model may say how.",
            )
        place = os.path.join(location, path)
        with os_errors(place), open(place, "rb") as file:
            if file.read(sealed.files[path].size + 1) != sealed.read(path):
                raise ManifestMismatch(path, "it is another than was sealed")


def loaded(model: int) -> None:
    """The model answers; its files go, unless it reads them later."""
    _finish(model, lambda one: one.wipe == "load_complete")


def done(model: int) -> None:
    """The model is unloaded, or was never loaded; called more than once."""
    _finish(model, lambda one: True)


def _finish(model: int, if_: Callable[[_Placed], bool]) -> None:
    with _told_to_triton():
        with _lock:
            found = _placed.get(model)
            places = [found.place] if found and if_(found) else []
            if places:
                del _placed[model]
            places += _going
            _going.clear()
        _remove(*places)


def _remove(*places: OwnedDirectory) -> None:
    """Remove all that can be; what cannot goes with a later action, and is locked until then."""
    failed: StrongroomError | None = None
    for place in places:
        try:
            place.remove()
        except StrongroomError as error:
            failed = error
            with _lock:
                _going.append(place)
    if failed:
        raise failed
