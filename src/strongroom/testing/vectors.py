"""Write the test vectors of the format: one vector, one fault, named after it.

``vectors.json`` says for each what a reader must do: give the plaintext with these SHA-256 digests,
or refuse with this error and these attributes. The bytes are the same on every run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strongroom.testing import directory_vectors, encapsulated, header_vectors, payload_vectors
from strongroom.testing.raw import KEY, PASSPHRASE, Vector

__all__ = ["all_vectors", "write_vectors"]

KEYS = {
    "symmetric": {"symmetric": base64.urlsafe_b64encode(KEY).decode()},
    "hpke-mlkem768x25519": {"identity": encapsulated.MLKEM768X25519_IDENTITY},
    "hpke-x25519": {"identity": encapsulated.X25519_IDENTITY},
    "passphrase": {"passphrase": PASSPHRASE},
    "passphrase-decomposed": {"passphrase": unicodedata.normalize("NFD", PASSPHRASE)},
}


def all_vectors() -> Iterator[Vector]:
    """Every vector, in the order of ``vectors.json``."""
    yield from header_vectors.vectors()
    yield from payload_vectors.vectors()
    yield from directory_vectors.vectors()


def _describe(vector: Vector) -> dict[str, Any]:
    is_file = isinstance(vector.content, bytes)
    entry: dict[str, Any] = {
        "name": vector.name,
        "kind": "file" if is_file else "directory",
        "stored": f"{vector.name}.sealed",
        "key": vector.key,
        "expect": vector.expect,
    }
    if vector.expect == "ok":
        entry["sha256"] = {
            path: hashlib.sha256(plain).hexdigest() for path, plain in sorted(vector.plain.items())
        }
    else:
        entry |= {"detail": dict(vector.detail), "inspect_fails": vector.inspect}
    return entry


def write_vectors(directory: Path) -> list[str]:
    """Write all vectors and ``vectors.json`` below ``directory`` and return their names.

    Raises:
        OSError: something of theirs is there already, or cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for vector in all_vectors():
        entry = _describe(vector)
        target = directory / entry["stored"]
        if isinstance(vector.content, bytes):
            _write(target, vector.content)
        else:
            for path, content in vector.content.items():
                _write(target / path, content)
        entries.append(entry)
    index = {"format": 1, "keys": KEYS, "vectors": entries}
    _write(
        directory / "vectors.json",
        json.dumps(index, ensure_ascii=False, indent=1).encode() + b"\n",
    )
    return [entry["name"] for entry in entries]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
