"""llama.cpp, by llama-cpp-python: sealed GGUF files, whole or split, with LoRA adapters."""

from __future__ import annotations

import os
import re
import struct
from contextlib import ExitStack
from typing import Any, Final

from strongroom.errors import FormatError, NotFound, UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory_directory import memory_directory
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import llama_cpp
except ModuleNotFoundError as error:
    raise extra_for(error, "llama_cpp", "Loading GGUF models", "llama-cpp") from None

__all__ = ["llama"]

_SUFFIXES: Final = (".gguf",)
_MAGIC: Final = b"GGUF"
_PIECE: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
# llama.cpp finds the pieces of a split model by these names.

_PROJECTOR: Final = re.compile(r"mmproj[^/]*\Z", re.IGNORECASE)
# The customary name of the part of a vision model that a chat handler loads.

_HEAD: Final = 64 << 10
_FILE_TYPE: Final = struct.pack("<Q", 17) + b"general.file_type" + struct.pack("<I", 4)
# A key of the metadata as GGUF stores it: length, name, type uint32.

_REPACKED: Final = {2: "Q4_0", 14: "Q4_K_S", 15: "Q4_K_M", 25: "IQ4_NL"}
# llama_ftype in llama.h: those whose matrices llama.cpp 0.3.36 copies into another order on x86 CPUs.


def llama(
    model_path: ModelSource,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    use_mmap: bool | None = None,
    lora_path: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> Any:
    """``llama_cpp.Llama`` on a sealed GGUF file.

    llama.cpp maps the memory file that the model was decrypted to, as it maps a file on a disk, and
    there is one copy. Without the mapping it copies the weights out and there are two while it loads.

    Args:
        model_path: the place of a sealed file or directory, or an open model.
        path: the GGUF file, if there are several: of a split model the first piece, or leave it out.
            A projector (``mmproj…``) and the adapter of ``lora_path`` do not count.
        use_mmap: None decides by the model: False if layers go to a GPU, or if llama.cpp repacks
            the weights (Q4_0, Q4_K, IQ4_NL), since a mapping would keep the first copy for nothing.
        lora_path: a file in the sealed model, or else a file in clear.
        kwargs: those of ``Llama``. ``verbose`` is False here unless you say so: llama.cpp prints
            the metadata of the model, and why it refuses one.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or llama.cpp cannot load it.
        ValueError, RuntimeError: llama-cpp-python's.
    """
    kwargs.setdefault("verbose", False)
    with opened(model_path, key) as model, ExitStack() as stack:
        lora = None if lora_path is None else os.fspath(lora_path)
        name = path or _first(model, lora)
        pieces = _pieces(model, name)
        for piece in pieces:
            _check_magic(model, piece)
        if use_mmap is None:
            use_mmap = not kwargs.get("n_gpu_layers") and _file_type(model, name) not in _REPACKED
        if lora is not None:
            kwargs["lora_path"] = _lora(model, lora, stack)
        place = _place(model, pieces, stack)
        try:
            made = llama_cpp.Llama(place, use_mmap=use_mmap, **kwargs)
        except ValueError as error:
            if "Failed to load model from file" not in str(error):
                raise
            raise FormatError(
                f"llama.cpp cannot load {name}.", hint="With verbose=True it prints the reason."
            ) from error
        # It names the model in answers, and in a pickle, where the memory file would be another's.
        made.model_path = f"{model.name}/{name}" if model.is_directory else model.name
        made.lora_path = lora
    return made


def _first(model: SealedModel, lora: str | None) -> str:
    """The only GGUF file that can be a language model, of a split one the first piece."""
    found = []
    for name in model.files:
        piece = _PIECE.fullmatch(name)
        if (
            name.lower().endswith(_SUFFIXES)
            and (piece is None or int(piece[2]) == 1)
            and not _PROJECTOR.search(name)
            and name != lora
        ):
            found.append(name)
    return found[0] if len(found) == 1 else pick(model, None, _SUFFIXES, "GGUF")


def _pieces(model: SealedModel, name: str) -> list[str]:
    """All files of the model that ``name`` begins.

    Raises:
        UsageError, NotFound: it is not the first piece, or not there, or others are missing.
    """
    model.content(name)  # raises, with the names that there are
    match = _PIECE.fullmatch(name)
    if match is None:
        return [name]
    prefix, number, count = match.groups()
    first = f"{prefix}-00001-of-{count}{name[-5:]}"
    if int(number) != 1:
        raise UsageError(
            f"{name} is piece {int(number)} of {int(count)} of a model.", hint=f"path={first!r}"
        )
    pieces = [f"{prefix}-{i:05}-of-{count}{name[-5:]}" for i in range(1, int(count) + 1)]
    missing = [piece for piece in pieces if piece not in model.files]
    if missing:
        raise NotFound(
            f"{model.name} lacks {len(missing)} of the {int(count)} pieces of the model, "
            f"the first of them {missing[0]}.",
            hint="Seal the folder with all of its pieces.",
        )
    return pieces


def _check_magic(model: SealedModel, name: str) -> None:
    start = bytearray(len(_MAGIC))
    if model.read_into(name, start) < len(_MAGIC) or start != _MAGIC:
        raise FormatError(f"{name} is not a GGUF file.")


def _file_type(model: SealedModel, name: str) -> int | None:
    """``general.file_type``, which writers put before the long lists of the tokenizer."""
    head = bytearray(min(_HEAD, model.files[name].size))
    model.read_into(name, head)
    at = head.find(_FILE_TYPE)
    if at < 0:
        return None
    return int.from_bytes(head[at + len(_FILE_TYPE) : at + len(_FILE_TYPE) + 4], "little")


def _lora(model: SealedModel, name: str, stack: ExitStack) -> str:
    if name in model.files:
        _check_magic(model, name)
        return stack.enter_context(model.path(name))
    if not os.path.isfile(name):
        raise NotFound(
            f"{name} is neither in {model.name} nor a file in clear.",
            hint="Seal the adapter in one folder with the model, and give its name there.",
        )
    return name


def _place(model: SealedModel, pieces: list[str], stack: ExitStack) -> str:
    """A path to the first piece, in memory, with the others beside it."""
    if len(pieces) == 1:
        return stack.enter_context(model.path(pieces[0]))
    directory = stack.enter_context(memory_directory())
    places = [f"{directory}/{piece.rpartition('/')[2]}" for piece in pieces]
    for piece, place in zip(pieces, places, strict=True):
        os.symlink(stack.enter_context(model.path(piece)), place)
    return places[0]
