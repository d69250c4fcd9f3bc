"""Paddle Inference."""

from __future__ import annotations

import ctypes
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from typing import Any, Final

import numpy as np

from strongroom.errors import FormatError, UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.backends.tabular import nothing
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature, TensorSpec

__all__ = ["load"]

_PREDICTORS: Final = "predictors"
_MOST_PREDICTORS: Final = 256
_CONFIGURES: Final = ("enable_", "disable_", "switch_", "exp_", "set_mkldnn_", "set_onednn_")
_DTYPES: Final = frozenset(("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64"))
"""Those that Paddle Inference exchanges with numpy."""

_SIGNALS: Final = (
    *(signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
)
_IMPORTING: Final = threading.Lock()
_SIZE_OF_SIGACTION: Final = 1024  # 152 bytes on x86-64, and less than this everywhere


class _Predictors:
    platform = "paddle_inference"

    def __init__(self, predictors: Sequence[Any], signature: Signature) -> None:
        self.signatures = {"serving_default": signature}
        # A predictor computes one thing at a time; the one that was used last has its memory at hand.
        self._idle: LifoQueue[Any] = LifoQueue()
        for one in predictors:
            self._idle.put(one)

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        spec = self.signatures[signature]
        empty = not all(value.size for value in inputs.values())
        if empty and spec.batched:
            # Some operators compute with nothing, and others not, by how Paddle has put them together.
            return {name: nothing(spec.outputs[name]) for name in outputs}
        predictor = self._idle.get()
        try:
            for name, value in inputs.items():
                predictor.get_input_handle(name).copy_from_cpu(value)
            predictor.run()
            return {name: predictor.get_output_handle(name).copy_to_cpu() for name in outputs}
        except (ValueError, IndexError):
            # What Paddle calls InvalidArgument and OutOfRange. Its words quote the values.
            raise _invalid() from None
        except RuntimeError:
            if not empty:
                raise
            raise _invalid() from None
        finally:
            self._idle.put(predictor)

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get()


def load(model: SealedModel, options: BackendOptions) -> _Predictors:
    """Predictors; ``options.extra`` are methods of ``paddle.inference.Config``, and ``predictors``.

    Raises:
        UsageError: the configuration is none for this model, or this build of Paddle.
        FormatError: an input or output is no tensor that Paddle Inference exchanges.
        paddle's errors: as it raises them about the model.
    """
    with _imported():
        from strongroom.loaders import paddle as loader
    extra = dict(options.extra)
    count = extra.pop(_PREDICTORS, 1)
    if type(count) is not int or not 1 <= count <= _MOST_PREDICTORS:
        raise UsageError(f"options.predictors is a whole number from 1 to {_MOST_PREDICTORS}.")
    inputs, outputs = loader.tensors(model, path=options.file)
    named_inputs = {name: _spec("Input", name, dtype, shape) for name, dtype, shape in inputs}
    named_outputs = {name: _spec("Output", name, dtype, shape) for name, dtype, shape in outputs}
    batched = all(
        one.shape and one.shape[0] == -1 for one in (*named_inputs.values(), *named_outputs.values())
    )

    def configure(config: Any) -> None:
        if options.threads:
            config.set_cpu_math_library_num_threads(options.threads)
        for name, arguments in extra.items():
            _configure(config, name, arguments)

    predictors = [
        loader.create_predictor(model, path=options.file, configure=configure) for _ in range(count)
    ]
    return _Predictors(predictors, Signature(named_inputs, named_outputs, batched=batched))


def _spec(what: str, name: str, dtype: Any, shape: tuple[int, ...]) -> TensorSpec:
    said = str(dtype).rpartition(".")[2]
    if said not in _DTYPES:
        raise FormatError(
            f"{what} {name} is of {said}, which Paddle Inference does not give to others."
        )
    return TensorSpec(name, said, shape)


def _configure(config: Any, name: str, arguments: Any) -> None:
    method = getattr(config, name, None) if name.startswith(_CONFIGURES) else None
    if method is None:
        raise UsageError(
            f"options.{name} is nothing that this backend knows.",
            hint="predictors, or methods of paddle.inference.Config that enable, disable or switch "
            "something, with a list of their arguments: {disable_mkldnn: [], switch_ir_optim: [false]}.",
        )
    if not isinstance(arguments, list):
        raise UsageError(f"options.{name} is a list of the arguments.")
    try:
        method(*arguments)
    except TypeError:
        raise UsageError(
            f"options.{name} has not the arguments that paddle.inference.Config.{name} takes."
        ) from None


def _invalid() -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, "The model cannot compute with these values.")


@contextmanager
def _imported() -> Iterator[None]:
    """The import of paddle, which takes the signals of the process: SIGTERM too would be a crash."""
    warnings.filterwarnings("ignore", "No ccache found", UserWarning)
    system = ctypes.CDLL(None)
    before = {}
    with _IMPORTING:
        for number in _SIGNALS:
            # signal.signal is for the main thread, and knows of handlers in Python alone.
            before[number] = ctypes.create_string_buffer(_SIZE_OF_SIGACTION)
            system.sigaction(number, None, before[number])
        try:
            yield
        finally:
            for number, action in before.items():
                system.sigaction(number, action, None)
