"""From a sealed model to one that answers."""

from __future__ import annotations

import time
from typing import Any

from strongroom.errors import NotSealed, UsageError
from strongroom.model.reader import open_model
from strongroom.providers import sources
from strongroom.serving.backend import BackendOptions, LoadedModel
from strongroom.serving.backends import registry
from strongroom.serving.config import ModelConfig
from strongroom.serving.servable import DEFAULT_SIGNATURE, Servable
from strongroom.serving.tensors import TensorSpec
from strongroom.serving.warmup import WithSamples, replay, warm_up
from strongroom.web.logs import describe, log

__all__ = ["load_servable"]


def load_servable(config: ModelConfig, version: int, location: str) -> Servable:
    """Open, load and warm up one version; for :class:`.repository.Repository`.

    Args:
        config: of the model; its key source is asked for the key of this version.
        version: number.
        location: of the sealed model, a path or a URL.

    Raises:
        NotSealed: a plain model.
        UsageError: the model is not what the configuration says.
        StrongroomError: it cannot be opened, or is not authentic.
        the framework's errors: as its own loader raises them.
    """
    began = time.monotonic()
    model = _load(config, location)
    try:
        _check_specs("input", config.inputs, model)
        _check_specs("output", config.outputs, model)
        _warm_up(config, version, model)
        log.info("loaded", model=config.name, version=version, seconds=_since(began))
        return Servable(config, version, model, fault=_fault(config.name, version))
    except BaseException:
        model.close()
        raise


def _load(config: ModelConfig, location: str) -> LoadedModel:
    options = BackendOptions(
        threads=config.threads,
        inputs=config.inputs,
        outputs=config.outputs,
        file=config.file,
        extra=config.options,
    )
    try:
        opened = open_model(location, lambda: sources.identities(config.key))
    except NotSealed as error:
        raise NotSealed(
            f"{error.message.removesuffix('.')}, and only sealed models are served.",
            hint="Seal it: strongroom seal MODEL MODEL.sealed",
        ) from None
    with opened as sealed:
        return registry.load(sealed, config.backend, options)


def _check_specs(what: str, said: tuple[TensorSpec, ...] | None, model: LoadedModel) -> None:
    """Does the model have what the configuration says?"""
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    if said is None or signature is None:
        return
    specs = signature.inputs if what == "input" else signature.outputs
    declared = {one.name: one for one in said}
    if declared.keys() != specs.keys():
        raise UsageError(
            f"The {what}s of the model are {', '.join(specs)}, and not {', '.join(declared)}."
        )
    for name, spec in specs.items():
        if spec.dtype != declared[name].dtype or not _agree(spec.shape, declared[name].shape):
            raise UsageError(
                f"The {what} {name} of the model is {_words(spec)}, and not as configured."
            )


def _agree(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _words(spec: TensorSpec) -> str:
    return f"{spec.dtype} {'of any shape' if spec.shape is None else list(spec.shape)}"


def _warm_up(config: ModelConfig, version: int, model: LoadedModel) -> None:
    if not config.warm_up:
        return
    batch = config.batching.max_batch if config.batching else 1
    try:
        # Some bring requests of their own.
        samples = model.samples() if isinstance(model, WithSamples) else ()
        if samples:
            replay(model, samples, config.warm_up)
        elif DEFAULT_SIGNATURE in model.signatures:
            warm_up(model, DEFAULT_SIGNATURE, config.warm_up, batch)
    except (Exception, SystemExit) as error:
        # Random inputs may be none that the model can take; requests are.
        log.warning("warm-up failed", model=config.name, version=version, **describe(error))


def _fault(name: str, version: int) -> Any:
    return lambda error: log.error("model failed", model=name, version=version, **describe(error))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
