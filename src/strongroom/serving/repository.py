"""Models and their versions, as requests and administrators ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from strongroom.serving.config import ModelConfig
from strongroom.serving.keeper import Keeper, Load, Model, Version
from strongroom.serving.servable import Servable
from strongroom.serving.states import State, VersionStatus
from strongroom.serving.status import Code, RequestError

__all__ = ["Lease", "Load", "Repository"]

_UNLOAD_SECONDS: Final = 60.0


class Lease:
    """A version that stays while somebody uses it.

    Attributes:
        servable: to use until :meth:`release`.
    """

    __slots__ = ("_repository", "_version", "servable")

    def __init__(self, repository: Repository, version: Version, servable: Servable) -> None:
        self.servable = servable
        self._repository = repository
        self._version = version

    def release(self) -> None:
        """It may go now."""
        version, repository = self._version, self._repository
        with repository._lock:
            version.users -= 1
            if not version.users and version.state is State.UNLOADING:
                repository._changed.notify_all()

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
        self._keeper = Keeper(models, load, poll, told)
        self._models = self._keeper.models
        self._lock = self._keeper.lock
        self._changed = self._keeper.changed

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._keeper.start()

    # What requests ask.

    def acquire(self, name: str, version: int | None = None, label: str | None = None) -> Lease:
        """A version that is available, for as long as the lease is not released.

        Raises:
            RequestError: NOT_FOUND; UNAVAILABLE: it is not loaded, or not yet.
        """
        with self._lock:
            found, servable = self._available(name, version, label)
            found.users += 1
            return Lease(self, found, servable)

    def look(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """As :meth:`acquire`, for what is the same when the version has gone: it may go at any time."""
        with self._lock:
            return self._available(name, version, label)[1]

    def _available(self, name: str, version: int | None, label: str | None) -> tuple[Version, Servable]:
        model = self._models.get(name) or self._model(name)
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
        assert found.servable is not None
        return found, found.servable

    def names(self) -> list[str]:
        """The models that are configured."""
        with self._lock:
            return list(self._models)

    def available(self, name: str) -> tuple[int, ...]:
        """The versions that answer, highest first.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._lock:
            return tuple(sorted(self._model(name).serving, reverse=True))

    def status(self, name: str) -> list[VersionStatus]:
        """Every version that is, comes or was there, highest first.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._lock:
            return self._model(name).status()

    def config(self, name: str) -> ModelConfig:
        """What was configured.

        Raises:
            RequestError: NOT_FOUND.
        """
        # Every request asks, and one look into a dictionary takes no lock.
        model = self._models.get(name)
        return self._model(name).config if model is None else model.config

    def ready(self) -> bool:
        """Every model that is wanted has a version that answers."""
        with self._lock:
            return all(one.serving for one in self._models.values() if one.wanted)

    def _model(self, name: str) -> Model:
        model = self._models.get(name)
        if model is None:
            raise RequestError(Code.NOT_FOUND, f"There is no model {name[:200]!r}.")
        return model

    def _none(self, model: Model) -> RequestError:
        if model.problem is not None:
            return model.problem
        if not model.wanted:
            return RequestError(Code.UNAVAILABLE, f"Model {model.config.name} is not loaded.")
        for one in sorted(model.coming.values(), key=lambda each: each.number, reverse=True):
            if one.code:
                return _not_loaded(one)
        return RequestError(Code.UNAVAILABLE, f"Model {model.config.name} is being loaded.")

    def _not_there(self, model: Model, version: int) -> RequestError:
        name = model.config.name
        coming = model.coming.get(version)
        if coming is not None:
            if coming.code:
                return _not_loaded(coming)
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
            self._keeper.look_and_wait(model)
            while not model.serving and model.comes() and not self._keeper.stopping:
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
            self._keeper.look_and_wait(model)
            done = self._changed.wait_for(lambda: model.wanted or not model.is_there(), _UNLOAD_SECONDS)
            if not done:
                raise RequestError(
                    Code.DEADLINE_EXCEEDED, f"Model {name} still computes; it goes when that has ended."
                )

    def reconfigure(self, models: Sequence[ModelConfig]) -> None:
        """Serve these models from now on, and no others; returns at once."""
        with self._changed:
            self._keeper.reconfigure({one.name: one for one in models})

    def close(self, seconds: float = 30.0) -> None:
        """Let requests end, then free all models; nothing new is accepted.

        What has not ended after ``seconds`` goes on in threads that do not keep the process from ending.
        """
        self._keeper.close(seconds)


def _not_loaded(version: Version) -> RequestError:
    """Why a version does not answer: the code in its status is about the model, and no client's fault."""
    return RequestError(Code.UNAVAILABLE, version.message)
