"""What is asked of a server: the inputs of a model, and inferences."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import quote

import numpy as np
import orjson

from strongroom.errors import ServerUnavailable, UsageError
from strongroom.loadtest.connection import Ask, Connection
from strongroom.serving.messages import message
from strongroom.serving.tensors import BYTES, DTYPES, TensorSpec, dtype_name
from strongroom.serving.tfs.tensor_proto import NUMBERS, fill
from strongroom.serving.v2.binary import encode
from strongroom.serving.v2.datatypes import DATATYPES, datatype_of

__all__ = ["Arrays", "ModelApi", "protocol"]

Arrays = Mapping[str, np.ndarray[Any, Any]]

_V2_NAMES: Final = {datatype_of(name): name for name in DTYPES if datatype_of(name) in DATATYPES}
_TF_NAMES: Final = {number: name for name, number in NUMBERS.items()}
_JSON: Final = ("content-type", "application/json")


class ModelApi(Protocol):
    """A model, over one protocol and transport."""

    async def inputs(self, connection: Connection) -> list[TensorSpec]:
        """What the model takes.

        Raises:
            Failed: the server does not say it.
        """

    def infer(self, arrays: Arrays) -> Ask:
        """An inference."""


def protocol(
    api: str, *, grpc: bool, model: str, version: int | None, signature: str, binary: bool
) -> ModelApi:
    """The model of that name.

    Args:
        api: ``v2`` or ``tfs``.
        grpc: or REST.
        model: its name.
        version: or the server's choice.
        signature: for ``tfs``.
        binary: tensors of v2 REST as bytes, and not as JSON.
    """
    if api == "v2":
        return _V2Grpc(model, version) if grpc else _V2Rest(model, version, binary)
    kind = _TfsGrpc if grpc else _TfsRest
    return kind(model, version, signature)


def _spec(name: str, dtype: str | None, shape: Any) -> TensorSpec:
    if dtype is None:
        raise UsageError(f"Input {name} has a datatype that this program does not know.")
    return TensorSpec(name, dtype, None if shape is None else tuple(int(size) for size in shape))


def _unreadable(error: Exception) -> ServerUnavailable:
    return ServerUnavailable(
        f"What the server says of the model cannot be read ({type(error).__name__})."
    )


class _V2Rest:
    def __init__(self, model: str, version: int | None, binary: bool) -> None:
        self._path = f"/v2/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        self._binary = binary

    async def inputs(self, connection: Connection) -> list[TensorSpec]:
        answer = await connection.ask(Ask(self._path))
        try:
            return [
                _spec(one["name"], _V2_NAMES.get(one["datatype"]), one["shape"])
                for one in orjson.loads(answer)["inputs"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(error) from None

    def infer(self, arrays: Arrays) -> Ask:
        path = self._path + "/infer"
        inputs: list[dict[str, Any]] = []
        parts: list[bytes | memoryview] = []
        for name, array in arrays.items():
            one: dict[str, Any] = {
                "name": name,
                "datatype": datatype_of(dtype_name(array.dtype)),
                "shape": array.shape,
            }
            if self._binary:
                parts.append(encode(array))
                one["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                one["data"] = _json(array.ravel(), text=True)
            inputs.append(one)
        if not self._binary:
            return Ask(path, orjson.dumps({"inputs": inputs}), (_JSON,))
        head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
        headers = (
            ("content-type", "application/octet-stream"),
            ("inference-header-content-length", str(len(head))),
        )
        return Ask(path, b"".join((head, *parts)), headers)


class _TfsRest:
    def __init__(self, model: str, version: int | None, signature: str) -> None:
        self._path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        self._signature = signature

    async def inputs(self, connection: Connection) -> list[TensorSpec]:
        answer = await connection.ask(Ask(self._path + "/metadata"))
        types = message("tensorflow.TensorProto").DESCRIPTOR.fields_by_name["dtype"].enum_type
        try:
            signatures = orjson.loads(answer)["metadata"]["signature_def"]["signature_def"]
            found = []
            for name, info in _of(signatures, self._signature)["inputs"].items():
                shape = info["tensor_shape"]
                sizes = [one["size"] for one in shape.get("dim", ())]
                number = types.values_by_name[info["dtype"]].number
                unknown = shape.get("unknown_rank", False)
                found.append(_spec(name, _TF_NAMES.get(number), None if unknown else sizes))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(error) from None
        return found

    def infer(self, arrays: Arrays) -> Ask:
        body = {
            "signature_name": self._signature,
            "inputs": {name: _json(array, text=False) for name, array in arrays.items()},
        }
        return Ask(self._path + ":predict", orjson.dumps(body), (_JSON,))


class _V2Grpc:
    def __init__(self, model: str, version: int | None) -> None:
        self._model, self._version = model, "" if version is None else str(version)

    async def inputs(self, connection: Connection) -> list[TensorSpec]:
        asked = message("inference.ModelMetadataRequest")(name=self._model, version=self._version)
        answer = await connection.ask(_call("inference.GRPCInferenceService/ModelMetadata", asked))
        said = _read("inference.ModelMetadataResponse", answer)
        return [_spec(one.name, _V2_NAMES.get(one.datatype), one.shape) for one in said.inputs]

    def infer(self, arrays: Arrays) -> Ask:
        asked = message("inference.ModelInferRequest")(
            model_name=self._model, model_version=self._version
        )
        for name, array in arrays.items():
            datatype = datatype_of(dtype_name(array.dtype))
            asked.inputs.add(name=name, datatype=datatype, shape=array.shape)
            asked.raw_input_contents.append(bytes(encode(array)))
        return _call("inference.GRPCInferenceService/ModelInfer", asked)


class _TfsGrpc:
    def __init__(self, model: str, version: int | None, signature: str) -> None:
        self._spec = message("tensorflow.serving.ModelSpec")(name=model)
        if version is not None:
            self._spec.version.value = version
        self._signature = signature

    async def inputs(self, connection: Connection) -> list[TensorSpec]:
        asked = message("tensorflow.serving.GetModelMetadataRequest")(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        service = "tensorflow.serving.PredictionService"
        answer = await connection.ask(_call(f"{service}/GetModelMetadata", asked))
        said = _read("tensorflow.serving.GetModelMetadataResponse", answer)
        signatures = _read(
            "tensorflow.serving.SignatureDefMap", said.metadata["signature_def"].value
        ).signature_def
        return [
            _spec(
                name,
                _TF_NAMES.get(info.dtype),
                None if info.tensor_shape.unknown_rank else [one.size for one in info.tensor_shape.dim],
            )
            for name, info in _of(signatures, self._signature).inputs.items()
        ]

    def infer(self, arrays: Arrays) -> Ask:
        asked = message("tensorflow.serving.PredictRequest")(model_spec=self._spec)
        asked.model_spec.signature_name = self._signature
        for name, array in arrays.items():
            fill(asked.inputs[name], array)
        return _call("tensorflow.serving.PredictionService/Predict", asked)


def _of(signatures: Any, name: str) -> Any:
    if name not in signatures:
        raise UsageError(
            f"The model has no signature {name}.", hint=f"It has: {', '.join(signatures)}."
        )
    return signatures[name]


def _call(method: str, asked: Any) -> Ask:
    return Ask("/" + method, asked.SerializeToString())


def _read(name: str, data: bytes) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return message(name).FromString(data)
    except DecodeError as error:
        raise _unreadable(error) from None


def _json(array: np.ndarray[Any, Any], *, text: bool) -> Any:
    """Nested lists. Bytes are text in v2, and in base64 in TensorFlow Serving."""
    if array.dtype == DTYPES[BYTES]:
        return _strings(array.tolist(), text)
    if array.dtype.kind == "V" or array.dtype == np.float16:  # bfloat16 too
        array = array.astype(np.float32)
    if array.dtype.kind == "c":
        raise UsageError("JSON carries no complex numbers.", hint="Use gRPC.")
    return array.tolist()


def _strings(value: Any, text: bool) -> Any:
    if isinstance(value, list):
        return [_strings(one, text) for one in value]
    if not text:
        return {"b64": base64.b64encode(value).decode()}
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UsageError("JSON of v2 carries only bytes that are UTF-8.") from None
