"""A client of the key server that takes a quarter of the time of the real one, for measuring the server.

Its one-time keys are made before, its HTTP is written by hand, and it opens one answer of sixteen. What
it asks is whole: a challenge, and a request with a quote that is bound to it.
"""

from __future__ import annotations

import json
import socket
import ssl
from itertools import count
from urllib.parse import urlsplit

from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.format.encoding import dump_json
from strongroom.providers.keyserver.client import Attester
from strongroom.providers.keyserver.profile import Profile
from strongroom.release.answer import open_answer
from strongroom.release.binding import WantedKey
from strongroom.release.messages import Challenge, ReleaseRequest

__all__ = ["LightClient"]

_OPENED = 16


class LightClient:
    """One connection.

    Args:
        profile: of the server.
        attester: makes the evidence.
        keys: that are made now; they are used in turns.
    """

    def __init__(self, profile: Profile, attester: Attester, keys: int = 64) -> None:
        parts = urlsplit(profile.address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=profile.ca)
        raw = socket.create_connection((parts.hostname, parts.port), timeout=30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(raw, server_hostname=parts.hostname)
        self._host = parts.netloc
        self._profile = profile
        self._attester = attester
        secrets = [SecretBytes.random(MLKEM768X25519.secret_size) for _ in range(keys)]
        self._keys = [(one, MLKEM768X25519.public_of(one)) for one in secrets]
        self._turns = count()

    def close(self) -> None:
        self._socket.close()

    def release(self, wanted: WantedKey) -> SecretBytes | None:
        """One whole release; the key, of one answer of sixteen."""
        challenge = Challenge.from_json(self._ask("/v1/challenge", b"{}"))
        turn = next(self._turns)
        secret, public = self._keys[turn % len(self._keys)]
        bare = ReleaseRequest(challenge.challenge, MLKEM768X25519.alg, public, (wanted,))
        binding = bare.binding(self._profile.server_id)
        evidence = [one.to_json() for one in self._attester.collect(binding)]
        answer = self._ask("/v1/release", dump_json({**bare.to_json(), "evidence": evidence}))
        if turn % _OPENED:
            return None
        _, (result,) = open_answer(answer, binding, secret, self._profile.signing_key)
        return result.dek

    def _ask(self, path: str, body: bytes) -> dict:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head_lines = data[:end].lower()
        length = int(head_lines.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(data) < end + 4 + length:
            data += self._more()
        if not head_lines.startswith(b"http/1.1 200"):
            raise SystemExit(data.decode())
        return json.loads(data[end + 4 :])

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise SystemExit("the server has closed the connection")
        return data
