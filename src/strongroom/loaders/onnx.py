"""ONNX Runtime sessions from sealed models: embedded weights, external data, ORT format."""

from __future__ import annotations

import mmap
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from strongroom.errors import NotFound, UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

# ONNX Runtime (seen in 1.31, on Linux) keeps reports in ~/.cache/Microsoft and sends them; that of a
# failed load quotes names in the graph. Whoever wants this sets the variable to 0.
_REPORTS: Final = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") == "0"

try:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail as _Fail
except ModuleNotFoundError as error:
    raise extra_for(error, "onnxruntime", "Loading ONNX models", "onnx") from None

if not _REPORTS:
    # The variable does nothing for an onnxruntime that was imported before.
    onnxruntime.disable_telemetry_events()

__all__ = ["session"]

_SUFFIXES: Final = (".onnx", ".ort")
_IN_MEMORY: Final = "add_external_initializers_from_files_in_memory"
_DATA_MISSING: Final = re.compile(r"External data|/proc/\d+/fd/\D")
# In the messages of 1.31 and 1.20: the graph names a file, and beside the memory file there is none.
_MAX_TENSOR: Final = 2 << 30
# ONNX Runtime takes files of any size from memory, but no single tensor of this size.


def session(
    path_or_bytes: ModelSource,
    sess_options: Any = None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[dict[Any, Any]] | None = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    **kwargs: Any,
) -> Any:
    """``onnxruntime.InferenceSession`` on a sealed model.

    ONNX Runtime copies the weights into its own memory: while it loads there are two copies of the
    model, afterwards one. Files with external data are found by their names in the graph, relative
    to the folder of the model file.

    Args:
        path_or_bytes: the place of a sealed file or directory, or an open model.
        sess_options: used as they are, and not changed. With them a model with external data lies
            in ``/dev/shm`` while the session is made, which must have room for it; so does one with
            a single tensor of 2 GiB. A function that makes options is called instead of
            ``SessionOptions()``, and what it gives may be changed.
        path: the model file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks its external data.
        onnxruntime's errors: as its own loader raises them.
    """
    with opened(path_or_bytes, key) as model:
        name = pick(model, path, _SUFFIXES, "ONNX")
        if sess_options is None:
            sess_options = onnxruntime.SessionOptions
        arguments = (providers, provider_options)
        if _is_ort_format(model, name):
            made = _from_ort_format(model, name, sess_options, *arguments, **kwargs)
        else:
            made = _from_onnx(model, name, sess_options, *arguments, **kwargs)
    # To change providers it would read the model again, which is no longer where it was.
    made.disable_fallback()
    made.set_providers = _refuse_providers
    return made


def _refuse_providers(*arguments: Any, **kwargs: Any) -> None:
    raise UsageError(
        "A session on a sealed model cannot change its providers afterwards.",
        hint="Give providers=… when the session is made.",
    )


def _is_ort_format(model: SealedModel, name: str) -> bool:
    start = bytearray(8)
    return model.read_into(name, start) == 8 and start[4:] == b"ORTM"


def _from_ort_format(
    model: SealedModel, name: str, options: Any, *arguments: Any, **kwargs: Any
) -> Any:
    if not callable(options):
        return onnxruntime.InferenceSession(model.read(name), options, *arguments, **kwargs)
    # A session keeps the bytes that it was made from, but not a file. To use the weights where they
    # lie in the bytes ("use_ort_model_bytes_for_initializers") crashes in 1.31 with some operators.
    options = options()
    options.add_session_config_entry("session.load_model_format", "ORT")
    with model.path(name) as place:
        return onnxruntime.InferenceSession(place, options, *arguments, **kwargs)


def _from_onnx(model: SealedModel, name: str, options: Any, *arguments: Any, **kwargs: Any) -> Any:
    # From bytes ONNX Runtime would make two more copies, from a file one; and it would look in the
    # current directory for data that the model does not have.
    made = options if callable(options) else lambda: options
    with model.path(name) as place:
        external = _external_data(model, name, place)
        if not external:
            try:
                return onnxruntime.InferenceSession(place, made(), *arguments, **kwargs)
            except Exception as error:  # its errors have no common base
                if not _DATA_MISSING.search(str(error)):
                    raise
                raise NotFound(
                    f"{name} needs external data that is not in the sealed model.",
                    hint="Seal the folder of the model with all of its files.",
                ) from error
        if callable(options) and hasattr(onnxruntime.SessionOptions, _IN_MEMORY):
            session = _with_data_in_memory(model, place, external, options(), *arguments, **kwargs)
            if session is not None:
                return session
    # Options cannot be copied, and what is added to them cannot be removed: those of the caller
    # would keep pointers to memory that is gone. So the files get names instead.
    paths = [name, *external.values()]
    with memory_directory(sum(model.files[path].size for path in paths)) as directory:
        place_files(model, paths, directory)
        return onnxruntime.InferenceSession(f"{directory}/{name}", made(), *arguments, **kwargs)


def _with_data_in_memory(
    model: SealedModel,
    place: str,
    external: dict[str, str],
    options: Any,
    *arguments: Any,
    **kwargs: Any,
) -> Any:
    """A session, or None if ONNX Runtime needs files for this model; options are changed."""
    # ONNX Runtime has bare pointers to these until the session is made: they must outlive it.
    buffers = [model.load(path) for path in external.values()]
    options.add_external_initializers_from_files_in_memory(
        list(external), buffers, [len(buffer) for buffer in buffers]
    )
    try:
        return onnxruntime.InferenceSession(place, options, *arguments, **kwargs)
    except _Fail:
        if max(map(len, buffers)) < _MAX_TENSOR:
            raise
        return None
    finally:
        del buffers


def _external_data(model: SealedModel, name: str, place: str) -> dict[str, str]:
    """The files in or below the model's folder whose names occur in the graph: name there → path."""
    folder = posixpath.dirname(name)
    below = {
        posixpath.relpath(path, folder or "."): path
        for path in model.files
        if path != name and (not folder or path.startswith(folder + "/"))
    }
    if not below or not model.files[name].size:
        return {}
    with ExitStack() as stack:
        file = stack.enter_context(open(place, "rb"))
        graph = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return {
            relative: path for relative, path in below.items() if graph.find(relative.encode()) >= 0
        }
