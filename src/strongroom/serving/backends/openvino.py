"""OpenVINO: IR, ONNX and what else it reads, compiled when it is loaded."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from strongroom.errors import FormatError, UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.backends.dimensions import Open, check_dimensions
from strongroom.serving.backends.faults import blame
from strongroom.serving.backends.openvino_requests import Requests
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES, Signature, TensorSpec

__all__ = ["load"]

Array = np.ndarray[Any, Any]

_BFLOAT16: Final = DTYPES["bfloat16"]
_DTYPES: Final = {
    "boolean": "bool",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("i", "int"), ("u", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
"""Without text: its tensors in the plugin for CPUs end the process when they are freed (2026.4)."""

_CHOOSING: Final = ("AUTO", "MULTI", "HETERO", "BATCH")
_REMEMBERED: Final = 4096


class _Compiled:
    platform = "openvino"

    def __init__(self, model: Any, compiled: Callable[[], Any], options: BackendOptions) -> None:
        # The weights of both are the same, and it is compiled anew after a run that failed.
        self._requests = Requests(compiled)
        self._shapes = model.clone()
        self._fitting: set[tuple[tuple[int, ...], ...]] = set()
        self._lock = threading.Lock()
        ports = self._requests.compiled
        inputs = _specs("input", ports.inputs, options.inputs)
        outputs = _specs("output", ports.outputs, options.outputs)
        batched = all(one.shape and one.shape[0] == -1 for one in (*inputs, *outputs))
        signature = Signature(
            {one.name: one for one in inputs}, {one.name: one for one in outputs}, batched=batched
        )
        self.signatures = {"serving_default": signature}
        self._open = any(one.shape is None or -1 in one.shape for one in inputs)
        bounds = {
            one.name: [_open(size) for size in port.get_partial_shape()]
            for one, port in zip(inputs, ports.inputs, strict=True)
            if one.shape is not None
        }
        self._dimensions = {name: sizes for name, sizes in bounds.items() if any(sizes)}
        self._places = {one.name: place for place, one in enumerate(outputs)}
        self._worked = False

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, Array]:
        spec = self.signatures[signature]
        check_dimensions(inputs, self._dimensions)
        values = [inputs[name] for name in spec.inputs]
        if self._open:
            self._check_shapes(tuple(one.shape for one in values))

        def compute(request: Any) -> dict[str, Array]:
            for place, value in enumerate(values):
                _fill(request.get_input_tensor(place), value)
            found = request.infer(share_outputs=True).to_tuple()
            # The next run writes where these lie.
            return {name: np.array(found[self._places[name]]) for name in outputs}

        try:
            made = self._requests.run(compute)
        except RuntimeError as error:
            raise blame(error, worked=self._worked) from None
        self._worked = True
        return {
            name: value.view(_BFLOAT16) if spec.outputs[name].dtype == "bfloat16" else value
            for name, value in made.items()
        }

    def _check_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Refuse, in a millisecond, sizes with which a run would fail, and cost a compilation."""
        if shapes in self._fitting:
            return
        with self._lock:
            try:
                self._shapes.reshape({place: list(shape) for place, shape in enumerate(shapes)})
            except RuntimeError:
                raise RequestError(
                    Code.INVALID_ARGUMENT, "The model cannot compute with inputs of these shapes."
                ) from None
            if len(self._fitting) >= _REMEMBERED:
                self._fitting.clear()
            self._fitting.add(shapes)

    def close(self) -> None:
        del self._requests, self._shapes


def load(model: SealedModel, options: BackendOptions) -> _Compiled:
    """A compiled model; ``options.extra`` has the properties of the device, and ``device_name``, ``weights``.

    Raises:
        FormatError: an input or output is no tensor of a dtype that is served, or the device cannot run it.
        UsageError: there is no such device or property here, or one that writes to the disk.
    """
    from strongroom.loaders import openvino as loader

    # After the loader, which imports it without its telemetry.
    core = importlib.import_module("openvino").Core()
    config = dict(options.extra)
    device = config.pop("device_name", "CPU")
    weights = config.pop("weights", None)
    if weights is not None:
        model.content(weights)
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    _check(core, device, config)
    loader.refuse_cache(device, config)
    read = loader.read_model(model, weights, path=options.file, core=core)

    def compiled() -> Any:
        return core.compile_model(read, device, {**config, "CACHE_DIR": ""})

    try:
        return _Compiled(read, compiled, options)
    except RuntimeError as error:
        # Of the lines before the last, most are places in its source code.
        raise FormatError(
            f"OpenVINO cannot compile this model for {device}.",
            hint=str(error).strip().splitlines()[-1],
        ) from None


def _check(core: Any, device: Any, config: dict[str, Any]) -> None:
    """In words what OpenVINO says with the places of its own source code."""
    if not isinstance(device, str) or not device:
        raise UsageError("The option device_name must be a name.", hint="CPU, GPU, NPU, AUTO.")
    kind = device.partition(":")[0].partition(".")[0]
    if kind in _CHOOSING:
        return
    if kind not in {one.partition(".")[0] for one in core.available_devices}:
        raise UsageError(
            f"OpenVINO finds no {kind} on this machine.",
            hint=f"device_name: {', '.join(core.available_devices)}.",
        )
    known = {*core.get_property(device, "SUPPORTED_PROPERTIES"), "CACHE_DIR", "NPU_BYPASS_UMD_CACHING"}
    for name in config:
        if name not in known:
            raise UsageError(
                f"OpenVINO has no option {name} for {device}.",
                hint=f"It has: {', '.join(sorted(known))}.",
            )


def _specs(what: str, ports: Sequence[Any], said: Sequence[TensorSpec] | None) -> list[TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for place, port in enumerate(ports):
        names = sorted(port.get_names()) or [f"{what}{place}"]
        name = next((one.name for one in said or () if one.name in names), names[0])
        if name in specs:
            name = f"{what}{place}"
        kind = port.get_element_type().get_type_name()
        if kind not in _DTYPES:
            raise FormatError(
                f"The {what} {name} has the type {kind}, which is not served from OpenVINO.",
                hint="Text in ONNX models: backend: onnx." if kind == "string" else None,
            )
        shape = port.get_partial_shape()
        sizes = (
            None
            if shape.rank.is_dynamic
            else tuple(-1 if one.is_dynamic else one.get_length() for one in shape)
        )
        specs[name] = TensorSpec(name, _DTYPES[kind], sizes)
    return list(specs.values())


def _open(size: Any) -> Open | None:
    least, most = size.get_min_length(), size.get_max_length()
    if not size.is_dynamic or (least <= 0 and most < 0):
        return None
    return Open(max(least, 0), most if most >= 0 else None)


def _fill(tensor: Any, value: Array) -> None:
    """Into the request's own memory: OpenVINO may write into what it is given."""
    if tuple(tensor.shape) != value.shape:
        tensor.shape = value.shape
    if value.dtype == _BFLOAT16:
        tensor.data.view(np.uint16)[...] = value.view(np.uint16)
    else:
        tensor.data[...] = value
