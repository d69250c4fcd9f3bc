"""cryptotensors: encrypted and signed safetensors files, read by their own package and sealed in clear form.

A file is a safetensors file whose header says, for every encrypted tensor, its wrapped key, nonces and
tags (AES-GCM or ChaCha20-Poly1305), and carries an Ed25519 signature of all of the header. Names, shapes,
dtypes and metadata are so authentic, and so is the data of every encrypted tensor; the version of the
model is not, and an access policy in the file is only a rule that readers keep.

The package (0.2.3) takes a file whose header has lost the member ``__encryption__`` for a plain one: no
key is asked for and no signature is checked. It does not check tensors that are in clear either. Here
the first is refused, and the second unless it is asked for.

The package reads a local file where it lies; one from elsewhere is fetched into memory first, as it is,
encrypted. Tensors are decrypted in groups of 64 MiB, or one that is larger. Keys go to the package in
memory alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.safetensors_stream import CODES, TensorInfo, groups, header, raw_bytes
from strongroom.compat.streams import pieces
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AccessError,
    ForeignTampered,
    FormatError,
    InvalidKey,
    Malformed,
    StrongroomError,
    UsageError,
)
from strongroom.format.encoding import load_json
from strongroom.loaders.source import extra_for
from strongroom.model.memory import memory_file
from strongroom.model.payload import WriteAt
from strongroom.model.storage import LocalSource, Source

try:
    import torch  # noqa: F401 - the package hands tensors out through it
    from cryptotensors import SafetensorError, safe_open
except ModuleNotFoundError as error:
    if error.name == "cryptotensors":
        raise UsageError(
            "Reading cryptotensors' files needs a package that is not installed.",
            hint="pip install cryptotensors",
        ) from None
    raise extra_for(error, "torch", "Reading cryptotensors' files", "torch") from None

__all__ = ["CryptotensorsCodec", "KeyPair", "parse_keys"]

_SUFFIX: Final = ".cryptotensors"
_MAX_HEADER: Final = 100_000_000  # of the package, and of safetensors
_ENCRYPTION: Final = "__encryption__"
_GROUP: Final = 64 << 20
_RESERVED: Final = (_ENCRYPTION, "__crypto_keys__", "__signature__")
_HINT: Final = (
    'Give a JWK Set, {"keys": [encryption key, signature key]}, with kty oct and okp; of the second '
    "the public part (x) is enough."
)


@dataclass(frozen=True)
class KeyPair:
    """What opens a file.

    Args:
        key: 16 or 32 bytes.
        alg: what the key is for, by the package's name for it, if the JWK says so.
        verify: the Ed25519 public key, 32 bytes.
    """

    key: SecretBytes
    alg: str | None
    verify: bytes

    def config(self) -> dict[str, Any]:
        """As the package takes them."""
        key = {"kty": "oct", "k": base64.b64encode(self.key.buffer).decode()}
        if self.alg:
            key["alg"] = self.alg
        return {
            "enc_key": key,
            "sign_key": {
                "kty": "okp",
                "alg": "ed25519",
                "x": base64.b64encode(self.verify).decode(),
            },
        }


@dataclass(frozen=True)
class _Jwk:
    kid: str | None
    kty: str
    alg: str | None
    raw: SecretBytes


def parse_keys(content: SecretBytes) -> list[_Jwk]:
    """The keys of a key file: a JWK Set, a list of JWKs, or ``enc_key`` and ``sign_key`` as for saving.

    Raises:
        InvalidKey: it is something else, or there is not one of each kind at least.
    """
    members: dict[str, Any] = {}
    problem = None
    text = bytes(content.buffer).strip()
    if text.startswith(b"["):
        text = b'{"keys":' + text + b"}"
    try:
        members = load_json(text, "JWK Set")
    except Malformed as error:  # behind it is one that holds the text
        problem = error.problem
    if problem:
        raise InvalidKey(f"This is not a JWK Set: it {problem}.", hint=_HINT)
    jwks = members.get("keys", [members.get("enc_key"), members.get("sign_key")])
    if not isinstance(jwks, list):
        raise InvalidKey("This is not a JWK Set: keys is not a list.", hint=_HINT)
    keys = [_parse_jwk(jwk) for jwk in jwks]
    if {key.kty for key in keys} != {"oct", "okp"}:
        raise InvalidKey("There is not one key of each kind.", hint=_HINT)
    return keys


def _parse_jwk(jwk: object) -> _Jwk:
    if not isinstance(jwk, dict):
        raise InvalidKey("This is not a JWK Set: a key in it is not a JWK.", hint=_HINT)
    kty = str(jwk.get("kty")).lower()
    sizes = {"oct": (16, 32), "okp": (32,)}.get(kty, ())
    raw = _octets(jwk.get({"oct": "k", "okp": "x"}.get(kty, "")))
    if raw is None or len(raw) not in sizes:
        raise InvalidKey("A JWK of this set is not a key for cryptotensors.", hint=_HINT)
    kid, alg = jwk.get("kid"), jwk.get("alg")
    for value in (kid, alg):
        if value is not None and not isinstance(value, str):
            raise InvalidKey("kid and alg of a JWK are text.", hint=_HINT)
    return _Jwk(kid, kty, alg, SecretBytes.take(raw))


def _octets(text: object) -> bytes | None:
    """Base64 of either alphabet, padded or not; the package writes the standard one, JWK the other."""
    if not isinstance(text, str) or not text:
        return None
    standard = text.rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return binascii.a2b_base64(standard + "=" * (-len(standard) % 4), strict_mode=True) or None
    except ValueError:
        return None


class CryptotensorsCodec(Codec):
    """Encrypted and signed safetensors files."""

    name = "cryptotensors"
    title = "cryptotensors: encrypted, signed safetensors files; become plain safetensors files"
    unprotected = (
        "The signature does not say which version of a model a file is. Tensors that are in clear in a "
        "file (partial) are not authentic."
    )
    options: ClassVar[Mapping[str, str]] = {
        "partial": "true: take files of which some tensors are in clear; those are not authentic"
    }
    suffix = _SUFFIX

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None
        given = self.given.get("partial", "false")
        if given not in ("true", "false"):
            raise UsageError(f"partial is true or false, not {given}.")
        self._partial = given == "true"
        self._keys = parse_keys(key)

    def recognises(self, path: str, head: bytes) -> bool:
        # Any safetensors file: whether it is encrypted is said somewhere in its header.
        return path.endswith((_SUFFIX, ".safetensors")) and head[8:9] == b"{"

    def plain_path(self, path: str) -> str:
        stem = path.removesuffix(_SUFFIX)
        return stem if stem.endswith(".safetensors") else stem + ".safetensors"

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        reserved, plain = _read_header(source)
        if plain and not self._partial:
            raise ForeignTampered(
                f"{source.name} has {plain} tensors in clear, which are not authentic.",
                hint="If it was made so, and you trust it: partial=true.",
            )
        keys = self._pair(reserved["__crypto_keys__"], source)

        return [PlainFile(self.plain_path(path), lambda write: _copy(source, reserved, keys, write))]

    def _pair(self, stated: str, source: Source) -> KeyPair:
        """The keys that the file names; of a kind of which there is one, that one."""
        try:
            ids = load_json(stated.encode(), "__crypto_keys__")
        except Malformed as error:
            raise FormatError(f"{source.name} is damaged: {error.field} {error.problem}.") from None

        def choose(kty: str, use: str) -> _Jwk:
            found = [key for key in self._keys if key.kty == kty]
            if len(found) > 1:
                named = ids.get(use)
                kid = named.get("kid") if isinstance(named, dict) else None
                found = [key for key in found if key.kid == kid]
                if len(found) != 1:
                    raise InvalidKey(
                        f"{source.name} names the key {kid}, which the key file does not have once."
                    )
            return found[0]

        key, verify = choose("oct", "enc"), choose("okp", "sign")
        return KeyPair(key.raw, key.alg, bytes(verify.raw.buffer))


def _read_header(source: Source) -> tuple[dict[str, str], int]:
    """What the header says of the encryption, and how many tensors are in clear. Not authentic yet.

    Raises:
        FormatError: it is no safetensors file, or not an encrypted one.
    """
    length = bytearray(min(8, source.size))
    source.read_into(0, memoryview(length))
    size = int.from_bytes(length, "little")
    if size > min(_MAX_HEADER, source.size - 8):
        raise FormatError(f"{source.name} is not a safetensors file.")
    raw = bytearray(size)
    source.read_into(8, memoryview(raw))
    try:
        members = load_json(bytes(raw), "header")
        metadata = members.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(metadata.get(n), str) for n in _RESERVED
        ):
            raise FormatError(f"{source.name} is not encrypted by cryptotensors.")
        encrypted = load_json(metadata[_ENCRYPTION].encode(), _ENCRYPTION)
    except Malformed as error:
        raise FormatError(f"{source.name} is damaged: its {error.field} {error.problem}.") from None
    return {name: metadata[name] for name in _RESERVED}, len(members.keys() - encrypted.keys())


@contextmanager
def _opened(source: Source, place: str, reserved: Mapping[str, str], keys: KeyPair) -> Iterator[Any]:
    """The file as the package opens it: the signature is verified, and it is that in ``reserved``."""
    failed: StrongroomError | None = None
    opener: Any = safe_open  # its stub has no types
    try:
        with opener(place, "pt", config=keys.config()) as file:
            found = file.reserved_metadata()
            if any(found.get(name) != value for name, value in reserved.items()):
                raise ForeignTampered(f"{source.name} changed while it was read.")
            yield file
    except SafetensorError as error:
        failed = _explained(str(error), source)
    if failed:
        raise failed


@contextmanager
def _place(source: Source) -> Iterator[str]:
    """A path of the encrypted file: the package maps files, and takes nothing else."""
    if isinstance(source, LocalSource):
        yield f"/proc/self/fd/{source.fileno()}"
        return

    def fill(write_at: WriteAt) -> None:
        offset = 0

        def write(piece: memoryview) -> None:
            nonlocal offset
            write_at(offset, piece)
            offset += len(piece)

        pieces(source, 0, source.size, write)

    with memory_file("model", fill) as place:
        yield place


def _explained(text: str, source: Source) -> StrongroomError:
    """The error for what the package says; it has one class for all."""
    if "Policy evaluation" in text:
        return AccessError(f"{source.name}: the access policy in the file does not allow it.")
    if "KeyMaterial" in text:
        return InvalidKey("A JWK is not one that cryptotensors can use.", hint=_HINT)
    if "Verification(" in text:
        return ForeignTampered(
            f"{source.name} does not authenticate: its header was changed, or signed with another key.",
            hint="Give the public key of who signed it, in the key file.",
        )
    if "Decryption(" in text:
        return ForeignTampered(
            f"{source.name} does not authenticate: it was encrypted under another key, or it has been "
            "changed."
        )
    return FormatError(f"{source.name}: cryptotensors cannot read it: {text[:120]}.")


def _copy(source: Source, reserved: Mapping[str, str], keys: KeyPair, write: Write) -> None:
    tensors = []
    with _place(source) as place:
        with _opened(source, place, reserved, keys) as file:
            for name in file.offset_keys():
                part = file.get_slice(name)
                info = TensorInfo(name, part.get_dtype(), tuple(part.get_shape()))
                if info.code not in CODES.values():
                    raise FormatError(f"{source.name}: the tensor {name} has the dtype {info.code}.")
                tensors.append(info)
            write(header(tensors, file.metadata()))
        # An open file keeps every tensor that it has decrypted (0.2.3).
        for group in groups(tensors, lambda info: info.size, _GROUP):
            with _opened(source, place, reserved, keys) as file:
                for info in group:
                    _copy_tensor(file, info, write)


def _copy_tensor(file: Any, info: TensorInfo, write: Write) -> None:
    if info.size == 0:  # the package cannot read an empty tensor; the signature covers its shape
        return
    data = raw_bytes(file.get_tensor(info.name))
    if len(data) != info.size:
        raise FormatError(f"The tensor {info.name} has {len(data)} bytes, not {info.size}.")
    write(data)
