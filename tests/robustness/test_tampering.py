"""Every single bit and every length of a small sealed file, and of a manifest: none goes unseen."""

import io

import pytest

from strongroom import SymmetricKey
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import AccessError, FormatError, IntegrityError
from strongroom.model.reader import SealedModel
from strongroom.model.stream import unseal_stream
from strongroom.testing.directory_vectors import vectors as directory_vectors
from strongroom.testing.memory import BytesSource, BytesTree
from strongroom.testing.raw import KEY, pattern, sealed

PLAIN = pattern("tampering", 90)
SINGLE = sealed(PLAIN)
DIRECTORY = next(vector for vector in directory_vectors() if vector.name == "valid-directory")
REFUSED = (FormatError, AccessError, IntegrityError)


@pytest.fixture(scope="module")
def identity():
    return SymmetricKey(SecretBytes(KEY))


def read_single(identity, data):
    model = SealedModel(BytesSource(data), None, [identity])
    try:
        return model.read()
    finally:
        model.close()


def read_stream(identity, data):
    pieces = []
    unseal_stream(io.BytesIO(data), lambda: [identity], lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)


def read_directory(identity, manifest):
    tree = BytesTree({**DIRECTORY.content, "MANIFEST.sealed": manifest})
    model = SealedModel(tree.source("MANIFEST.sealed"), tree, [identity])
    try:
        return {path: model.read(path) for path in model.files}
    finally:
        model.close()


CASES = {
    "single": (read_single, SINGLE, PLAIN),
    "stream": (read_stream, SINGLE, PLAIN),
    "manifest": (read_directory, DIRECTORY.content["MANIFEST.sealed"], DIRECTORY.plain),
}


@pytest.mark.parametrize("case", CASES)
def test_untouched(case, identity):
    read, data, plain = CASES[case]
    assert read(identity, data) == plain


@pytest.mark.parametrize("case", CASES)
def test_every_flipped_bit_is_refused(case, identity):
    read, data, _ = CASES[case]
    changed = bytearray(data)
    accepted = []
    for position in range(len(data)):
        for bit in range(8):
            changed[position] ^= 1 << bit
            try:
                read(identity, changed)
            except REFUSED:
                pass
            else:
                accepted.append((position, bit))
            changed[position] ^= 1 << bit
    assert accepted == []
    assert read(identity, changed)  # everything was put back


@pytest.mark.parametrize("case", CASES)
def test_every_length_is_refused(case, identity):
    read, data, _ = CASES[case]
    accepted = []
    for size in range(len(data)):
        try:
            read(identity, data[:size])
        except REFUSED:
            pass
        else:
            accepted.append(size)
    for more in (1, 15, 16, 17, 4096):
        try:
            read(identity, data + bytes(more))
        except REFUSED:
            pass
        else:
            accepted.append(len(data) + more)
    assert accepted == []
