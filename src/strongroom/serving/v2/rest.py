"""The protocol over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson

from strongroom.serving.call import Call, Client
from strongroom.serving.decoding import LARGE, Decoding
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import Answering, HttpApi, HttpRequest, HttpResponse
from strongroom.serving.status import HTTP_STATUS, Code, RequestError
from strongroom.serving.v2 import description, inference
from strongroom.serving.v2.datatypes import invalid, version_of
from strongroom.serving.v2.statistics import model_statistics

__all__ = ["V2Rest", "no_control"]

_Endpoint = Callable[[HttpRequest, str, int | None], Answering]

_SHORT: Final = 256
_REMEMBERED: Final = 1024
"""Paths whose parts are kept, which takes a tenth of the time to find them; letters of one."""

_JSON: Final = ((b"content-type", b"application/json"),)


class V2Rest(HttpApi):
    """Paths under ``/v2``.

    Args:
        engine: answers.
        control: whether clients may load and unload models.
        sees: whether a client may hear of a model that it has not named.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        control: bool = False,
        sees: Callable[[Client, str], bool] = lambda client, model: True,
    ) -> None:
        self._engine = engine
        self._decoding = Decoding()
        self._control = control
        self._sees = sees
        self._found: dict[tuple[str, str], tuple[_Endpoint, str, int | None]] = {}
        # Of the server, by path; of a model, by what follows its name and version.
        self._server: dict[str, tuple[bytes, _Endpoint]] = {
            "": (b"GET", self._metadata),
            "health/live": (b"GET", self._live),
            "health/ready": (b"GET", self._ready),
            "models/stats": (b"GET", self._all_statistics),
            "repository/index": (b"POST", self._index),
        }
        self._model: dict[str, tuple[bytes, _Endpoint]] = {
            "": (b"GET", self._model_metadata),
            "ready": (b"GET", self._model_ready),
            "infer": (b"POST", self._infer),
            "config": (b"GET", self._model_config),
            "stats": (b"GET", self._model_statistics),
        }
        self._repository: dict[str, tuple[bytes, _Endpoint]] = {
            "load": (b"POST", self._load),
            "unload": (b"POST", self._unload),
        }

    def answer(self, request: HttpRequest) -> Answering:
        """Answer a request to a path below ``/v2``."""
        found = self._found.get((request.method, request.path))
        if found is None:
            (method, endpoint), model, text = self._find(request.path)
            # Probes ask with HEAD; what carries answers leaves out their bodies.
            asked = "GET" if request.method == "HEAD" else request.method
            if asked != method.decode():
                allowed = b"GET, HEAD" if method == b"GET" else method
                return _error(405, f"This endpoint answers {method.decode()}.", (b"allow", allowed))
            found = endpoint, model, version_of(text)
            if len(request.path) <= _SHORT:
                if len(self._found) >= _REMEMBERED:
                    self._found.clear()
                self._found[request.method, request.path] = found
        endpoint, model, version = found
        return endpoint(request, model, version)

    def failure(self, error: RequestError) -> HttpResponse:
        """``{"error": …}`` with the status of :data:`.status.HTTP_STATUS`."""
        return _error(HTTP_STATUS[error.code], error.message)

    def _find(self, path: str) -> tuple[tuple[bytes, _Endpoint], str, str]:
        parts = path.removesuffix("/").split("/")[2:]
        model = version = ""
        found = self._server.get("/".join(parts)) if len(parts) < 3 else None
        if found is None and len(parts) > 1 and parts[0] == "models":
            model, rest = parts[1], parts[2:]
            if len(rest) > 1 and rest[0] == "versions" and rest[1]:
                version, rest = rest[1], rest[2:]
            found = self._model.get("/".join(rest))
        elif found is None and len(parts) == 4 and parts[:2] == ["repository", "models"]:
            model = parts[2]
            found = self._repository.get(parts[3])
        if found is None:
            raise RequestError(Code.NOT_FOUND, "This protocol has no such endpoint.")
        return found, model, version

    def _infer(self, request: HttpRequest, model: str, version: int | None) -> Answering:
        if request.headers.get(inference.HEADER_LENGTH) == b"0":
            found = self._engine.describe(model, version)
            call, wish = inference.read_raw(request, found, version)
        elif len(request.body) >= LARGE and inference.HEADER_LENGTH not in request.headers:
            return self._infer_large(request, model, version)
        else:
            call, wish = inference.read(request, model, version)
        answer = self._engine.infer_here(call)
        if answer is None:
            return self._infer_later(call, wish)
        return inference.write(answer, wish)

    async def _infer_large(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        size = len(request.body)
        call, wish = await self._decoding.run(size, inference.read, request, model, version)
        return await self._infer_later(call, wish)

    async def _infer_later(self, call: Call, wish: inference.Wish) -> HttpResponse:
        return inference.write(await self._engine.infer_async(call), wish)

    def _metadata(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        return _answer(description.server_metadata())

    def _live(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        return _answer({"live": True})

    def _ready(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        ready = self._engine.ready()
        return _answer({"ready": ready}, 200 if ready else 503)

    def _model_ready(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        self._engine.describe(model, version)
        return _answer({"name": model, "ready": True})

    def _model_metadata(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        return _answer(description.model_metadata(self._engine, model, version))

    def _model_config(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        return _answer(description.model_config(self._engine, model, version))

    def _model_statistics(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        return _answer({"model_stats": model_statistics(self._engine, model, version)})

    def _all_statistics(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        sees = partial(self._sees, request.client)
        return _answer({"model_stats": model_statistics(self._engine, sees=sees)})

    def _index(self, request: HttpRequest, model: str, version: int | None) -> HttpResponse:
        ready = _optional_object(request).get("ready", False)
        if type(ready) is not bool:
            raise invalid("The member ready is true or false.")
        return _answer(description.index(self._engine, ready, partial(self._sees, request.client)))

    def _load(self, request: HttpRequest, model: str, version: int | None) -> Answering:
        return self._controlled(request, self._engine.load, model)

    def _unload(self, request: HttpRequest, model: str, version: int | None) -> Answering:
        return self._controlled(request, self._engine.unload, model)

    async def _controlled(
        self, request: HttpRequest, change: Callable[[str], None], model: str
    ) -> HttpResponse:
        if not self._control:
            raise no_control()
        parameters = _optional_object(request).get("parameters", {})
        if type(parameters) is not dict:
            raise invalid("The parameters are no JSON object.")
        description.refuse_parameters(parameters)
        await asyncio.to_thread(change, model)
        return HttpResponse(200, model=(model, 0))


def no_control() -> RequestError:
    """The server was not told to let clients load and unload models."""
    return RequestError(
        Code.PERMISSION_DENIED, "This server does not let clients load and unload models."
    )


def _optional_object(request: HttpRequest) -> dict[str, Any]:
    return inference.read_object(request.body) if request.body else {}


def _answer(document: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status, orjson.dumps(document))


def _error(status: int, message: str, *headers: tuple[bytes, bytes]) -> HttpResponse:
    return HttpResponse(status, orjson.dumps({"error": message}), (*_JSON, *headers))
