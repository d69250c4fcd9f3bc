"""Inference over REST: from a body to a call, and from an answer to a body."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from strongroom.serving.call import Answer, Call
from strongroom.serving.exchange import HttpRequest, HttpResponse
from strongroom.serving.states import Description
from strongroom.serving.tensors import DTYPES
from strongroom.serving.v2 import binary, json_tensors
from strongroom.serving.v2.classification import classify, count_of
from strongroom.serving.v2.datatypes import MAX_NAME, dtype_of, invalid, name_of, tensor_name
from strongroom.serving.v2.description import default_signature

__all__ = ["HEADER_LENGTH", "Wish", "deadline", "read", "read_object", "read_raw", "write"]

HEADER_LENGTH: Final = b"inference-header-content-length"


@dataclass(slots=True)
class Wish:
    """How a client wants its answer.

    Attributes:
        id: to be said again.
        binary: all outputs that say nothing else.
        forms: output → whether it is binary, and its number of classes.
    """

    id: str = ""
    binary: bool = False
    forms: dict[str, tuple[bool, int]] = field(default_factory=dict)


def read(request: HttpRequest, model: str, version: int | None) -> tuple[Call, Wish]:
    """The call in a request.

    Raises:
        RequestError: INVALID_ARGUMENT: the request is at fault.
    """
    body = request.body
    length = request.headers.get(HEADER_LENGTH)
    tail: memoryview | None = None
    if length is None:
        document = read_object(body)
    else:
        if not (length.isdigit() and len(length) <= 18) or int(length) > len(body):
            raise invalid("Inference-Header-Content-Length is no length within the body.")
        whole = memoryview(body)
        document = read_object(whole[: int(length)])
        tail = whole[int(length) :]
    wish = Wish()
    call = Call(model, _inputs(document, tail), version, client=request.client)
    if "id" in document:
        wish.id = document["id"]
        if type(wish.id) is not str:
            raise invalid("The id is no string.")
    if "parameters" in document:
        parameters = _parameters(document)
        wish.binary = _flag(parameters, "binary_data_output", False)
        if "timeout" in parameters:
            call.deadline = deadline(parameters["timeout"])
    if "outputs" in document:
        call.outputs = _outputs(document["outputs"], wish)
    return call, wish


def read_raw(request: HttpRequest, model: Description, version: int | None) -> tuple[Call, Wish]:
    """The call in a request whose body is the only input, without a word of JSON.

    One example, where the model is batched; one other dimension may be of any size. An input of BYTES has
    one element, the body.

    Raises:
        RequestError: INVALID_ARGUMENT: the model has another signature, or the body another size.
    """
    signature = default_signature(model)
    if len(signature.inputs) != 1:
        raise invalid("A body without a header is for models of one input.")
    (spec,) = signature.inputs.values()
    dtype = DTYPES[spec.dtype]
    shape = list(spec.shape or ())
    if signature.batched:
        shape[0] = 1
    if spec.shape is None or shape.count(-1) > 1:
        raise invalid(f"Input {spec.name} needs a shape, and so a header.")
    # One element of text says nothing of a size; otherwise a wrong one is found below.
    known = math.prod(size for size in shape if size != -1) * dtype.itemsize
    free = 1 if dtype.hasobject or not known else len(request.body) // known
    shape = [free if size == -1 else size for size in shape]
    if dtype.hasobject:
        text = [bytes(request.body)]
        if math.prod(shape) != 1:
            raise invalid(f"Input {spec.name} has more elements than one, and needs a header.")
        array = np.array(text, object).reshape(shape)
    else:
        array = binary.decode(spec.name, dtype, shape, memoryview(request.body))
    call = Call(model.model, {spec.name: array}, version, client=request.client)
    return call, Wish(binary=True)


def read_object(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        RequestError: INVALID_ARGUMENT: there is none.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = " JSON has no NaN and no infinity: send them as binary data." if _infinite(body) else ""
        raise invalid(f"The body is not JSON: {error}.{hint}") from None
    if type(document) is not dict:
        raise invalid("The body is no JSON object.")
    return document


def deadline(timeout: object) -> float | None:
    """The moment that the parameter ``timeout``, in µs, means; 0 means none.

    Raises:
        RequestError: INVALID_ARGUMENT: it is no such number.
    """
    if type(timeout) is not int or not 0 <= timeout < 2**64:
        raise invalid("The parameter timeout is a number of microseconds.")
    return time.monotonic() + timeout / 1e6 if timeout else None


def write(answer: Answer, wish: Wish) -> HttpResponse:
    """The body of an answer.

    Raises:
        RequestError: an output cannot be written as it was asked for.
    """
    document: dict[str, Any] = {"model_name": answer.model, "model_version": str(answer.version)}
    if wish.id:
        document["id"] = wish.id
    outputs: list[dict[str, Any]] = []
    pieces: list[bytes | memoryview] = []
    for name, array in answer.outputs.items():
        as_binary, classes = wish.forms.get(name, (wish.binary, 0))
        if classes:
            array = classify(name, array, classes, answer.spec.batched)
        one = {"name": name, "datatype": name_of(name, array.dtype), "shape": array.shape}
        if as_binary:
            piece = binary.encode(array)
            one["parameters"] = {"binary_data_size": len(piece)}
            pieces.append(piece)
        else:
            one["data"] = json_tensors.encode(name, array)
        outputs.append(one)
    document["outputs"] = outputs
    text = json_tensors.dump(document)
    model = (answer.model, answer.version)
    if not wish.binary and not pieces:
        return HttpResponse(200, text, model=model)
    headers = (
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, b"%d" % len(text)),
    )
    return HttpResponse(200, (text, *pieces), headers, model)


def _inputs(document: dict[str, Any], tail: memoryview | None) -> dict[str, np.ndarray[Any, Any]]:
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    at = 0
    for one in _list(document.get("inputs"), "inputs"):
        name: Any = one.get("name")
        if type(name) is not str or len(name) > MAX_NAME:
            tensor_name(name)  # says so
        if name in inputs:
            raise invalid(f"Input {name} is there twice.")
        dtype = dtype_of(name, one.get("datatype"))
        shape = one.get("shape")
        if type(shape) is not list:
            raise invalid(f"Input {name} has no shape.")
        size = _binary_size(one) if "parameters" in one else None
        if size is None:
            inputs[name] = json_tensors.decode(name, dtype, shape, one.get("data"))
            continue
        if tail is None or not 0 <= size <= len(tail) - at:
            raise invalid(f"Input {name} has a binary_data_size beyond the end of the body.")
        if "data" in one:
            raise invalid(f"Input {name} has both data and binary data.")
        inputs[name] = binary.decode(name, dtype, shape, tail[at : at + size])
        at += size
    if tail is not None and at != len(tail):
        raise invalid(f"The body has {len(tail) - at} bytes of data that are no input's.")
    return inputs


def _binary_size(one: dict[str, Any]) -> int | None:
    parameters = _parameters(one)
    if "shared_memory_region" in parameters:
        raise invalid("This server shares no memory with its clients.")
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    return size if type(size) is int else -1


def _outputs(outputs: object, wish: Wish) -> list[str]:
    for one in _list(outputs, "outputs"):
        name = tensor_name(one.get("name"))
        if name in wish.forms:
            raise invalid(f"Output {name} is asked for twice.")
        parameters = _parameters(one) if "parameters" in one else {}
        if "shared_memory_region" in parameters:
            raise invalid("This server shares no memory with its clients.")
        wish.forms[name] = (
            _flag(parameters, "binary_data", wish.binary),
            count_of(parameters.get("classification", 0)),
        )
    return list(wish.forms)


def _list(value: object, what: str) -> list[dict[str, Any]]:
    if type(value) is list:
        for one in value:
            if type(one) is not dict:
                break
        else:
            return value
    raise invalid(f"The request has no list of {what}.")


def _parameters(one: dict[str, Any]) -> dict[str, Any]:
    value = one["parameters"]
    if type(value) is not dict:
        raise invalid("The parameters are no JSON object.")
    return value


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise invalid(f"The parameter {name} is true or false.")
    return value


def _infinite(body: bytes | bytearray | memoryview) -> bool:
    data = bytes(body)
    return b"NaN" in data or b"Infinity" in data
