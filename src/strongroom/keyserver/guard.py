"""What surrounds every request: limits, an id, a line in the log, numbers, and no exception beyond.

The cheap checks come first: the rate of the source address and the declared size of the body, before
anything is parsed or looked up.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.types import ASGIApp, Scope

from strongroom.keyserver.direct_routes import Answer, DirectRoutes
from strongroom.keyserver.errors_http import HttpError, error_answer
from strongroom.keyserver.limits import LimitedBody, RateLimit
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.settings import Limits
from strongroom.web.addresses import source_group
from strongroom.web.logs import OF_REQUEST, describe, log, log_request

__all__ = ["Guard"]

_NEVER_LIMITED: Final = frozenset({"/healthz", "/readyz"})
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
)

Message = MutableMapping[str, Any]


class _Answer:
    """``send`` that adds headers and notes the status.

    Attributes:
        status: of the answer; None before it.
        body: of the request; None where it is not even begun.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]], request_id: str) -> None:
        self.status: int | None = None
        self.body: LimitedBody | None = None
        self._send = send
        self._request_id = request_id

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [
                *message["headers"],
                *_HEADERS,
                (b"x-request-id", self._request_id.encode()),
            ]
            # A body that is still on its way would be read, and ignored, for as long as it lasts.
            if self.body is None or not self.body.complete:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


class Guard:
    """The ASGI application around the application.

    Args:
        app: what answers.
        limits: sizes, rates and times.
        metrics: what is counted where.

    Attributes:
        direct: what answers requests that have come whole; None where nothing does.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self.direct = app if isinstance(app, DirectRoutes) else None
        self._limits = limits
        self._metrics = metrics
        self._rate = RateLimit(limits.requests_per_second, limits.burst)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = secrets.token_hex(8)
        answer = _Answer(send, request_id)
        source = scope["client"][0] if scope["client"] else "local"
        before = OF_REQUEST.set({"request": request_id, "source": source})
        try:
            if scope["path"] not in _NEVER_LIMITED:
                self._rate.take(source_group(source), time.monotonic())
            limits = self._limits
            answer.body = LimitedBody(scope, receive, limits.release_bytes, limits.body_seconds)
            await self._app(scope, answer.body, answer)
        except HttpError as error:
            self._metrics.refused_early(error.code)
            await self._fail(scope, receive, answer, error)
        except Exception as error:
            log.error("fault", **describe(error))
            await self._fail(scope, receive, answer, error)
        finally:
            self._note(scope, answer.status, time.perf_counter() - began)
            OF_REQUEST.reset(before)

    async def answer(self, path: str, body: bytes, content_type: str, source: str) -> Answer:
        """As a request of ASGI would be answered; see :meth:`.DirectRoutes.answer`."""
        assert self.direct is not None
        began = time.perf_counter()
        request_id = secrets.token_hex(8)
        before = OF_REQUEST.set({"request": request_id, "source": source})
        status: int | None = None
        try:
            try:
                self._rate.take(source_group(source), time.monotonic())
                status, headers, content = await self.direct.answer(path, body, content_type, source)
            except Exception as error:
                if isinstance(error, HttpError):
                    self._metrics.refused_early(error.code)
                else:
                    log.error("fault", **describe(error))
                failed = error_answer(error)
                status, headers, content = failed.status_code, failed.raw_headers, bytes(failed.body)
            return status, (*headers, *_HEADERS, (b"x-request-id", request_id.encode())), content
        finally:
            seconds = time.perf_counter() - began
            self._metrics.request(path, "POST", status, seconds)
            log_request(method="POST", path=path, status=status, ms=round(seconds * 1000, 1))
            OF_REQUEST.reset(before)

    async def _fail(self, scope: Scope, receive: Any, answer: _Answer, error: Exception) -> None:
        if answer.status is None:
            await error_answer(error)(scope, receive, answer)

    def _note(self, scope: Scope, status: int | None, seconds: float) -> None:
        path = path_template(scope)
        self._metrics.request(path, scope["method"], status, seconds)
        if scope["path"] in _QUIET and status == 200:
            return
        log_request(
            method=scope["method"],
            path=path,
            status=status,
            ms=round(seconds * 1000, 1),
            **scope.get("strongroom.actor", {}),
        )


def path_template(scope: Scope) -> str:
    """The path as it is written in the routes; what a caller made up is ``other``."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
