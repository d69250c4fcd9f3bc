"""ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from strongroom.errors import FormatError, UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec

__all__ = ["load"]

_BFLOAT16: Final = "bfloat16"
_BFLOAT16_OF_ONNX: Final = 16  # TensorProto.BFLOAT16
_FATAL: Final = 4
_OPTIONS: Final = ("providers", "provider_options", "disabled_optimizers")
_NO_MEMORY: Final = "Failed to allocate memory"

_DTYPES: Final = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": _BFLOAT16,
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": BYTES,
    **{
        f"tensor({name})": name
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
}


class _Session:
    platform = "onnxruntime_onnx"

    def __init__(self, session: Any) -> None:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

        self._session = session
        # Beneath its own checks of the inputs, a quarter of the time of a small run: ours came before.
        self._run = getattr(session, "_sess", session).run
        self._failures = (Fail, InvalidArgument, RuntimeException)
        # At other levels the first failure of a session is printed, with values of the request.
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _FATAL
        self._ort_value = onnxruntime.OrtValue
        inputs = [_spec("Input", one) for one in session.get_inputs()]
        outputs = [_spec("Output", one) for one in session.get_outputs()]
        batched = all(one.shape and one.shape[0] == -1 for one in (*inputs, *outputs))
        signature = Signature(
            {one.name: one for one in inputs}, {one.name: one for one in outputs}, batched=batched
        )
        self.signatures = {"serving_default": signature}
        self._text_inputs = _of_dtype(inputs, BYTES)
        self._text_outputs = _of_dtype(outputs, BYTES)
        self._bfloat16_outputs = _of_dtype(outputs, _BFLOAT16)
        if self._text_inputs and self._bfloat16_outputs:
            raise FormatError("ONNX Runtime does not give bfloat16 to who gives it text.")
        self._special = bool(
            self._text_inputs
            or self._text_outputs
            or self._bfloat16_outputs
            or _of_dtype(inputs, _BFLOAT16)
        )

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        try:
            if self._special:
                return self._run_special(inputs, outputs)
            return dict(zip(outputs, self._run(outputs, inputs, self._options), strict=True))
        except self._failures as error:
            # Its words quote the values.
            raise _refusal(str(error)) from None

    def _run_special(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """With what numpy and ONNX Runtime do not exchange as it is: text and bfloat16."""
        # An OrtValue has a bare pointer to the array that it was made from.
        kept = {name: _ready(name, value) for name, value in inputs.items()}
        feeds = {name: self._fed(value) for name, value in kept.items()}
        if self._bfloat16_outputs.isdisjoint(outputs):
            values = self._session.run(outputs, feeds, self._options)
        else:
            feeds = {
                name: self._ort_value.ortvalue_from_numpy(value)
                if isinstance(value, np.ndarray)
                else value
                for name, value in feeds.items()
            }
            values = self._session.run_with_ort_values(outputs, feeds, self._options)
            values = [
                _bfloat16_array(value) if name in self._bfloat16_outputs else value.numpy()
                for name, value in zip(outputs, values, strict=True)
            ]
        found = dict(zip(outputs, values, strict=True))
        for name in self._text_outputs.intersection(outputs):
            found[name] = _encoded(found[name])
        return found

    def _fed(self, value: np.ndarray[Any, Any]) -> Any:
        if value.dtype != DTYPES[_BFLOAT16]:
            return value
        return self._ort_value.ortvalue_from_numpy_with_onnx_type(
            value.view(np.uint16), _BFLOAT16_OF_ONNX
        )

    def close(self) -> None:
        del self._session, self._run


def load(model: SealedModel, options: BackendOptions) -> _Session:
    """A session; ``options.extra`` are ``providers`` and what else ``InferenceSession`` takes.

    Raises:
        UsageError: an option that it does not know.
        FormatError: an input or output is no tensor of a dtype that protocols carry.
    """
    from strongroom.loaders import onnx

    for name in options.extra:
        if name not in _OPTIONS:  # InferenceSession would pass over it
            raise UsageError(
                f"ONNX Runtime has no option {name[:80]}.", hint="It has: " + ", ".join(_OPTIONS) + "."
            )

    def session_options() -> Any:
        import onnxruntime

        made = onnxruntime.SessionOptions()
        # Told nothing, it takes as many and ties each to a processor: those of all models to the same
        # ones, which need not be this process's.
        made.intra_op_num_threads = options.threads or _cores()
        return made

    return _Session(onnx.session(model, session_options, path=options.file, **options.extra))


def _cores() -> int:
    """Cores whose processors this process may use; 0, which is ONNX Runtime's own number, if unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    found = set()
    for processor in os.sched_getaffinity(0):
        try:
            with open(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list") as file:
                found.add(file.read())
        except OSError:  # a container may hide it
            found.add(str(processor))
    return len(found)


def _spec(what: str, one: Any) -> TensorSpec:
    if one.type not in _DTYPES:
        raise FormatError(
            f"{what} {one.name} has the type {one.type}, which no protocol of serving carries."
        )
    # A dimension is a number, the name of one that every request chooses, or unknown. No dimensions are
    # a scalar or an unknown rank; ONNX Runtime does not say which.
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in one.shape)
    return TensorSpec(one.name, _DTYPES[one.type], shape or None)


def _refusal(words: str) -> RequestError:
    """What a failed run means: a node that ran before does not with these inputs, or there is no memory.

    Sizes that do not fit one another are InvalidArgument of some nodes, and Fail of most.
    """
    if _NO_MEMORY in words:
        return RequestError(Code.RESOURCE_EXHAUSTED, "There is no memory to compute with these values.")
    return RequestError(Code.INVALID_ARGUMENT, "The model cannot compute with these values.")


def _of_dtype(specs: Sequence[TensorSpec], dtype: str) -> set[str]:
    return {one.name for one in specs if one.dtype == dtype}


def _ready(name: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if value.dtype.kind == "O":
        return _decoded(name, value)
    return value if value.flags.c_contiguous else value.copy()


def _decoded(name: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    try:
        texts = [one.decode() for one in value.flat]
    except UnicodeDecodeError:
        raise RequestError(Code.INVALID_ARGUMENT, f"Input {name} is not text in UTF-8.") from None
    return np.array(texts, object).reshape(value.shape)


def _encoded(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([one.encode() for one in value.flat], object).reshape(value.shape)


def _bfloat16_array(value: Any) -> np.ndarray[Any, Any]:
    shape = tuple(value.shape())
    found = np.empty(shape, DTYPES[_BFLOAT16])
    # On the CPU, where ONNX Runtime puts outputs unless told otherwise.
    ctypes.memmove(found.ctypes.data, value._ortvalue.data_ptr(), found.nbytes)
    return found
