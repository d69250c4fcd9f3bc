"""The life of models: which versions are there, which are loaded, and when one may go.

One thread looks after all of it. A version goes only when nothing of its model is better: as long as
no wanted version is available, the old one stays. What cannot be loaded is tried again, when its files
change or, where a key server was away, after a while.
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

from strongroom.errors import AccessError, StrongroomError, Unavailable
from strongroom.serving.config import ModelConfig
from strongroom.serving.servable import Servable
from strongroom.serving.states import State, VersionStatus
from strongroom.serving.status import Code, RequestError, code_of_loading
from strongroom.serving.versions import Place, find_versions
from strongroom.serving.workers import Workers

__all__ = ["Lease", "Repository"]

Load = Callable[[ModelConfig, int, str], Servable]

_WORKERS: Final = 8
_JITTER: Final = random.Random()  # noqa: S311 - of its own: seeds elsewhere do not touch it
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 60.0
_UNLOAD_SECONDS: Final = 60.0
_KEPT: Final = 16
"""Ended versions of a model that are still in its status."""


@dataclass(slots=True, eq=False)
class _Version:
    number: int
    made_of: tuple[Place, ModelConfig]
    state: State = State.START
    code: int = 0
    message: str = ""
    servable: Servable | None = None
    users: int = 0
    busy: bool = False
    tries: int = 0
    retry_at: float | None = None

    def status(self) -> VersionStatus:
        return VersionStatus(self.number, self.state, self.code, self.message)


@dataclass(slots=True, eq=False)
class _Model:
    config: ModelConfig
    wanted: bool = True
    looked: int = 0
    problem: RequestError | None = None
    leaving: list[_Version] = field(default_factory=list)
    serving: dict[int, _Version] = field(default_factory=dict)
    coming: dict[int, _Version] = field(default_factory=dict)
    ended: dict[int, VersionStatus] = field(default_factory=dict)

    def comes(self) -> bool:
        """Something is being loaded."""
        return any(one.busy for one in self.coming.values())

    def is_there(self) -> bool:
        """Something of it is in memory, or will be."""
        return bool(self.serving or self.leaving or self.comes())


class Lease:
    """A version that stays while somebody uses it.

    Attributes:
        servable: to use until :meth:`release`.
    """

    __slots__ = ("_repository", "_version", "servable")

    def __init__(self, repository: Repository, version: _Version, servable: Servable) -> None:
        self.servable = servable
        self._repository = repository
        self._version = version

    def release(self) -> None:
        """It may go now."""
        self._repository._release(self._version)

    def __enter__(self) -> Servable:
        return self.servable

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Repository:
    """Models and their versions.

    Args:
        models: to serve.
        load: makes a version answer: configuration, number, location.
        poll: seconds between two looks at the directories; 0 looks once.
        told: of every change of a version's state, for the log.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        load: Load,
        *,
        poll: float = 1.0,
        told: Callable[[str, VersionStatus], None] = lambda model, status: None,
    ) -> None:
        self._load = load
        self._poll = poll
        self._told = told
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._models = {one.name: _Model(one) for one in models}
        self._leaving: list[_Model] = []
        self._workers = Workers(_WORKERS, "loading")
        self._stopping = False
        self._look_now = False
        self._thread = threading.Thread(target=self._watch, name="repository", daemon=True)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._thread.start()

    # What requests ask.

    def acquire(self, name: str, version: int | None = None, label: str | None = None) -> Lease:
        """A version that is available, for as long as the lease is not released.

        Raises:
            RequestError: NOT_FOUND; UNAVAILABLE: it is not loaded, or not yet.
        """
        with self._lock:
            model = self._model(name)
            if label is not None:
                if label not in model.config.labels:
                    raise RequestError(Code.NOT_FOUND, f"Model {name} has no label {label[:80]!r}.")
                version = model.config.labels[label]
            serving = model.serving
            if version is None:
                if not serving:
                    raise self._none(model)
                version = max(serving)
            found = serving.get(version)
            if found is None:
                raise self._not_there(model, version)
            found.users += 1
            assert found.servable is not None
            return Lease(self, found, found.servable)

    def _release(self, version: _Version) -> None:
        with self._lock:
            version.users -= 1
            if not version.users and version.state is State.UNLOADING:
                self._changed.notify_all()

    def names(self) -> list[str]:
        """The models that are configured."""
        with self._changed:
            return list(self._models)

    def available(self, name: str) -> tuple[int, ...]:
        """The versions that answer, highest first.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._changed:
            return tuple(sorted(self._model(name).serving, reverse=True))

    def status(self, name: str) -> list[VersionStatus]:
        """Every version that is, comes or was there, highest first.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._changed:
            model = self._model(name)
            found = dict(model.ended)
            found |= {one.number: one.status() for one in model.leaving}
            found |= {number: one.status() for number, one in model.coming.items()}
            # A version that is replaced by itself answers until the new one does.
            found |= {number: one.status() for number, one in model.serving.items()}
            return [found[number] for number in sorted(found, reverse=True)]

    def config(self, name: str) -> ModelConfig:
        """What was configured.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._changed:
            return self._model(name).config

    def ready(self) -> bool:
        """Every model that is wanted has a version that answers."""
        with self._changed:
            return all(one.serving for one in self._models.values() if one.wanted)

    def problem(self, name: str) -> RequestError | None:
        """Why no version of a model can be found, if none can."""
        with self._changed:
            return self._model(name).problem

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            raise RequestError(Code.NOT_FOUND, f"There is no model {name[:200]!r}.")
        return model

    def _none(self, model: _Model) -> RequestError:
        if model.problem is not None:
            return model.problem
        if not model.wanted:
            return RequestError(Code.UNAVAILABLE, f"Model {model.config.name} is not loaded.")
        for one in sorted(model.coming.values(), key=lambda each: each.number, reverse=True):
            if one.code:
                return RequestError(Code(one.code), one.message)
        return RequestError(Code.UNAVAILABLE, f"Model {model.config.name} is being loaded.")

    def _not_there(self, model: _Model, version: int) -> RequestError:
        name = model.config.name
        coming = model.coming.get(version)
        if coming is not None:
            if coming.code:
                return RequestError(Code(coming.code), coming.message)
            return RequestError(Code.UNAVAILABLE, f"Version {version} of {name} is being loaded.")
        return RequestError(Code.NOT_FOUND, f"Model {name} has no version {version}.")

    # What administrators ask.

    def load(self, name: str) -> None:
        """Serve a model, and look for its versions anew; returns when one is available.

        Raises:
            RequestError: NOT_FOUND; or why none of its versions can be loaded.
        """
        with self._changed:
            model = self._model(name)
            model.wanted = True
            for one in model.coming.values():
                one.retry_at = 0.0
            self._look_and_wait(model)
            while not model.serving and model.comes() and not self._stopping:
                self._changed.wait()
            if not model.serving:
                raise self._none(model)

    def unload(self, name: str) -> None:
        """Stop serving a model; returns when nothing of it is in memory, or it is wanted again.

        Raises:
            RequestError: NOT_FOUND; DEADLINE_EXCEEDED: it has not gone within a minute. It will, when
                what it computes now has ended.
        """
        with self._changed:
            model = self._model(name)
            model.wanted = False
            self._look_and_wait(model)
            done = self._changed.wait_for(lambda: model.wanted or not model.is_there(), _UNLOAD_SECONDS)
            if not done:
                raise RequestError(
                    Code.DEADLINE_EXCEEDED, f"Model {name} still computes; it goes when that has ended."
                )

    def reconfigure(self, models: Sequence[ModelConfig]) -> None:
        """Serve these models from now on, and no others; returns at once."""
        with self._changed:
            new = {one.name: one for one in models}
            for name in self._models.keys() - new.keys():
                gone = self._models.pop(name)
                gone.wanted = False
                self._leaving.append(gone)
            for name, config in new.items():
                if name in self._models:
                    self._models[name].config = config
                    self._models[name].wanted = True
                else:
                    self._models[name] = _Model(config)
            self._look_now = True
            self._changed.notify_all()

    def close(self, seconds: float = 30.0) -> None:
        """Let requests end, then free all models; nothing new is accepted.

        What has not ended after ``seconds`` goes on in threads that do not keep the process from ending.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._stopping = True
            for model in self._all():
                model.wanted = False
                for one in list(model.serving.values()):
                    self._leave(model, one)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(one.is_there() for one in self._all()), seconds)
        if self._thread.is_alive():
            self._thread.join(max(0.0, until - time.monotonic()))
        self._workers.close(wait=False)

    # The thread that looks after it all.

    def _all(self) -> list[_Model]:
        return [*self._models.values(), *self._leaving]

    def _look_and_wait(self, model: _Model) -> None:
        """Have the thread look at a model, and wait until it has."""
        looked = model.looked
        self._look_now = True
        self._changed.notify_all()
        # One look may be under way.
        while model.looked < looked + 2 and self._thread.is_alive() and not self._stopping:
            if model not in self._all():
                return  # another configuration has no such model
            self._look_now = True
            self._changed.wait(0.1)

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                self._look_now = False
                models = self._all()
            for model in models:
                self._look_at(model)
            with self._changed:
                self._leaving = [one for one in self._leaving if one.is_there()]
                if not self._stopping and not self._look_now:
                    self._changed.wait(self._pause())

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

    def _look_at(self, model: _Model) -> None:
        config, problem, found = model.config, None, None
        try:
            found = find_versions(config.path)
        except StrongroomError as error:
            problem = RequestError(Code.UNAVAILABLE, f"{config.name}: {error.message}")
        except Exception as error:  # a path that the system does not take
            problem = RequestError(Code.INTERNAL, f"{config.name}: {type(error).__name__}")
        with self._changed:
            model.problem = problem
            model.looked += 1
            # What cannot be read now is no reason to stop serving it.
            if found is not None and config is model.config:
                self._arrange(model, found)
            elif not model.wanted:
                self._arrange(model, {})
            else:
                model.coming = {number: one for number, one in model.coming.items() if one.busy}
            self._changed.notify_all()

    def _arrange(self, model: _Model, found: Mapping[int, Place]) -> None:
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

    def _want(self, model: _Model, number: int, place: Place) -> None:
        made_of = (place, model.config.loading())
        serving, coming = model.serving.get(number), model.coming.get(number)
        if coming is not None and coming.busy:
            return
        if serving is not None and serving.made_of == made_of:
            model.coming.pop(number, None)
            return
        if coming is None or coming.made_of != made_of:
            coming = model.coming[number] = _Version(number, made_of)
        elif coming.retry_at is None or coming.retry_at > time.monotonic():
            return
        coming.busy, coming.state = True, State.LOADING
        self._tell(model, coming)
        self._workers.submit(partial(self._bring, model, coming, model.config))

    def _bring(self, model: _Model, version: _Version, config: ModelConfig) -> None:
        failure = None
        try:
            version.servable = self._load(config, version.number, version.made_of[0].location)
        except BaseException as error:  # whatever it is, the status says it, and others go on
            # Only its words are kept: its frames may hold the contents of the model.
            reason = _reason(config.name, version.number, error)
            failure = code_of_loading(error), reason, isinstance(error, Unavailable | AccessError)
        with self._changed:
            version.busy = False
            if failure is not None:
                self._failed(model, version, *failure)
            elif model.coming.get(version.number) is version and model.wanted and not self._stopping:
                del model.coming[version.number]
                before = model.serving.get(version.number)
                version.state, version.code, version.message = State.AVAILABLE, 0, ""
                version.retry_at = None
                model.serving[version.number] = version
                self._tell(model, version)
                if before is not None:
                    self._leave(model, before)
            else:
                model.coming.pop(version.number, None)
                self._leave(model, version)
            self._look_now = True
            self._changed.notify_all()

    def _failed(self, model: _Model, version: _Version, code: Code, message: str, again: bool) -> None:
        version.code, version.message = code, message
        if again:
            # A key server that is away comes back, and an owner may change his mind.
            pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(version.tries, 10))
            version.tries += 1
            version.retry_at = time.monotonic() + pause * _JITTER.uniform(0.5, 1.0)
        else:
            version.state, version.retry_at = State.END, None
        self._tell(model, version)

    def _tell(self, model: _Model, version: _Version) -> None:
        with suppress(Exception):  # what cannot be logged happens all the same
            self._told(model.config.name, version.status())

    def _leave(self, model: _Model, version: _Version) -> None:
        """Take a version away; it is freed when nobody uses it any more."""
        if model.serving.get(version.number) is version:
            del model.serving[version.number]
        version.state = State.UNLOADING
        model.leaving.append(version)
        self._tell(model, version)
        # A thread of its own: what waits for a run that does not end must not keep others from it.
        threading.Thread(target=self._free, args=(model, version), name="freeing", daemon=True).start()

    def _free(self, model: _Model, version: _Version) -> None:
        with self._changed:
            while version.users:
                self._changed.wait()
        if version.servable is not None:
            version.servable.close()
            version.servable = None
        with self._changed:
            version.state = State.END
            model.leaving.remove(version)
            model.ended.pop(version.number, None)
            model.ended[version.number] = version.status()
            while len(model.ended) > _KEPT:
                del model.ended[next(iter(model.ended))]
            self._tell(model, version)
            self._changed.notify_all()


def _reason(name: str, number: int, error: BaseException) -> str:
    said = error.message if isinstance(error, StrongroomError) else type(error).__name__
    return f"Version {number} of {name} cannot be loaded: {said}"
