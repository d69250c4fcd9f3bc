"""The library of the repository agent in ``agent_host.c``, a small stand-in for Triton: without a server."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("agent_host.c")
HEADERS = Path(__file__).parents[2] / "src" / "strongroom" / "triton" / "native"
STRICT = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}"]
SECONDS = 120.0
LOADED, FAILED, UNLOAD, UNLOADED = range(1, 5)


def build(program):
    command = ["gcc", *STRICT, "-rdynamic", "-o", program, SOURCE, "-ldl", "-pthread"]
    subprocess.run(command, check=True)
    return program


class Host:
    """It runs, and is told one thing after the other."""

    def __init__(self, program, **environment):
        kept = {name: text for name, text in os.environ.items() if not name.startswith("STRONGROOM_")}
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept | environment
        )
        self.log = []

    def tell(self, *lines):
        for line in lines:
            self.process.stdin.write(os.fsencode(line) + b"\n")
        self.process.stdin.flush()

    def hear(self):
        """The next answer."""
        while (line := os.fsdecode(self.process.stdout.readline())).startswith("log "):
            self.log.append(line[4:].strip())
        assert line, f"it ended: {self.process.wait(60)}"
        return line.strip()

    def ask(self, line):
        self.tell(line)
        return self.hear()

    def load(self, model, location, **parameters):
        """Where the files are; the error if there is one."""
        return self.ask(load(model, location, **parameters)).removeprefix("ok ")

    def action(self, model, number):
        return self.ask(f"action {model} {number}")

    def final(self, model):
        return self.ask(f"final {model}")

    def together(self, *lines):
        self.tell(f"together {len(lines)}", *lines)
        return [self.hear() for _ in lines]


def load(model, location, **parameters):
    said = " ".join(f"{name}={value}" for name, value in parameters.items())
    return f"load {model} {location} {said}"


@contextmanager
def hosting(program, library=None, **environment):
    """Run it; at its end no error of the server's is left over, and it ends in order."""
    host = Host(program, **environment)
    watchdog = threading.Timer(
        SECONDS, host.process.kill
    )  # of a host whose threads wait for one another
    watchdog.start()
    try:
        if library:
            assert host.ask(f"open {library}") == "ok"
        yield host
        host.process.stdin.close()
        assert re.fullmatch("errors 0", host.hear())
        assert host.process.wait(60) == 0
    finally:
        watchdog.cancel()
        host.process.kill()
        host.process.wait()
        host.process.stdout.close()
        host.process.stdin.close()
