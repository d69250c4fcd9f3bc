"""The API over HTTP: ``/v1/models/…``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from math import isfinite
from typing import Any, Final

import numpy as np
import orjson
from google.protobuf import json_format  # type: ignore[import-untyped]

from strongroom.serving.call import Answer, Call, Client
from strongroom.serving.decoding import Decoding
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import Answering, HttpApi, HttpRequest, HttpResponse
from strongroom.serving.messages import message
from strongroom.serving.status import HTTP_STATUS, RequestError
from strongroom.serving.tensors import Signature
from strongroom.serving.tfs.examples import examples_of
from strongroom.serving.tfs.inference import classifications, prepare, regressions, signature_of
from strongroom.serving.tfs.json_tensors import (
    answer,
    dumps,
    invalid,
    is_b64,
    parse,
    to_array,
    to_bytes,
    to_json,
    to_predictions,
)
from strongroom.serving.tfs.metadata import signature_map, status_response

__all__ = ["TfsRest", "predict"]

_PATH: Final = re.compile(
    r"/v1/models/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>[0-9]{1,19})|/labels/(?P<label>[^/:]+))?"
    r"(?:(?P<metadata>/metadata)|:(?P<method>classify|regress|predict))?"
)
_LONGEST: Final = 1024
"""Letters of a path; those that were read are kept."""

_SHORT: Final = 4096
"""Bytes of a body in which there are too few lists for the garbage collector to mind."""

_LARGEST: Final = 2**63 - 1
_LARGEST_FLOAT: Final = float(np.finfo(np.float32).max)

Where = tuple[str, int | None, str | None]
"""Model, version, label."""


class TfsRest(HttpApi):
    """The endpoints."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._decoding = Decoding()

    def answer(self, request: HttpRequest) -> Answering:
        """Answer a request to a path below ``/v1/``."""
        found = _parse_path(request.path) if len(request.path) <= _LONGEST else None
        if found is not None:
            where, metadata, method = found
            if request.method == "POST" and method == "predict":
                return self._predict(where, request)
            if request.method == "POST" and method:
                return self._examples(where, method, request)
            if request.method in ("GET", "HEAD") and not method:
                return self._metadata(where) if metadata else self._status(where)
        raise invalid(f"Malformed request: {request.method} {request.path[:200]}")

    def failure(self, error: RequestError) -> HttpResponse:
        """``{"error": "…"}``."""
        return HttpResponse(int(HTTP_STATUS[error.code]), orjson.dumps({"error": error.message}))

    def _predict(self, where: Where, request: HttpRequest) -> Answering:
        if len(request.body) >= _SHORT:
            return self._predict_large(where, request)
        call, in_rows = self._prepared(where, request)
        said = self._engine.infer_here(call)
        return self._predict_later(call, in_rows) if said is None else _predictions(said, in_rows)

    async def _predict_large(self, where: Where, request: HttpRequest) -> HttpResponse:
        call, in_rows = await self._decoding.run(len(request.body), self._prepared, where, request)
        return await self._predict_later(call, in_rows)

    async def _predict_later(self, call: Call, in_rows: bool) -> HttpResponse:
        return _predictions(await self._engine.infer_async(call), in_rows)

    def _prepared(self, where: Where, request: HttpRequest) -> tuple[Call, bool]:
        return _prepared(self._engine, where, parse(request.body), request.client)

    async def _examples(self, where: Where, method: str, request: HttpRequest) -> HttpResponse:
        call, examples = await self._decoding.run(len(request.body), _examples, where, request)
        said = await self._engine.infer_async(prepare(self._engine, call, method, examples))
        found: Any
        if method == "classify":
            found = [
                [
                    (label, score if isfinite(score) else to_json("scores", score))
                    for label, score in row
                ]
                for row in classifications(said, len(examples))
            ]
        else:
            found = to_json("outputs", regressions(said, len(examples)))
        return HttpResponse(200, dumps({"results": found}), model=(said.model, said.version))

    def _status(self, where: Where) -> HttpResponse:
        return HttpResponse(200, orjson.dumps(_message(status_response(self._engine, *where))))

    def _metadata(self, where: Where) -> HttpResponse:
        description = self._engine.describe(*where)
        found = {
            "model_spec": {
                "name": description.model,
                "signature_name": "",
                "version": str(description.version),
            },
            "metadata": {"signature_def": _message(signature_map(description))},
        }
        return HttpResponse(200, orjson.dumps(found), model=(description.model, description.version))


def _predictions(said: Answer, in_rows: bool) -> HttpResponse:
    return HttpResponse(200, answer(said.outputs, in_rows), model=(said.model, said.version))


async def predict(
    engine: Engine, where: Where, body: Mapping[str, Any], client: Client
) -> tuple[dict[str, Any], Answer]:
    """What ``:predict`` answers to a body, for :func:`.json_tensors.dumps`; and what the engine said.

    Raises:
        RequestError: with the code for the client.
    """
    call, in_rows = _prepared(engine, where, body, client)
    said = await engine.infer_async(call)
    return to_predictions(said.outputs, in_rows), said


def _prepared(
    engine: Engine, where: Where, body: Mapping[str, Any], client: Client
) -> tuple[Call, bool]:
    """The call, and whether it is in rows. Nothing of the body is kept."""
    call = _call(where, body, client)
    signature = signature_of(engine, call)
    in_rows = "instances" in body
    if in_rows == ("inputs" in body):
        raise invalid('The body has either "instances" or "inputs".')
    if in_rows:
        call.inputs = _from_rows(body["instances"], signature)
    else:
        call.inputs = _from_columns(body["inputs"], signature)
    return call, in_rows


@lru_cache(1024)
def _parse_path(path: str) -> tuple[Where, bool, str] | None:
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    version = None
    if found["version"]:
        version = int(found["version"])
        if version > _LARGEST:
            return None
    where = (found["model"], version, found["label"])
    return where, bool(found["metadata"]), found["method"] or ""


def _call(where: Where, body: Mapping[str, Any], client: Client) -> Call:
    signature = body.get("signature_name", "")
    if type(signature) is not str:
        raise invalid("signature_name is no string.")
    model, version, label = where
    return Call(model, {}, version, label, signature=signature or None, client=client, api="tfs")


def _from_rows(instances: Any, signature: Signature) -> dict[str, np.ndarray[Any, Any]]:
    specs = signature.inputs
    if type(instances) is not list or not instances:
        raise invalid("instances is a list of one at least.")
    if not _named(instances[0]):
        name = _only(signature, "instances")
        return {name: to_array(specs[name], instances)}
    names = _chosen(signature, instances[0], "Instance 0")
    for index, one in enumerate(instances):
        if type(one) is not dict or one.keys() != instances[0].keys():
            raise invalid(f"Instance {index} is no object of the inputs {', '.join(sorted(names))}.")
    return {name: to_array(specs[name], [one[name] for one in instances]) for name in names}


def _from_columns(inputs: Any, signature: Signature) -> dict[str, np.ndarray[Any, Any]]:
    specs = signature.inputs
    if not _named(inputs):
        name = _only(signature, "inputs")
        return {name: to_array(specs[name], inputs)}
    return {name: to_array(specs[name], inputs[name]) for name in _chosen(signature, inputs, "inputs")}


def _named(value: Any) -> bool:
    return type(value) is dict and not is_b64(value)


def _only(signature: Signature, where: str) -> str:
    """The input that needs no name."""
    names = [name for name in signature.inputs if name not in signature.defaults]
    if len(names) != 1:
        known = ", ".join(sorted(signature.inputs))
        raise invalid(f"The model has the inputs {known}: {where} has to name them.")
    return names[0]


def _chosen(signature: Signature, given: Mapping[str, Any], where: str) -> Collection[str]:
    """The inputs that an object gives: all, or all but some that have a value without it."""
    names = signature.inputs.keys()
    if given.keys() == names:
        return names
    if given.keys() <= names and names - given.keys() <= signature.defaults.keys():
        return [name for name in names if name in given]
    raise invalid(f"{where} is no object of the inputs {', '.join(sorted(names))}.")


def _examples(where: Where, request: HttpRequest) -> tuple[Call, list[Any]]:
    body = parse(request.body)
    return _call(where, body, request.client), examples_of(_input(body))


def _input(body: Mapping[str, Any]) -> Any:
    """The examples of a body, as an ``Input``."""
    examples = body.get("examples")
    if type(examples) is not list or not examples:
        raise invalid("examples is a list of one at least.")
    found = message("tensorflow.serving.Input")()
    if "context" in body:
        listed = found.example_list_with_context
        _fill_example(listed.context, "The context", body["context"])
    else:
        listed = found.example_list
    for index, one in enumerate(examples):
        _fill_example(listed.examples.add(), f"Example {index}", one)
    return found


def _fill_example(example: Any, where: str, value: Any) -> None:
    if type(value) is not dict:
        raise invalid(f"{where} is no object of features.")
    for name, content in value.items():
        feature = example.features.feature[name]
        for one in content if type(content) is list else (content,):
            _add(feature, f"{where} has a feature {name[:80]}", one)


def _add(feature: Any, where: str, value: Any) -> None:
    """One value; all of a feature are of one kind."""
    kind: str
    if type(value) in (str, dict):
        kind, value = "bytes_list", to_bytes(where, value)
    elif type(value) is float:
        kind = "float_list"
        if isfinite(value) and abs(value) > _LARGEST_FLOAT:
            raise invalid(f"{where} with a number outside the range of float32.")
    elif type(value) in (int, bool):
        kind, value = "int64_list", int(value)
        if not -_LARGEST - 1 <= value <= _LARGEST:
            raise invalid(f"{where} with a number outside the range of int64.")
    else:
        raise invalid(f"{where} that is no list of strings or numbers.")
    if feature.WhichOneof("kind") not in (None, kind):
        raise invalid(f"{where} with values of two kinds.")
    getattr(feature, kind).value.append(value)


def _message(value: Any) -> Any:
    return json_format.MessageToDict(
        value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
