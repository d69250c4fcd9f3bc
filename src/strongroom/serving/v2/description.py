"""What server and models say of themselves: members of the REST answers and fields of the gRPC messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version as release
from typing import Any, Final

from strongroom.serving.config import VersionPolicy
from strongroom.serving.engine import Engine
from strongroom.serving.servable import DEFAULT_SIGNATURE
from strongroom.serving.states import Description, State
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, Signature, TensorSpec
from strongroom.serving.v2.datatypes import datatype_of

__all__ = [
    "default_signature",
    "index",
    "model_config",
    "model_metadata",
    "refuse_parameters",
    "server_metadata",
]

_EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)

_STATES: Final = {
    State.UNKNOWN: "UNAVAILABLE",
    State.START: "LOADING",
    State.LOADING: "LOADING",
    State.AVAILABLE: "READY",
    State.UNLOADING: "UNLOADING",
    State.END: "UNAVAILABLE",
}


def server_metadata() -> dict[str, Any]:
    """``ServerMetadataResponse``."""
    return {"name": "strongroom", "version": _release(), "extensions": list(_EXTENSIONS)}


@cache  # looking it up takes a millisecond
def _release() -> str:
    return release("strongroom")


def model_metadata(engine: Engine, model: str, version: int | None) -> dict[str, Any]:
    """``ModelMetadataResponse``: of the signature that inference uses."""
    found = engine.describe(model, version)
    signature = default_signature(found)
    return {
        "name": model,
        "versions": [str(one) for one in sorted(found.versions)],
        "platform": found.platform,
        "inputs": _tensors(signature.inputs),
        "outputs": _tensors(signature.outputs),
    }


def model_config(engine: Engine, model: str, version: int | None) -> dict[str, Any]:
    """``ModelConfig``: what of Triton's configuration has a meaning here."""
    found = engine.describe(model, version)
    config = engine.config(model)
    signature = default_signature(found)
    batching = config.batching if signature.batched else None
    answer = {
        "name": model,
        "platform": found.platform,
        "version_policy": _policy(config.versions),
        "max_batch_size": 0 if batching is None else batching.max_batch,
        "input": _config_tensors(signature.inputs, batching is not None),
        "output": _config_tensors(signature.outputs, batching is not None),
    }
    if config.cache is not None:
        answer["response_cache"] = {"enable": True}
    if batching is not None:
        answer["dynamic_batching"] = {"max_queue_delay_microseconds": round(batching.delay * 1e6)}
    return answer


def default_signature(found: Description) -> Signature:
    """The signature that inference uses.

    Raises:
        RequestError: UNIMPLEMENTED: the model has none of that name.
    """
    signature = found.signatures.get(DEFAULT_SIGNATURE)
    if signature is None:
        raise RequestError(
            Code.UNIMPLEMENTED,
            f"Model {found.model} has no signature {DEFAULT_SIGNATURE}: this protocol knows no other.",
        )
    return signature


def index(
    engine: Engine, ready: bool, sees: Callable[[str], bool] = lambda model: True
) -> list[dict[str, str]]:
    """``RepositoryIndexResponse.models``: every version of every model.

    Args:
        engine: has them.
        ready: only those that answer.
        sees: whether the client may hear of a model.
    """
    found: list[dict[str, str]] = []
    for model in filter(sees, engine.names()):
        try:
            versions = engine.status(model)
        except RequestError:  # it has just gone
            continue
        found += (
            {
                "name": model,
                "version": str(one.version),
                "state": _STATES[one.state],
                "reason": one.message,
            }
            for one in versions
            if not ready or one.state is State.AVAILABLE
        )
        if not versions and not ready:
            reason = _why_none(engine, model)
            found.append({"name": model, "version": "", "state": "UNAVAILABLE", "reason": reason})
    return found


def _why_none(engine: Engine, model: str) -> str:
    """Why a model has no version."""
    try:
        engine.signatures(model)
    except RequestError as error:
        return error.message
    return ""


def refuse_parameters(parameters: Mapping[str, Any]) -> None:
    """Clients load what is configured, and bring no configuration or files of their own.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise RequestError(
                Code.INVALID_ARGUMENT, "A model is loaded as this server has it configured."
            )


def _tensors(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "datatype": datatype_of(one.dtype), "shape": _shape(one)}
        for one in specs.values()
    ]


def _config_tensors(specs: Mapping[str, TensorSpec], batched: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "data_type": f"TYPE_{'STRING' if one.dtype == BYTES else datatype_of(one.dtype)}",
            "dims": _shape(one)[1 if batched else 0 :],
        }
        for one in specs.values()
    ]


def _shape(spec: TensorSpec) -> list[int]:
    # The protocol has no word for an unknown rank.
    return [-1] if spec.shape is None else list(spec.shape)


def _policy(policy: VersionPolicy) -> dict[str, Any]:
    if policy.all:
        return {"all": {}}
    if policy.specific:
        return {"specific": {"versions": list(policy.specific)}}
    return {"latest": {"num_versions": policy.latest}}
