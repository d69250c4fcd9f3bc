"""Flax: trees of arrays in its msgpack format."""

from __future__ import annotations

from typing import Any, Final

from strongroom.errors import FormatError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.providers.sources import KeySource

try:
    from flax import serialization
except ModuleNotFoundError as error:
    raise extra_for(error, "flax", "Loading Flax models", "flax") from None

__all__ = ["from_bytes", "msgpack_restore"]

_SUFFIXES: Final = (".msgpack", ".flax", ".mpk")
_UNREADABLE: Final = (ValueError, TypeError, LookupError, OverflowError)
# What flax 0.12 and msgpack 1.2 were seen to raise for other files.


def msgpack_restore(
    encoded_pytree: ModelSource, *, key: KeySource | None = None, path: str | None = None
) -> Any:
    """``flax.serialization.msgpack_restore`` from a sealed model.

    msgpack copies every array out of the decrypted file, which is freed afterwards: there are two
    copies of the model while it loads, then one, of NumPy arrays. The largest array is there once
    more for a moment, and so is each array of more than 1 GiB, which Flax stores in pieces.

    Args:
        encoded_pytree: the place of a sealed file or directory, or an open model.
        path: the file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or is not of this format.
    """
    with opened(encoded_pytree, key) as model:
        name = pick(model, path, _SUFFIXES, "Flax")
        memory = model.load(name)
    try:
        # It says bytes, and takes what msgpack takes: anything with a buffer.
        return serialization.msgpack_restore(memory)
    except _UNREADABLE:
        # Without the cause: msgpack's errors carry pieces of the content.
        raise FormatError(
            f"{name} is not a Flax msgpack file.",
            hint="flax.serialization.to_bytes and msgpack_serialize write them.",
        ) from None


def from_bytes(
    target: Any,
    encoded_bytes: ModelSource,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``flax.serialization.from_bytes`` from a sealed model; copies as in :func:`msgpack_restore`.

    Args:
        target: an object of the structure that is wanted; its own arrays are not used.
        encoded_bytes: the place of a sealed file or directory, or an open model.
        path: the file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or is not of this format.
        ValueError: Flax's, where the structure is not that of ``target``.
    """
    state = msgpack_restore(encoded_bytes, key=key, path=path)
    return serialization.from_state_dict(target, state)
