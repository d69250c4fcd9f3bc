"""CoreWeave's tensorizer, encrypted: read by its own package, and sealed as a safetensors file.

Each tensor is encrypted in chunks with XSalsa20-Poly1305 (libsodium's secretbox), under one key for the
file; a passphrase is stretched to one with Argon2id.

What the format does not protect: names, shapes, dtypes, the order and number of tensors. Tensors of one
file can be exchanged, left out, or be put together from several files of one key. SHA-256 and CRC32 in
the file find accidents in most of it, and are checked; anybody can compute them anew. A tensor whose header
says that it has no data (``meta``) is zeros for tensorizer (2.12), which asks for no key and no tag:
whoever can write the file could zero any tensor. Here it is refused.

What a passphrase costs to stretch is said by the file. More than 1 GiB of memory, and sixteen passes over as
much, is refused; libsodium's dearest setting takes four.

Tensors are decrypted in groups of 256 MiB, or one that is larger, and not before the file is complete as
far as its index says. Nested names (of lists and mappings) are joined with dots. The order is that of
safetensors, larger elements first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.safetensors_stream import CODES, TensorInfo, aligned, groups, header, raw_bytes
from strongroom.compat.source_file import SourceFile
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import (
    ForeignTampered,
    FormatError,
    InvalidKey,
    LimitExceeded,
    StrongroomError,
    UsageError,
)
from strongroom.model.storage import Source

try:
    import numpy
    from tensorizer import DecryptionParams, TensorDeserializer
    from tensorizer.serialization import CryptographyError, HashMismatchError
except ModuleNotFoundError as error:
    if error.name not in ("tensorizer", "numpy", "torch"):
        raise
    raise UsageError(
        "Reading tensorizer's files needs packages that are not installed.",
        hint="pip install tensorizer",
    ) from None

__all__ = ["TensorizerCodec"]

_MAGIC: Final = b"|TZR|"
_SUFFIXES: Final = (".tensors", ".tensorizer")
_KEY: Final = 32
_GROUP: Final = 256 << 20
_MAX_HEADER: Final = 64 << 20  # it has a tag of 16 bytes for 2 MiB
_END: Final = 8  # a header of length 0
_MAX_MEMORY: Final = 1 << 30  # of Argon2id: MemLimit.SENSITIVE
_MAX_WORK: Final = 16 * _MAX_MEMORY  # passes times memory, of all that a file asks for
_Name = str | tuple[str | int, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Entry:
    """A tensor of the index: as tensorizer names it, and as it will be written."""

    name: _Name
    info: TensorInfo


class TensorizerCodec(Codec):
    """Files of tensorizer that are encrypted."""

    name = "tensorizer"
    title = "tensorizer, encrypted (.tensors); becomes a safetensors file"
    unprotected = (
        "Names, shapes and dtypes are not authentic, nor which tensors there are: they can be exchanged, "
        "renamed, or left out."
    )
    options: ClassVar[Mapping[str, str]] = {
        "passphrase": "true: the key file holds a passphrase (EncryptionParams.from_string), not a key"
    }

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None
        given = self.given.get("passphrase", "false")
        if given not in ("true", "false"):
            raise UsageError(f"passphrase is true or false, not {given}.")
        self._is_passphrase = given == "true"
        size = len(key)
        if key.buffer[-1] == ord("\n") and (self._is_passphrase or size == _KEY + 1):
            size -= 1
        if size == 0 or not (self._is_passphrase or size == _KEY):
            raise InvalidKey(
                "This is not a key of tensorizer: 32 raw bytes.",
                hint="They are EncryptionParams.key; for a passphrase: passphrase=true.",
            )
        self._key = SecretBytes(key.buffer[:size])
        try:
            DecryptionParams.from_key(bytes(_KEY))
        except RuntimeError:
            raise UsageError(
                "tensorizer decrypts with libsodium, which is not installed.",
                hint="apt-get install libsodium23",
            ) from None

    def recognises(self, path: str, head: bytes) -> bool:
        return head.startswith(_MAGIC)

    def plain_path(self, path: str) -> str:
        stem, suffix = posixpath.splitext(path)
        return (stem if suffix in _SUFFIXES else path) + ".safetensors"

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        head = bytearray(min(len(_MAGIC), source.size))
        source.read_into(0, memoryview(head))
        if head != _MAGIC:
            raise FormatError(f"{source.name} is not a file of tensorizer.")
        return [PlainFile(self.plain_path(path), lambda write: self._decrypt(source, write))]

    def _decrypt(self, source: Source, write: Write) -> None:
        entries = self._use(source, None, lambda reader: _index(reader, source))
        order = {info.name: number for number, info in enumerate(aligned(e.info for e in entries))}
        entries.sort(key=lambda entry: order[entry.info.name])
        write(header([entry.info for entry in entries], {"format": "pt"}))
        for group in groups(entries, lambda entry: entry.info.size, _GROUP):
            tensors = self._use(source, {entry.name for entry in group}, _tensors)
            for entry in group:
                tensor = tensors.pop(entry.name, None)
                if tensor is None or _said_of(tensor) != (entry.info.code, entry.info.shape):
                    raise ForeignTampered(
                        f"{source.name} has been changed: its index and its tensors differ."
                    )
                write(raw_bytes(tensor))

    def _use(self, source: Source, names: set[_Name] | None, use: Callable[[Any], _T]) -> _T:
        """What ``use`` makes of tensorizer's reader of some tensors, or all; nothing is read yet."""
        key = bytes(self._key.buffer)
        opened = False
        failed: StrongroomError
        try:
            made = DecryptionParams.from_string if self._is_passphrase else DecryptionParams.from_key
            with TensorDeserializer(
                SourceFile(source),
                device="cpu",
                filter_func=None if names is None else names.__contains__,
                lazy_load=True,
                num_readers=1,
                verify_hash=True,
                encryption=made(key),
            ) as reader:
                opened = True
                if reader._key_derivation is not None:
                    reader._key_derivation = _Stretching(reader._key_derivation, source.name)
                return use(reader)
        except StrongroomError:
            raise
        except (CryptographyError, HashMismatchError):
            failed = (
                ForeignTampered(
                    f"{source.name} does not authenticate: it was encrypted under another key, or it "
                    "has been changed.",
                    hint="Is it a key or a passphrase? The option passphrase says which.",
                )
                if opened
                else FormatError(f"{source.name} is a file of tensorizer that is not encrypted.")
            )
        except Exception as error:  # damage ends in anything: assertions, struct.error, KeyError
            failed = FormatError(
                f"{source.name} is damaged: tensorizer cannot read it ({type(error).__name__}).",
                hint="Fetch it again.",
            )
        finally:
            wipe_bytes(key)
        # Raised out here: what hangs on to tensorizer's errors are frames with the key.
        raise failed


class _Stretching:
    """tensorizer's own way from a passphrase to keys, for files that ask for a bearable amount of it."""

    def __init__(self, own: Any, name: str) -> None:
        self._own = own
        self._name = name
        self._asked: dict[tuple[int, int, bytes], int] = {}

    def key(self, method: Any) -> Any:
        asked = method.opslimit, method.memlimit, bytes(method.salt)
        self._asked[asked] = method.opslimit * method.memlimit
        if method.memlimit > _MAX_MEMORY or sum(self._asked.values()) > _MAX_WORK:
            raise LimitExceeded(
                f"{self._name} asks for too much time or memory to make a key of a passphrase.",
                hint="If it is right, give the key itself: EncryptionParams.from_string(…).key.",
            )
        return self._own.key(method)


def _tensors(reader: Any) -> dict[_Name, Any]:
    return {name: tensor for _, _, name, tensor in reader.read_tensors()}


def _said_of(tensor: Any) -> tuple[str | None, tuple[int, ...]]:
    return CODES.get(str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape)


def _index(reader: Any, source: Source) -> list[_Entry]:
    """What the index of the file says, checked against its size.

    Raises:
        FormatError: it is damaged, or has what safetensors files cannot have.
        ForeignTampered: it does not account for the whole file, or for a tensor's data.
    """
    found = []
    end = 0
    # There is no public way to learn shapes without reading every tensor (tensorizer 2.9 to 2.12).
    for entry in reader._metadata.values():
        name = entry.name.normalize_()
        text = name if isinstance(name, str) else ".".join(map(str, name))
        info = TensorInfo(text, _code_of(entry.dtype, text), tuple(map(int, entry.shape)))
        if not _has_data(entry, info.size, source):
            raise ForeignTampered(
                f"The tensor {text} does not have {info.size} bytes in the file.",
                hint="It is damaged, or was written without data (meta), which nobody can check.",
            )
        end = max(end, entry.data_offset + entry.data_length)
        found.append(_Entry(name, info))
    rest = bytearray(min(source.size - end, _END))
    source.read_into(end, memoryview(rest))
    if source.size - end > _END or any(rest):
        raise ForeignTampered(
            f"{source.name} does not end where its last tensor does.",
            hint="It is cut short, or there are tensors that its index does not name.",
        )
    return found


def _has_data(entry: Any, size: int, source: Source) -> bool:
    """Whether the index and the header of a tensor agree that it has ``size`` bytes behind the header.

    A header begins with its own size (u64), and ends with that of the data (i64).
    """
    length = entry.data_offset - entry.offset
    if entry.data_length != size or not 16 <= length <= _MAX_HEADER:
        return False
    if entry.data_offset + size > source.size:
        return False
    found = bytearray(length)
    source.read_into(entry.offset, memoryview(found))
    return (
        int.from_bytes(found[:8], "little") == length
        and int.from_bytes(found[-8:], "little", signed=True) == size
    )


def _code_of(dtype: str, name: str) -> str:
    """The code of a dtype of the index: NumPy's, or behind a NUL torch's."""
    code = None
    of_numpy, _, of_torch = dtype.partition("\0")
    if of_torch:
        code = CODES.get(of_torch.removeprefix("torch."))
    else:
        try:
            known = numpy.dtype(of_numpy)
        except (TypeError, ValueError, SyntaxError):
            known = numpy.dtype("V")
        if known.byteorder in "<=|":
            code = CODES.get(known.name)
    if code is None:
        raise FormatError(f"The tensor {name} has a dtype that safetensors files do not have.")
    return code
