"""OpenVINO: models and compiled models from sealed IR, ONNX and other files."""

from __future__ import annotations

import ctypes
import io
import mmap
import posixpath
import sys
from collections.abc import Mapping
from typing import Any, Final

from strongroom.errors import FormatError, NotFound, UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory import address_of
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

# `import openvino` sends an event to Google Analytics from a forked child, which would have the memory
# of this process, and keeps an identifier in ~/intel (seen in 2026.4). Without the package
# openvino_telemetry it does not. Whoever wants it imports openvino before.
_SENDS: Final = "openvino_telemetry"
_hidden: Final = "openvino" not in sys.modules and _SENDS not in sys.modules
if _hidden:
    sys.modules[_SENDS] = None  # type: ignore[assignment]  # None means: cannot be imported
try:
    import openvino
except ModuleNotFoundError as error:
    raise extra_for(error, "openvino", "Loading OpenVINO models", "openvino") from None
finally:
    if _hidden:
        del sys.modules[_SENDS]

__all__ = ["compile_model", "import_model", "read_model", "refuse_cache"]

_IR: Final = (".xml",)
_OTHERS: Final = (".onnx", ".pdmodel", ".tflite", ".pb")
_BLOBS: Final = (".blob", ".bin", ".ov")
_HEAD: Final = 256
_HUGE: Final = 2 << 20
_NPU_CACHE: Final = "NPU_BYPASS_UMD_CACHING"


def read_model(
    model: ModelSource,
    weights: ModelSource | None = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    core: Any = None,
) -> Any:
    """``Core.read_model`` on a sealed model.

    The constants of an IR lie where the ``.bin`` was decrypted to: there is one copy of them, which
    lives as long as the model, or what is compiled of it. Of ONNX files OpenVINO makes its own
    copies: while it reads there are three, afterwards one; with external data, and in other formats,
    the files lie in ``/dev/shm`` while it reads, which must have room for them.

    A model that is compiled with a ``CACHE_DIR`` writes its weights there, in clear, even with
    ``CACHE_ENCRYPTION_CALLBACKS`` (2026.4): see :func:`compile_model`.

    Args:
        model: the place of a sealed file or directory, or an open model.
        weights: of an IR, the name of the file in the model, or a sealed file of their own; by
            default the ``.bin`` beside the ``.xml``.
        path: the model file, if there are several.
        core: an ``openvino.Core`` to read with.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks its weights.
        RuntimeError: as OpenVINO raises it.
    """
    core = core or openvino.Core()
    with opened(model, key) as source:
        found = any(name.lower().endswith(_IR) for name in source.files)
        name = pick(source, path, _IR if found else _OTHERS, "OpenVINO")
        if _is_ir(source, name):
            return _read_ir(core, source, name, weights, key)
        if name.lower().endswith(_IR):
            # OpenVINO would try its other formats, and one of them prints words of what it reads.
            raise FormatError(f"{name} is not an OpenVINO IR.", hint="openvino.save_model writes them.")
        if weights is not None:
            raise UsageError(f"{name} is no IR and takes no weights.", hint="Leave out weights.")
        names = _belonging(source, name)
        if names == [name] and name.lower().endswith(".onnx"):
            # From bytes it would make one more copy.
            with source.path(name) as place:
                return core.read_model(place)
        with memory_directory(sum(source.files[one].size for one in names)) as directory:
            place_files(source, names, directory)
            return core.read_model(f"{directory}/{name}")


def compile_model(
    model: ModelSource,
    device_name: str | None = "CPU",
    config: Mapping[str, Any] | None = None,
    *,
    weights: ModelSource | None = None,
    key: KeySource | None = None,
    path: str | None = None,
    core: Any = None,
) -> Any:
    """``Core.compile_model`` on a sealed model, without OpenVINO's cache on disk.

    Args:
        model: the place of a sealed file or directory, or an open model.
        device_name: None is OpenVINO's own choice, ``"AUTO"``.
        config: its ``CACHE_DIR`` is refused, and one that ``core`` has is not used: OpenVINO would
            write the weights there in clear.
        weights: as for :func:`read_model`.
        path: the model file, if there are several.
        core: an ``openvino.Core`` to compile with.

    Raises:
        UsageError: the config asks for a cache on disk.
        StrongroomError: the model cannot be opened, is not authentic, or lacks its weights.
        RuntimeError: as OpenVINO raises it.
    """
    # Without a name 2026.4 does not look at this CACHE_DIR.
    device_name = device_name or "AUTO"
    config = dict(config or {})
    refuse_cache(device_name, config)
    core = core or openvino.Core()
    read = read_model(model, weights, key=key, path=path, core=core)
    return core.compile_model(read, device_name, {**config, "CACHE_DIR": ""})


def import_model(
    model_stream: ModelSource,
    device_name: str,
    config: Mapping[str, Any] | None = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    core: Any = None,
) -> Any:
    """``Core.import_model``: a compiled model that was exported and sealed.

    OpenVINO uses the memory that the file was decrypted to, and repacks what the device wants
    otherwise. A blob fits only the version, device and features that it was exported with.

    Args:
        model_stream: the place of a sealed file or directory, or an open model.
        config: as for :func:`compile_model`.
        path: the file, if there are several.
        core: an ``openvino.Core`` to import with.

    Raises:
        UsageError: the config asks for a cache on disk.
        StrongroomError: the model cannot be opened, or is not authentic.
        RuntimeError: as OpenVINO raises it.
    """
    config = dict(config or {})
    refuse_cache(device_name, config)
    core = core or openvino.Core()
    with opened(model_stream, key) as model:
        name = pick(model, path, _BLOBS, "OpenVINO blob")
        try:
            return core.import_model(_tensor(model, name), device_name, config)
        except TypeError:  # seen up to 2025.3, which takes bytes or BytesIO alone and copies them
            return core.import_model(io.BytesIO(model.read(name)), device_name, config)


def _is_ir(model: SealedModel, name: str) -> bool:
    start = bytearray(_HEAD)
    del start[model.read_into(name, start) :]
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<net")) and b"<net" in start


def _read_ir(
    core: Any, model: SealedModel, name: str, weights: ModelSource | None, key: KeySource | None
) -> Any:
    if isinstance(weights, str) and weights in model.files:
        return core.read_model(model.read(name), _tensor(model, weights))
    if weights is not None:
        with opened(weights, None if isinstance(weights, SealedModel) else key) as other:
            return core.read_model(model.read(name), _tensor(other, pick(other, None, (".bin",), "IR")))
    beside = posixpath.splitext(name)[0] + ".bin"
    if beside in model.files:
        return core.read_model(model.read(name), _tensor(model, beside))
    try:
        return core.read_model(model.read(name))
    except RuntimeError as error:
        if "weights" not in str(error):
            raise
        raise NotFound(
            f"{model.name} has no {beside}, the weights of {name}.",
            hint="Seal the folder with both files, or say weights=….",
        ) from error


def _tensor(model: SealedModel, name: str) -> Any:
    """A file in memory of OpenVINO's own.

    In a tensor over memory of Python (``shared_memory=True``) neither the model nor what is compiled
    of it keeps that memory alive: they crash when it is gone.
    """
    size = model.files[name].size
    tensor = openvino.Tensor(openvino.Type.u8, [size])
    if size:
        memory = memoryview(tensor.data)
        _advise(address_of(memory), size)
        model.read_into(name, memory)
    return tensor


def _advise(address: int, size: int) -> None:
    """Whole pages: large ones, which halve the time to fill them, and none of them in a core dump."""
    start, end = -(-address // _HUGE) * _HUGE, (address + size) // _HUGE * _HUGE
    if start < end:
        madvise = ctypes.CDLL(None).madvise
        for name in ("MADV_HUGEPAGE", "MADV_DONTDUMP"):
            if hasattr(mmap, name):
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), getattr(mmap, name))


def _belonging(model: SealedModel, name: str) -> list[str]:
    """The file, and what it may need of the files beside and below it."""
    folder = posixpath.dirname(name)
    below = [one for one in model.files if not folder or one.startswith(folder + "/")]
    if len(below) > 1 and name.lower().endswith(".onnx"):
        # External data is named in the graph, relative to its folder.
        graph = model.read(name)
        below = [one for one in below if posixpath.relpath(one, folder or ".").encode() in graph]
    return [name, *(one for one in below if one != name)]


def refuse_cache(device_name: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that writes the weights to the disk.

    Raises:
        UsageError: it does.
    """
    if _asks_for_cache(config):
        raise UsageError(
            "OpenVINO's cache writes the weights of a sealed model to the disk, in clear.",
            hint="Leave out CACHE_DIR; to start faster, seal what export_model gives and use "
            "import_model.",
        )
    if "NPU" in device_name and not config.get(_NPU_CACHE):
        raise UsageError(
            "The driver of the NPU keeps compiled models on the disk.",
            hint=f'Say config={{"{_NPU_CACHE}": True}}.',
        )


def _asks_for_cache(config: Mapping[str, Any]) -> bool:
    for name, value in config.items():
        if str(name) == "CACHE_DIR":
            if value:
                return True
        elif isinstance(value, Mapping):  # DEVICE_PROPERTIES
            if _asks_for_cache(value):
                return True
        elif isinstance(value, str) and "CACHE_DIR" in value:
            return True
    return False
