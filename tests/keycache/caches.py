"""Key caches as child processes, and what is asked of them."""

import os
import signal
import subprocess
import sys
import time

from strongroom.providers.unix_socket import KeyCache


class Cache:
    """``strongroom keycache run``."""

    def __init__(self, socket, profile, *arguments, **environment):
        self.socket = socket
        self.log = socket.parent.parent / "cache.log"
        self.arguments = ["--socket", str(socket), "--server", str(profile), *map(str, arguments)]
        self.environment = environment
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "strongroom", "keycache", "run", *self.arguments]
        with open(self.log, "ab") as log:
            began = log.tell()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        deadline = time.monotonic() + 30
        while b"serving" not in self.log.read_bytes()[began:]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.log.read_text())
            time.sleep(0.02)
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    @property
    def uri(self):
        return f"unix://{self.socket}"

    @property
    def client(self):
        return KeyCache(self.uri, timeout=30)

    def status(self):
        return self.client.status()


def eventually(condition, seconds=10.0):
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
