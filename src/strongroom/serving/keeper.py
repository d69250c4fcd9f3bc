"""The thread that looks after models: which versions are there, which are loaded, and when one may go.

A version goes only when nothing of its model is better: as long as no wanted version is available, the
old one stays. What cannot be loaded is tried again, when its files change or, where a key server was
away, after a while.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from strongroom.errors import AccessError, MissingExtra, NotFound, StrongroomError, Unavailable
from strongroom.serving.config import ModelConfig
from strongroom.serving.memory import trim
from strongroom.serving.servable import Servable
from strongroom.serving.states import State, VersionStatus
from strongroom.serving.status import Code, RequestError, code_of_loading
from strongroom.serving.versions import Place, find_versions
from strongroom.serving.workers import Workers
from strongroom.web.logs import describe, log

__all__ = ["Keeper", "Load", "Model", "Version"]

Load = Callable[[ModelConfig, int, str], Servable]
"""Makes a version answer: configuration, number, location."""

_WORKERS: Final = 8
_JITTER: Final = random.Random()  # noqa: S311 - of its own: seeds elsewhere do not touch it
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 60.0
_PASSING: Final = (Unavailable, AccessError, NotFound)
"""What may be otherwise later: a key server comes back, an owner changes his mind, a key file is mounted."""
_KEPT: Final = 16
"""Ended versions of a model that are still in its status."""


@dataclass(slots=True, eq=False)
class Version:
    """One version of a model, from when it is wanted to when it is freed.

    Attributes:
        made_of: what it was loaded from; another such makes another version of the same number.
        users: requests that hold it.
        busy: it is being loaded.
        retry_at: moment of ``time.monotonic()`` at which loading is tried again.
    """

    number: int
    made_of: tuple[Place, ModelConfig]
    state: State = State.START
    code: int = 0
    message: str = ""
    why: Mapping[str, str] = field(default_factory=dict)
    servable: Servable | None = None
    users: int = 0
    busy: bool = False
    tries: int = 0
    retry_at: float | None = None

    def status(self) -> VersionStatus:
        """For clients and the log."""
        return VersionStatus(self.number, self.state, self.code, self.message, self.why)


@dataclass(slots=True, eq=False)
class Model:
    """One model.

    Attributes:
        wanted: nobody has unloaded it.
        looked: how often its place was looked at.
        problem: why no version can be found there.
        leaving, serving, coming: its versions; a number may be in each of them.
        ended: what is left of those that have gone.
    """

    config: ModelConfig
    wanted: bool = True
    looked: int = 0
    problem: RequestError | None = None
    leaving: list[Version] = field(default_factory=list)
    serving: dict[int, Version] = field(default_factory=dict)
    coming: dict[int, Version] = field(default_factory=dict)
    ended: dict[int, VersionStatus] = field(default_factory=dict)

    def comes(self) -> bool:
        """Something is being loaded."""
        return any(one.busy for one in self.coming.values())

    def is_there(self) -> bool:
        """Something of it is in memory, or will be."""
        return bool(self.serving or self.leaving or self.comes())

    def status(self) -> list[VersionStatus]:
        """Every version that is, comes or was there, highest first."""
        found = dict(self.ended)
        found |= {one.number: one.status() for one in self.leaving}
        found |= {number: one.status() for number, one in self.coming.items()}
        for number, one in self.serving.items():
            # A version that is replaced by itself answers until the new one does, and the status says
            # why that does not.
            newer = self.coming.get(number)
            said = one if newer is None else newer
            found[number] = VersionStatus(number, one.state, said.code, said.message)
        return [found[number] for number in sorted(found, reverse=True)]


class Keeper:
    """Loads and frees versions, and looks for new ones.

    Args:
        models, load, poll, told: see :class:`.repository.Repository`.

    Attributes:
        models: by name; whoever reads or changes one holds :attr:`lock`.
        lock: around all of them.
        changed: upon that lock; who waits is told of every change.
        stopping: nothing is loaded any more.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        load: Load,
        poll: float,
        told: Callable[[str, VersionStatus], None],
    ) -> None:
        self.models = {one.name: Model(one) for one in models}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.stopping = False
        self._load = load
        self._poll = poll
        self._told = told
        self._leaving: list[Model] = []
        self._workers = Workers(_WORKERS, "loading")
        self._look_now = False
        self._thread = threading.Thread(target=self._watch, name="repository", daemon=True)

    def start(self) -> None:
        """Begin to look and to load; returns at once."""
        self._thread.start()

    def look_and_wait(self, model: Model) -> None:
        """Have the thread look at a model, and wait until it has; the lock is held."""
        looked = model.looked
        self._look_now = True
        self.changed.notify_all()
        # One look may be under way.
        while model.looked < looked + 2 and self._thread.is_alive() and not self.stopping:
            if model not in self._all():
                return  # another configuration has no such model
            self._look_now = True
            # Where nothing is polled, it would not wake by itself.
            self.changed.notify_all()
            self.changed.wait(0.1)

    def reconfigure(self, configs: Mapping[str, ModelConfig]) -> None:
        """These models from now on, and no others; returns at once. The lock is held."""
        models = self.models
        for name in models.keys() - configs.keys():
            gone = models.pop(name)
            gone.wanted = False
            self._leaving.append(gone)
        for name, config in configs.items():
            if name in models:
                models[name].config = config
                models[name].wanted = True
            else:
                models[name] = Model(config)
        self._look_now = True
        self.changed.notify_all()

    def close(self, seconds: float) -> None:
        """Take all models away; returns when they are freed, or after ``seconds``."""
        until = time.monotonic() + seconds
        with self.changed:
            self.stopping = True
            for model in self._all():
                model.wanted = False
                for one in list(model.serving.values()):
                    self._leave(model, one)
            self.changed.notify_all()
            self.changed.wait_for(lambda: not any(one.is_there() for one in self._all()), seconds)
        if self._thread.is_alive():
            self._thread.join(max(0.0, until - time.monotonic()))
        self._workers.close(wait=False)

    def _all(self) -> list[Model]:
        return [*self.models.values(), *self._leaving]

    def _watch(self) -> None:
        while True:
            with self.changed:
                if self.stopping:
                    return
                self._look_now = False
                models = self._all()
            for model in models:
                self._look_at(model)
            with self.changed:
                self._leaving = [one for one in self._leaving if one.is_there()]
                if not self.stopping and not self._look_now:
                    self.changed.wait(self._pause())

    def _pause(self) -> float | None:
        """Seconds until something is due; None waits for a change."""
        now = time.monotonic()
        times = [self._poll] if self._poll else []
        for model in self._all():
            times += [
                max(0.0, one.retry_at - now)
                for one in model.coming.values()
                if one.retry_at is not None and not one.busy
            ]
        return min(times, default=None)

    def _look_at(self, model: Model) -> None:
        config, problem, found = model.config, None, None
        more: dict[str, str] = {}
        try:
            found = find_versions(config.path)
        except StrongroomError as error:
            problem = RequestError(Code.UNAVAILABLE, f"{config.name}: {error.message}")
            if error.hint:
                more["hint"] = error.hint
        except Exception as error:  # a path that the system does not take
            problem = RequestError(Code.INTERNAL, f"{config.name}: {type(error).__name__}")
        with self.changed:
            before, model.problem = model.problem, problem
            model.looked += 1
            if problem is not None and (before is None or before.message != problem.message):
                log.warning("no versions", model=config.name, message=problem.message, **more)
            # What cannot be read now is no reason to stop serving it.
            if found is not None and config is model.config:
                self._arrange(model, found)
            elif not model.wanted:
                self._arrange(model, {})
            else:
                model.coming = {number: one for number, one in model.coming.items() if one.busy}
            self.changed.notify_all()

    def _arrange(self, model: Model, found: Mapping[int, Place]) -> None:
        wanted = model.config.versions.wanted(tuple(found)) if model.wanted else ()
        for number in wanted:
            self._want(model, number, found[number])
        for number, one in list(model.coming.items()):
            if number not in wanted and not one.busy:
                del model.coming[number]
        better = any(number in model.serving for number in wanted)
        for number, one in list(model.serving.items()):
            if number not in wanted and (better or not model.wanted):
                self._leave(model, one)

    def _want(self, model: Model, number: int, place: Place) -> None:
        made_of = (place, model.config.loading())
        serving, coming = model.serving.get(number), model.coming.get(number)
        if coming is not None and coming.busy:
            return
        if serving is not None and serving.made_of == made_of:
            model.coming.pop(number, None)
            return
        if coming is None or coming.made_of != made_of:
            coming = model.coming[number] = Version(number, made_of)
        elif coming.retry_at is None or coming.retry_at > time.monotonic():
            return
        known = coming.state is State.LOADING
        coming.busy, coming.state = True, State.LOADING
        if not known:  # what comes of a further try is said when it is over
            self._tell(model, coming)
        self._workers.submit(partial(self._bring, model, coming, model.config))

    def _bring(self, model: Model, version: Version, config: ModelConfig) -> None:
        failure = None
        try:
            version.servable = self._load(config, version.number, version.made_of[0].location)
        except BaseException as error:  # whatever it is, the status says it, and others go on
            # Only its words are kept: its frames may hold the contents of the model.
            reason = _reason(config.name, version.number, error)
            failure = code_of_loading(error), reason, _why(error), isinstance(error, _PASSING)
        trim()
        with self.changed:
            version.busy = False
            if failure is not None:
                self._failed(model, version, *failure)
            elif model.coming.get(version.number) is version and model.wanted and not self.stopping:
                del model.coming[version.number]
                before = model.serving.get(version.number)
                version.state, version.code, version.message = State.AVAILABLE, 0, ""
                version.why, version.retry_at = {}, None
                model.serving[version.number] = version
                self._tell(model, version)
                if before is not None:
                    self._leave(model, before)
            else:
                model.coming.pop(version.number, None)
                self._leave(model, version)
            self._look_now = True
            self.changed.notify_all()

    def _failed(
        self,
        model: Model,
        version: Version,
        code: Code,
        message: str,
        why: Mapping[str, str],
        again: bool,
    ) -> None:
        version.code, version.message, version.why = code, message, why
        if again:
            pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(version.tries, 10))
            version.tries += 1
            version.retry_at = time.monotonic() + pause * _JITTER.uniform(0.5, 1.0)
        else:
            version.state, version.retry_at = State.END, None
        self._tell(model, version)

    def _tell(self, model: Model, version: Version) -> None:
        with suppress(Exception):  # what cannot be logged happens all the same
            self._told(model.config.name, version.status())

    def _leave(self, model: Model, version: Version) -> None:
        """Take a version away; it is freed when nobody uses it any more."""
        if model.serving.get(version.number) is version:
            del model.serving[version.number]
        version.state = State.UNLOADING
        model.leaving.append(version)
        self._tell(model, version)
        # A thread of its own: what waits for a run that does not end must not keep others from it.
        threading.Thread(target=self._free, args=(model, version), name="freeing", daemon=True).start()

    def _free(self, model: Model, version: Version) -> None:
        with self.changed:
            while version.users:
                self.changed.wait()
        if version.servable is not None:
            version.servable.close()
            version.servable = None
            trim()
        with self.changed:
            version.state = State.END
            model.leaving.remove(version)
            model.ended.pop(version.number, None)
            model.ended[version.number] = version.status()
            while len(model.ended) > _KEPT:
                del model.ended[next(iter(model.ended))]
            self._tell(model, version)
            self.changed.notify_all()


def _reason(name: str, number: int, error: BaseException) -> str:
    said = error.message if isinstance(error, StrongroomError) else type(error).__name__
    if isinstance(error, MissingExtra):
        said = f"{said} {error.hint}"
    return f"Version {number} of {name} cannot be loaded: {said}"


def _why(error: BaseException) -> dict[str, str]:
    """For who runs the server: what to do, and where it happened. The status is for everybody."""
    found = describe(error)
    found.pop("message", None)  # the status has it
    if isinstance(error, StrongroomError) and error.hint is not None:
        found["hint"] = error.hint
    return found
