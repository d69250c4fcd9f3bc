"""TensorRT engines (plans), deserialized from sealed models.

TensorRT copies an engine out of the plan, most of it to the GPU. Where its release takes a stream
(``IStreamReaderV2``, from 10.7 on), the plan is decrypted in pieces as it is asked for and is never in
memory as a whole; else it is decrypted into one buffer, freed when the engine is made.

``torch2trt`` modules: :mod:`strongroom.loaders.torch2trt`. TF-TRT is a SavedModel, Paddle-TRT an option
of :func:`strongroom.loaders.paddle.create_predictor`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from strongroom.errors import MissingExtra, StrongroomError, UsageError
from strongroom.loaders.cuda import cuda_of, require_driver
from strongroom.loaders.source import ModelSource, opened, pick
from strongroom.model.memory import allocate
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

__all__ = ["deserialize_cuda_engine", "load"]

_BINDINGS: Final = ("tensorrt", "tensorrt_lean", "tensorrt_dispatch")
_SUFFIXES: Final = (".plan", ".engine", ".trt")
_WHAT: Final = "Loading TensorRT engines"
_PIECE: Final = 16 << 20
# Bytes decrypted for one request of TensorRT at most: sixteen segments, enough for all threads.


def load(
    source: ModelSource,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    runtime: Any = None,
) -> Any:
    """The ``ICudaEngine`` in a sealed plan.

    Args:
        source: the place of a sealed file or directory, or an open model.
        path: the plan, if there are several files.
        runtime: a ``Runtime`` of ``tensorrt``, ``tensorrt_lean`` or ``tensorrt_dispatch``; None makes one
            of the first of these that is installed, with a ``Logger`` for warnings.

    Raises:
        StrongroomError: as :func:`deserialize_cuda_engine`.
    """
    if runtime is None:
        trt = _bindings()
        require_driver(_WHAT, cuda_of(trt.__name__))
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    return deserialize_cuda_engine(runtime, source, key=key, path=path)


def deserialize_cuda_engine(
    runtime: Any,
    source: ModelSource,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``runtime.deserialize_cuda_engine`` on a sealed plan.

    What TensorRT puts into files of its own while it loads stays in memory: temporary files on a disk
    are not allowed to it during the call, where its release can be told so.

    Args:
        runtime: a ``Runtime`` of ``tensorrt``, ``tensorrt_lean`` or ``tensorrt_dispatch``.
        source: the place of a sealed file or directory, or an open model.
        path: the plan, if there are several files.

    Returns:
        The ``ICudaEngine``. It never is None, which TensorRT returns for a plan that it cannot use.

    Raises:
        UsageError: there is no CUDA driver or no GPU (found before TensorRT is entered, which would
            end the process), or TensorRT cannot use the plan.
        Unavailable: the CUDA driver does not start.
        StrongroomError: the model cannot be opened, or is not authentic.
    """
    module = sys.modules.get(type(runtime).__module__)
    if not hasattr(runtime, "deserialize_cuda_engine"):
        raise UsageError(
            f"A tensorrt.Runtime is needed, not {type(runtime).__name__}.",
            hint="runtime = tensorrt.Runtime(tensorrt.Logger())",
        )
    try:
        require_driver(_WHAT, cuda_of(type(runtime).__module__.partition("_bindings")[0]))
    except StrongroomError:
        # A runtime made without a driver ends the process even when it is deleted: it never is.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
        raise
    with opened(source, key) as model, _files_in_memory(runtime, module):
        name = pick(model, path, _SUFFIXES, "TensorRT")
        if hasattr(module, "IStreamReaderV2"):
            engine = _from_stream(runtime, module, model, name)
        else:
            engine = runtime.deserialize_cuda_engine(model.load(name))
    if engine is None:
        raise UsageError(
            f"TensorRT cannot use {name}; its log says why.",
            hint="A plan is good for the TensorRT version and the GPU model that it was built with.",
        )
    return engine


def _bindings() -> Any:
    for name in _BINDINGS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise MissingExtra(_WHAT, "tensorrt")


@contextmanager
def _files_in_memory(runtime: Any, module: Any) -> Iterator[None]:
    # A plan may bring code along (version-compatible ones do), which TensorRT writes to a file to
    # load it: by default to one in memory, or else to one in TMPDIR.
    flags = getattr(runtime, "tempfile_control_flags", None)
    if flags is None:
        yield
        return
    runtime.tempfile_control_flags = 1 << int(module.TempfileControlFlag.ALLOW_IN_MEMORY_FILES)
    try:
        yield
    finally:
        runtime.tempfile_control_flags = flags


def _from_stream(runtime: Any, module: Any, model: SealedModel, name: str) -> Any:
    reader = _stream_reader(module)(model, name)
    engine = runtime.deserialize_cuda_engine(reader)
    if reader.failed is not None:
        # For TensorRT the stream has ended; whatever it made of that is not used.
        raise reader.failed
    return engine


@functools.cache
def _stream_reader(module: Any) -> Any:
    """The class of readers for the bindings that a runtime is from; one of others is refused."""
    whence = module.SeekPosition

    class StreamReader(module.IStreamReaderV2):  # type: ignore[misc]  # a class known at run time
        def __init__(self, model: SealedModel, name: str) -> None:
            module.IStreamReaderV2.__init__(self)
            self.failed: BaseException | None = None
            self._content = model.content(name)
            self._size = model.files[name].size
            self._position = 0
            self._piece = allocate(min(_PIECE, self._size))

        def read(self, num_bytes: int, stream: int) -> memoryview:
            # The bindings copy what is returned to where TensorRT wants it, on the host or the GPU,
            # and ask again until they have it all. An error raised here they would print and lose.
            out = self._piece[: max(0, min(num_bytes, self._size - self._position))]
            try:
                self._content.read_into(out, self._position)
            except BaseException as error:
                self.failed = error
                self._piece = memoryview(b"")
                return self._piece
            self._position += len(out)
            return out

        def seek(self, offset: int, where: Any) -> bool:
            base = {whence.SET: 0, whence.CUR: self._position, whence.END: self._size}[where]
            if not 0 <= base + offset <= self._size:
                return False
            self._position = base + offset
            return True

    return StreamReader
