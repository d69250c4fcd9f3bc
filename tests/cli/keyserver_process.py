"""A key server as its own process, as its owner starts it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

from ports import held_port

from .conftest import PROGRAM, TIMEOUT


class KeyServerProcess:
    """A key server, and the files that its owner takes away from it.

    Args:
        place: its directory, which is made; the files lie beside it.
        options: of ``keyserver init``.
    """

    def __init__(self, place: Path, *options: object) -> None:
        self._port = held_port()
        url = f"https://localhost:{self._port}"
        wanted = ["--url", url, "--kek-key-file", f"{place}.kek", "--json", *map(str, options)]
        made = subprocess.run(
            [PROGRAM, "keyserver", "init", place, *wanted],
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert made.returncode == 0, made.stderr.decode()
        said = json.loads(made.stdout)
        self.profile, self.token = place.parent / "profile.json", place.parent / "owner.token"
        shutil.copy(said["profile"], self.profile)
        shutil.copy(said["token_file"], self.token)
        self.token.chmod(0o600)
        self.owner = Path(said["owner"])
        self.anchor = place / "audit.anchor"
        self.log = place.with_suffix(".log")
        self._config = Path(said["config"])
        # There is no load balancer to wait for.
        self.configure("[listen]\n", "[listen]\ndrain_seconds = 0.0\n")

    def configure(self, old: str, new: str) -> None:
        """Change a line of the configuration, before the server starts."""
        text = self._config.read_text()
        assert old in text
        self._config.write_text(text.replace(old, new))

    def __enter__(self) -> KeyServerProcess:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "keyserver", "run", "-c", self._config], stdout=log, stderr=log
            )
        end = time.monotonic() + TIMEOUT
        while True:
            assert self._process.poll() is None, self.log.read_text()
            try:
                socket.create_connection(("localhost", self._port), 1).close()
                return self
            except OSError:
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.05)

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        finally:
            self._process.kill()
