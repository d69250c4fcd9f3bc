"""Invariant: of any bytes a codec gives plaintext or raises StrongroomError; where the format authenticates, it gives what was encrypted."""

import base64
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import atheris

with atheris.instrument_imports(include=["strongroom", "json"]):
    import seeds

    from strongroom.compat.base import HEAD_SIZE, Codec
    from strongroom.compat.registry import CODECS, codec
    from strongroom.crypto.secret import SecretBytes
    from strongroom.errors import InvalidKey, StrongroomError, UsageError
    from strongroom.testing.memory import BytesSource

    KINDS: dict[str, type[Codec]] = {}
    for name in CODECS:
        with suppress(ImportError, StrongroomError):
            KINDS[name] = codec(name)

AUTHENTICATED = {"model-cryptor", "gramine", "kserve-jwe", "paddle-cipher"}
PLAINTEXTS = [b"", b"model", bytes(range(256)) * 20]
# The first that a codec takes is its key.
KEYS = [None, bytes(range(16)), bytes(range(32)), base64.urlsafe_b64encode(bytes(32))]
OPTIONS = {"paddle-cipher": [{}, {"cipher": "cbc"}, {"cipher": "ctr"}]}
CONTROLLED_ACCESS = b"""{
\t"name":\t"n",
\t"files":\t[{
\t\t\t"file_name_0":\t"model.xml",
\t\t\t"file_body_0":\t"U2FsdGVkX18AAQIDBAUGB/YexHvNFA56yLU4SJHO"
\t\t}, {
\t\t\t"file_name_1":\t"model.bin",
\t\t\t"file_body_1":\t"U2FsdGVkX18AAQIDBAUGBw=="
\t\t}],
\t"signature":\t"AAAA\\n"
}"""


class Content:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def copy_to(self, write, progress=None) -> None:
        write(memoryview(self._data))

    def read_into(self, out, offset=0, progress=None) -> int:
        part = self._data[offset : offset + len(out)]
        out[: len(part)] = part
        return len(part)


class Output:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data) -> None:
        self.data += data


def makers() -> list[Callable[[], Codec]]:
    """Every codec whose packages are here, with its key and each of its options."""
    found: list[Callable[[], Codec]] = []
    for name, kind in KINDS.items():
        for options in OPTIONS.get(name, [{}]):
            for key in KEYS:
                make = partial(make_codec, kind, key, options)
                try:
                    make()
                except (InvalidKey, UsageError):
                    continue
                found.append(make)
                break
    return found


def make_codec(kind: type[Codec], key: bytes | None, options: dict[str, str]) -> Codec:
    return kind(None if key is None else SecretBytes(key), options)


MAKERS = makers()


def examples():
    """The number of a codec in one byte, then a file of it."""
    for number, make in enumerate(MAKERS):
        one = make()
        for plaintext in PLAINTEXTS if one.writes else []:
            output = Output()
            try:
                one.encrypt(Content(plaintext), "model.bin", output)
            except StrongroomError:  # tensors alone, or another mode of Paddle
                continue
            yield bytes([number]) + output.data
        yield bytes([number]) + bytes(64)
        if one.name == "openvino-addon":
            yield bytes([number]) + CONTROLLED_ACCESS
        if one.name == "onnx-byte":
            yield bytes([number]) + b"\0\x08\x07"


def target(data: bytes) -> None:
    if not data:
        return
    one, file = MAKERS[data[0] % len(MAKERS)](), data[1:]
    assert isinstance(one.recognises("model.bin", file[:HEAD_SIZE]), bool)
    try:
        for plain in one.decrypt(BytesSource(file), "model.bin"):
            assert isinstance(plain.path, str)
            pieces = Output()
            plain.copy_to(pieces.write)
            if one.name in AUTHENTICATED and not one.given:
                assert pieces.data in PLAINTEXTS
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 5000


if __name__ == "__main__":
    print("Codecs:", *(make().name for make in MAKERS))
    seeds.fuzz(target, examples())
