"""What the tests of Gramine's files share: keys, plaintexts, and the codec over memory."""

import hashlib
from pathlib import Path

from foreign import decrypted, encrypted, secret

from strongroom.compat.gramine import GramineCodec

DATA = Path(__file__).parent / "data" / "gramine"
KEY = (DATA / "wrap_key.bin").read_bytes()
OTHER = bytes(range(16))
NODE, HEAD, GROUP = 4096, 3072, 96 * 4096
PATH = b"models/net.onnx"


def gramine(key: bytes = KEY, **options: object) -> GramineCodec:
    return GramineCodec(secret(key), {name: str(value) for name, value in options.items()})


def plain(size: int) -> bytes:
    return hashlib.shake_128(b"gramine").digest(size)


def written(data, piece: int = 1 << 20, **options: object) -> bytes:
    return encrypted(gramine(path=PATH.decode(), **options), data, piece)


def read(file, request: int = 1 << 20, **options: object) -> bytes:
    return decrypted(gramine(**options), file, request=request)["model.bin"]
