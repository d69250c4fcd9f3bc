"""Models whose keys a key server has, for the tests of servers of others."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import numpy_helper
from onnx_graphs import graph, tensor

import strongroom
from strongroom.providers.keyserver.profile import VARIABLE

MARK = bytes(range(1, 129)) * 2
"""In the weights of every model: found anywhere else, it is plaintext."""

X = np.arange(32, dtype=np.float32).reshape(2, 16)


def times(factor):
    """y = factor x, float32[-1, 16]."""
    mark = numpy_helper.from_array(np.frombuffer(MARK, np.uint8), "mark")
    by = numpy_helper.from_array(np.float32([factor]), "by")
    nodes = [("Mul", ["x", "by"], ["y"], {})]
    return graph(nodes, [tensor("x")], [tensor("y")], [by, mark])


@contextmanager
def owner_of(stub):
    """In here, models are sealed for keys that go to a key server."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(stub.profile_file)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def seal(stub, place: Path, name, factor=2, content=None):
    """A sealed model at ``place``, which appears at once; its key is ``name`` in the key server."""
    place.parent.mkdir(parents=True, exist_ok=True)
    plain = place.with_name("m.onnx")
    plain.write_bytes(content or times(factor))
    coming = place.parent.parent / f"coming-{place.name}"
    with owner_of(stub):
        strongroom.seal(plain, coming, recipients=f"{stub.url}/{name}")
    plain.unlink()
    coming.rename(place)
    return place
