"""Files of many pieces through a codec in a process of its own, for what that takes of memory."""

import hashlib
import os
import sys

from strongroom.compat.registry import codec as codec_named
from strongroom.crypto.secret import SecretBytes
from strongroom.model.storage import LocalSource

PATTERN = hashlib.shake_256(b"big files").digest(1 << 20)


class Repeated:
    """Content: the pattern, over and over."""

    def __init__(self, count: int) -> None:
        self.size = count * len(PATTERN)
        self._count = count

    def copy_to(self, write, progress=None) -> None:
        for _ in range(self._count):
            write(memoryview(PATTERN))


class FileOutput:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)

    def write(self, data) -> None:
        assert os.write(self._descriptor, data) == len(data)


def _digest(count: int) -> bytes:
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(PATTERN)
    return digest.digest()


def both_ways(name: str, key: str, path: str, count: str) -> None:
    """Encrypt ``count`` MiB to a file, decrypt it, and compare."""
    codec = codec_named(name)(SecretBytes(bytes.fromhex(key)))
    codec.encrypt(Repeated(int(count)), path, FileOutput(path))
    decrypt(name, key, path, count)


def decrypt(name: str, key: str, path: str, count: str, *options: str) -> None:
    """Decrypt a file whose last plaintext is ``count`` MiB of the pattern."""
    given = dict(option.split("=", 1) for option in options)
    codec = codec_named(name)(SecretBytes(bytes.fromhex(key)) if key else None, given)
    source = LocalSource(path)
    digest = hashlib.sha256()
    codec.decrypt(source, "model.onnx")[-1].copy_to(digest.update)
    source.close()
    if digest.digest() != _digest(int(count)):
        sys.exit("another plaintext")
