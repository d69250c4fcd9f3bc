"""The worked example of the specification: a tiny sealed file, byte by byte.

``python docs/_hooks/worked_example.py`` rewrites the generated part of ``docs/spec/worked-example.md``;
``tests/docs/test_docs.py`` checks that it is current.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from strongroom.crypto.secret import SecretBytes
from strongroom.keys import SymmetricKey
from strongroom.model.writer import PayloadWriter, SealingKeys

PAGE = Path(__file__).parent.parent / "spec" / "worked-example.md"
BEGIN, END = "<!-- begin generated -->\n", "<!-- end generated -->\n"

KEY = bytes(range(0x20))
DEK = bytes(range(0x20, 0x40))
BUNDLE = bytes(range(0x40, 0x50))
SALT = bytes(range(0x50, 0x70))
PREFIX = bytes(range(0x70, 0x77))
PATH = "greeting.txt"
META = {"name": "greeting", "version": "1"}
PLAINTEXT = b"hello, model\n"
SEGMENT = 65536


def build() -> bytes:
    """The sealed file."""
    keys = SealingKeys([SymmetricKey(SecretBytes(KEY))], SecretBytes(DEK), BUNDLE)
    parts = [keys.area(PATH, SEGMENT, META)]
    writer = PayloadWriter(
        keys.keys,
        PATH,
        SEGMENT,
        lambda data: parts.append(bytes(data)),
        salt=SALT,
        prefix=PREFIX,
    )
    writer.write(PLAINTEXT)
    writer.finish()
    return b"".join(parts)


def _dump(data: bytes, start: int) -> list[str]:
    lines = []
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start + offset:08x}  {row.hex(' '):47}  |{text}|")
    return lines


def markdown() -> str:
    """The generated part of the page."""
    sealed = build()
    area, size = int.from_bytes(sealed[8:12], "big"), int.from_bytes(sealed[12:16], "big")
    end = 16 + size
    keys = SealingKeys([SymmetricKey(SecretBytes(KEY))], SecretBytes(DEK), BUNDLE).keys
    file_key = keys.file_key(PATH, SALT)  # lives as long as its buffer is read
    rows = [
        ("symmetric key", KEY),
        ("DEK", DEK),
        ("bundle", BUNDLE),
        ("K_header", bytes(keys._header.buffer)),
        ("K_payload", bytes(keys.payload.buffer)),
        ("associated data", keys.associated_data(PATH)),
        ("file salt", SALT),
        ("nonce prefix", PREFIX),
        ("file key", bytes(file_key.buffer)),
        ("nonce, segment 0", PREFIX + bytes(4) + b"\x01"),
        ("plaintext", PLAINTEXT),
        ("header MAC", sealed[end : end + 32]),
    ]
    values = [f"{name:18}{value.hex()}" for name, value in rows]
    parts = [
        ("Values, in hexadecimal", "text", values),
        (
            f"Header, {size} bytes of JSON (in the file without white space)",
            "json",
            [json.dumps(json.loads(sealed[16:end]), indent=2)],
        ),
        (
            f"The file: {len(sealed)} bytes. From {end + 32:#x} to {area:#x} all are zero",
            "text",
            [*_dump(sealed[: end + 32], 0), "*", *_dump(sealed[area:], area)],
        ),
    ]
    return "\n".join(
        f"**{title}**\n\n```{language}\n" + "\n".join(lines) + "\n```\n"
        for title, language, lines in parts
    )


def page(current: str) -> str:
    """``current`` with its generated part made anew."""
    head, rest = current.split(BEGIN)
    return head + BEGIN + markdown() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}\n")
