"""The protocol over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from strongroom.errors import StrongroomError
from strongroom.serving.call import Answer, Call, Client
from strongroom.serving.engine import Engine
from strongroom.serving.grpc_calls import Context, service
from strongroom.serving.messages import message
from strongroom.serving.status import Code, RequestError
from strongroom.serving.v2 import binary, description
from strongroom.serving.v2.classification import classify, count_of
from strongroom.serving.v2.datatypes import (
    DATATYPES,
    MAX_NAME,
    dtype_of,
    elements,
    invalid,
    name_of,
    reshaped,
    tensor_name,
    version_of,
)
from strongroom.serving.v2.inference import deadline
from strongroom.serving.v2.raw_contents import LARGE, LargeResponse, reader, writer
from strongroom.serving.v2.rest import no_control
from strongroom.serving.v2.statistics import model_statistics

__all__ = ["handlers"]

_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

_WIRE: Final = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}


def handlers(
    engine: Engine,
    *,
    control: bool = False,
    streams: int = 4,
    sees: Callable[[Client, str], bool] = lambda client, model: True,
) -> list[Any]:
    """What a ``grpc.Server`` adds.

    Args:
        engine: answers.
        control: whether clients may load and unload models.
        streams: open ``ModelStreamInfer`` at the same time, each of which takes a thread of the server.
        sees: whether a client may hear of a model that it has not named.
    """
    one = _Service(engine, control, streams, sees)
    methods = {
        "ServerLive": one.server_live,
        "ServerReady": one.server_ready,
        "ModelReady": one.model_ready,
        "ServerMetadata": one.server_metadata,
        "ModelMetadata": one.model_metadata,
        "ModelInfer": one.model_infer,
        "ModelConfig": one.model_config,
        "ModelStatistics": one.model_statistics,
        "RepositoryIndex": one.repository_index,
        "RepositoryModelLoad": one.repository_model_load,
        "RepositoryModelUnload": one.repository_model_unload,
    }
    return [
        service(
            "inference.GRPCInferenceService",
            methods,
            {"ModelStreamInfer": one.model_stream_infer},
            {"ModelInfer": (reader(message("inference.ModelInferRequest")), writer)},
        )
    ]


def _response(name: str) -> type[Any]:
    return message(f"inference.{name}Response")


class _Service:
    def __init__(
        self, engine: Engine, control: bool, streams: int, sees: Callable[[Client, str], bool]
    ) -> None:
        self._engine = engine
        self._sees = sees
        self._control = control
        self._streams = threading.Semaphore(streams)
        self._infer_response = _response("ModelInfer")
        self._stream_response = _response("ModelStreamInfer")

    def server_live(self, request: Any, context: Context) -> Any:
        return _response("ServerLive")(live=True)

    def server_ready(self, request: Any, context: Context) -> Any:
        return _response("ServerReady")(ready=self._engine.ready())

    def model_ready(self, request: Any, context: Context) -> Any:
        version = version_of(request.version)
        try:
            self._engine.describe(request.name, version)
        except RequestError as error:
            if error.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
                raise
            return _response("ModelReady")(ready=False)
        return _response("ModelReady")(ready=True)

    def server_metadata(self, request: Any, context: Context) -> Any:
        return _response("ServerMetadata")(**description.server_metadata())

    def model_metadata(self, request: Any, context: Context) -> Any:
        version = version_of(request.version)
        found = description.model_metadata(self._engine, request.name, version)
        return _response("ModelMetadata")(**found)

    def model_config(self, request: Any, context: Context) -> Any:
        version = version_of(request.version)
        found = description.model_config(self._engine, request.name, version)
        return _response("ModelConfig")(config=found)

    def model_statistics(self, request: Any, context: Context) -> Any:
        version = version_of(request.version)
        sees = partial(self._sees, context.client)
        found = model_statistics(self._engine, request.name or None, version, sees)
        return _response("ModelStatistics")(model_stats=found)

    def repository_index(self, request: Any, context: Context) -> Any:
        sees = partial(self._sees, context.client)
        found = description.index(self._engine, request.ready, sees)
        return _response("RepositoryIndex")(models=found)

    def repository_model_load(self, request: Any, context: Context) -> Any:
        self._controlled(request)
        self._engine.load(request.model_name)
        return _response("RepositoryModelLoad")()

    def repository_model_unload(self, request: Any, context: Context) -> Any:
        self._controlled(request)
        self._engine.unload(request.model_name)
        return _response("RepositoryModelUnload")()

    def _controlled(self, request: Any) -> None:
        if not self._control:
            raise no_control()
        description.refuse_parameters(request.parameters)

    def model_infer(self, request: Any, context: Context) -> Any:
        call = context.watch(Call(request.model_name, {}, client=context.client))
        classes = _read(request, call)
        response, pieces = self._written(self._engine.infer(call), request, classes)
        if sum(map(len, pieces)) >= LARGE:
            return LargeResponse(response, pieces)
        response.raw_output_contents.extend(map(bytes, pieces))
        return response

    def model_stream_infer(self, requests: Iterator[Any], context: Context) -> Iterator[Any]:
        if not self._streams.acquire(blocking=False):
            raise RequestError(Code.RESOURCE_EXHAUSTED, "All streams of this server are taken.")
        try:
            for request in requests:
                yield self._streamed(request, context)
        finally:
            self._streams.release()

    def _streamed(self, request: Any, context: Context) -> Any:
        """One answer; a failure is said within the stream, which goes on."""
        call = Call(
            request.model_name,
            {},
            deadline=context.deadline,
            client=context.client,
            transport="grpc",
        )
        try:
            classes = _read(request, call)
            answer, pieces = self._written(self._engine.infer(call), request, classes)
        except StrongroomError as error:
            failed = self._infer_response(id=request.id)
            return self._stream_response(error_message=error.message, infer_response=failed)
        answer.raw_output_contents.extend(map(bytes, pieces))
        # The word of models with any number of answers: clients wait for it where they ask for it.
        if "triton_enable_empty_final_response" in request.parameters:
            answer.parameters["triton_final_response"].bool_param = True
        return self._stream_response(infer_response=answer)

    def _written(
        self, answer: Answer, request: Any, classes: Mapping[str, int]
    ) -> tuple[Any, list[bytes | memoryview]]:
        """The response without its raw contents, and these."""
        # Field by field: with keywords protobuf takes half as long again.
        response = self._infer_response()
        response.model_name, response.model_version = answer.model, str(answer.version)
        response.id = request.id
        outputs = response.outputs
        pieces: list[bytes | memoryview] = []
        for name, array in answer.outputs.items():
            if classes.get(name):
                array = classify(name, array, classes[name], answer.spec.batched)
            one = outputs.add()
            one.name, one.datatype = name, name_of(name, array.dtype)
            one.shape.extend(array.shape)
            pieces.append(binary.encode(array))
        return response, pieces


def _read(request: Any, call: Call) -> dict[str, int]:
    """Complete the call; the number of classes of each output that is asked for."""
    call.inputs = _inputs(request)
    if request.model_version:
        call.version = version_of(request.model_version)
    if "timeout" in request.parameters:
        limit = deadline(_value(request.parameters["timeout"]))
        if limit is not None and (call.deadline is None or limit < call.deadline):
            call.deadline = limit
    classes: dict[str, int] = {}
    for one in request.outputs:
        name = tensor_name(one.name)
        if name in classes:
            raise invalid(f"Output {name} is asked for twice.")
        classes[name] = 0
        if one.parameters:
            _no_shared_memory(one.parameters)
            if "classification" in one.parameters:
                classes[name] = count_of(_value(one.parameters["classification"]))
    call.outputs = tuple(classes)
    return classes


def _inputs(request: Any) -> dict[str, np.ndarray[Any, Any]]:
    raw: Sequence[bytes | memoryview] = request.raw_input_contents
    count = len(request.inputs)
    if raw and len(raw) != count:
        raise invalid(f"The request has {count} inputs and {len(raw)} raw contents.")
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    for index, one in enumerate(request.inputs):
        name = one.name
        if len(name) > MAX_NAME:
            tensor_name(name)  # says so
        if name in inputs:
            raise invalid(f"Input {name} is there twice.")
        if one.parameters:
            _no_shared_memory(one.parameters)
        dtype = DATATYPES.get(one.datatype) or dtype_of(name, one.datatype)
        if not raw:
            inputs[name] = _contents(name, dtype, one)
        elif one.HasField("contents"):
            raise invalid(f"Input {name} has both contents and raw contents.")
        else:
            inputs[name] = binary.decode(name, dtype, one.shape, raw[index])
    return inputs


def _contents(name: str, dtype: np.dtype[Any], one: Any) -> np.ndarray[Any, Any]:
    field = _CONTENTS.get(one.datatype)
    if field is None:
        raise invalid(f"Input {name} is {one.datatype}, which travels as raw contents only.")
    count = elements(name, one.shape)
    present = [descriptor.name for descriptor, _ in one.contents.ListFields()]
    if present not in ([], [field]):
        raise invalid(f"Input {name} is {one.datatype}, and its contents are {', '.join(present)}.")
    values = getattr(one.contents, field)
    if len(values) != count:
        raise invalid(
            f"Input {name} has {len(values)} elements in its contents; its shape makes {count}."
        )
    wide = np.array(values, _WIRE.get(field, dtype))
    array = wide.astype(dtype, copy=False)
    if array is not wide and (array != wide).any():
        raise invalid(f"Input {name} has a number that is too large for {one.datatype}.")
    return reshaped(name, array, one.shape)


def _no_shared_memory(parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise invalid("This server shares no memory with its clients.")


def _value(parameter: Any) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)
