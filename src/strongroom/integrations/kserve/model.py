"""A model for KServe's SDK, whose server speaks V1, V2 over REST and V2 over gRPC."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NoReturn

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.model_server import app
from kserve.protocol.infer_type import to_http_parameters
from kserve.utils.utils import generate_uuid

from strongroom.errors import StrongroomError, UsageError
from strongroom.integrations.kserve.guard import Refusal, answer_refusal
from strongroom.integrations.starting import told, wait_until_ready
from strongroom.model.location import is_url
from strongroom.serving.call import Call, Client
from strongroom.serving.clients import Access, with_token
from strongroom.serving.config import ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.loading import load_servable
from strongroom.serving.status import Code, RequestError, code_of
from strongroom.serving.tfs.rest import predict
from strongroom.serving.v2 import binary, json_tensors
from strongroom.serving.v2.datatypes import dtype_of, invalid, name_of, tensor_name, version_of
from strongroom.serving.v2.description import model_metadata
from strongroom.serving.v2.inference import deadline
from strongroom.serving.versions import MANIFEST

__all__ = ["MODEL_DIR", "SealedKServeModel"]

MODEL_DIR: Final = "/mnt/models"
"""Where KServe puts what ``storageUri`` names."""

_CLOSE_SECONDS: Final = 30.0
_UNCARRIED: Final = frozenset({"BF16"})
"""Datatypes of the protocol that this SDK does not know."""


class SealedKServeModel(Model):  # type: ignore[misc]
    """A sealed model, in a process of its own or beside others.

    Args:
        name: in URLs.
        path: a sealed model, a directory of versions, or a directory with one sealed file or directory in
            it, as KServe's storage initialiser leaves it; a path or a URL.
        key: source of the key: a path, ``env:NAME``, ``unix:///run/strongroom/keys.sock``, the URL of a key
            server. None is what the environment or the model's own recipient says.
        patience: seconds that :meth:`load` waits for a key server or cache that is away; None waits for ever.
        poll: seconds between two looks for new versions; 0 looks once.
        settings: further members of :class:`strongroom.serving.config.ModelConfig`.

    Raises:
        UsageError: no such configuration.
    """

    def __init__(
        self,
        name: str,
        path: str = MODEL_DIR,
        *,
        key: str | None = None,
        patience: float | None = None,
        poll: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(name)
        self._config = ModelConfig(name, path, key=key, **settings)
        self._access = Access(lambda model: self._config.clients)
        self._patience = patience
        self._poll = poll
        self._engine: Engine | None = None
        app.add_exception_handler(RequestError, answer_refusal)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "A sealed model is open in one process, and does not go to others.",
            hint="Serve with one worker (--workers 1), and with more replicas.",
        )

    def load(self) -> bool:
        """Load the model; returns when it answers.

        Raises:
            RequestError: it cannot be loaded, and why.
        """
        if self._engine is None:
            config = replace(self._config, path=_find_sealed(self._config.path))
            engine = Engine([config], load_servable, poll=self._poll, told=told)
            engine.start()
            try:
                wait_until_ready(engine, self._patience)
            except BaseException:
                engine.close(0)
                raise
            self._engine = engine
        self.ready = True
        return True

    async def healthy(self) -> bool:
        """A version of the model answers."""
        return bool(self.ready) and self._engine is not None and self._engine.ready()

    def stop(self) -> None:
        """Accept nothing new, and free the model when what runs has ended; returns at once."""
        super().stop()
        engine, self._engine = self._engine, None
        if engine is not None:
            # What runs may be waiting for the event loop, which calls this.
            threading.Thread(target=engine.close, args=(_CLOSE_SECONDS,)).start()

    def get_input_types(self) -> list[dict[str, Any]]:
        """Name, datatype and shape of each input."""
        return self._tensors("inputs")

    def get_output_types(self) -> list[dict[str, Any]]:
        """Name, datatype and shape of each output."""
        return self._tensors("outputs")

    async def predict(
        self,
        payload: dict[str, Any] | InferRequest,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Ask the model.

        Args:
            payload: of V1, ``{"instances": …}`` or ``{"inputs": …}`` as TensorFlow Serving has it; or a
                request of V2, whatever its transport.
            headers: of the request; a bearer token is for the rules of ``clients``.
            response_headers: none are added.

        Returns:
            ``{"predictions": …}`` or ``{"outputs": …}``, or the response of V2.

        Raises:
            RequestError: with the code for the client.
        """
        try:
            client = with_token(Client(), (headers or {}).get("authorization", ""))
            self._access.check(client, self.name)
            if isinstance(payload, InferRequest):
                return await self._infer(payload, client)
            if not isinstance(payload, dict):
                raise invalid("The body is no JSON object.")
            found, _ = await predict(self._loaded(), (self.name, None, None), payload, client)
            return {
                name: one.tolist() if isinstance(one, np.ndarray) else one
                for name, one in found.items()
            }
        except StrongroomError as error:
            raise Refusal(code_of(error), error.message) from None

    async def _infer(self, request: InferRequest, client: Client) -> InferResponse:
        engine = self._loaded()
        call = Call(
            self.name,
            _inputs(request),
            version_of(request.model_version or ""),
            outputs=[one.name for one in request.request_outputs or ()],
            client=client,
            transport="grpc" if request.from_grpc else "rest",
        )
        parameters = to_http_parameters(request.parameters) if request.parameters else {}
        if "timeout" in parameters:
            call.deadline = deadline(parameters["timeout"])
        answer = await engine.infer_async(call)
        return InferResponse(
            # KServe answers 500 to a response without one.
            response_id=request.id or generate_uuid(),
            model_name=answer.model,
            model_version=str(answer.version),
            infer_outputs=[
                _output(name, array, request.from_grpc) for name, array in answer.outputs.items()
            ],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RequestError(Code.UNAVAILABLE, f"Model {self.name} is not loaded.")
        return self._engine

    def _tensors(self, which: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = model_metadata(self._loaded(), self.name, None)[which]
        return found


def _inputs(request: InferRequest) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    for one in request.inputs:
        name = tensor_name(one.name)
        if name in found:
            raise invalid(f"Input {name} is there twice.")
        found[name] = _input(name, one)
    return found


def _input(name: str, one: InferInput) -> np.ndarray[Any, Any]:
    # Not by as_numpy(), which takes numbers out of text, cuts fractions off, and fails in ways of its own.
    dtype = dtype_of(name, one.datatype)
    if one._raw_data is not None:
        return binary.decode(name, dtype, one.shape, one._raw_data)
    data = one.data
    if dtype.hasobject and isinstance(data, list):
        data = _texts(name, data)
    if dtype == np.float16 and isinstance(data, list):
        # KServe has made numbers of binary data, and refuses JSON itself.
        data = np.array(data, dtype)
        return binary.decode(name, dtype, one.shape, data.tobytes())
    return json_tensors.decode(name, dtype, one.shape, data)


def _texts(name: str, data: list[Any]) -> list[Any]:
    """Those of gRPC are bytes, those of JSON are not."""
    if not all(isinstance(one, bytes) for one in data):
        return data
    try:
        return [one.decode() for one in data]
    except UnicodeDecodeError:
        raise invalid(f"Input {name} is not text in UTF-8: send it as raw contents.") from None


def _output(name: str, array: np.ndarray[Any, Any], raw: bool) -> InferOutput:
    datatype = name_of(name, array.dtype)
    if datatype in _UNCARRIED:
        raise RequestError(
            Code.UNIMPLEMENTED, f"Output {name} is {datatype}, which KServe's SDK does not carry."
        )
    found = InferOutput(name=name, shape=list(array.shape), datatype=datatype, data=array)
    if raw:
        # The SDK would ask whether an array is true.
        found.set_data_from_numpy(array, binary_data=True)
    return found


def _find_sealed(path: str) -> str:
    """The one thing in a directory that is neither a sealed model nor has versions."""
    if is_url(path) or not os.path.isdir(path) or os.path.exists(os.path.join(path, MANIFEST)):
        return path
    names = [one for one in os.listdir(path) if not one.startswith(".")]
    return os.path.join(path, names[0]) if len(names) == 1 and not names[0].isdecimal() else path
