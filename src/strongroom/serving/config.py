"""What a server is told to serve. Plain values, checked when they are made; files are for ``config_files``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.serving.tensors import TensorSpec

__all__ = ["Batching", "Cache", "ClientRule", "Limits", "ModelConfig", "VersionPolicy"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of the versions that are there shall be served; exactly one of the three.

    Attributes:
        latest: so many of the highest numbers.
        all: every one.
        specific: these.
    """

    latest: int = 1
    all: bool = False
    specific: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.latest < 1:
            raise UsageError("A policy of the latest versions serves one at least.")

    def wanted(self, present: Sequence[int]) -> tuple[int, ...]:
        """Those of ``present`` to serve, highest first."""
        ordered = sorted(set(present), reverse=True)
        if self.all:
            return tuple(ordered)
        if self.specific:
            return tuple(one for one in ordered if one in self.specific)
        return tuple(ordered[: self.latest])


@dataclass(frozen=True, slots=True)
class Batching:
    """Requests are put together along their first dimension.

    Attributes:
        max_batch: examples in one run of the model.
        delay: seconds that the first request waits for others; with 0 those go together that came
            while the model was busy.
    """

    max_batch: int = 32
    delay: float = 0.0

    def __post_init__(self) -> None:
        if self.max_batch < 1 or not 0 <= self.delay <= 10:
            raise UsageError(
                "Batching takes a max_batch of at least 1, and a delay of at most 10 seconds."
            )


@dataclass(frozen=True, slots=True)
class Cache:
    """Answers that are given again to who asks the same of a version.

    Attributes:
        bytes: of all answers of a version.
        seconds: for which an answer is given; 0 as long as there is room.
    """

    bytes: int = 64 << 20
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.bytes < 1 or not 0 <= self.seconds <= 1e9:
            raise UsageError("A cache takes a number of bytes, and of seconds.")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one version of a model.

    Attributes:
        concurrency: runs at the same time.
        queue: requests that wait; one more is refused.
        timeout: seconds for a request that brings no deadline of its own.
    """

    concurrency: int = 2
    queue: int = 256
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.queue < 0 or not 0 < self.timeout <= 86400:
            raise UsageError(
                "Limits take a concurrency of at least 1, a queue, and a timeout in seconds."
            )


@dataclass(frozen=True, slots=True)
class ClientRule:
    """Who may use a model: whoever fits one rule.

    Attributes:
        subject: of the client certificate (RFC 4514), whole.
        name: a DNS or URI name of the client certificate.
        token_sha256: of a bearer token, in hexadecimal.
        requests_per_second: quota of this client; 0 has none.
    """

    subject: str | None = None
    name: str | None = None
    token_sha256: str | None = None
    requests_per_second: float = 0.0

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.subject, self.name, self.token_sha256)) != 1:
            raise UsageError("A rule for clients names one of subject, name and token_sha256.")
        if self.token_sha256 is not None and not _SHA256.fullmatch(self.token_sha256):
            raise UsageError(
                "The SHA-256 of a token has 64 hexadecimal digits.",
                hint="printf %s TOKEN | sha256sum",
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model.

    Attributes:
        name: in URLs.
        path: a sealed model, or a directory of versions: folders with numbers for names.
        key: source of its key; None is what the environment or the model's own recipient says.
        backend: None finds it from the contents.
        file, inputs, outputs, options: see :class:`.backend.BackendOptions`.
        threads: of the framework for one run; 0 leaves it to the framework.
        versions: which to serve.
        labels: name → version.
        batching: None runs every request on its own.
        limits: of each version.
        cache: None asks the model every time.
        warm_up: runs with random inputs before a version is available.
        clients: who may use it; empty lets everybody in who may connect.
    """

    name: str
    path: str
    key: str | None = None
    backend: str | None = None
    file: str | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 0
    versions: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)
    batching: Batching | None = None
    limits: Limits = field(default_factory=Limits)
    cache: Cache | None = None
    warm_up: int = 1
    clients: tuple[ClientRule, ...] = ()

    def loading(self) -> ModelConfig:
        """What a loaded version is made of: without what can change around it."""
        return replace(self, versions=VersionPolicy(), labels={}, clients=())

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is no name for a model.",
                hint="Letters, digits, dots, dashes and underlines; a letter or digit first.",
            )
