"""Real servers on the loopback interface that the remote tests talk to, with faults to order."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

__all__ = ["ObjectStore", "Request", "WebServer", "contents", "object_store", "web_server"]


@dataclass(frozen=True)
class Request:
    """One request as the server saw it; ``size`` is of the range that was asked for."""

    method: str
    path: str
    query: str
    start: int | None
    size: int | None
    headers: dict[str, str]


Fault = Callable[[Request], str | None]
"""Looks at a request, may wait, and names what shall go wrong with the answer."""


class WebServer:
    """A static web server that answers range requests (RFC 9110).

    Faults: an HTTP status in digits; ``whole`` (ignores the range), ``drop`` (closes without a word),
    ``short`` (half of the body, then closes), ``less`` (honest about a shorter range), ``more`` (a longer
    range), ``other`` (the right size from another place), ``shrunk`` (says that the file has become shorter),
    ``sizeless`` (does not say how large the file is), ``gzip`` (says the body is compressed).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.fault: Fault = lambda request: None
        self.url = ""
        self._lock = threading.Lock()

    def record(self, request: Request) -> str | None:
        with self._lock:
            self.requests.append(request)
        return self.fault(request)

    @property
    def asked(self) -> int:
        """Bytes of all ranges that were asked for."""
        return sum(request.size or 0 for request in self.requests)


def _handler(web: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                if self.command != "HEAD":
                    self.wfile.write(body)

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, size = (int(match[1]), int(match[2]) - int(match[1]) + 1) if match else (None, None)
            request = Request(self.command, unquote(path), query, start, size, dict(self.headers))
            fault = web.record(request)
            if fault == "drop":
                self.close_connection = True
                return
            if fault and fault.isdigit():
                self.answer(int(fault), {}, b"no")
                return
            body = web.files.get(request.path)
            if body is None:
                self.answer(404, {}, b"not here")
            elif start is None or size is None or fault == "whole":
                self.answer(200, {}, body)
            elif start >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            else:
                self.part(body, start, min(size, len(body) - start), fault)

        do_HEAD = do_GET

        def part(self, body: bytes, start: int, size: int, fault: str | None) -> None:
            total: int | str = len(body)
            if fault == "less":
                size -= 1
            elif fault == "more":
                size += 1
            elif fault == "other":
                start += 1
            elif fault == "shrunk":
                total = start + size
            elif fault == "sizeless":
                total = "*"
            headers = {"Content-Range": f"bytes {start}-{start + size - 1}/{total}"}
            if fault == "gzip":
                headers["Content-Encoding"] = "gzip"
            data = body[start : start + size]
            if fault == "short":
                self.answer(206, headers, data[: size // 2], length=size)
                self.close_connection = True
            else:
                self.answer(206, headers, data)

    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes its connection early is what some tests are about."""


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    web = WebServer()
    server = _Server(("127.0.0.1", 0), _handler(web))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ObjectStore:
    """moto, which imitates S3, behind its real HTTP server; ``fault`` may answer in its place.

    ``fault`` gets the method, path, query and range of a request and gives an HTTP status or None.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, str, str]] = []
        self.fault: Callable[[str, str, str, str], int | None] = lambda method, path, query, wanted: (
            None
        )

    def wrap(self, application):
        def wrapped(environ, start_response):
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            query = environ.get("QUERY_STRING", "")
            request = (method, path, query, environ.get("HTTP_RANGE", ""))
            self.requests.append(request)
            status = self.fault(*request)
            if status is None:
                return application(environ, start_response)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} Ordered", [("Content-Length", "0")])
            return [b""]

        return wrapped


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args: object) -> None:
            pass

    store = ObjectStore()
    application = store.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
