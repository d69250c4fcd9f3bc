"""All models behind one door: what every protocol asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from strongroom.serving.call import Answer, Call, Elsewhere
from strongroom.serving.config import ModelConfig
from strongroom.serving.repository import Load, Repository
from strongroom.serving.servable import Statistics
from strongroom.serving.states import Description, VersionStatus
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature

__all__ = ["Engine"]


class Engine:
    """Models that answer; every method raises RequestError with the code for the client.

    Args:
        models: to serve.
        load: makes a version answer, see :class:`.repository.Repository`.
        poll: seconds between two looks at the directories of versions.
        told: of every change of a version's state.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        load: Load,
        *,
        poll: float = 1.0,
        told: Callable[[str, VersionStatus], None] = lambda model, status: None,
    ) -> None:
        self._repository = Repository(models, load, poll=poll, told=told)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._repository.start()

    def close(self, seconds: float = 30.0) -> None:
        """Let requests end for at most so long, then free everything."""
        self._repository.close(seconds)

    def infer(self, call: Call) -> Answer:
        """Answer a call; blocks."""
        lease = self._repository.acquire(call.model, call.version, call.label)
        try:
            return lease.servable.infer(call)
        finally:
            lease.release()

    def infer_here(self, call: Call) -> Answer | None:
        """Answer a call without waiting for anything; None where that cannot be, and nothing has happened."""
        call.at_once = True
        try:
            return self.infer(call)
        except Elsewhere:
            call.at_once = False
            return None

    async def infer_async(self, call: Call) -> Answer:
        """As :meth:`infer`, for the event loop, which runs a quick model itself."""
        lease = self._repository.acquire(call.model, call.version, call.label)
        try:
            return await lease.servable.infer_async(call)
        finally:
            lease.release()

    def describe(self, model: str, version: int | None = None, label: str | None = None) -> Description:
        """Signatures and more of an available version."""
        with self._repository.acquire(model, version, label) as servable:
            return Description(
                model=model,
                version=servable.version,
                platform=servable.platform,
                signatures=servable.signatures,
                versions=self._repository.available(model),
                max_batch=servable.batching.max_batch if servable.batching else 0,
            )

    def signatures(
        self, model: str, version: int | None = None, label: str | None = None
    ) -> Mapping[str, Signature]:
        """Of an available version, at a quarter of the cost of :meth:`describe`."""
        return self._repository.look(model, version, label).signatures

    def status(
        self, model: str, version: int | None = None, label: str | None = None
    ) -> list[VersionStatus]:
        """Of all versions that are, come or were there, highest first; or of one."""
        found = self._repository.status(model)
        if label is not None:
            version = self._repository.config(model).labels.get(label)
            if version is None:
                raise RequestError(Code.NOT_FOUND, f"Model {model} has no label {label[:80]!r}.")
        if version is None:
            return found
        for one in found:
            if one.version == version:
                return [one]
        raise RequestError(Code.NOT_FOUND, f"Model {model} has no version {version}.")

    def names(self) -> list[str]:
        """The models that are configured."""
        return self._repository.names()

    def config(self, model: str) -> ModelConfig:
        """What was configured for a model."""
        return self._repository.config(model)

    def ready(self) -> bool:
        """Every model that is wanted has a version that answers."""
        return self._repository.ready()

    def load(self, model: str) -> None:
        """Serve a model; returns when it answers."""
        self._repository.load(model)

    def unload(self, model: str) -> None:
        """Stop serving a model; returns when nothing of it is in memory."""
        self._repository.unload(model)

    def reconfigure(self, models: Sequence[ModelConfig]) -> None:
        """Serve these models from now on, and no others."""
        self._repository.reconfigure(models)

    def statistics(self, model: str, version: int | None = None) -> list[tuple[int, Statistics]]:
        """The numbers of a version, or of all that are available: number and numbers."""
        found = []
        for one in self._repository.available(model) if version is None else (version,):
            try:
                with self._repository.acquire(model, one) as servable:
                    found.append((one, servable.statistics()))
            except RequestError:
                if version is not None:
                    raise  # otherwise it has gone just now
        return found
