"""What a framework has to offer to be served. One small module per framework under ``backends/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from strongroom.model.reader import SealedModel
from strongroom.serving.tensors import Signature, TensorSpec

__all__ = ["Arrays", "Backend", "BackendOptions", "LoadedModel"]

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What the configuration says of a model.

    Attributes:
        threads: of the framework for one call; 0 leaves it to the framework.
        inputs: specs for frameworks whose files do not say (TorchScript, scikit-learn); None asks the model.
        outputs: likewise.
        file: the model file inside the sealed model, if there are several.
        extra: for the framework's loader, by its own names.
    """

    threads: int = 0
    inputs: Sequence[TensorSpec] | None = None
    outputs: Sequence[TensorSpec] | None = None
    file: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class LoadedModel(Protocol):
    """A model in memory.

    Attributes:
        platform: as the Open Inference Protocol names it, ``onnxruntime_onnx``, ``tensorflow_savedmodel``, ….
        signatures: by name; ``serving_default`` is the one for who names none.
    """

    platform: str
    signatures: Mapping[str, Signature]

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs asked for. Called from several threads at once.

        Args:
            signature: one of :attr:`signatures`.
            inputs: exactly those of the signature; dtypes and shapes fit their specs.
            outputs: names of the signature; never empty.

        Raises:
            RequestError: INVALID_ARGUMENT, where these values cannot be computed with; other exceptions
                are faults of the model, and the client is not told their words.
        """

    def close(self) -> None:
        """Free what the model holds; nothing runs any more."""


class Backend(Protocol):
    """A module of ``backends/``."""

    def load(self, model: SealedModel, options: BackendOptions) -> LoadedModel:
        """Load an open sealed model straight into memory; it is closed afterwards.

        Raises:
            StrongroomError: not authentic, or not what the backend needs.
            the framework's errors: as its own loader raises them.
        """
