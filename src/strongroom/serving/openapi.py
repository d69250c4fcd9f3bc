"""What the port of HTTP answers, as an OpenAPI document."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib.metadata import version as release
from typing import Any, Final

import orjson

from strongroom.serving.v2.datatypes import DATATYPES, MAX_DIMENSION, MAX_NAME, MAX_RANK

__all__ = ["document"]

Schema = dict[str, Any]

_FAILURES: Final = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504)
_VERSION: Final = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_TEXT: Final = {"type": "string"}
_ANY: Final[Schema] = {}
_BINARY: Final = "application/octet-stream"


@cache
def document() -> bytes:
    """JSON, the same for every server."""
    paths = {**_open_inference(), **_tensorflow_serving(), **_own()}
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "strongroom serve",
                "version": release("strongroom"),
                "description": "The Open Inference Protocol and the API of TensorFlow Serving.",
            },
            "paths": paths,
            "components": {
                "schemas": _schemas(),
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{}, {"token": []}],
        }
    )


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> Schema:
    found: Schema = {"type": "object", "properties": properties}
    return {**found, "required": list(required)} if required else found


def _list(items: Any, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, schema: Any, place: str = "path") -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _operation(
    summary: str,
    content: Schema | None,
    *parameters: Schema,
    body: Schema | None = None,
    required: bool = True,
    failures: tuple[int, ...] = _FAILURES,
) -> Schema:
    responses: Schema = {"200": {"description": summary}}
    if content is not None:
        responses["200"]["content"] = content
    for status in failures:
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": _json(_ref("Error")),
        }
    found: Schema = {"summary": summary, "responses": responses}
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        found["requestBody"] = {"required": required, "content": body}
    return found


def _open_inference() -> Schema:
    found: Schema = {
        "/v2": {"get": _operation("The server.", _json(_ref("Server")))},
        "/v2/health/live": {
            "get": _operation("It runs.", _json(_object(("live",), live={"const": True})))
        },
        "/v2/health/ready": {"get": _operation("Every model answers.", _json(_ref("Ready")))},
        "/v2/models/stats": {"get": _operation("Numbers of all models.", _json(_ref("Statistics")))},
        "/v2/repository/index": {
            "post": _operation(
                "Every version of every model.",
                _json(_list(_ref("IndexEntry"))),
                body=_json(_object(ready={"type": "boolean"})),
                required=False,
            )
        },
    }
    # The one failure that is not in the form of the others.
    found["/v2/health/ready"]["get"]["responses"]["503"]["content"] = _json(_ref("Ready"))
    model = _parameter("model", _TEXT)
    for what in ("load", "unload"):
        found[f"/v2/repository/models/{{model}}/{what}"] = {
            "post": _operation(
                f"To {what} a model, for administrators.",
                None,
                model,
                body=_json(_object(parameters={"type": "object"})),
                required=False,
            )
        }
    for path, parameters in (
        ("/v2/models/{model}", (model,)),
        ("/v2/models/{model}/versions/{version}", (model, _parameter("version", _VERSION))),
    ):
        for tail, summary, name in (
            ("", "Inputs and outputs.", "Model"),
            ("/ready", "It answers.", "ModelReady"),
            ("/config", "Triton's configuration.", "ModelConfig"),
            ("/stats", "Numbers.", "Statistics"),
        ):
            found[path + tail] = {"get": _operation(summary, _json(_ref(name)), *parameters)}
        length = _parameter("Inference-Header-Content-Length", _VERSION, "header")
        found[path + "/infer"] = {
            "post": _operation(
                "Inference.",
                {**_json(_ref("InferenceAnswer")), _BINARY: {}},
                *parameters,
                length,
                body={**_json(_ref("Inference")), _BINARY: {}},
            )
        }
    return found


def _tensorflow_serving() -> Schema:
    found: Schema = {}
    model = _parameter("model", {"type": "string", "pattern": "^[^/:]+$"})
    for path, parameters in (
        ("/v1/models/{model}", (model,)),
        ("/v1/models/{model}/versions/{version}", (model, _parameter("version", _VERSION))),
        ("/v1/models/{model}/labels/{label}", (model, _parameter("label", _TEXT))),
    ):
        found[path] = {"get": _operation("States of versions.", _json(_ref("Status")), *parameters)}
        found[path + "/metadata"] = {
            "get": _operation("Signatures.", _json(_ref("Metadata")), *parameters)
        }
        for method, body, answer in (
            ("predict", "Predict", "Predictions"),
            ("classify", "Examples", "Results"),
            ("regress", "Examples", "Results"),
        ):
            summary = f"To {method}."
            found[f"{path}:{method}"] = {
                "post": _operation(summary, _json(_ref(answer)), *parameters, body=_json(_ref(body)))
            }
    return found


def _own() -> Schema:
    def text(summary: str, *failures: int) -> Schema:
        plain = {"text/plain": {"schema": _TEXT}}
        made = _operation(summary, plain, failures=(400, 405))
        for one in failures:
            made["responses"][str(one)] = {"description": HTTPStatus(one).phrase, "content": plain}
        return {"get": made}

    return {
        "/healthz": text("It runs."),
        "/readyz": text("Every model answers.", 503),
        "/metrics": text("Numbers for Prometheus."),
        "/openapi.json": {
            "get": _operation("This document.", _json({"type": "object"}), failures=(400, 405))
        },
    }


def _schemas() -> dict[str, Schema]:
    name = {"type": "string", "maxLength": MAX_NAME}
    size = {"type": "integer", "minimum": 0, "maximum": MAX_DIMENSION}
    shape = _list(size, maxItems=MAX_RANK)
    datatype = {"type": "string", "enum": list(DATATYPES)}
    parameters = {"type": "object"}
    described = _object(
        ("name", "datatype", "shape"), name=_TEXT, datatype=_TEXT, shape=_list({"type": "integer"})
    )
    answered = _object(
        ("name", "datatype", "shape"), name=_TEXT, datatype=datatype, shape=shape, data=_list(_ANY)
    )
    return {
        "Error": _object(("error",), error=_TEXT),
        "Server": _object(
            ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
        ),
        "Ready": _object(("ready",), ready={"type": "boolean"}),
        "ModelReady": _object(("name", "ready"), name=_TEXT, ready={"const": True}),
        "Model": _object(
            ("name", "versions", "platform", "inputs", "outputs"),
            name=_TEXT,
            versions=_list(_TEXT),
            platform=_TEXT,
            inputs=_list(described),
            outputs=_list(described),
        ),
        "ModelConfig": _object(
            ("name", "platform", "max_batch_size"),
            name=_TEXT,
            platform=_TEXT,
            max_batch_size={"type": "integer"},
        ),
        "Statistics": _object(("model_stats",), model_stats=_list({"type": "object"})),
        "IndexEntry": _object(
            ("name", "version", "state", "reason"), name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT
        ),
        "Inference": _object(
            ("inputs",),
            id=_TEXT,
            parameters=parameters,
            inputs=_list(
                _object(
                    ("name", "datatype", "shape"),
                    name=name,
                    datatype=datatype,
                    shape=shape,
                    parameters=parameters,
                    data={"type": "array"},
                )
            ),
            outputs=_list(_object(("name",), name=name, parameters=parameters)),
        ),
        "InferenceAnswer": _object(
            ("model_name", "model_version", "outputs"),
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            outputs=_list(answered),
        ),
        "Status": _object(("model_version_status",), model_version_status=_list({"type": "object"})),
        "Metadata": _object(
            ("model_spec", "metadata"), model_spec={"type": "object"}, metadata={"type": "object"}
        ),
        "Predict": {
            **_object(signature_name=_TEXT, instances={"type": "array", "minItems": 1}, inputs=_ANY),
            "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        },
        "Predictions": {
            **_object(predictions=_list(_ANY), outputs=_ANY),
            "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
        },
        "Examples": _object(
            ("examples",),
            signature_name=_TEXT,
            examples=_list({"type": "object"}, minItems=1),
            context={"type": "object"},
        ),
        "Results": _object(("results",), results=_list(_ANY)),
    }
