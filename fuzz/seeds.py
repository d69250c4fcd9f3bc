"""Seeds for the fuzzers, made from the test vectors when a fuzzer starts."""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

from strongroom import SymmetricKey
from strongroom.crypto.secret import SecretBytes
from strongroom.format.manifest import Manifest
from strongroom.model.reader import SealedModel
from strongroom.testing.memory import BytesTree
from strongroom.testing.raw import KEY, SEGMENT
from strongroom.testing.vectors import all_vectors


def files() -> Iterable[bytes]:
    """Every sealed file of the vectors that is small enough to be mutated well."""
    for vector in all_vectors():
        contents = [vector.content] if isinstance(vector.content, bytes) else vector.content.values()
        yield from (content for content in contents if len(content) < SEGMENT)


def headers() -> Iterable[bytes]:
    """The JSON of their headers."""
    for content in files():
        size = int.from_bytes(content[12:16], "big")
        if len(content) >= 4096 and size < 4096:
            yield content[16 : 16 + size]


def manifests() -> Iterable[bytes]:
    """The JSON of the manifests of the valid directories."""
    identity = SymmetricKey(SecretBytes(KEY))
    for vector in all_vectors():
        if vector.expect == "ok" and not isinstance(vector.content, bytes):
            tree = BytesTree(vector.content)
            model = SealedModel(tree.source("MANIFEST.sealed"), tree, [identity])
            yield Manifest(tuple(model._entries.values())).encode()


def fuzz(target: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Run ``target``; arguments are those of libFuzzer."""
    folder = Path(tempfile.mkdtemp(prefix="strongroom-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number:04}").write_bytes(seed)
    atheris.Setup([*sys.argv, str(folder)], target)
    atheris.Fuzz()
