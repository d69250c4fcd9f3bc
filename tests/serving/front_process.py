"""A real server as a child process, with models that double what they get; and what asks it."""

from __future__ import annotations

import http.client
import json
import signal
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

X = [[float(one) for one in range(16)]]
PREDICT = json.dumps({"instances": X}).encode()
DOUBLED = {"predictions": [[2.0 * one for one in X[0]]]}


def child(text: str) -> None:
    """What the child does: ``text`` is JSON of settings; a model's file says how many seconds it runs.

    When one runs that takes time, there is a file ``….runs`` beside it.
    """
    from strongroom.serving.config import Batching, Cache, ClientRule, Limits, ModelConfig
    from strongroom.serving.run import run
    from strongroom.serving.servable import Servable
    from strongroom.serving.settings import Listen, RequestLimits, Settings, Tls
    from strongroom.serving.tensors import Signature, TensorSpec

    said = json.loads(text)

    class Doubling:
        platform = "test"

        def __init__(self, place):
            x, y = (TensorSpec(name, "float32", (-1, 16)) for name in "xy")
            self.signatures = {"serving_default": Signature({"x": x}, {"y": y}, batched=True)}
            self.wait, self.runs = float(place.read_text()), place.with_suffix(".runs")

        def run(self, signature, inputs, outputs):
            if self.wait:
                self.runs.touch()
                time.sleep(self.wait)
            return {"y": inputs["x"] * 2}

        def close(self):
            pass

    def load(config, version, location):
        return Servable(config, version, Doubling(Path(location)))

    def rules(ones):
        return tuple(ClientRule(**one) for one in ones)

    def model(clients=(), **members):
        kinds = {"batching": Batching, "limits": Limits, "cache": Cache}
        made = {name: kinds[name](**one) if name in kinds else one for name, one in members.items()}
        return ModelConfig(clients=rules(clients), **made)

    models = [model(**one) for one in said["models"]]
    tls = Tls(**said["tls"]) if "tls" in said else None
    limits = RequestLimits(**said.get("limits", {}))
    listen = Listen(rest_port=0, grpc_port=0, **{"drain": 0.5} | said.get("listen", {}))
    admins = None if said.get("admins", ()) is None else rules(said.get("admins", ()))
    more = {"otlp_endpoint": said.get("otlp_endpoint")}
    run(Settings(models, listen, limits, tls, admins, poll=0.05, **more), load)


class Server:
    """One server: ``Server(place, models=[…])`` starts it and waits until it answers."""

    def __init__(self, place: Path, *, wait_for="AVAILABLE", command=None, **settings) -> None:
        self.place = place
        self.log = place / "log"
        if command is None:
            if "models" not in settings:
                (place / "m").write_text("0")
                settings["models"] = [{"name": "m", "path": str(place / "m")}]
            command = [sys.executable, __file__, json.dumps(settings)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=place)
        self.rest = self.grpc = 0
        try:
            self.until(lambda: self.line("listening") and (not wait_for or wait_for in self.text()))
        except BaseException:
            self.kill()
            raise
        self.rest, self.grpc = (self.line("listening")[name] for name in ("rest_port", "grpc_port"))

    def text(self) -> str:
        return self.log.read_text()

    def lines(self, event: str) -> list[dict]:
        return [
            found
            for line in self.text().splitlines()
            if line.endswith("}") and (found := json.loads(line))["event"] == event
        ]

    def line(self, event: str):
        found = self.lines(event)
        return found[0] if found else None

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)
        return found

    def connect(self, context: ssl.SSLContext | None = None, timeout=60):
        if context is None:
            return http.client.HTTPConnection("127.0.0.1", self.rest, timeout=timeout)
        return http.client.HTTPSConnection("localhost", self.rest, timeout=timeout, context=context)

    def ask(self, method, path, body=None, headers=None, context=None):
        """Status, headers and content of one answer."""
        connection = self.connect(context)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def numbers(self) -> str:
        """What ``/metrics`` says at the port for management."""
        port = self.line("listening")["management_port"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stop(self, number=signal.SIGTERM) -> int:
        """End it, in order; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Pki:
    """A CA, a certificate for this machine, and clients."""

    def __init__(self, place: Path, name="serving") -> None:
        from strongroom.pki.certificates import new_ca

        self.place = place
        self.now = datetime.now(UTC) - timedelta(minutes=1)
        self.ca, self._key = new_ca(f"CA of {name}", self.now)
        self.ca_file = self._write(f"{name}-ca.pem", self.ca)

    def _write(self, name, content):
        path = self.place / name
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)
        return path

    def issue(self, name, hosts=(), uris=()):
        from strongroom.pki.certificates import issue

        certificate, key = issue(self.ca, self._key, name, hosts, self.now, uris=uris)
        return self._write(f"{name}.pem", certificate), self._write(f"{name}.key", key)

    def server(self):
        return self.issue("localhost", ["localhost", "127.0.0.1"])

    def context(self, client=None):
        context = ssl.create_default_context(cafile=self.ca_file)
        if client is not None:
            context.load_cert_chain(*client)
        return context


if __name__ == "__main__":
    child(sys.argv[1])
