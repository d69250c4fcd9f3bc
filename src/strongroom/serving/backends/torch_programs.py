"""The kinds of PyTorch's files that can be called, and what they say of themselves.

An exported program says everything. A TorchScript module says the names of the parameters of
``forward``, an AOTInductor package the names of keyword arguments and the keys of outputs; the rest is
in the configuration.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from strongroom.errors import FormatError, UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends.dimensions import Open
from strongroom.serving.backends.torch_names import (
    leaf_names,
    matched,
    missing,
    renamed,
    script_parameters,
)
from strongroom.serving.tensors import BYTES, DTYPES, TensorSpec

__all__ = ["Program", "compiled", "exported", "torchscript"]

Tensors = Sequence[Any]

_CHECKS: Final = "AOTI_RUNTIME_CHECK_INPUTS"
_NATIVE: Final = "allow_native_code"
_TOO_SMALL: Final = "too small at 0, expected it to be >= 2"
_ASSUMED: Final = 2
"""torch assumes of open dimensions that they are at least 2; exported programs take 0 and 1 all the same."""


@dataclass(frozen=True, slots=True)
class Program:
    """What can be called.

    Attributes:
        platform: as the Open Inference Protocol names it.
        call: tensors in the order of ``inputs`` → tensors in the order of ``outputs``.
        inputs: of the model.
        outputs: likewise; None, where neither the file nor the configuration says them.
        batched: whether examples are kept apart.
        writes: whether it may write into its inputs.
        device: where it wants them.
        dimensions: see :func:`.dimensions.check_dimensions`.
        kept: addresses of memory that its next run may change.
        free: let go of the weights.
        probe: tensors → all that comes out, under the names that it has; where ``outputs`` may be None.
    """

    platform: str
    call: Callable[[Tensors], Tensors]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec] | None
    batched: bool
    writes: bool
    device: Any
    dimensions: Mapping[str, Sequence[Open | None]] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    free: Callable[[], object] = lambda: None
    probe: Callable[[Tensors], Mapping[str, Any]] | None = None


def torchscript(model: SealedModel, name: str, options: BackendOptions) -> Program:
    """``forward`` of a module.

    Raises:
        UsageError: the configuration has no inputs, or does not fit; or there is no forward.
    """
    from strongroom.loaders import torch as loader

    module: Any = loader.jit_load(model, path=name, **options.extra).eval()
    if not hasattr(module, "forward"):
        raise UsageError(f"{name} has no method forward, which is the one that is served.")
    parameters = script_parameters(name, module.forward.schema)
    if not options.inputs:
        raise missing(name, "inputs", parameters.names)
    own = [one.name for one in options.inputs]
    if parameters.container is None:
        own = matched(name, "inputs", options.inputs, parameters.names, parameters.needed)
    outputs = options.outputs
    keys = None if outputs is None else [one.name for one in outputs]

    def run(tensors: Tensors) -> Any:
        if parameters.container is list:
            return module(list(tensors))
        named = dict(zip(own, tensors, strict=True))
        return module(named) if parameters.container is dict else module(**named)

    return Program(
        "pytorch_libtorch",
        lambda tensors: _picked(run(tensors), keys),
        options.inputs,
        outputs,
        _all_open([*options.inputs, *(outputs or ())]),
        _script_writes(module.forward.inlined_graph),
        _device([*module.parameters(), *module.buffers()]),
        kept=_addresses(module.buffers()),
        probe=lambda tensors: _named(run(tensors)),
    )


def exported(model: SealedModel, name: str, options: BackendOptions) -> Program:
    """A program of ``torch.export``.

    Raises:
        FormatError: an input or output is nothing that protocols carry.
        UsageError: the configuration does not fit, or the file has pickles that it does not allow.
    """
    import torch
    from torch.export.graph_signature import ConstantArgument, TensorArgument
    from torch.utils import _pytree as pytree

    from strongroom.loaders import torch as loader

    try:
        program: Any = loader.export_load(model, path=name, **options.extra)
    except pickle.UnpicklingError:
        raise UsageError(
            f"{name} holds a pickle of more than tensors, which runs code of its author.",
            hint="Export it with tensors alone for its example inputs; or, if you trust who sealed it, "
            "options: {weights_only: false}.",
        ) from None
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    given = [one.arg for one in program.graph_signature.input_specs if one.kind.name == "USER_INPUT"]
    taken = [one.arg for one in program.graph_signature.output_specs if one.kind.name == "USER_OUTPUT"]
    for one in given:
        if not isinstance(one, TensorArgument | ConstantArgument):
            raise FormatError(
                f"The input {one.name} of {name} is a number, and requests carry tensors.",
                hint="Export it with a tensor in its place.",
            )
    # What is no tensor was fixed by the export; only its place is left.
    arguments = [None if isinstance(one, TensorArgument) else one.value for one in given]
    places = [at for at, one in enumerate(given) if isinstance(one, TensorArgument)]
    picked = [at for at, one in enumerate(taken) if isinstance(one, TensorArgument)]
    if not picked:
        raise FormatError(f"{name} has no outputs that are tensors.")
    tree = program.call_spec.out_spec
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree.unflatten(range(len(taken))))[0]]
    names = leaf_names(paths, "output")
    fed = {given[at].name: values[given[at].name] for at in places}
    made = {names[at]: values[taken[at].name] for at in picked}
    inputs = renamed(name, "inputs", _specs("Input", fed), options.inputs)
    outputs = renamed(name, "outputs", _specs("Output", made), options.outputs)
    dimensions = {
        spec.name: [_open(size, program.range_constraints) for size in value.shape]
        for spec, value in zip(inputs, fed.values(), strict=True)
    }
    writes = bool(program.graph_signature.user_inputs_to_mutate) or _graph_writes(program.graph)
    module = program.module()
    # Without the trees of arguments and results a call takes 34 µs and not 89, of which eager's is 20.
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    forward = module.forward

    def call(tensors: Tensors) -> Tensors:
        filled = list(arguments)
        for at, tensor in zip(places, tensors, strict=True):
            filled[at] = tensor
        found = forward(*filled)
        return [found[at] for at in picked]

    return Program(
        "pytorch_export",
        call,
        inputs,
        outputs,
        _one_first([*fed.values(), *made.values()]),
        writes,
        _device(program.state_dict.values()),
        dimensions,
        _addresses(module.buffers()),
        # The module is in cycles of references: its weights would wait for the garbage collector.
        lambda: module.to("meta"),
    )


def compiled(model: SealedModel, name: str, options: BackendOptions) -> Program:
    """A package of AOTInductor.

    Raises:
        UsageError: the configuration has no inputs, or does not fit; or nobody has said that code out of
            this model may run.
    """
    import torch
    from torch.utils import _pytree as pytree

    from strongroom.loaders import torch as loader

    extra = dict(options.extra)
    if extra.pop(_NATIVE, False) is not True:
        raise UsageError(
            f"{name} is machine code, and would run with all that this server may do.",
            hint=f"If you trust who sealed it: options: {{{_NATIVE}: true}}.",
        )
    # Compiled code reads as far as it was compiled for, whatever the size of the tensor.
    os.environ.setdefault(_CHECKS, "1")
    package = loader.aoti_load_package(model, path=name, **extra)
    given, taken = (
        [path for path, _ in pytree.tree_flatten_with_path(tree.unflatten(range(tree.num_leaves)))[0]]
        for tree in map(pytree.treespec_loads, package.loader.get_call_spec())
    )
    # The first key says whether it is positional.
    known = leaf_names([path[1:] for path in given], "input")
    if not options.inputs:
        raise missing(name, "inputs", known)
    order = _places(options.inputs, known)
    outputs = options.outputs
    batched = _all_open([*options.inputs, *(outputs or ())])
    keys = leaf_names(taken, "output")
    own = [one.name for one in outputs or ()]
    picked = [keys.index(one) for one in own] if set(own) <= set(keys) else []
    run = package.loader.run
    padded = False

    def every(tensors: Tensors) -> Tensors:
        nonlocal padded
        tensors = [tensors[at] for at in order]
        size = len(tensors[0]) if batched else _ASSUMED
        if size >= _ASSUMED or not padded:
            try:
                found: Tensors = run(tensors)
                return found
            except RuntimeError as error:
                if size >= _ASSUMED or _TOO_SMALL not in str(error):
                    raise
                padded = True
        wide = [one.new_zeros((_ASSUMED, *one.shape[1:])) for one in tensors]
        for whole, one in zip(wide, tensors, strict=True):
            whole[:size] = one
        return [None if one is None else one[:size] for one in run(wide)]

    def call(tensors: Tensors) -> Tensors:
        found = every(tensors)
        return [found[at] for at in picked] if picked else list(_leaves(found))

    kind = package.get_metadata().get("AOTI_DEVICE_KEY", "cpu")
    return Program(
        "torch_aoti",
        call,
        options.inputs,
        outputs,
        batched,
        True,  # it may, and does not say so
        torch.device(kind),
        probe=lambda tensors: {
            key: one for key, one in zip(keys, every(tensors), strict=True) if one is not None
        },
    )


def _picked(found: Any, keys: Sequence[str] | None) -> Tensors:
    """The tensors of a result: of dicts and named tuples those with these names, where they have them."""
    if keys is not None and isinstance(found, Mapping):
        absent = [key for key in keys if key not in found]
        if absent:
            raise UsageError(f"The model gives {', '.join(map(str, found))}, and no {absent[0]}.")
        return [found[key] for key in keys]
    if keys is not None and set(keys) <= set(getattr(found, "_fields", ())):
        return [getattr(found, key) for key in keys]
    return list(_leaves(found))


def _named(found: Any) -> dict[str, Any]:
    from torch.utils import _pytree as pytree

    paths, leaves = zip(*pytree.tree_flatten_with_path(found)[0], strict=True)
    names = leaf_names(paths, "output")
    return {name: leaf for name, leaf in zip(names, leaves, strict=True) if leaf is not None}


def _leaves(found: Any) -> Iterable[Any]:
    if isinstance(found, Mapping):
        found = tuple(found.values())
    if not isinstance(found, tuple | list):
        return () if found is None else (found,)
    return [leaf for one in found for leaf in _leaves(one)]


def _places(said: Sequence[TensorSpec], known: Sequence[str]) -> list[int]:
    """The order in which a package wants the inputs: names of keywords are its own, others go by order."""
    if len(said) != len(known):
        return list(range(len(said)))
    names = [one.name for one in said]
    others = iter([at for at, name in enumerate(names) if name not in known])
    return [names.index(name) if name in names else next(others) for name in known]


def _specs(what: str, values: Mapping[str, Any]) -> list[TensorSpec]:
    import torch

    dtypes = {getattr(torch, name): name for name in DTYPES if name != BYTES}
    specs = []
    for name, value in values.items():
        if value.dtype not in dtypes:
            raise FormatError(
                f"{what} {name} has the dtype {value.dtype}, which no protocol of serving carries."
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(name, dtypes[value.dtype], shape))
    return specs


def _open(size: Any, ranges: Mapping[Any, Any]) -> Open | None:
    if isinstance(size, int):
        return None
    symbol = size.node.expr
    if not symbol.is_Symbol:  # computed from others; the program checks it
        return Open()
    bounds = ranges.get(symbol)
    least, most = (_finite(getattr(bounds, side, None)) for side in ("lower", "upper"))
    return Open(least if least is not None and least > _ASSUMED else 0, most, str(symbol))


def _finite(bound: Any) -> int | None:
    return int(bound) if getattr(bound, "is_Integer", False) else None


def _one_first(values: Sequence[Any]) -> bool:
    """Is the first dimension of all of them one and the same, and open?"""
    first = {
        str(value.shape[0]) if value.shape and not isinstance(value.shape[0], int) else None
        for value in values
    }
    return len(first) == 1 and None not in first and (first.pop() or "").isidentifier()


def _all_open(specs: Sequence[TensorSpec]) -> bool:
    return all(one.shape and one.shape[0] == -1 for one in specs)


def _script_writes(graph: Any) -> bool:
    """Has a TorchScript graph an operator that writes into what it is given, to whomever that belongs?

    Its analysis of aliases is not enough: dropout gives its input back, and does not declare it.
    """
    import torch

    def writes(block: Any) -> bool:
        for node in block.nodes():
            if node.kind() in ("prim::CallMethod", "prim::CallFunction"):
                return True
            schema = node.schema()
            if schema != "(no schema)" and torch._C.parse_schema(schema).is_mutable:
                return True
            if any(writes(one) for one in node.blocks()):
                return True
        return False

    try:
        return writes(graph)
    except (AttributeError, RuntimeError):  # of functions that torch keeps to itself, seen in 2.13
        return True


def _graph_writes(graph: Any) -> bool:
    """Likewise, of an exported graph; whatever is no operator may write."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None and getattr(node.target, "__module__", None) in ("_operator", "math"):
            continue
        if schema is None or schema.is_mutable:
            return True
    return False


def _device(tensors: Iterable[Any]) -> Any:
    import torch

    return next((one.device for one in tensors), torch.device("cpu"))


def _addresses(tensors: Iterable[Any]) -> frozenset[int]:
    return frozenset(one.untyped_storage().data_ptr() for one in tensors)
