"""sgx-pytorch's secure_mkldnn: state dicts whose weights are encrypted tensors.

An encrypted tensor is a 1-D tensor of int32, little endian::

    [0] ndim, [1..ndim] dims
    100 bytes   u32 dtype (0 float32, 1 float16) ‖ model id, 4 bytes ‖ 92 zero bytes
     12 bytes   IV
     16 bytes   GCM tag
      n bytes   ciphertext, AES-128-GCM without associated data
    int32s in all: 1 + ndim + elements + 32; with float16 the second half of the last part is zero

GCM covers the elements of one tensor. Its shape, dtype and model id are not authentic, nor is its name
or whether it is encrypted at all: tensors of one size can be exchanged, left out, or be replaced by
plain ones. Running statistics of BatchNorm, and layers other than Linear, Conv and BatchNorm, are in
clear in the files of secure_mkldnn.

A 1-D tensor of int32 is taken for encrypted if its length and all bytes that are always zero are as
above; what then fails its tag is refused. So is any other 1-D tensor of int32 that is called weight or
bias: it was encrypted, and is damaged. Everything else stays as it is.

A state dict is loaded as a whole and its tensors are replaced one by one, which takes memory for the
model and one tensor. It is read with ``weights_only=True``, and from the source itself.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.source_file import SourceFile
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, StrongroomError, UsageError
from strongroom.loaders.source import check_members, extra_for, members_of
from strongroom.model.file import SealedFile
from strongroom.model.output import Output
from strongroom.model.payload import Content
from strongroom.model.storage import Source

try:
    import torch
except ModuleNotFoundError as error:
    raise extra_for(error, "torch", "Reading sgx-pytorch's tensors", "torch") from None

__all__ = ["SgxPytorchCodec", "decrypt_tensor", "encrypt_tensor", "parse_key"]

_KEY: Final = 16
_MODEL_ID: Final = 4
_FIXED: Final = 100
_ZEROS: Final = _FIXED - 4 - _MODEL_ID
_IV: Final = 12
_TAG: Final = 16
_PREFIX: Final = _FIXED + _IV + _TAG
_MAX_NDIM: Final = 64  # of torch
_DTYPES: Final = (torch.float32, torch.float16)
_NAMES: Final = {"float32": torch.float32, "float16": torch.float16}
_ZIP: Final = b"PK\3\4"
_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_GLOBS: Final = ("weight", "bias", "*.weight", "*.bias")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{32}")


def parse_key(content: SecretBytes) -> SecretBytes:
    """The 16 bytes of a key file: raw, or in 32 hexadecimal digits.

    Raises:
        InvalidKey: it is something else.
    """
    text = bytearray(content.buffer)
    try:
        if len(text) in (_KEY + 1, 2 * _KEY + 1) and text.endswith(b"\n"):
            text[-1:] = b""
        if _HEX.fullmatch(text):
            raw = bytearray.fromhex(text.decode("ascii"))
            text[:] = raw
            raw[:] = bytes(len(raw))
        if len(text) == _KEY:
            return SecretBytes(text)
    finally:
        text[:] = bytes(len(text))
    raise InvalidKey(
        "This is not a key of sgx-pytorch: 16 bytes.",
        hint="A key file has them as they are, or as 32 hexadecimal digits.",
    )


def _model_id(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{8}", text):
        raise UsageError(
            f"A model id is 8 hexadecimal digits, not {text}.", hint="Its 4 bytes in order: 01000000."
        )
    return bytes.fromhex(text)


@dataclass(frozen=True, slots=True)
class _Encrypted:
    """What stands before the ciphertext, none of it authentic, and the ciphertext."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    model_id: bytes
    iv: bytes
    tag: bytes
    ciphertext: memoryview


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _raw(tensor: torch.Tensor) -> memoryview:
    return _bytes(tensor).numpy().data


def _parse(tensor: object) -> _Encrypted | None:
    """The parts of an encrypted tensor; None if it is a plain one."""
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.dtype != torch.int32
        or tensor.dim() != 1
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
        or len(tensor) < 2 + _PREFIX // 4
    ):
        return None
    ndim = int(tensor[0])
    if not 1 <= ndim <= min(_MAX_NDIM, len(tensor) - 1 - _PREFIX // 4):
        return None
    shape = tuple(tensor[1 : 1 + ndim].tolist())
    if min(shape) < 0 or len(tensor) != 1 + ndim + math.prod(shape) + _PREFIX // 4:
        return None
    data = _bytes(tensor)[4 * (1 + ndim) :]
    fixed = bytes(_raw(data[:_PREFIX]))
    code = int.from_bytes(fixed[:4], "little")
    if code >= len(_DTYPES) or any(fixed[_FIXED - _ZEROS : _FIXED]):
        return None
    dtype = _DTYPES[code]
    end = _PREFIX + math.prod(shape) * dtype.itemsize
    if data[end:].any():
        return None
    iv, tag = fixed[_FIXED : _FIXED + _IV], fixed[_FIXED + _IV :]
    return _Encrypted(shape, dtype, fixed[4 : 4 + _MODEL_ID], iv, tag, _raw(data[_PREFIX:end]))


def _open(parts: _Encrypted, key: SecretBytes, name: str) -> torch.Tensor:
    plain = torch.empty(parts.shape, dtype=parts.dtype)
    decryptor = Cipher(AES(key.buffer), GCM(parts.iv, parts.tag)).decryptor()
    if plain.numel():
        decryptor.update_into(parts.ciphertext, _raw(plain))
    try:
        decryptor.finalize()
        return plain
    except InvalidTag:
        plain.zero_()
    raise ForeignTampered(
        f"The tensor {name} does not authenticate: it was encrypted under another key, or it has been "
        "changed.",
        hint=f"It says that its model id is {parts.model_id.hex()}, which is not authentic.",
    )


def decrypt_tensor(tensor: torch.Tensor, key: SecretBytes, name: str) -> torch.Tensor:
    """The tensor that has been encrypted.

    Args:
        key: 16 bytes.
        name: for messages.

    Raises:
        FormatError: it is not an encrypted tensor.
        ForeignTampered: it was encrypted under another key, or changed.
    """
    parts = _parse(tensor)
    if parts is None:
        raise FormatError(f"The tensor {name} is not encrypted.")
    return _open(parts, key, name)


def encrypt_tensor(
    tensor: torch.Tensor, key: SecretBytes, model_id: bytes = bytes(_MODEL_ID), iv: bytes | None = None
) -> torch.Tensor:
    """A tensor as secure_mkldnn encrypts it.

    Args:
        tensor: float32 or float16, of at least one dimension.
        key: 16 bytes.
        model_id: 4 bytes.
        iv: 12 bytes that were never used with this key; by default random ones.
    """
    code = _DTYPES.index(tensor.dtype)
    plain = tensor.detach().cpu().contiguous()
    shape = plain.shape
    made = torch.zeros(1 + len(shape) + plain.numel() + _PREFIX // 4, dtype=torch.int32)
    made[0] = len(shape)
    made[1 : 1 + len(shape)] = torch.tensor(shape)
    iv = iv or os.urandom(_IV)
    encryptor = Cipher(AES(key.buffer), GCM(iv)).encryptor()
    data = _raw(made)[4 * (1 + len(shape)) :]
    if plain.numel():
        encryptor.update_into(_raw(plain), data[_PREFIX:])
    encryptor.finalize()
    fixed = code.to_bytes(4, "little") + model_id + bytes(_ZEROS)
    data[:_PREFIX] = fixed + iv + encryptor.tag
    return made


class SgxPytorchCodec(Codec):
    """State dicts of sgx-pytorch's secure_mkldnn."""

    name = "sgx-pytorch"
    title = "sgx-pytorch: state dicts with tensors encrypted by secure_mkldnn (.pt, .pth)"
    unprotected = (
        "Only the elements of encrypted tensors are authentic: not their names, shapes and model ids, nor "
        "the tensors in clear; encrypted tensors can be exchanged, left out or be replaced by plain ones."
    )
    options: ClassVar[Mapping[str, str]] = {
        "model_id": "8 hexadecimal digits: an import insists on it, an export writes it (00000000)",
        "dtype": "float32 or float16: what an export converts weights to; otherwise they stay",
        "names": "a glob pattern: the tensors that an export encrypts, and an import finds encrypted if "
        "they are 1-D int32 (*.weight and *.bias)",
    }
    writes = True

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None
        self._key = parse_key(key)
        wanted = self.given.get("model_id")
        self._model_id = None if wanted is None else _model_id(wanted)
        dtype = self.given.get("dtype")
        if dtype is not None and dtype not in _NAMES:
            raise UsageError(f"sgx-pytorch has no dtype {dtype}.", hint="float32 or float16.")
        self._dtype = None if dtype is None else _NAMES[dtype]
        self._globs = (self.given["names"],) if "names" in self.given else _GLOBS

    def recognises(self, path: str, head: bytes) -> bool:
        return head.startswith(_ZIP) and path.lower().endswith(_SUFFIXES)

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        head = bytearray(min(len(_ZIP), source.size))
        source.read_into(0, memoryview(head))
        if head != _ZIP:
            raise FormatError(
                f"{source.name} is not a file of torch.save.", hint="Its zip archive begins with PK."
            )
        return [PlainFile(path, lambda write: self._decrypt(source, write))]

    def _decrypt(self, source: Source, write: Write) -> None:
        state = _load(SourceFile(source), source.name)
        found = 0
        for name in state:
            parts = _parse(state[name])
            if parts is None:
                self._refuse_damaged(name, state[name])
                continue
            if self._model_id not in (None, parts.model_id):
                raise InvalidKey(f"The tensor {name} has the model id {parts.model_id.hex()}.")
            state[name] = _open(parts, self._key, name)
            del parts  # it holds the memory of the encrypted tensor
            found += 1
        if not found:
            raise FormatError(
                f"{source.name} has no encrypted tensors.",
                hint="If it is a plain state dict, seal it as it is: strongroom seal.",
            )
        _save(state, write)

    def _refuse_damaged(self, name: str, tensor: object) -> None:
        if not self._is_named(name) or not isinstance(tensor, torch.Tensor):
            return
        if tensor.dtype == torch.int32 and tensor.dim() == 1:
            raise FormatError(
                f"The tensor {name} has integers, and they are not an encrypted tensor.",
                hint="It is damaged. If it is a plain one, say which are encrypted: names=…",
            )

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        state = _load(SealedFile(content, "model"), "The file")
        found = 0
        for name, tensor in state.items():
            if not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
                continue
            if not self._is_named(name):
                continue
            state[name] = encrypt_tensor(
                self._converted(name, tensor), self._key, self._model_id or bytes(_MODEL_ID)
            )
            found += 1
        if not found:
            raise UsageError(
                "The state dict has no tensors to encrypt.",
                hint="Of these patterns: " + ", ".join(self._globs) + ". Others: names=…",
            )
        _save(state, output.write)

    def _is_named(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for glob in self._globs)

    def _converted(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0:
            raise UsageError(f"{name} has no dimensions, and cannot be encrypted in this format.")
        if self._dtype is not None:
            return tensor.to(self._dtype)
        if tensor.dtype not in _DTYPES:
            raise UsageError(
                f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, which this format lacks.",
                hint="Convert all to one that it has: dtype=float32.",
            )
        return tensor


def _load(file: Any, name: str) -> dict[str, Any]:
    members = members_of(file)
    if members is not None:
        check_members(members, file.size, name)
    file.seek(0)
    try:
        state = torch.load(file, "cpu", weights_only=True, mmap=False)
    except StrongroomError:
        raise
    except Exception as error:  # torch's errors for a broken file have no common base
        raise FormatError(
            f"{name} is not a state dict of torch.save: {type(error).__name__}.",
            hint="Only tensors and plain containers are read (weights_only=True).",
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise FormatError(
            f"{name} holds no state dict, but a {type(state).__name__}.",
            hint="Save model.state_dict() itself.",
        )
    return state


class _Writer:
    """What torch.save writes to."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def write(self, data: memoryview | bytes) -> int:
        self._write(data)
        return len(data)

    def flush(self) -> None:
        pass


def _save(state: Mapping[str, Any], write: Write) -> None:
    file: Any = _Writer(write)
    torch.save(state, file)
