"""TensorFlow: SavedModels, with all their files, and frozen graphs.

A SavedModel is put into ``ram://``, TensorFlow's own file system in memory, for the time of the call.
"""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from strongroom.errors import NotFound, UsageError
from strongroom.loaders.cuda import require_driver
from strongroom.loaders.source import ModelSource, extra_for, opened
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import tensorflow as tf
except ModuleNotFoundError as error:
    raise extra_for(error, "tensorflow", "Loading TensorFlow models", "tensorflow") from None

from strongroom.loaders.tensorflow_graph import graph_def, graph_def_load  # needs TensorFlow

__all__ = ["graph_def", "graph_def_load", "saved_model_directory", "saved_model_load"]

_GRAPHS: Final = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
_PIECE: Final = 128 << 10
_TENSORRT_OP: Final = b"\x12\x0bTRTEngineOp"
# NodeDef.op, field 2 of node_def.proto, in the bytes of a graph.


def saved_model_load(
    export_dir: ModelSource,
    tags: Any = None,
    options: Any = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``tf.saved_model.load`` from a sealed directory: graph, variables, assets, all of it.

    While it loads there are two copies of the variables, afterwards one. Lookup tables read their
    assets while the model is loaded. A function that reads an asset when it is called finds nothing:
    the copy in memory is gone by then.

    Args:
        tags: as in TensorFlow.
        options: as in TensorFlow.
        path: the folder of the SavedModel in the sealed directory, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks its variables.
        UsageError: the model has TensorRT engines, and this TensorFlow, or this machine, cannot run them.
        TensorFlow's errors: as its own loader raises them.
    """
    with saved_model_directory(export_dir, key=key, path=path) as directory:
        return tf.saved_model.load(directory, tags, options)


@contextmanager
def saved_model_directory(
    export_dir: ModelSource, *, key: KeySource | None = None, path: str | None = None
) -> Iterator[str]:
    """A sealed SavedModel as a directory of ``ram://`` for the time of the block, for what else of
    TensorFlow loads one: ``tf.compat.v1.saved_model.load``, ``keras.layers.TFSMLayer``.

    Args:
        path: the folder of the SavedModel in the sealed directory, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks its variables.
        UsageError: the model has TensorRT engines, and this TensorFlow, or this machine, cannot run them.
    """
    with opened(export_dir, key) as model:
        folder = _folder(model, path)
        with _in_ram(model, folder) as root:
            try:
                yield root
            except (FileNotFoundError, tf.errors.NotFoundError) as error:
                if any(name.startswith(f"{folder}variables/") for name in model.files):
                    raise
                raise NotFound(
                    f"{model.name} has no variables/ beside its graph.",
                    hint="Seal the whole folder of the SavedModel.",
                ) from error


def _folder(model: SealedModel, path: str | None) -> str:
    """The folder of the SavedModel, with a slash at its end unless it is the whole model."""
    found = sorted(
        {posixpath.dirname(name) for name in model.files if posixpath.basename(name) in _GRAPHS}
    )
    if path is not None:
        meant = posixpath.normpath(path)
        if posixpath.basename(meant) in _GRAPHS:
            meant = posixpath.dirname(meant)
        meant = "" if meant == "." else meant
        if meant not in found:
            raise NotFound(
                f"{model.name} has no SavedModel in {path!r}.",
                hint="There is one in: " + ", ".join(found[:6]) if found else None,
            )
        found = [meant]
    if not found:
        raise NotFound(
            f"{model.name} has no SavedModel: no {_GRAPHS[0]}.",
            hint="A frozen graph is for graph_def_load, a .keras file for loaders.keras.load_model.",
        )
    if len(found) > 1:
        raise UsageError(
            f"{model.name} has {len(found)} SavedModels.",
            hint=f"Say which: path={found[0]!r}, or one of " + ", ".join(map(repr, found[1:6])),
        )
    return f"{found[0]}/" if found[0] else ""


@contextmanager
def _in_ram(model: SealedModel, folder: str) -> Iterator[str]:
    """The files of a folder in ``ram://``, for the time of the block."""
    root = f"ram://strongroom-{secrets.token_hex(16)}"
    inside = [name for name in model.files if name.startswith(folder)]
    # The graph first: it may be one that cannot be used here.
    inside.sort(key=lambda name: name[len(folder) :] not in _GRAPHS)
    targets = {name: f"{root}/{name[len(folder) :]}" for name in inside}
    try:
        for name, target in targets.items():
            tf.io.gfile.makedirs(posixpath.dirname(target))
            with tf.io.gfile.GFile(target, "wb") as file:
                file.write(b"")  # without any write there would be no file
                _copy(model, name, file)
        yield root
    finally:
        for target in targets.values():
            if tf.io.gfile.exists(target):
                tf.io.gfile.remove(target)
        # TensorFlow (2.21) takes "a.b" and "ab" for files in the folder "a": those go before it.
        for place in sorted({posixpath.dirname(target) for target in targets.values()}, reverse=True):
            if tf.io.gfile.exists(place):
                tf.io.gfile.rmtree(place)


def _copy(model: SealedModel, name: str, file: Any) -> None:
    is_graph = posixpath.basename(name) in _GRAPHS
    tail = b""
    # A file in ram:// doubles its memory when it is full. Begun with a piece that is the size of the
    # whole divided by a power of two, it ends just full (200 MB: 0.17 s instead of 0.20 s).
    size = model.files[name].size
    step = -(-size // (1 << (size // _PIECE).bit_length())) or 1

    def write(plaintext: memoryview) -> None:
        nonlocal tail
        for start in range(0, len(plaintext), step):
            piece = bytes(plaintext[start : start + step])
            if is_graph:
                joined = tail + piece
                if _TENSORRT_OP in joined:
                    _require_tensorrt(name)
                tail = joined[1 - len(_TENSORRT_OP) :]
            file.write(piece)

    model.content(name).copy_to(write)


def _require_tensorrt(name: str) -> None:
    if hasattr(tf.raw_ops, "TRTEngineOp") and tf.test.is_built_with_gpu_support():
        require_driver("Loading what TF-TRT has converted")
        return
    raise UsageError(
        f"{name} was converted by TF-TRT, and TensorFlow {tf.__version__} here is built without TensorRT.",
        hint="Use a TensorFlow with TensorRT (NVIDIA's containers; the releases up to 2.17) on a machine "
        "with a GPU, or seal the SavedModel as it was before the conversion.",
    )
