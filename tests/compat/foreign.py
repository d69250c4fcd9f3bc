"""Codecs over memory: what they give for some bytes, and what they write for some plaintext."""

import os
import subprocess
import sys

from strongroom.compat.base import Codec
from strongroom.crypto.secret import SecretBytes
from strongroom.testing.memory import BytesSource

PIECE = 1 << 20


class Collected:
    """A :class:`strongroom.model.output.Output` that keeps what is written."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data) -> None:
        self.data += data

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        self.data.clear()


class BytesContent:
    """A :class:`strongroom.model.payload.Content` over a buffer, handed out in pieces."""

    def __init__(self, data, piece: int = PIECE) -> None:
        self._data = memoryview(data)
        self._piece = piece
        self.size = len(data)

    def read_into(self, out, offset=0, progress=None) -> int:
        part = self._data[offset : offset + len(out)]
        out[: len(part)] = part
        return len(part)

    def check(self, progress=None) -> None:
        pass

    def copy_to(self, write, progress=None) -> None:
        for start in range(0, self.size, self._piece):
            write(self._data[start : start + self._piece])

    def close(self) -> None:
        pass


def secret(key: bytes | None) -> SecretBytes | None:
    return None if key is None else SecretBytes(key)


def memory_source(data, name: str = "memory", request: int = PIECE) -> BytesSource:
    """A source over ``data`` that likes to be asked for ``request`` bytes at once."""
    source = BytesSource(data, name)
    source.request = request
    return source


def decrypted(codec: Codec, data, path: str = "model.bin", request: int = PIECE) -> dict[str, bytes]:
    """Path → plaintext of everything in a foreign file."""
    found = {}
    for file in codec.decrypt(memory_source(data, path, request), path):
        pieces = Collected()
        file.copy_to(pieces.write)
        found[file.path] = bytes(pieces.data)
    return found


def encrypted(codec: Codec, plaintext, piece: int = PIECE) -> bytes:
    """The foreign file of a plaintext that comes in pieces of ``piece`` bytes."""
    output = Collected()
    codec.encrypt(BytesContent(plaintext, piece), "destination", output)
    return bytes(output.data)


def peak_memory(module: str, function: str, *arguments: object) -> int:
    """By how many bytes ``module.function(*arguments)`` raises the peak of a process of its own.

    ``module`` lies in this folder; a first call with the same arguments is not made: what imports
    cost counts, and is little.
    """
    script = (
        "import sys, importlib\n"
        f"module = importlib.import_module({module!r})\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(status.split('VmHWM:')[1].split()[0]) << 10\n"
        "before = peak()\n"
        f"getattr(module, {function!r})(*sys.argv[1:])\n"
        "print(peak() - before)\n"
    )
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": folder},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def says_nothing(error: BaseException, *secrets: bytes) -> bool:
    """Whether neither an error nor what hangs on to it shows any of ``secrets``."""
    seen: set[int] = set()
    texts: list[str] = []

    def look(current: BaseException | None) -> None:
        if current is None or id(current) in seen:
            return
        seen.add(id(current))
        texts.extend((str(current), repr(current), repr(vars(current))))
        look(current.__cause__)
        look(current.__context__)

    look(error)
    shown = "".join(texts)
    return not any(
        form in shown for one in secrets for form in (one.hex(), one.decode("latin-1"), repr(one)[2:-1])
    )
