"""A small stand-in for Vault's transit engine, for tests: the few requests that a root key needs.

It is written after Vault's documentation and is no Vault: it has one token, no policies, and keeps its
keys in memory. What it does, it does for real: AES-256-GCM with associated data, ``vault:v1:`` before
the ciphertext, 400 where that does not open, 403 without the token, 404 for what is not there.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["TransitServer"]

_PREFIX: Final = "vault:v1:"


@dataclass
class _Key:
    key: bytes
    exportable: bool
    made: int = field(default_factory=lambda: int(time.time()))


class TransitServer:
    """A server on a port of its own; use it as a context manager.

    Attributes:
        url: for ``VAULT_ADDR``.
        token: for ``VAULT_TOKEN``.
        sealed: answer 503 to everything, as a sealed Vault does.
        old: pass associated data over, as releases before 1.13 do.
        requests: paths that were asked for.
    """

    def __init__(self, token: str = "test-token") -> None:  # noqa: S107
        self.token = token
        self.sealed = False
        self.old = False
        self.requests: list[str] = []
        self._keys: dict[str, _Key] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forget(self, name: str) -> None:
        """Delete a key."""
        del self._keys[name]

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON for a request below ``/v1/transit/``."""
        verb, _, name = path.partition("/")
        key = self._keys.get(name)
        if verb == "keys" and method in ("POST", "PUT"):
            if key is None:
                exportable = bool(body.get("exportable", False))
                self._keys[name] = _Key(os.urandom(32), exportable)
            return 204, {}
        if key is None:
            return 404 if verb == "keys" else 400, {"errors": []}
        if verb == "keys":
            return 200, {"data": _about(name, key)}
        aad = b"" if self.old else base64.b64decode(body.get("associated_data") or "")
        if verb == "encrypt":
            nonce = os.urandom(12)
            sealed = AESGCM(key.key).encrypt(nonce, base64.b64decode(body["plaintext"]), aad)
            return 200, {"data": {"ciphertext": _PREFIX + base64.b64encode(nonce + sealed).decode()}}
        if verb == "decrypt" and body["ciphertext"].startswith(_PREFIX):
            try:
                sealed = base64.b64decode(body["ciphertext"].removeprefix(_PREFIX), validate=True)
                plain = AESGCM(key.key).decrypt(sealed[:12], sealed[12:], aad)
            except (InvalidTag, ValueError):
                return 400, {"errors": ["cipher: message authentication failed"]}
            return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}
        return 400, {"errors": ["invalid request"]}


def _about(name: str, key: _Key) -> dict[str, Any]:
    return {
        "name": name,
        "type": "aes256-gcm96",
        "derived": False,
        "exportable": key.exportable,
        "allow_plaintext_backup": False,
        "keys": {"1": key.made},
        "latest_version": 1,
    }


def _handler(server: TransitServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _run(self) -> None:
            server.requests.append(self.path)
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            prefix = "/v1/transit/"
            if server.sealed:
                status, answer = 503, {"errors": ["Vault is sealed"]}
            elif self.headers.get("x-vault-token") != server.token:
                status, answer = 403, {"errors": ["permission denied"]}
            elif not self.path.startswith(prefix):
                status, answer = 404, {"errors": []}
            else:
                status, answer = server.answer(self.command, self.path.removeprefix(prefix), body)
            content = b"" if status == 204 else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _run  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: tests do not want it."""

    return Handler
