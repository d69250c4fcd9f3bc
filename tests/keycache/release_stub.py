"""A key server in the test's own process: it speaks the protocol by the functions of ``release``, asks
for no evidence, gives leases of seconds, and can be made to lie, to fail and to go away."""

import contextlib
import json
import secrets
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ports import held_port
from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.pki.certificates import issue, new_ca
from strongroom.providers.admin import registration_info
from strongroom.release.answer import Lease, refuse_key, seal_key, sign, sign_answer
from strongroom.release.messages import Challenge, ReleaseRequest, time_text
from strongroom.release.names import KeyName

BUNDLE = bytes(range(16))
TOKEN = "srt_test-token-of-an-operator"


class StubServer:
    """Attributes that tests set:

    keys: name → list of (bundle, DEK), by version from 1 on.
    lease: seconds.
    refuse: name → code, for releases and renewals.
    change: called with the payload of an answer before it is signed; gives another.
    forge: called with the signed answer; gives another.
    status: HTTP status of every answer, to fail with.
    asked: paths of requests, in order.
    """

    def __init__(self, directory):
        directory.mkdir()
        self.directory = directory
        self.signing = Ed25519PrivateKey.generate()
        self.registration = SecretBytes.random(32)
        self.server_id = "TEST-stub"
        self.pem = directory / "server.pem"
        self.authority = new_ca("stub", datetime.now(UTC))
        self.ca = self.authority[0].decode()
        self.certify(["localhost", "127.0.0.1"])
        self.keys, self.refuse, self.leases = {}, {}, {}
        self.lease = 3600
        self.change = self.forge = lambda value: value
        self.status, self.headers = None, {}
        self.asked, self.requests, self.ended = [], [], []
        self.tokens = []
        self.http, self.port = None, held_port()
        self.start()
        token = directory / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        self.profile_file = directory / "profile.json"
        self.write_profile()

    def certify(self, hosts, now=None):
        """A certificate for these hosts, made now, for the next start."""
        certificate, key = issue(*self.authority, hosts[0], hosts, now or datetime.now(UTC))
        self.pem.write_bytes(certificate + key)

    @property
    def url(self):
        return f"https://localhost:{self.port}"

    def profile(self, **changes):
        return {
            "url": self.url,
            "server_id": self.server_id,
            "signing_key": b64url(self.signing.public_key().public_bytes_raw()),
            "registration_key": {
                "suite": MLKEM768X25519.alg,
                "public_key": b64url(MLKEM768X25519.public_of(self.registration)),
            },
            "ca": self.ca,
            "token_file": "token",
            **changes,
        }

    def write_profile(self, **changes):
        self.profile_file.write_text(json.dumps(self.profile(**changes)))
        return self.profile_file

    def add(self, name, dek=None, bundle=BUNDLE):
        dek = dek or secrets.token_bytes(32)
        self.keys.setdefault(name, []).append((bundle, dek))
        return dek

    def start(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = stub._answer(self.path, json.loads(body), self.headers)
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in stub.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *args):
                pass

            def get_request(self):
                connection, address = super().get_request()
                stub.open.append(connection)
                return connection, address

        self.open = []
        self.http = Server(("127.0.0.1", self.port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.pem)
        self.http.socket = context.wrap_socket(
            self.http.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        """Gone, with its connections; :meth:`start` brings it back at the same port."""
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self.http = None

    def count(self, path):
        return self.asked.count(path)

    def _answer(self, path, body, headers):
        self.asked.append(path)
        self.requests.append(body)
        self.tokens.append((path, headers.get("Authorization")))
        if self.status is not None:
            said = {"code": "unavailable", "message": "Later.", "hint": None}
            return self.status, {"error": said}
        if path == "/v1/challenge":
            expires = datetime.now(UTC) + timedelta(seconds=60)
            return 200, Challenge(secrets.token_bytes(32), self.server_id, expires).to_json()
        if path == "/v1/release":
            return 200, self.forge(self._release(ReleaseRequest.from_json(body)))
        if path == "/v1/lease/renew":
            return 200, self.forge(self._renew(body))
        if path == "/v1/lease/end":
            self.ended += body["leases"]
            return 200, {}
        if path == "/v1/keys":
            return self._register(body)
        return 404, {"error": {"code": "not-found", "message": "There is no such thing.", "hint": None}}

    def new_lease(self, now, id=None):
        end = now + timedelta(seconds=self.lease)
        return Lease(id or secrets.token_urlsafe(16), end, now + timedelta(seconds=self.lease) * 0.5)

    def _release(self, request):
        now = datetime.now(UTC).replace(microsecond=0)
        binding = request.binding(self.server_id)
        results = []
        for wanted in request.keys:
            versions = self.keys.get(wanted.key.name, [])
            version = wanted.key.version or len(versions)
            if (code := self.refuse.get(wanted.key.name)) or not 0 < version <= len(versions):
                results.append(refuse_key(wanted, code or "unknown-key"))
                continue
            bundle, dek = versions[version - 1]
            if bundle != wanted.bundle:
                results.append(refuse_key(wanted, "bundle"))
                continue
            lease = self.new_lease(now)
            self.leases[lease.id] = wanted.key.name
            results.append(seal_key(binding, wanted, version, lease, SecretBytes(dek)))
        signed = sign_answer(binding, results, now, self.signing)
        return self._changed(signed)

    def _changed(self, signed):
        payload = json.loads(unb64url_text(signed["payload"]))
        return sign(self.change(payload), self.signing)

    def _renew(self, body):
        now = datetime.now(UTC)
        results = []
        for id in body["leases"]:
            code = self.refuse.get(self.leases.get(id, ""), "" if id in self.leases else "unknown-key")
            if code:
                results.append({"id": id, "refused": code})
            else:
                results.append(self.new_lease(now, id).to_json())
        return self._changed(
            sign(
                {
                    "v": 1,
                    "server_id": self.server_id,
                    "nonce": body["nonce"],
                    "time": time_text(now),
                    "results": results,
                },
                self.signing,
            )
        )

    def _register(self, body):
        versions = self.keys.setdefault(body["name"], [])
        if body["version"] not in (None, len(versions) + 1):
            said = {"code": "already-exists", "message": "It is there.", "hint": None}
            return 409, {"error": said}
        bundle = unb64url_text(body["bundle"])
        info = registration_info(self.server_id, KeyName(body["name"], body["version"]), bundle)
        sealed = unb64url_text(body["encrypted_key"])
        dek = MLKEM768X25519.open(sealed, self.registration, info)
        versions.append((bundle, bytes(dek.buffer)))
        return 201, {
            "name": body["name"],
            "version": len(versions),
            "bundle": body["bundle"],
            "state": "active",
            "created": time_text(datetime.now(UTC)),
        }
