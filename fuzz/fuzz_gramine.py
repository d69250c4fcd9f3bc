"""Invariant: any metadata node, authentic or not, any nodes behind it and any recovery log give plaintext by one pass and by random access alike, or raise StrongroomError; nothing is allocated by a size before it is checked."""

import contextlib
import os

import atheris

with atheris.instrument_imports(include=["strongroom"]):
    import seeds

    from strongroom.compat.gramine_nodes import HEAD, MAGIC, MAX_PATH, NODE, Metadata, normal_path
    from strongroom.compat.gramine_reader import GramineFile
    from strongroom.compat.gramine_recovery import RecoveredSource
    from strongroom.compat.gramine_writer import write_gramine
    from strongroom.crypto.secret import SecretBytes
    from strongroom.errors import StrongroomError
    from strongroom.testing.memory import BytesSource

KEY = SecretBytes(bytes(range(16)))
FIELDS = MAX_PATH + 1 + 8 + 32 + HEAD
PLAINTEXT = bytes(range(256)) * 60


class Content:
    size = len(PLAINTEXT)

    def copy_to(self, write, progress=None) -> None:
        write(memoryview(PLAINTEXT))


class Output:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data) -> None:
        self.data += data


def file() -> bytes:
    output = Output()
    write_gramine(Content(), output, KEY, b"model", 2, 1)
    return bytes(output.data)


FILE = file()


def read(data: bytes, log: bytes | None) -> bytes | None:
    """The plaintext, had in both ways."""
    try:
        opened = GramineFile(
            BytesSource(data), KEY, None, lambda: None if log is None else BytesSource(log)
        )
        assert opened.size <= len(data) + (len(log) if log else 0)
        pieces = Output()
        opened.copy_to(pieces.write)
        out = memoryview(bytearray(opened.size))
        assert opened.read_into(out) == opened.size
        assert out == pieces.data
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 5000
        return None
    return bytes(pieces.data)


def authentic(fields: bytes) -> bytes:
    """A metadata node with any fields, as only an owner of the key could make it."""
    path, size = fields[: MAX_PATH + 1], fields[MAX_PATH + 1 : MAX_PATH + 9]
    root, head = fields[MAX_PATH + 9 : MAX_PATH + 41], fields[MAX_PATH + 41 :]
    return Metadata(path, int.from_bytes(size, "little"), root, head).seal(KEY, 2, os.urandom(32))


def target(data: bytes) -> None:
    if not data:
        return
    what, rest = data[0] % 4, data[1:]
    if what == 0:
        read(rest, None)
        found = read(rest.ljust(-(-len(rest) // NODE) * NODE, b"\0"), None)
        assert found in (None, PLAINTEXT)
    elif what == 1:
        fields = rest[:FIELDS].ljust(FIELDS, b"\0")
        read(authentic(fields) + FILE[NODE:], None)
    elif what == 2:
        flagged = MAGIC + b"\2" + FILE[9:58] + b"\1" + FILE[59:]
        assert read(flagged, rest) in (None, PLAINTEXT)
        with contextlib.suppress(StrongroomError):
            RecoveredSource(BytesSource(FILE), BytesSource(rest))
    else:
        path = normal_path(rest)
        assert normal_path(path) == path
        assert len(path) <= len(rest)
        assert path.startswith(b"/") == rest.startswith(b"/")
        assert b"//" not in path


def examples():
    """The number of a part, then its input."""
    yield b"\0" + FILE
    yield b"\0" + FILE[:NODE]
    fields = b"model".ljust(MAX_PATH + 1, b"\0") + (5000).to_bytes(8, "little")
    yield b"\1" + fields
    yield b"\2" + (0).to_bytes(8, "little") + FILE[:NODE]
    yield b"\3a/../../b//./c"


if __name__ == "__main__":
    seeds.fuzz(target, examples())
