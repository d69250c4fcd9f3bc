"""Key caches, as child processes and as threads, and what is asked of them."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time

from strongroom.keycache.config import Config
from strongroom.keycache.run import serve
from strongroom.keycache.sockets import listen
from strongroom.providers.keyserver.client import ReleaseClient, open_attester
from strongroom.providers.keyserver.profile import read_profile
from strongroom.providers.keyserver.transport import Transport
from strongroom.providers.unix_socket import KeyCache


class Asked:
    """What tests do with either."""

    @property
    def uri(self):
        return f"unix://{self.socket}"

    @property
    def client(self):
        return KeyCache(self.uri, timeout=60)

    def status(self):
        return self.client.status()


class LocalCache(Asked):
    """A cache on a thread of this process: it is there at once."""

    def __init__(self, socket, profile, config=None):
        self.socket = socket
        self.profile = profile
        self.config = config or Config()
        self.log = socket.parent.parent / "cache.log"
        self.thread = None

    def start(self):
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)
        return self

    async def _run(self):
        profile = read_profile(self.profile)

        def connect():
            transport = Transport(profile, timeout=10, attempts=2)
            return ReleaseClient(profile, open_attester(profile.attester), transport=transport)

        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        handler = logging.FileHandler(self.log)
        logger = logging.getLogger("strongroom.keycache")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with listen(str(self.socket), self.config.gid) as listener:
                self.loop.call_soon(self.ready.set)
                await serve(self.config, profile, connect, listener, self.end)
        finally:
            logger.removeHandler(handler)
            handler.close()

    def stop(self):
        if self.thread is not None:
            self.loop.call_soon_threadsafe(self.end.set)
            self.thread.join(60)
            assert not self.thread.is_alive()
            self.thread = None


class Cache(Asked):
    """``strongroom keycache run``."""

    def __init__(self, socket, profile, *arguments, **environment):
        self.socket = socket
        self.log = socket.parent.parent / "cache.log"
        self.arguments = ["--socket", str(socket), "--server", str(profile), *map(str, arguments)]
        self.environment = environment
        self.before = []
        self.process = None

    def start(self):
        command = [*self.before, sys.executable, "-m", "strongroom", "keycache", "run", *self.arguments]
        with open(self.log, "ab") as log:
            began = log.tell()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        deadline = time.monotonic() + 60
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
        code = self.process.wait(60)
        self.process = None
        return code


def eventually(condition, seconds=60.0):
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
