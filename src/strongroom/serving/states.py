"""The life of a version, in the words and numbers of TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from strongroom.serving.tensors import Signature

__all__ = ["Description", "State", "VersionStatus"]


class State(IntEnum):
    """``ModelVersionStatus.State``."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """Where a version is in its life.

    Attributes:
        code: 0, or the :class:`.status.Code` of what is wrong with it.
        message: what is wrong with it, for a person.
        why: more about that, for the log of the server and nobody else.
    """

    version: int
    state: State
    code: int = 0
    message: str = ""
    why: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Description:
    """An available version.

    Attributes:
        versions: all that are available, highest first.
        max_batch: examples that are put together; 0 where they are not.
    """

    model: str
    version: int
    platform: str
    signatures: Mapping[str, Signature]
    versions: tuple[int, ...]
    max_batch: int
