"""The two routes of a release without the framework around them, which takes 0.1 ms for each request.

Endpoints, failures and the description are the same: the framework still has the routes, and answers
whatever else is asked for at these paths. A connection gives what has come whole to
:meth:`DirectRoutes.answer`, without any of the messages that a framework is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.types import Scope

from strongroom.errors import StrongroomError
from strongroom.keyserver.bodies import model_of, object_of
from strongroom.keyserver.limits import too_large
from strongroom.keyserver.routes import public
from strongroom.keyserver.schemas import Empty
from strongroom.keyserver.services import Services
from strongroom.release.messages import ReleaseRequest

__all__ = ["PATHS", "Answer", "DirectRoutes"]

Answer = tuple[int, Sequence[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""


async def _challenge(here: Services, body: bytes, content_type: str, source: str) -> dict[str, Any]:
    if len(body) > here.config.limits.body_bytes:
        raise too_large(here.config.limits.body_bytes)
    model_of(object_of(body, content_type, optional=True), Empty)
    return here.release.challenge().to_json()


async def _release(here: Services, body: bytes, content_type: str, source: str) -> dict[str, Any]:
    if len(body) > here.config.limits.release_bytes:
        raise too_large(here.config.limits.release_bytes)
    asked = ReleaseRequest.from_json(object_of(body, content_type))
    return await here.release.release(asked, [], source)


PATHS: Final[dict[str, Callable[[Services, bytes, str, str], Awaitable[dict[str, Any]]]]] = {
    "/v1/challenge": _challenge,
    "/v1/release": _release,
}
"""What their endpoints do with a whole body of a client that shows neither certificate nor token. The
endpoints take nothing but the request, and give a response.
"""


class DirectRoutes:
    """The ASGI application in front of the framework's.

    Args:
        app: what has the routes.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._failed: Any = app.exception_handlers[StrongroomError]
        self._routes = {
            (method, route.path): route
            for route in public.router.routes
            if isinstance(route, APIRoute) and route.path in PATHS
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._app, route
        request = Request(scope, receive)
        try:
            answer = await route.endpoint(request)
        except StrongroomError as error:
            answer = await self._failed(request, error)
        await answer(scope, receive, send)

    async def answer(self, path: str, body: bytes, content_type: str, source: str) -> Answer:
        """To a POST that has come whole, from a client that shows neither certificate nor token.

        Args:
            path: one of :data:`PATHS`.
            body: all of it.
            content_type: of the request; empty where it says none.
            source: address of the client.
        """
        try:
            said = await PATHS[path](self._app.state.services, body, content_type, source)
        except StrongroomError as error:
            failed = await self._failed(Request({"type": "http", "app": self._app}), error)
            return failed.status_code, failed.raw_headers, failed.body
        content = orjson.dumps(said)
        return 200, ((b"content-length", b"%d" % len(content)), _JSON), content


_JSON: Final = (b"content-type", b"application/json")
