"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, Signature, TensorSpec

__all__ = ["load"]

_DTYPES: Final = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
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

    def __init__(self, session: Any, options: BackendOptions) -> None:
        self._session = session
        self._run = session.run
        inputs = [_spec(one) for one in session.get_inputs()]
        outputs = [_spec(one) for one in session.get_outputs()]
        self._text = {one.name for one in outputs if one.dtype == BYTES}
        self._text_inputs = {one.name for one in inputs if one.dtype == BYTES}
        batched = all(one.shape and one.shape[0] == -1 for one in (*inputs, *outputs))
        signature = Signature(
            {one.name: one for one in inputs}, {one.name: one for one in outputs}, batched=batched
        )
        self.signatures = {"serving_default": signature}

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        if self._text_inputs:
            inputs = {
                name: _decoded(name, value) if name in self._text_inputs else value
                for name, value in inputs.items()
            }
        found = dict(zip(outputs, self._run(outputs, inputs), strict=True))
        for name in self._text.intersection(outputs):
            found[name] = _encoded(found[name])
        return found

    def close(self) -> None:
        del self._session, self._run


def load(model: SealedModel, options: BackendOptions) -> _Session:
    """A session; ``options.extra`` are ``providers`` and what else ``InferenceSession`` takes."""
    import onnxruntime

    from strongroom.loaders import onnx

    session_options = None
    if options.threads:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
    return _Session(onnx.session(model, session_options, path=options.file, **options.extra), options)


def _spec(one: Any) -> TensorSpec:
    # A dimension is a number, the name of one that every request chooses, or unknown.
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in one.shape)
    return TensorSpec(one.name, _DTYPES[one.type], shape)


def _decoded(name: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    try:
        texts = [one.decode() for one in value.ravel()]
    except UnicodeDecodeError:
        raise RequestError(Code.INVALID_ARGUMENT, f"Input {name} is not text in UTF-8.") from None
    return np.array(texts, object).reshape(value.shape)


def _encoded(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([one.encode() for one in value.ravel()], object).reshape(value.shape)
