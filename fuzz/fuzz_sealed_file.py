"""Invariant: of any bytes a reader gives the plaintext that was sealed, or raises StrongroomError; reading as a stream agrees with random access."""

import io

import atheris

with atheris.instrument_imports(include=["strongroom"]):
    import seeds

    from strongroom import SymmetricKey
    from strongroom.crypto.secret import SecretBytes
    from strongroom.errors import StrongroomError
    from strongroom.model.reader import SealedModel
    from strongroom.model.stream import unseal_stream
    from strongroom.testing.memory import BytesSource
    from strongroom.testing.raw import KEY

IDENTITY = SymmetricKey(SecretBytes(KEY))


def random_access(data: bytes) -> bytes | type[Exception]:
    try:
        model = SealedModel(BytesSource(data), None, [IDENTITY])
        try:
            return model.read()
        finally:
            model.close()
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        return type(error)


def stream(data: bytes) -> bytes | type[Exception]:
    pieces: list[bytes] = []
    try:
        unseal_stream(io.BytesIO(data), lambda: [IDENTITY], lambda piece: pieces.append(bytes(piece)))
    except StrongroomError as error:
        return type(error)
    return b"".join(pieces)


PLAINTEXTS = {random_access(seed) for seed in seeds.files()}


def target(data: bytes) -> None:
    found, streamed = random_access(data), stream(data)
    assert isinstance(found, bytes) == isinstance(streamed, bytes)
    if isinstance(found, bytes):
        assert found == streamed
        assert found in PLAINTEXTS


if __name__ == "__main__":
    seeds.fuzz(target, seeds.files())
