"""TensorFlow: SavedModels of both versions, each in a session, as TensorFlow Serving runs them.

A function of ``tf.saved_model.load`` answers the same. But it copies what it is given (twice the time for
600 KB), and its variables stay until the garbage collector comes by (of 41 MB in 20 swaps 320 MB), whose
full collection stops the whole process for 0.3 s. A session is freed when it is closed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

import numpy as np

from strongroom.errors import FormatError, UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.foreign_log import foreign_lines_logged
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec
from strongroom.serving.tfs import warmup_requests
from strongroom.serving.warmup import Sample
from strongroom.web.logs import log

__all__ = ["framework", "load", "set_threads"]

_METHODS: Final = {
    "tensorflow/serving/classify": "classify",
    "tensorflow/serving/regress": "regress",
}
_PLACEHOLDERS: Final = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
_THREADS: Final[list[int]] = []
_LOCK: Final = threading.Lock()


def framework() -> Any:
    """TensorFlow, with a log that says nothing of what is computed with."""
    # It says of every request that fails why, with values of the request. One is nobody's choice: JAX sets
    # it where nothing is set.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if "tensorflow" not in sys.modules:
        # That it uses oneDNN it says whatever the level is: its log is not set up yet. And the import leaves
        # the frames that called it to the garbage collector, with all that they hold: the first session
        # stayed after its version had gone. In a thread of its own it has no callers.
        with foreign_lines_logged("tensorflow"), ThreadPoolExecutor(1) as thread:
            thread.submit(import_module, "tensorflow").result()
    import tensorflow

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow


def set_threads(tf: Any, threads: int) -> None:
    """Of one operation. TensorFlow has one number for the process: that of the first model that is loaded."""
    with _LOCK:
        if not _THREADS:
            _THREADS.append(threads)
            try:
                tf.config.threading.set_intra_op_parallelism_threads(threads)
            except RuntimeError:  # somebody else's code has used it already
                _THREADS[0] = tf.config.threading.get_intra_op_parallelism_threads()
    if threads not in (0, _THREADS[0]):
        log.warning("TensorFlow keeps its threads", wanted=threads, threads=_THREADS[0])


class _Session:
    platform = "tensorflow_savedmodel"

    def __init__(self, tf: Any, session: Any, definitions: Mapping[str, Any], requests: bytes) -> None:
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        self._invalid = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)
        self._session = session
        self._requests = requests
        dtypes = {tf.as_dtype(name).as_datatype_enum: name for name in DTYPES if name != BYTES}
        dtypes[tf.string.as_datatype_enum] = BYTES
        self.signatures: dict[str, Signature] = {}
        self._calls: dict[str, Any] = {}
        for name, definition in sorted(definitions.items()):
            signature = _signature(tf, definition, dtypes, session.graph)
            if signature is not None:
                self.signatures[name] = signature
                # The public make_callable takes three times as long, and no other shapes than the graph's.
                self._calls[name] = session._make_callable_from_options(
                    CallableOptions(
                        feed=[one.tensor for one in signature.inputs.values()],
                        fetch=[one.tensor for one in signature.outputs.values()],
                    )
                )
        if not self.signatures:
            raise FormatError(
                "The SavedModel has no signature whose inputs and outputs are tensors of numbers or text.",
                hint="Save it with signatures=…: saved_model_cli show --all --dir DIRECTORY says what it has.",
            )

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        spec = self.signatures[signature]
        try:
            # All outputs: for other sets of them TensorFlow would make and keep other graphs.
            given = [inputs[name] for name in spec.inputs]
            found = self._calls[signature](*given)
        except self._invalid:
            # Its words quote the values.
            raise RequestError(
                Code.INVALID_ARGUMENT, "The model cannot compute with these values."
            ) from None
        values = dict(zip(spec.outputs, found, strict=True))
        return {name: _array(values[name], spec.outputs[name], given) for name in outputs}

    def samples(self) -> list[Sample]:
        """See :class:`.warmup.WithSamples`."""
        data, self._requests = self._requests, b""
        return warmup_requests.samples(data, self.signatures)

    def close(self) -> None:
        self._calls.clear()
        self._session.close()
        del self._session


def load(model: SealedModel, options: BackendOptions) -> _Session:
    """A session; ``options.extra`` has the ``tags`` of the graph, if it is not for serving.

    Raises:
        FormatError: nothing in it can be served.
        UsageError: it has no graph with these tags, or there is no such option.
    """
    tf = framework()

    from strongroom.loaders import tensorflow as loader

    extra = dict(options.extra)
    tags = extra.pop("tags", [tf.saved_model.SERVING])
    if extra or not isinstance(tags, list | tuple):
        raise UsageError("The options of a SavedModel are tags, a list of names.")
    set_threads(tf, options.threads)
    config = tf.compat.v1.ConfigProto(
        # A graph that was made for a GPU runs without one too.
        allow_soft_placement=True,
        intra_op_parallelism_threads=_THREADS[0],
    )
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    try:
        with (
            loader.saved_model_directory(model, path=options.file) as directory,
            session.graph.as_default(),
        ):
            try:
                graph = tf.compat.v1.saved_model.load(session, tags, directory)
            except RuntimeError as error:
                if "tags" not in str(error):
                    raise
                raise UsageError(
                    f"The SavedModel has no graph with the tags {', '.join(map(str, tags))}.",
                    hint="options: {tags: […]}, as saved_model_cli show --dir DIRECTORY lists them.",
                ) from None
            requests = os.path.join(directory, warmup_requests.PLACE)
            data = tf.io.gfile.GFile(requests, "rb").read() if tf.io.gfile.exists(requests) else b""
        return _Session(tf, session, graph.signature_def, data)
    except BaseException:
        session.close()
        raise


def _signature(tf: Any, definition: Any, dtypes: Mapping[int, str], graph: Any) -> Signature | None:
    """None for what no protocol carries: sparse tensors, resources, what only initialises or trains."""
    sides = []
    for infos in (definition.inputs, definition.outputs):
        for info in infos.values():
            if info.WhichOneof("encoding") != "name" or info.dtype not in dtypes:
                return None
        # A map of a message has no order of its own.
        sides.append({name: _spec(name, infos[name], dtypes) for name in sorted(infos)})
    inputs, outputs = sides
    for name, spec in inputs.items():
        # What is fed into the midst of a graph may have other shapes than it has there: half_plus_two
        # of TensorFlow Serving says [-1, 1], and its clients send [3].
        if graph.get_tensor_by_name(spec.tensor).op.type not in _PLACEHOLDERS:
            inputs[name] = replace(spec, loose=True)
    defaults = {name: tf.make_ndarray(value) for name, value in definition.defaults.items()}
    batched = (
        bool(inputs)
        and not defaults
        and all(
            one.shape and one.shape[0] == -1 and not one.loose
            for one in (*inputs.values(), *outputs.values())
        )
    )
    method = _METHODS.get(definition.method_name, "predict")
    return Signature(inputs, outputs, method, batched=batched, defaults=defaults)


def _spec(name: str, info: Any, dtypes: Mapping[int, str]) -> TensorSpec:
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(name, dtypes[info.dtype], shape, tensor=info.name)


def _array(value: Any, spec: TensorSpec, given: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    # A scalar comes as one of numpy's, and text as bytes.
    if not isinstance(value, np.ndarray):
        return np.array(value, DTYPES[spec.dtype])
    # What a model passes on is the memory of the request, which TensorFlow forgets is not to be written to.
    if any(np.may_share_memory(value, one) for one in given):
        value.flags.writeable = False
    return value
