"""The real server as a child process, over TLS on a free port; and machines that ask it for keys."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.format.encoding import unb64url_text
from strongroom.keyserver.init import Wanted, initialise
from strongroom.providers.admin import registration_info
from strongroom.release.answer import open_answer
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.messages import Challenge, ReleaseRequest
from strongroom.release.names import KeyName
from strongroom.testing.intel import IntelPki

BUNDLE = bytes(range(16))
MR_TD = b"\x11" * 48
RTMR0 = b"\x22" * 48
_START_SECONDS = 120
_STARTED: list[subprocess.Popen[bytes]] = []


@atexit.register
def _kill_the_rest() -> None:
    """Those of tests that failed."""
    for one in _STARTED:
        if one.poll() is None:
            one.kill()
            one.wait()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self):
        return json.loads(self.content)

    @property
    def code(self):
        return self.body["error"]["code"]


@dataclass
class Server:
    """One server: a directory that ``init`` has made, and the process that runs on it."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    arguments: tuple[str, ...] = ()

    @classmethod
    def make(cls, directory: Path, *, pki: IntelPki | None = None, **wanted) -> Server:
        """``init``, and a configuration that takes any port."""
        place = directory / "pki"
        if pki is not None:
            pki.save(place)
            wanted["insecure_test_roots"] = place / "TEST-ROOT-NOT-FOR-PRODUCTION.intel.pem"
        if "passphrase" not in wanted:
            wanted.setdefault("kek_key_file", directory / "root.kek")
        initialise(directory / "server", Wanted(url="https://localhost:8443", **wanted))
        server = cls(directory / "server")
        server.configure("listen", port=0, drain_seconds=0)
        server.configure("verification", workers=1)
        return server

    @property
    def config(self) -> Path:
        return self.directory / "keyserver.toml"

    @property
    def log(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.log"

    @property
    def profile(self) -> dict[str, object]:
        return json.loads((self.directory / "profile.json").read_text())

    @property
    def owner(self) -> str:
        return (self.directory / "owner.token").read_text().strip()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def configure(self, section: str, **members) -> None:
        """Set members of a section; a value is text, a number, or a list of tables."""
        document = tomllib.loads(self.config.read_text())
        document.setdefault(section, {}).update(members)
        self.config.write_text("\n".join(_toml(document)) + "\n")

    def start(self, wait: bool = True) -> Server:
        command = [sys.executable, "-m", "strongroom", "keyserver", "run", "-c", str(self.config)]
        with open(self.log, "ab") as log:
            began = log.tell()
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        _STARTED.append(self.process)
        workers = tomllib.loads(self.config.read_text()).get("listen", {}).get("workers", 1)
        if "--workers" in self.arguments:
            workers = int(self.arguments[self.arguments.index("--workers") + 1])
        deadline = time.monotonic() + _START_SECONDS
        while wait:
            events = self.events(began)
            if sum(one["event"] == "ready" for one in events) >= workers:
                self.port = next(one["port"] for one in events if one["event"] == "listening")
                break
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.log.read_text())
            time.sleep(0.05)
        return self

    def events(self, began: int = 0) -> list[dict[str, object]]:
        """The lines of the log, each of which must be JSON."""
        lines = self.log.read_bytes()[began:].splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n") and line.startswith(b"{")]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self.process = None
        return code

    def context(self, certificate: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.directory / "tls" / "ca.pem")
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def connection(self, certificate: Path | None = None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.port, timeout=60, context=self.context(certificate)
        )

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        certificate: Path | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = self.connection(certificate)
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """As the owner; anything but a success is a failure of the test."""
        answer = self.ask(method, path, body, token=self.owner)
        assert answer.status in (200, 201), answer
        return answer.body

    def add_key(
        self, name: str = "resnet50", dek: bytes | None = None, bundle: bytes = BUNDLE
    ) -> SecretBytes:
        """Register a key as a client does; it is returned."""
        key = SecretBytes(dek if dek is not None else secrets.token_bytes(32))
        self.admin("POST", "/v1/keys", registration(self.profile, name, key, bundle))
        return key

    def put_policy(self, version: int = 1, **members) -> dict[str, object]:
        return self.admin("PUT", "/v1/policies", {"policy": policy(version, **members)})


def registration(profile, name, key, bundle=BUNDLE, version=None, **changes):
    """The body of ``POST /v1/keys``."""
    info = registration_info(profile["server_id"], KeyName(name, version), bundle)
    public = unb64url_text(profile["registration_key"]["public_key"])
    return {
        "name": name,
        "version": version,
        "bundle": text(bundle),
        "encrypted_key": text(MLKEM768X25519.seal(key, public, info)),
        "meta": {},
        **changes,
    }


def policy(version=1, **members):
    return {
        "id": "serving",
        "version": version,
        "keys": ["resnet50"],
        "any": [{"kind": "tdx", "mr_td": MR_TD.hex(), "rtmr": {"0": RTMR0.hex()}}],
        "test_roots": True,
        **members,
    }


def text(data):
    from strongroom.format.encoding import b64url

    return b64url(data)


class Machine:
    """A machine with TDX, synthetic, that asks for keys."""

    def __init__(self, pki: IntelPki, **parts: bytes) -> None:
        self.pki = pki
        self.parts = {"mr_td": MR_TD, "rtmr0": RTMR0, **parts}
        self.collateral = pki.collateral("tdx")

    def request(self, challenge: Challenge, wanted=None):
        """A request with evidence, its binding, and the secret of its one-time key."""
        secret = SecretBytes.random(32)
        wanted = wanted or (WantedKey(KeyName("resnet50"), BUNDLE),)
        public = MLKEM768X25519.public_of(secret)
        binding = Binding(challenge.challenge, challenge.server_id, MLKEM768X25519.alg, public, wanted)
        evidence = self.pki.evidence("tdx", binding.for_primary("tdx"), **self.parts)
        request = ReleaseRequest(challenge.challenge, MLKEM768X25519.alg, public, wanted, (evidence,))
        return request, binding, secret

    def ask(self, server: Server, wanted=None, *, at: Server | None = None, **options):
        """A challenge of ``server``, a release ``at`` it or another; what came of it, opened."""
        challenge = Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body)
        request, binding, secret = self.request(challenge, wanted)
        answer = (at or server).ask("POST", "/v1/release", request.to_json(), **options)
        assert answer.status == 200, answer
        signing = unb64url_text(server.profile["signing_key"])
        return open_answer(answer.body, binding, secret, signing)[1]


def new_pki() -> IntelPki:
    return IntelPki.create(datetime.now(UTC).replace(microsecond=0))


def _toml(document, prefix=""):
    tables = []
    for name, value in document.items():
        if isinstance(value, dict):
            tables += ["", f"[{prefix}{name}]", *_toml(value, f"{prefix}{name}.")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                tables += ["", f"[[{prefix}{name}]]", *_toml(one)]
        else:
            yield f"{name} = {json.dumps(value)}"
    yield from tables
