"""Sealed models in Ray Serve.

::

    from ray import serve
    from strongroom.integrations import ray

    app = ray.application("resnet50=/models/resnet50.sealed", key="unix:///run/strongroom/keys.sock")
    handle = serve.run(app)
    handle.predict.remote({"x": array}).result()      # and both protocols over Ray's HTTP proxy

Every replica asks for keys itself, where it runs: a deployment says where a key is, never what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from strongroom.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    import numpy as np
    from ray.serve import Application

    from strongroom.serving.config import ModelConfig
    from strongroom.serving.states import VersionStatus

__all__ = ["SealedModels", "application", "build"]

_NAME: Final = "SealedModels"
_ONGOING: Final = 64
"""Requests that a replica has at the same time, unless something else is said: Ray's own five would fill no
batch and hide the queue, whose end the protocols have a code for."""

_PATIENCE: Final = 60.0
_BYTES: Final = 64 << 20


def application(
    *models: ModelConfig | str,
    key: str | None = None,
    max_request_bytes: int = _BYTES,
    poll: float = 1.0,
    patience: float = _PATIENCE,
    **options: Any,
) -> Application:
    """An application for ``serve.run``: one deployment, whose replicas all serve these models.

    Args:
        models: each ``name=path``, or a ModelConfig; paths are those of the nodes.
        key: source of the keys of models that say none themselves, read on the node of each replica:
            ``unix:///run/strongroom/keys.sock``, a path, ``env:NAME``, the URL of a key server.
        max_request_bytes: of a body over HTTP.
        poll: seconds between two looks for new versions; 0 looks once.
        patience: seconds that a replica waits for a key server or cache that is away, when it starts.
        options: of ``serve.deployment``: ``num_replicas``, ``autoscaling_config``, ``ray_actor_options``, ….

    Raises:
        UsageError: a model or key is not said as above.
        MissingExtra: Ray Serve is not installed.
    """
    _require_ray()
    from ray import serve

    deployment = serve.deployment(serve.ingress()(SealedModels))
    said = {"name": _NAME, "max_ongoing_requests": _ONGOING, **options}
    return deployment.options(**said).bind(
        _configs(models, key), max_request_bytes=max_request_bytes, poll=poll, patience=patience
    )


def build(args: dict[str, Any]) -> Application:
    """The same for a configuration file of Ray Serve: ``import_path: strongroom.integrations.ray:build``.

    Args:
        args: ``models``, a list as in models.yaml, or ``config``, the path of a models.yaml where the
            application is built; and ``key``, ``max_request_bytes``, ``poll``, ``patience``. The options of
            the deployment ``SealedModels`` have their own place in that file.

    Raises:
        UsageError: something else is said.
        MissingExtra: Ray Serve is not installed.
    """
    _require_ray()
    from strongroom.serving.config_files import models_of_document, read_models

    rest = dict(args)
    models = models_of_document({"models": rest.pop("models")}) if "models" in rest else []
    if "config" in rest:
        models += read_models(rest.pop("config"))
    for name in rest:
        if name not in ("key", "max_request_bytes", "poll", "patience"):
            raise UsageError(
                f"args.{str(name)[:80]} is not known.",
                hint="Known: models, config, key, max_request_bytes, poll, patience.",
            )
    return application(*models, **rest)


def _require_ray() -> None:
    if find_spec("ray") is None or find_spec("grpc_health") is None:
        raise MissingExtra("Ray Serve", "ray")


def _configs(models: Sequence[ModelConfig | str], key: str | None) -> list[ModelConfig]:
    from strongroom.serving.config_files import model_of_argument

    if not models:
        raise UsageError("There is no model to serve.", hint="Give name=path, or a ModelConfig.")
    found = [model_of_argument(one) if isinstance(one, str) else one for one in models]
    found = [replace(one, key=one.key or key) for one in found]
    names = [one.name for one in found]
    for one in found:
        if names.count(one.name) > 1:
            raise UsageError(f"There are two models {one.name}.")
        if one.key is not None:
            _check_source(one.key)
    return found


def _check_source(key: object) -> None:
    """Refuse a key itself: what a deployment is made with lies in Ray's stores, and in its status."""
    from strongroom.providers.sources import refuse_literal

    if not isinstance(key, str):
        raise UsageError(
            "A deployment says where a key is, not what it is.",
            hint="Give a path or URI as text: unix:///run/strongroom/keys.sock",
        )
    refuse_literal(key)


class SealedModels:
    """What a replica is. Made by :func:`application`; its methods are those of a handle.

    Args:
        models: to serve.
        max_request_bytes: see :func:`application`, as for the others.
        poll: seconds.
        patience: seconds.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, models: Sequence[ModelConfig], *, max_request_bytes: int, poll: float, patience: float
    ) -> None:
        from strongroom.crypto.secret import keep_out_of_core_dumps
        from strongroom.integrations.starting import told, wait_until_ready
        from strongroom.serving.engine import Engine
        from strongroom.serving.loading import load_servable
        from strongroom.web.logs import configure_logging

        # A replica has a process of its own.
        keep_out_of_core_dumps()
        configure_logging()
        self._max_request_bytes = max_request_bytes
        self._engine = Engine(models, load_servable, poll=poll, told=told)
        self._engine.start()
        try:
            await asyncio.to_thread(wait_until_ready, self._engine, patience)
        except BaseException:
            self._engine.close(0)
            raise

    def __serve_build_asgi_app__(self) -> Any:
        from strongroom.integrations.asgi import Application

        return Application(self._engine, self._max_request_bytes)

    async def predict(
        self,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        outputs: Sequence[str] = (),
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Ask a model.

        Args:
            inputs: arrays by name; text as ``bytes`` or ``str``.
            model: needed where there are several.
            version: the latest, unless one is named; or by its ``label``.
            signature: ``serving_default``, unless another is named.
            outputs: those wanted; empty for all.

        Raises:
            RequestError: with its code; in the caller it is also a ``RayTaskError``.
        """
        from strongroom.serving.call import Call

        call = Call(
            self._named(model),
            {name: _array(name, value) for name, value in inputs.items()},
            version,
            label,
            signature,
            outputs,
            api="ray",
            transport="handle",
        )
        return (await self._engine.infer_async(call)).outputs

    async def describe(self, model: str | None = None, version: int | None = None) -> dict[str, Any]:
        """Name, versions, platform, inputs and outputs of a model, as the Open Inference Protocol says them.

        Raises:
            RequestError: there is no such model or version.
        """
        from strongroom.serving.v2.description import model_metadata

        return model_metadata(self._engine, self._named(model), version)

    async def status(self) -> dict[str, list[dict[str, Any]]]:
        """The versions of each model in this replica: number, state, code and message."""
        return {
            name: [_words(one) for one in self._engine.status(name)] for name in self._engine.names()
        }

    async def check_health(self) -> None:
        """For Ray: every model answers.

        Raises:
            RequestError: one does not, and why; Ray replaces the replica.
        """
        for name in self._engine.names():
            self._engine.signatures(name)

    def _named(self, model: str | None) -> str:
        if model is not None:
            return model
        names = self._engine.names()
        if len(names) > 1:
            raise UsageError(f"There are the models {', '.join(names)}: say which one is meant.")
        return names[0]


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    from strongroom.serving.status import Code, RequestError

    try:
        array = np.asarray(value)
    except ValueError:
        raise RequestError(Code.INVALID_ARGUMENT, f"Input {name} is ragged.") from None
    if array.dtype.kind not in "SUO":
        return array
    found = np.empty(array.size, object)
    for index, one in enumerate(array.ravel().tolist()):
        if not isinstance(one, str | bytes):
            raise RequestError(Code.INVALID_ARGUMENT, f"Input {name} has objects that are no text.")
        found[index] = one.encode() if isinstance(one, str) else one
    return found.reshape(array.shape)


def _words(status: VersionStatus) -> dict[str, Any]:
    return {**asdict(status), "state": status.state.name}
