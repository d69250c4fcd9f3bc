"""The messages of the protocols, in a pool of their own.

TensorFlow and the clients of other servers register messages of the same names in the default pool of
protobuf, and whoever comes second fails; where a SavedModel is served, they are in this process.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

__all__ = ["message", "method_types", "pool"]


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """All descriptions, for reflection."""
    data = files("strongroom.serving.protos").joinpath("descriptors.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> type[Any]:
    """The class of a message, by its full name.

    Raises:
        KeyError: there is none.
    """
    found: type[Any] = message_factory.GetMessageClass(pool().FindMessageTypeByName(name))
    return found


def method_types(service: str) -> dict[str, tuple[type[Any], type[Any]]]:
    """The methods of a service, by its full name: name → classes of request and response."""
    found = pool().FindServiceByName(service)
    return {
        one.name: (message(one.input_type.full_name), message(one.output_type.full_name))
        for one in found.methods
    }
