"""PyTorch: TorchScript, exported programs, packages of AOTInductor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, cast

import numpy as np

from strongroom.errors import UsageError
from strongroom.loaders.registry import detect
from strongroom.loaders.source import pick
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.backends.dimensions import check_dimensions
from strongroom.serving.backends.faults import blame
from strongroom.serving.backends.torch_names import missing
from strongroom.serving.backends.torch_programs import Program, compiled, exported, torchscript
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec, dtype_name
from strongroom.serving.warmup import random_inputs

__all__ = ["load"]

Array = np.ndarray[Any, Any]

_SUFFIXES: Final = (".pt", ".pth", ".ts", ".jit", ".torchscript", ".pt2")
_KINDS: Final = {"torchscript": torchscript, "torch.export": exported, "aotinductor": compiled}
_BFLOAT16: Final = DTYPES["bfloat16"]
_PROBED: Final = 3


class _Model:
    def __init__(self, file: str, program: Program, threads: int) -> None:
        import torch

        self._torch = torch
        self._program = program
        self._threads = threads or _default_threads()
        self._refused = (RuntimeError, IndexError, ValueError, AssertionError, torch.jit.Error)
        self._worked = False
        self.platform = program.platform
        inputs = {one.name: one for one in program.inputs}
        for one in (*program.inputs, *(program.outputs or ())):
            if one.dtype == BYTES:
                raise UsageError(f"PyTorch has no text, and {one.name} is configured to be bytes.")
        if program.outputs is None:
            raise missing(file, "outputs", specs=self._probed(Signature(inputs, {})))
        self._outputs = tuple(program.outputs)
        outputs = {one.name: one for one in self._outputs}
        self.signatures = {"serving_default": Signature(inputs, outputs, batched=program.batched)}

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, Array]:
        check_dimensions(inputs, self._program.dimensions)
        found = self._run(inputs)
        if len(found) != len(self._outputs):
            raise UsageError(
                f"The model gives {len(found)} tensors, and {len(self._outputs)} outputs are configured."
            )
        known = dict(zip((one.name for one in self._outputs), found, strict=True))
        for one in self._outputs:
            _check(known[one.name], one)
        return {name: known[name] for name in outputs}

    def _run(self, inputs: Arrays) -> list[Array]:
        torch, program = self._torch, self._program
        # Of the thread that asks, which may have run a model with another number before.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        given = [self._tensor(inputs[one.name]) for one in program.inputs]
        try:
            with torch.inference_mode():
                found = [self._array(one) for one in program.call(given)]
        except self._refused as error:
            raise blame(error, worked=self._worked) from None
        self._worked = True
        return found

    def _tensor(self, value: Array) -> Any:
        """Without a copy, unless the model may write into what belongs to a request."""
        torch, is_bfloat16 = self._torch, value.dtype == _BFLOAT16
        if is_bfloat16:
            value = value.view(np.int16)
        flags = value.flags
        if self._program.writes or not (flags.c_contiguous and flags.aligned):
            tensor = torch.from_numpy(value.copy("C"))
        elif flags.writeable:
            tensor = torch.from_numpy(value)
        else:
            try:
                # from_numpy warns of memory that is read-only.
                tensor = torch.from_dlpack(value)
            except BufferError:  # of numpy before 2.1
                tensor = torch.from_numpy(value.copy("C"))
        if is_bfloat16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(self._program.device)

    def _array(self, value: Any) -> Array:
        torch = self._torch
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(value)
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if value.untyped_storage().data_ptr() in self._program.kept:
            value = value.clone()
        if value.dtype == torch.bfloat16:
            return cast("Array", value.contiguous().view(torch.int16).numpy().view(_BFLOAT16))
        return cast("Array", value.numpy())

    def _probed(self, signature: Signature) -> list[TensorSpec]:
        """What the outputs may be, going by one run."""
        program = self._program
        assert program.probe is not None
        try:
            given = random_inputs(signature, _PROBED)
            with self._torch.inference_mode():
                found = program.probe([self._tensor(given[one.name]) for one in program.inputs])
                arrays = {name: self._array(one) for name, one in found.items()}
            return [
                TensorSpec(name, dtype_name(one.dtype), _opened(one.shape))
                for name, one in arrays.items()
            ]
        except Exception:  # the inputs are random, and this is for a hint
            return []

    def close(self) -> None:
        program = self._program
        del self._program
        program.free()


def load(model: SealedModel, options: BackendOptions) -> _Model:
    """A model; ``options.extra`` is for the loader of its kind, such as ``map_location`` of TorchScript.

    Raises:
        UsageError: the file is no program, or the configuration lacks what it does not say.
        FormatError: an input or output is nothing that protocols carry.
    """
    name = pick(model, options.file, _SUFFIXES, "PyTorch")
    kind = detect(model, name)
    if kind not in _KINDS:
        raise UsageError(
            f"{name} holds weights without the program that computes with them.",
            hint="Save torch.export.export(module, …) with torch.export.save, or a TorchScript module; "
            "or serve it with a class of your own: backend: python.",
        )
    _default_threads()
    return _Model(name, _KINDS[kind](model, name, options), options.threads)


@cache
def _default_threads() -> int:
    """Before a model changes it: new threads begin with the number that was set last."""
    import torch

    return torch.get_num_threads()


def _check(value: Array, spec: TensorSpec) -> None:
    fits = spec.shape is None or (
        len(spec.shape) == value.ndim
        and all(want in (-1, size) for want, size in zip(spec.shape, value.shape, strict=True))
    )
    if value.dtype != DTYPES[spec.dtype] or not fits:
        raise UsageError(
            f"The model gives {value.dtype.name} {list(value.shape)} for {spec.name}, which is configured "
            f"to be {spec.dtype} {spec.shape if spec.shape is None else list(spec.shape)}."
        )


def _opened(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-1 if axis == 0 and size == _PROBED else size for axis, size in enumerate(shape))
