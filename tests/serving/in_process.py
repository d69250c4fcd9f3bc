"""Both protocols over both transports without a socket, for as many wrong requests as there is time for.

``Callee`` answers bytes as the ports do; :func:`grpc_seeds` and :func:`rest_seeds` are good requests of
every kind, from which wrong ones are made.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np

sys.path += [str(Path(__file__).parent / "tfs"), str(Path(__file__).parent / "v2")]

from tfs_models import SIGNATURES, Everything
from v2_engine import ECHOES, make

from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import HttpRequest
from strongroom.serving.messages import message
from strongroom.serving.servable import Servable
from strongroom.serving.status import Code
from strongroom.serving.tensors import DTYPES
from strongroom.serving.tfs import service as tfs_service
from strongroom.serving.tfs.rest import TfsRest
from strongroom.serving.tfs.tensor_proto import fill
from strongroom.serving.v2 import binary
from strongroom.serving.v2 import service as v2_service
from strongroom.serving.v2.datatypes import datatype_of
from strongroom.serving.v2.rest import V2Rest

V2 = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"
MODELS = "/tensorflow.serving.ModelService/"

FAULTS = {Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS}
"""What no request may make the server say of itself."""


class _Total(Everything):
    def __init__(self):
        self.signatures = {name: one for name, one in SIGNATURES.items() if name != "faulty"}


class _Steady(Engine):
    """Loads, unloads and reconfigures nothing."""

    def load(self, model):
        self.config(model)

    unload = load

    def reconfigure(self, models):
        for one in models:
            assert one.loading().path == one.path


class _Aborted(Exception):
    pass


class _Context:
    """Of one call, as grpcio has it."""

    ended = None

    def abort(self, code, details):
        self.ended = Code(code.value[0]), details
        raise _Aborted

    def code(self):
        return None

    def time_remaining(self):
        return None

    def auth_context(self):
        return {}

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self):
        return ()

    def add_callback(self, callback):
        return True


class Callee:
    """What answers: ``grpc`` takes a method and bytes, ``rest`` a method, path, headers and bytes."""

    def __init__(self, engine) -> None:
        self._apis = {"v1": TfsRest(engine), "v2": V2Rest(engine, control=True)}
        self._handlers = [
            *tfs_service.handlers(engine, reload=True),
            *v2_service.handlers(engine, control=True),
        ]
        self._loop = asyncio.new_event_loop()

    def grpc(self, method, data):
        """Code, and the words or the bytes of the answer."""
        details = SimpleNamespace(method=method, invocation_metadata=())
        handler = next(found for one in self._handlers if (found := one.service(details)) is not None)
        context = _Context()
        request = handler.request_deserializer(data)
        try:
            if handler.unary_unary is not None:
                answer = handler.unary_unary(request, context)
                return None, handler.response_serializer(answer)
            answers = handler.stream_stream(iter([request]), context)
            return None, b"".join(map(handler.response_serializer, answers))
        except _Aborted:
            return context.ended

    def rest(self, method, path, headers, body):
        """Status, headers and body of the answer."""
        api = self._apis[path[1:3]]
        response = self._loop.run_until_complete(api.handle(HttpRequest(method, path, headers, body)))
        whole = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        return response.status, dict(response.headers), whole

    def close(self):
        self._loop.close()

    def check_grpc(self, method, data):
        """Answers in order, or refuses in words for a person."""
        code, found = self.grpc(method, data)
        if code is None:
            return code
        assert code not in FAULTS, (method, data, code, found)
        assert 0 < len(found) < 4000
        return code

    def check_rest(self, method, path, headers, body):
        status, found, content = self.rest(method, path, headers, body)
        assert status in (200, 400, 403, 404, 405, 409, 429), (status, path, body, content)
        if status != 200:
            answer = json.loads(content)
            assert list(answer) == ["error"]
            assert 0 < len(answer["error"]) < 4000
        elif b"inference-header-content-length" in found:
            json.loads(content[: int(found[b"inference-header-content-length"])])
        elif content:
            json.loads(content)
        return status


@contextmanager
def callee(place: Path):
    """A :class:`Callee` with models of every dtype, ready."""
    path = place / "model"
    path.write_bytes(b"1")
    names = ["m", "same", "batched", "two", "text", *ECHOES]

    def load(config, version, location):
        return Servable(config, version, _Total() if config.name == "m" else make(config.name))

    engine = _Steady(
        [
            ModelConfig(one, str(path), batching=Batching(8) if one == "batched" else None)
            for one in names
        ],
        load,
        poll=0,
    )
    engine.start()
    end = time.monotonic() + 60
    while not engine.ready():
        assert time.monotonic() < end
        time.sleep(0.01)
    found = Callee(engine)
    try:
        yield found
    finally:
        found.close()
        engine.close(5)


def _array(dtype):
    if dtype == "bytes":
        return np.array([b"text", b"\xc3\xa9"], object)
    if dtype == "bfloat16":
        return np.array([1, 2], ml_dtypes.bfloat16)
    return np.array([1, 0], dtype)


def grpc_seeds():
    """Good requests: method and bytes, at least one of each method."""
    found = []

    def add(method, kind, /, **fields):
        request = message(kind)(**fields)
        found.append((method, request))
        return request

    for one in ("ServerLive", "ServerReady", "ServerMetadata"):
        add(V2 + one, f"inference.{one}Request")
    for one in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        add(V2 + one, f"inference.{one}Request", name="same", version="1")
    add(V2 + "RepositoryIndex", "inference.RepositoryIndexRequest", ready=True)
    for one in ("Load", "Unload"):
        method = f"RepositoryModel{one}"
        add(V2 + method, f"inference.{method}Request", model_name="same")
    for name, dtype in ECHOES.items():
        if dtype.startswith("complex"):
            continue
        array = _array(dtype)
        for method in ("ModelInfer", "ModelStreamInfer"):
            request = add(
                V2 + method, "inference.ModelInferRequest", model_name=name, id="7", model_version="1"
            )
            request.inputs.add(name="x", datatype=datatype_of(dtype), shape=array.shape)
            request.outputs.add(name="y")
            request.raw_input_contents.append(bytes(binary.encode(array)))
    for name in ("same", "batched"):
        request = add(V2 + "ModelInfer", "inference.ModelInferRequest", model_name=name)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(
            range(16)
        )
        request.outputs.add(name="y").parameters["classification"].int64_param = 2
        request.parameters["timeout"].int64_param = 10**9
    for dtype in DTYPES:
        request = add(TFS + "Predict", "tensorflow.serving.PredictRequest")
        request.model_spec.name, request.model_spec.signature_name = "m", f"echo_{dtype}"
        fill(request.inputs["x"], _array(dtype))
        request.output_filter.append("x")
    for method, kind in (("Classify", "Classification"), ("Regress", "Regression")):
        request = add(TFS + method, f"tensorflow.serving.{kind}Request")
        request.model_spec.name, request.model_spec.signature_name = "m", method.lower()
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(1)
    request = add(TFS + "MultiInference", "tensorflow.serving.MultiInferenceRequest")
    for method in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "m", method
    listed = request.input.example_list_with_context
    listed.examples.add().features.feature["x"].float_list.value.append(1)
    listed.context.features.feature["n"].int64_list.value.append(2)
    request = add(TFS + "GetModelMetadata", "tensorflow.serving.GetModelMetadataRequest")
    request.model_spec.name = "m"
    request.metadata_field.append("signature_def")
    request = add(MODELS + "GetModelStatus", "tensorflow.serving.GetModelStatusRequest")
    request.model_spec.name, request.model_spec.version.value = "m", 1
    request = add(MODELS + "HandleReloadConfigRequest", "tensorflow.serving.ReloadConfigRequest")
    config = request.config.model_config_list.config.add(name="m", base_path="/models/m")
    config.model_platform = "tensorflow"
    config.model_version_policy.specific.versions.append(1)
    config.version_labels["stable"] = 1
    return [(method, request.SerializeToString()) for method, request in found]


def rest_seeds():
    """Good requests: method, path, headers and body."""
    length = b"inference-header-content-length"
    found = [
        ("GET", path, {}, b"")
        for path in (
            *("/v2", "/v2/health/live", "/v2/models/same", "/v2/models/same/versions/1/config"),
            *("/v2/models/stats", "/v2/models/same/ready"),
            *("/v1/models/m", "/v1/models/m/versions/1/metadata"),
        )
    ]
    bodies = [
        ("/v2/repository/index", {"ready": True}),
        ("/v2/repository/models/same/load", {"parameters": {}}),
        (
            "/v2/models/same/infer",
            {
                "id": "7",
                "parameters": {"timeout": 10**9, "binary_data_output": True},
                "inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.5] * 16}],
                "outputs": [{"name": "y", "parameters": {"classification": 2}}],
            },
        ),
        (
            "/v2/models/text/versions/1/infer",
            {"inputs": [{"name": "x", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["é"]]}]},
        ),
        ("/v1/models/m:predict", {"instances": [1.0, 2.0, 5.0]}),
        (
            "/v1/models/m:predict",
            {"signature_name": "two", "inputs": {"a": [[1, 2.5]], "b": [7]}},
        ),
        (
            "/v1/models/m/versions/1:predict",
            {"signature_name": "echo_bytes", "instances": ["a", {"b64": "/w=="}]},
        ),
        (
            "/v1/models/m:classify",
            {"signature_name": "classify", "examples": [{"x": 1.5}], "context": {"n": [1]}},
        ),
        ("/v1/models/m:regress", {"signature_name": "regress", "examples": [{"x": [1.5]}]}),
    ]
    found += [("POST", path, {}, json.dumps(body).encode()) for path, body in bodies]
    tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    text = json.dumps({"inputs": [tensor]}).encode()
    found.append(
        ("POST", "/v2/models/batched/infer", {length: b"%d" % len(text)}, text + bytes(range(64)))
    )
    found.append(("POST", "/v2/models/same/infer", {length: b"0"}, bytes(64)))
    return found
