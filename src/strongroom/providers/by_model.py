"""Keys of several models, each asked for by the id that a model carries in its header.

An id is said when a model is sealed, in ``meta["model_id"]``. Keys are kept by id as

* a dictionary: id → key,
* a directory of key files: ``<id>.key``,
* a path or URI with ``{model_id}`` in it, for key files elsewhere and for key servers.

Anything else is one key for whatever id.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import NoKey, UsageError
from strongroom.format.header import Header
from strongroom.keys.base import unwrap
from strongroom.providers import sources
from strongroom.providers.sources import KeySource

__all__ = ["KeyOfModel", "ModelKeySource", "key_of_model", "model_id_of", "model_id_text"]

ModelKeySource = KeySource | Mapping[str, KeySource]
"""Keys by id, as above, or one key as everywhere."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_MAX_ID: Final = 200
_FIELD: Final = "{model_id}"
_VARIABLE: Final = "STRONGROOM_KEY_FILE"


def model_id_text(model_id: str | bytes) -> str:
    """An id as it stands in the header; bytes are written in hexadecimal.

    Raises:
        UsageError: it cannot be part of a file name or a URI.
    """
    text = bytes(model_id).hex() if isinstance(model_id, bytes | bytearray) else model_id
    if not isinstance(text, str) or len(text) > _MAX_ID or not _ID.fullmatch(text):
        raise UsageError(
            "A model id is not usable.",
            hint=f"Up to {_MAX_ID} letters, digits, '.', '_', '-', and '/' between them.",
        )
    return text


def model_id_of(meta: Mapping[str, object]) -> str | None:
    """The id that a header says, or None.

    Raises:
        UsageError: what it says is no id.
    """
    found = meta.get("model_id")
    if found is None:
        return None
    if not isinstance(found, str):
        raise UsageError("What the model says of its id is no text.")
    return model_id_text(found)


def key_of_model(
    keys: ModelKeySource | None, model_id: str | None, environ: Mapping[str, str] = os.environ
) -> KeySource | None:
    """The key for one model, to be given as ``key`` to whatever takes one.

    Args:
        keys: None means what the environment says; there ``STRONGROOM_KEY_FILE`` may name a
            directory, or have ``{model_id}`` in it.

    Raises:
        NoKey: keys are kept by id, and there is none for this one.
    """
    if keys is None:
        place = environ.get(_VARIABLE)
        if not place or environ.get("STRONGROOM_KEY") or not _by_id(place):
            return None
        keys = place
    if isinstance(keys, Mapping):
        found = keys.get(_needed(model_id))
        if found is None:
            raise _missing(model_id)
        return found
    if isinstance(keys, str | os.PathLike) and _by_id(keys):
        name, place = _needed(model_id), os.fspath(keys)
        if _FIELD in place:
            return place.replace(_FIELD, name)
        path = os.path.join(place, f"{name}.key")
        if not os.path.exists(path):
            raise _missing(model_id)
        return path
    return keys


def _by_id(place: str | os.PathLike[str]) -> bool:
    return _FIELD in os.fspath(place) or os.path.isdir(place)


def _needed(model_id: str | None) -> str:
    if model_id is None:
        raise NoKey(
            "The model has no id, and the keys are kept by id.",
            hint="Give the key of this model, or seal it with model_id=….",
        )
    return model_id_text(model_id)


def _missing(model_id: str | None) -> NoKey:
    return NoKey(
        f"There is no key for the model {model_id!r}.",
        hint="Put it there under this id: in a directory, <id>.key.",
    )


class KeyOfModel:
    """An identity that finds the key by the id in the header of the model that is opened.

    The header is not authentic when it is asked; an id that somebody changed makes the header's MAC
    wrong, whatever key was found for it.

    Args:
        keys: as for :func:`key_of_model`.
        expected: the only id that may be opened.
    """

    def __init__(
        self,
        keys: ModelKeySource | None = None,
        *,
        expected: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._keys = keys
        self._expected = expected
        self._environ = environ

    def check(self, meta: Mapping[str, object]) -> str | None:
        """The id in the metadata of a model.

        Raises:
            UsageError: it is not the expected one.
        """
        found = model_id_of(meta)
        if self._expected is not None and found != self._expected:
            raise UsageError(
                f"The model is {found!r}, not {self._expected!r}."
                if found
                else f"The model has no id; {self._expected!r} was expected.",
            )
        return found

    def unwrap(self, header: Header) -> SecretBytes:
        key = key_of_model(self._keys, self.check(header.meta), self._environ)
        return unwrap(header, sources.identities(key, self._environ))

    def __repr__(self) -> str:
        return "<KeyOfModel>"
