"""Flax: eight layers of equal size."""

from marking import COLUMNS, marked


def make_flax(folder, size):
    from flax import serialization

    rows = size // 8 // (4 * COLUMNS)
    layers = {f"layer{i}": {"kernel": marked(rows, i)} for i in range(8)}
    (folder / "m.msgpack").write_bytes(serialization.msgpack_serialize({"params": layers}))
    return folder / "m.msgpack"


def load_flax(sealed):
    from strongroom.loaders import flax

    return flax.msgpack_restore(sealed)


CASES = {"flax": (make_flax, load_flax)}
COPIES = {"flax": (2, 1)}
