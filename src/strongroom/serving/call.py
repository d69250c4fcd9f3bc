"""A request and its answer, as all protocols bring them to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strongroom.serving.backend import Arrays
from strongroom.serving.tensors import Signature

__all__ = ["Answer", "Call", "Client", "Elsewhere"]


class Elsewhere(BaseException):
    """A call that must not wait would have to; nothing has happened for it, and nobody was told.

    No failure: whoever handles those lets it pass.
    """


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks.

    Attributes:
        address: of the other end, for the access log.
        subject: of the client certificate (RFC 4514), if one was verified.
        names: DNS and URI names of that certificate.
        token: of the bearer token that was sent; never logged.
    """

    address: str = ""
    subject: str | None = None
    names: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Call:
    """One inference.

    Attributes:
        model: by name.
        inputs: by name; the engine checks them against the signature.
        version: None asks for the label's, or the latest that is available.
        label: of a version.
        signature: None asks for ``serving_default``.
        outputs: those wanted, by name; empty for all.
        deadline: moment of ``time.monotonic()`` after which nobody waits; None for the model's own limit.
        client: who asks.
        api: ``tfs`` or ``v2``, for the numbers.
        transport: ``rest`` or ``grpc``.
        cancelled: set by the transport when the client has gone.
        at_once: it is answered without waiting for anything, or :class:`Elsewhere` is raised.
    """

    model: str
    inputs: Arrays
    version: int | None = None
    label: str | None = None
    signature: str | None = None
    outputs: Sequence[str] = ()
    deadline: float | None = None
    client: Client = field(default_factory=Client)
    api: str = "v2"
    transport: str = "rest"
    cancelled: bool = False
    at_once: bool = False


@dataclass(slots=True)  # frozen, it takes three times as long to make
class Answer:
    """What a model said.

    Attributes:
        model, version, signature: which one it was.
        outputs: in the order of the signature, or of the call's wish.
        spec: the signature.
    """

    model: str
    version: int
    signature: str
    outputs: dict[str, np.ndarray[Any, Any]]
    spec: Signature
