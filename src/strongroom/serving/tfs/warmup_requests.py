"""Requests that come with a SavedModel for its warm-up, as TensorFlow Serving takes them.

``assets.extra/tf_serving_warmup_requests`` is a file of TFRecords, each a ``PredictionLog``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from strongroom.errors import FormatError
from strongroom.serving.checking import check_inputs, wanted_outputs
from strongroom.serving.messages import message
from strongroom.serving.servable import DEFAULT_SIGNATURE
from strongroom.serving.tensors import Signature
from strongroom.serving.tfs.examples import examples_of, to_inputs
from strongroom.serving.tfs.tensor_proto import to_array
from strongroom.serving.warmup import Sample

__all__ = ["PLACE", "samples"]

PLACE: Final = "assets.extra/tf_serving_warmup_requests"
"""In the folder of a SavedModel."""

_MOST: Final = 1000  # as in TensorFlow Serving
_LENGTH: Final = 8
_CHECKSUM: Final = 4


def samples(data: bytes, signatures: Mapping[str, Signature]) -> list[Sample]:
    """What the model is asked.

    Args:
        data: the content of the file, which is authentic: its check sums are not looked at.
        signatures: of the model.

    Raises:
        FormatError: there is something else in it, or too much.
        RequestError: INVALID_ARGUMENT, where one does not fit the model.
    """
    found: list[Sample] = []
    for record in _records(data):
        try:
            log = message("tensorflow.serving.PredictionLog").FromString(record)
        except DecodeError:
            raise FormatError(f"{PLACE} has a record that is no PredictionLog.") from None
        found += _of(log, signatures)
        if len(found) > _MOST:
            raise FormatError(f"{PLACE} has more than {_MOST} requests.")
    return found


def _records(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start : start + _LENGTH], "little")
        start += _LENGTH + _CHECKSUM
        end = start + length
        if end + _CHECKSUM > len(data):
            raise FormatError(f"{PLACE} is no file of TFRecords, or ends within one.")
        yield data[start:end]
        start = end + _CHECKSUM


def _of(log: Any, signatures: Mapping[str, Signature]) -> Iterator[Sample]:
    kind = log.WhichOneof("log_type")
    if kind is None:
        raise FormatError(f"{PLACE} has a request of a kind that is not served.")
    request = getattr(log, kind).request
    tasks = request.tasks if kind == "multi_inference_log" else (request,)
    for task in tasks:
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = signatures.get(name)
        if signature is None:
            raise FormatError(f"{PLACE} has a request for {name[:80]!r}, which is no signature.")
        if kind == "predict_log":
            inputs = {one: to_array(one, tensor) for one, tensor in request.inputs.items()}
            outputs = wanted_outputs(list(request.output_filter), signature)
        else:
            inputs = to_inputs(examples_of(request.input), signature)
            outputs = tuple(signature.outputs)
        inputs = {**signature.defaults, **inputs}
        check_inputs(inputs, signature, together=False)
        yield name, inputs, outputs
