"""The application: routes, errors in one form, and an OpenAPI document that says what is so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from strongroom.errors import StrongroomError
from strongroom.keyserver.errors_http import HttpError, error_answer, status_and_code
from strongroom.keyserver.routes import audit, enrolment, health, keys, nodes, policies, public, tokens
from strongroom.keyserver.services import Services
from strongroom.keyserver.version import VERSION
from strongroom.web.logs import describe, log

__all__ = ["make_app"]

_DESCRIPTION: Final = """
Keeps model keys, and releases them to machines that have proved what they are.

Every failure has the same form, `{"error": {"code", "message", "hint"}}`. Bytes are base64url without
padding; moments are RFC 3339. Answers that a client relies on are signed by the key of the server.
"""
_MODULES: Final = (public, keys, policies, audit, nodes, enrolment, tokens, health)
_EARLY: Final = frozenset({408, 413, 429})


def make_app(here: Services) -> FastAPI:
    """The application of one process, for ``here``."""
    app = FastAPI(
        title="strongroom key server",
        version=VERSION,
        description=_DESCRIPTION,
        docs_url=None,  # both fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        openapi_url=None,
    )
    app.state.services = here
    for module in _MODULES:
        app.include_router(module.router)
    app.add_exception_handler(StrongroomError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_routing)
    app.add_exception_handler(Exception, _unforeseen)
    app.openapi = _document(app)  # type: ignore[method-assign]
    app.add_api_route("/openapi.json", _serve_document, include_in_schema=False)
    return app


async def _ours(request: Request, error: Exception) -> JSONResponse:
    status, code = status_and_code(error)
    if status >= 500:
        (log.error if status == 500 else log.warning)("failed", **describe(error))
    if status in _EARLY:
        metrics = request.app.state.services.metrics
        metrics.refused_early(code)
    return error_answer(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return error_answer(HttpError(400, "usage-error", f"{where}: {first['msg']}."))


async def _of_routing(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        answer = error_answer(HttpError(405, "method-not-allowed", "The path knows other methods."))
        answer.headers["allow"] = ", ".join(_methods(request))
        return answer
    return error_answer(HttpError(404, "not-found", "There is nothing at this path."))


def _methods(request: Request) -> list[str]:
    """Those of all routes of the path; the framework knows those of the first only."""
    found: set[str] = set()
    for module in _MODULES:
        for route in module.router.routes:
            if isinstance(route, Route) and route.path_regex.match(request.scope["path"]):
                found |= route.methods or set()
    return sorted(found)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """The guard, to which Starlette raises the error on, logs it."""
    return error_answer(error)


async def _serve_document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            app.openapi_schema = _truthful(found)
        return app.openapi_schema

    return document


_SECURITY: Final = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of this server, `srt_…`, of a role that may do it.",
    },
    "certificate": {
        "type": "mutualTLS",
        "description": "A client certificate that the configuration names.",
    },
    "identity": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of an OpenID provider or of Kubernetes, for this server.",
    },
}
_ADMINISTRATION: Final[list[dict[str, list[str]]]] = [{"token": []}, {"certificate": []}]
_RELEASE: Final[list[dict[str, list[str]]]] = [{}, {"identity": []}, {"certificate": []}]


def _truthful(document: dict[str, Any]) -> dict[str, Any]:
    """Say who may ask, move the parts of bodies to the components, and drop the 422 that FastAPI adds and
    nobody answers.
    """
    components = document["components"]["schemas"]
    document["components"]["securitySchemes"] = _SECURITY
    for name, path in document["paths"].items():
        for operation in path.values():
            operation["responses"].pop("422", None)
            if "401" in operation["responses"]:
                operation["security"] = _RELEASE if name == "/v1/release" else _ADMINISTRATION
            content = operation.get("requestBody", {}).get("content", {})
            for body in content.values():
                components.update(body["schema"].pop("$defs", {}))
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    return document
