"""An encrypted model, opened: a sealed one, or a Fernet file of model_cryptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from strongroom.compat.base import HEAD_SIZE
from strongroom.compat.fernet import FernetCodec
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import InvalidKey, NotSealed, os_errors
from strongroom.format.header import MAGIC
from strongroom.keys.symmetric import SymmetricKey
from strongroom.model.collect import checked_path
from strongroom.model.location import is_url, local
from strongroom.model.reader import SealedModel, open_model
from strongroom.model.storage import LocalSource
from strongroom.model.writer import SealedWriter
from strongroom.providers import sources
from strongroom.providers.sources import KeySource

__all__ = ["Place", "opened"]

Place = str | os.PathLike[str]
"""A path; or the URL of a sealed model."""


@contextmanager
def opened(place: Place, key: KeySource) -> Iterator[SealedModel]:
    """An encrypted model of either format, told apart by the first bytes; closed afterwards.

    Raises:
        NotSealed: it is neither.
        StrongroomError: it cannot be opened, or is not authentic.
    """
    if is_url(place) or os.path.isdir(local(place)):
        with open_model(place, lambda: sources.identities(key)) as model:
            yield model
        return
    source = LocalSource(local(place))
    try:
        head = memoryview(bytearray(min(HEAD_SIZE, source.size)))
        source.read_into(0, head)
        if bytes(head[: len(MAGIC)]) == MAGIC:
            with SealedModel(source, None, sources.identities(key)) as model:
                yield model
            return
        codec = FernetCodec(_fernet_key(key))
        if not codec.recognises(source.name, bytes(head)):
            raise NotSealed(
                f"{source.name} is not encrypted: it is neither a sealed file nor one of model_cryptor.",
                hint="Encrypt it first, or use it as it is.",
            )
        with _from_fernet(codec, source) as model:
            yield model
    finally:
        source.close()


def _fernet_key(key: KeySource) -> SecretBytes:
    for identity in sources.identities(key):
        if isinstance(identity, SymmetricKey):
            return SecretBytes.take(identity.encode())
    raise InvalidKey(
        "A file of model_cryptor needs its symmetric key.",
        hint="Give the license.pem that it was made with.",
    )


class _MemoryOutput:
    """A memory file as an output."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        with os_errors("memory"):
            while view:
                view = view[os.write(self._descriptor, view) :]

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


@contextmanager
def _from_fernet(codec: FernetCodec, source: LocalSource) -> Iterator[SealedModel]:
    """The file as an open model: sealed anew, in memory, under a key that exists for this only.

    So all loaders read it as they read any model, and see no byte that the MAC has not covered.
    Sealing takes a tenth of the time that Fernet does. The sealed copy is freed after the block.
    """
    descriptor = os.memfd_create("model", os.MFD_CLOEXEC)
    try:
        (file,) = codec.decrypt(source, os.path.basename(source.name))
        key = SymmetricKey.generate()
        path = checked_path(file.path, source.name)
        with SealedWriter(_MemoryOutput(descriptor), [key], path, {}) as writer:
            file.copy_to(writer.write)
        sealed = LocalSource(f"/proc/self/fd/{descriptor}")
        sealed.name = source.name  # for messages
        with SealedModel(sealed, None, [key]) as model:
            yield model
    finally:
        os.close(descriptor)
