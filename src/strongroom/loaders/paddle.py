"""PaddlePaddle: state dicts, saved layers, Paddle Inference.

The first argument is the place of a sealed file or directory, or an open
:class:`~strongroom.SealedModel`; ``path`` says which file of a directory.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from strongroom.errors import NotFound, UsageError
from strongroom.loaders.cuda import require_driver
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory_directory import memory_directory
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

_DLOPEN_FLAGS: Final = sys.getdlopenflags()
if "tensorflow" in sys.modules and "paddle" not in sys.modules:
    # Of symbols that both have Paddle would find TensorFlow's, and end the process (3.3 after 2.21).
    sys.setdlopenflags(_DLOPEN_FLAGS | os.RTLD_DEEPBIND)
try:
    import paddle
    from paddle import inference

    from strongroom.loaders.paddle_pickle import HandOver, load_plain  # needs NumPy
except ModuleNotFoundError as error:
    raise extra_for(error, "paddle", "Loading PaddlePaddle models", "paddle") from None
finally:
    sys.setdlopenflags(_DLOPEN_FLAGS)

__all__ = ["create_predictor", "jit_load", "load", "tensors"]

_STATE_SUFFIXES: Final = (".pdparams", ".pdopt")
_GRAPH_SUFFIXES: Final = (".json", ".pdmodel")
_PARAMETERS: Final = ".pdiparams"
_INFO: Final = ".pdiparams.info"
_PIR: Final = re.compile(rb'\{\s*"base_code"\s*:\s*\{[^}]*"magic"\s*:\s*"pir"', re.IGNORECASE)
_BUFFER: Final = 1 << 20

Tensor = tuple[str, Any, tuple[int, ...]]

_NO_PICKLE: Final = (b"\0", b"\n", b"{")
# First bytes of what else paddle.save writes: a tensor (use_binary_format=True), and a Program in both
# graph formats. No opcode of pickle has these numbers.


def load(
    source: ModelSource,
    /,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    allow_pickle: bool = False,
    **configs: Any,
) -> Any:
    """``paddle.load`` of what ``paddle.save`` wrote: a state dict, tensors in containers, a Program.

    Arrays are decrypted straight into the memory that paddle makes tensors from: there is at no time
    more than one copy of the model, and of one tensor a second.

    Args:
        allow_pickle: False takes tensors, arrays, numbers, strings and containers of them, which are all
            that a state dict has. True takes any object, as ``paddle.load`` itself does, which then runs
            whatever code the file names; the model is in memory twice while it loads.
        configs: those of ``paddle.load``, for instance ``return_numpy=True``.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is none of ``paddle.save``, or needs ``allow_pickle``.
        paddle's errors: as its own function raises them.
    """
    with opened(source, key) as model:
        name = pick(model, path, _STATE_SUFFIXES, "PaddlePaddle")
        start = bytearray(1)
        del start[model.read_into(name, start) :]
        if allow_pickle or configs.get("safetensors") or start.startswith(_NO_PICKLE):
            with model.path(name) as place:
                return paddle.load(place, **configs)
        with io.BufferedReader(model.open(name), _BUFFER) as file:
            unpickled = pickle.dumps(HandOver(load_plain(file, name)))
    return paddle.load(io.BytesIO(unpickled), **configs)


def jit_load(source: ModelSource, /, *, key: KeySource | None = None, path: str | None = None) -> Any:
    """``paddle.jit.load`` of what ``paddle.jit.save`` wrote: ``m.json`` or ``m.pdmodel``, ``m.pdiparams``.

    Paddle copies the parameters: while it loads there are two copies, afterwards one.

    A ``.pdmodel`` is loaded in the graph format before 3.0. For the time of the call the process is
    switched to that, as ``FLAGS_enable_pir_api=0`` does: use Paddle in no other thread meanwhile.

    Args:
        path: the graph file or, as in Paddle, its path without the suffix, if there are several.

    Returns:
        A ``TranslatedLayer``.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks a file.
        paddle's errors: as its own function raises them.
    """
    with opened(source, key) as model:
        prefix, suffix = _graph(model, path)
        # Further methods of the layer are in m.METHOD.json, their parameters in m.METHOD.pdiparams.
        suffixes = (suffix, _PARAMETERS, _INFO)
        names = [name for name in _beside(model, prefix) if name.endswith(suffixes)]
        for name in names:
            if name.endswith(_INFO):
                # Paddle unpickles this file, whatever is in it.
                with io.BufferedReader(model.open(name)) as file:
                    load_plain(file, name)
        with _placed(model, names) as directory:
            place = os.path.join(directory, os.path.basename(prefix))
            layer = paddle.jit.load(place) if suffix == ".json" else _load_legacy(place)
        if prefix + _PARAMETERS not in names and _has_parameters(layer.program(), suffix):
            raise _without_parameters(model, prefix)  # Paddle raises a KeyError when it is called
        return layer


def create_predictor(
    source: ModelSource,
    /,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    configure: Callable[[Any], object] | None = None,
) -> Any:
    """``paddle.inference.create_predictor`` on ``m.json`` or ``m.pdmodel`` and ``m.pdiparams``.

    Paddle copies the parameters: while it loads there are two copies, afterwards one.

    Args:
        path: the graph file, or its path without the suffix, if there are several.
        configure: called with the ``paddle.inference.Config`` before the predictor is made, to set
            what there is to set: ``lambda config: config.set_cpu_math_library_num_threads(4)``. Its
            methods that would write the model to a disk or a log raise ``UsageError``: the cache of
            optimised models, that of serialized TensorRT engines, and debugging of passes. Paddle's log
            of its passes, which names tensors, is switched off.

    Returns:
        A ``paddle.inference.Predictor``. That of a ``.json`` cannot be cloned, since Paddle reads its
        files again to do so; make several from one open model instead.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks a file.
        UsageError: ``configure`` asks for what this build of Paddle, or this machine, does not have.
        paddle's errors: as its own function raises them.
    """
    with opened(source, key) as model:
        prefix, suffix = _graph(model, path)
        names = [prefix + suffix, prefix + _PARAMETERS]
        if names[1] not in model.files:
            # Paddle would make a predictor with arbitrary weights (seen in 3.3).
            raise _without_parameters(model, prefix)
        with _placed(model, names) as directory:
            config = _Config(*(os.path.join(directory, os.path.basename(name)) for name in names))
            config.disable_glog_info()
            if configure is not None:
                configure(config)
            # What the module's function of this name does, too.
            return (_PirPredictor if suffix == ".json" else inference.Predictor)(config)


def tensors(
    source: ModelSource, /, *, key: KeySource | None = None, path: str | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs and outputs of a saved layer, which a predictor does not say of itself before it runs.

    Args:
        path: as for :func:`create_predictor`.

    Returns:
        Name, dtype of paddle and shape of each; -1 is a dimension of any size.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or lacks a file.
    """
    with opened(source, key) as model:
        prefix, suffix = _graph(model, path)
        name = prefix + suffix
        if suffix != ".json":
            return _of_legacy(paddle.base.core.ProgramDesc(model.read(name)))
        program = paddle.static.Program()
        with _placed(model, [name]) as directory:
            place = os.path.join(directory, os.path.basename(name))
            paddle.base.core.deserialize_pir_program(place, program)
    inputs, outputs = [], []
    for op in program.global_block().ops:
        if op.name() in ("pd_op.data", "pd_op.feed"):
            inputs.append(_tensor(op, op.results()[0]))
        elif op.name() == "pd_op.fetch":
            outputs.append(_tensor(op, op.operands()[0].source()))
    return inputs, outputs


def _tensor(op: Any, value: Any) -> Tensor:
    return op.attrs()["name"], value.dtype, tuple(value.shape)


def _of_legacy(program: Any) -> tuple[list[Tensor], list[Tensor]]:
    block = program.block(0)  # which does not keep the program
    found: dict[str, list[str]] = {"feed": [], "fetch": []}
    for index in range(block.op_size()):
        op = block.op(index)
        if op.type() in found:
            names = op.output_arg_names() if op.type() == "feed" else op.input_arg_names()
            found[op.type()] += names

    def tensor(name: str) -> Tensor:
        variable = block.find_var(name.encode())
        return name, variable.dtype(), tuple(variable.shape())

    return [tensor(name) for name in found["feed"]], [tensor(name) for name in found["fetch"]]


def _has_parameters(program: Any, suffix: str) -> bool:
    if suffix == ".json":
        return any(op.name() == "builtin.parameter" for op in program.global_block().ops)
    tensor = paddle.base.core.VarDesc.VarType.DENSE_TENSOR
    return any(var.persistable and var.type == tensor for var in program.list_vars())


def _without_parameters(model: SealedModel, prefix: str) -> NotFound:
    return NotFound(
        f"{model.name} has no {prefix}{_PARAMETERS}.", hint="Seal all files of paddle.jit.save."
    )


class _Config(inference.Config):  # type: ignore[misc]  # paddle has no types here
    """Refuses, where it is called, what would leave the model behind in plain."""

    def set_optim_cache_dir(self, opt_cache_dir: str) -> None:
        raise _in_plain("set_optim_cache_dir", "optimised models")

    def enable_save_optim_model(self, save_optimized_model: bool = False) -> None:
        if save_optimized_model:
            raise _in_plain("enable_save_optim_model", "the optimised model")

    def switch_ir_debug(self, x: int = True, passes: Iterable[str] = ()) -> None:
        if x:
            raise _in_plain("switch_ir_debug", "the graph after each pass")

    def enable_use_gpu(self, *arguments: Any, **options: Any) -> None:
        if paddle.is_compiled_with_cuda():
            require_driver("Paddle Inference on a GPU")
        super().enable_use_gpu(*arguments, **options)

    def enable_tensorrt_engine(self, *arguments: Any, **options: Any) -> None:
        use_static = options.get("use_static", arguments[4] if len(arguments) > 4 else False)
        if use_static:
            raise _in_plain("enable_tensorrt_engine(use_static=True)", "serialized engines")
        if not any(inference.get_trt_compile_version()):
            raise UsageError(
                "This build of Paddle has no TensorRT.",
                hint="Install paddlepaddle-gpu, a build with TensorRT.",
            )
        require_driver("Paddle-TRT")
        super().enable_tensorrt_engine(*arguments, **options)


def _in_plain(method: str, what: str) -> UsageError:
    return UsageError(
        f"{method} would write {what} to a disk in plain.", hint="Leave it out in configure."
    )


class _PirPredictor(inference.Predictor):  # type: ignore[misc]  # nor here
    def clone(self, *arguments: Any) -> Any:
        # Without the files Paddle fails with a message on JSON; without the parameters alone (seen in
        # 3.3) the clone computes with arbitrary ones. No clone shares any with the original.
        raise UsageError(
            "Paddle clones a predictor of a .json by reading its files again, which are gone.",
            hint="Call create_predictor once for each, on one open model.",
        )


def _graph(model: SealedModel, path: str | None) -> tuple[str, str]:
    """The graph file of a saved layer, as its path without the suffix, and the suffix.

    Raises:
        NotFound, UsageError: there is none, several, or what is there is no graph.
    """
    found: dict[str, str] = {}
    for suffix in reversed(_GRAPH_SUFFIXES):
        for name in model.files:
            if name.endswith(suffix):
                found[name.removesuffix(suffix)] = suffix  # .json last: it is preferred to .pdmodel
    if path is not None:
        if path in model.files:
            prefix, suffix = os.path.splitext(path)
            found = {prefix: suffix} if suffix in _GRAPH_SUFFIXES else {}
        elif path in found:
            found = {path: found[path]}
        else:
            model.content(path)  # raises, with the names that there are
    else:
        # Other .json files may lie beside, and those of further methods of the layer.
        with_parameters = {p: s for p, s in found.items() if p + _PARAMETERS in model.files}
        found = with_parameters or found
        stems = {prefix: os.path.splitext(prefix)[0] for prefix in found}
        found = {p: s for p, s in found.items() if stems[p] == p or stems[p] not in found}
    if not found:
        raise NotFound(
            f"{path or model.name} is no graph of PaddlePaddle ({', '.join(_GRAPH_SUFFIXES)}).",
            hint="State dicts (.pdparams): strongroom.loaders.paddle.load.",
        )
    if len(found) > 1:
        raise UsageError(
            f"{model.name} has {len(found)} graphs of PaddlePaddle.",
            hint="Say which: path=" + " or ".join(repr(p + s) for p, s in found.items()),
        )
    ((prefix, suffix),) = found.items()
    start = bytearray(256)
    del start[model.read_into(prefix + suffix, start) :]
    # Given another file, Paddle ends the process (seen in 3.3, with a .pdmodel).
    if not (_PIR.match(start) if suffix == ".json" else start.startswith(b"\n")):
        raise UsageError(
            f"{prefix}{suffix} is no graph of PaddlePaddle.", hint="Say which file is: path=…"
        )
    return prefix, suffix


def _beside(model: SealedModel, prefix: str) -> list[str]:
    """The files of a saved layer: in one folder, with one beginning of their names."""
    return [
        name for name in model.files if name.startswith(prefix + ".") and "/" not in name[len(prefix) :]
    ]


@contextmanager
def _placed(model: SealedModel, names: Iterable[str]) -> Iterator[str]:
    """A directory with these files, in memory; for a killed process it keeps no plaintext.

    Paddle goes by suffixes, which a memory file has not (without one it ends the process), and takes
    links to such files.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(memory_directory())
        for name in names:
            place = stack.enter_context(model.path(name))
            os.symlink(place, os.path.join(directory, os.path.basename(name)))
        yield directory


def _load_legacy(place: str) -> Any:
    guard = getattr(getattr(paddle, "pir_utils", None), "OldIrGuard", None)
    pir = paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]
    if guard is None or not pir or not paddle.in_dynamic_mode():
        return paddle.jit.load(place)  # it is so already, or Paddle says what is wrong
    with guard():
        paddle.disable_static()  # the guard enables it, and undoes that at its end
        return paddle.jit.load(place)
