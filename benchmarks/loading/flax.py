"""Flax: sixteen layers in one msgpack file."""

from __future__ import annotations

from pathlib import Path

import numpy
from flax import serialization

LAYERS = 16


def build(folder: Path, size: int) -> Path:
    rng = numpy.random.default_rng(0)
    shape = (size // LAYERS // 4096, 1024)
    layers = {f"layer{i}": {"kernel": rng.random(shape, dtype="f4")} for i in range(LAYERS)}
    (folder / "m.msgpack").write_bytes(serialization.msgpack_serialize({"params": layers}))
    return folder / "m.msgpack"


def plain(place: Path) -> object:
    return serialization.msgpack_restore(place.read_bytes())


def sealed(place: Path, key: bytes) -> object:
    from strongroom.loaders import flax

    return flax.msgpack_restore(place, key=key)


CASES = {"flax": (build, plain, sealed)}
