"""Diffusers: pipelines of several models, each in a folder of its own, and single models of them.

Weights are decrypted once, into the memory that the parameters then are views of. Everything small
(``model_index.json``, schedulers, tokenizers) is put where the library reads it, a private directory in
memory, for the moment of the call.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from strongroom.errors import NotFound, UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

# Diffusers imports ONNX Runtime where there is one, which keeps reports on a disk and sends them; see
# strongroom.loaders.onnx. Whoever wants this sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import diffusers
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode
except ModuleNotFoundError as error:
    missing = extra_for(error, error.name or "", "Loading Diffusers models", "diffusers")
    raise (missing if error.name in ("torch", "diffusers", "transformers") else error) from None

from strongroom.loaders import sharded
from strongroom.loaders import transformers as transformers_loader

__all__ = ["from_pretrained"]

_INDEX: Final = "model_index.json"
_STEMS: Final = (("diffusion_pytorch_model", "safetensors"), ("diffusion_pytorch_model", "bin"))

_REFUSED: Final = {
    "custom_pipeline": "it would write code to a disk",
    "trust_remote_code": "it would write code of the model to a disk",
    "device_map": "weights are loaded into memory first; move the pipeline with .to(…)",
    "max_memory": "it goes with device_map",
    "offload_folder": "it would write weights to a disk",
    "offload_state_dict": "it would write weights to a disk",
    "quantization_config": "weights are loaded as they were sealed",
    "use_flashpack": "FlashPack files are not loaded from sealed models",
    "use_onnx": "ONNX models of a pipeline are loaded with strongroom.loaders.onnx",
    "load_connected_pipeline": "it would fetch other models",
}


def from_pretrained(
    pretrained_model_name_or_path: ModelSource,
    *,
    key: KeySource | None = None,
    torch_dtype: Any = None,
    auto_class: Any = None,
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **kwargs: Any,
) -> Any:
    """``DiffusionPipeline.from_pretrained`` from a sealed model, or that of another class.

    Args:
        pretrained_model_name_or_path: the place of a sealed directory, or an open model.
        torch_dtype: one for all components, or a dictionary: component → dtype, and ``"default"``;
            in newer versions of Diffusers also as ``dtype``.
        auto_class: a class of diffusers, or its name: a pipeline (``AutoPipelineFor…`` too), or a
            model, scheduler … in ``subfolder``; by default the pipeline that ``model_index.json``
            names.
        subfolder: where the files are in the model.
        variant: which weights, as in diffusers; components without that variant load without.
        use_safetensors: which kind of weights; by default what is there.
        kwargs: as for the class's own ``from_pretrained``: components instead of those of the
            model (``scheduler=…``, ``safety_checker=None``), and options.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: an argument that would put parts of the model on a disk, or has no meaning here;
            weights that are not those of the component.
    """
    for name, reason in _REFUSED.items():
        if kwargs.get(name):
            raise UsageError(f"{name} cannot be used with a sealed model: {reason}.")
    kwargs.pop("low_cpu_mem_usage", None)  # no memory is used for weights to be replaced
    dtype = kwargs.pop("dtype", None)
    dtype = torch_dtype if dtype is None else dtype
    if isinstance(auto_class, str):
        auto_class = _class("diffusers", auto_class)
    with opened(pretrained_model_name_or_path, key) as model, memory_directory() as directory:
        place_files(model, sharded.small_files(model, subfolder), directory, subfolder)
        weights = _Weights(model, variant, use_safetensors)
        if auto_class is not None and issubclass(auto_class, diffusers.ModelMixin):
            return weights.model(auto_class, directory, subfolder, dtype, kwargs)
        index = os.path.join(directory, _INDEX)
        if not os.path.exists(index):
            if auto_class is not None and not issubclass(auto_class, diffusers.DiffusionPipeline):
                return auto_class.from_pretrained(directory, **kwargs)
            raise NotFound(
                f"{model.name} has no {_INDEX}.",
                hint="Say what to load: auto_class=… and subfolder=…, or seal a whole pipeline.",
            )
        wanted = []
        for name, kind in _components(index):
            folder = posixpath.join(subfolder, name)
            if name not in kwargs and any(path.startswith(f"{folder}/") for path in model.files):
                wanted.append((name, kind, folder))
        if variant is not None and not any(weights.has_variant(folder) for _, _, folder in wanted):
            raise NotFound(f"{model.name} has no weights of the variant {variant!r}.")
        for name, kind, folder in wanted:
            of = dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype
            if issubclass(kind, diffusers.ModelMixin):
                place = os.path.join(directory, name)
                kwargs[name] = weights.model(kind, place, folder, of, {})
            elif issubclass(kind, transformers.PreTrainedModel):
                kwargs[name] = weights.transformers_model(kind, folder, of)
        made = (auto_class or diffusers.DiffusionPipeline).from_pretrained(
            directory, low_cpu_mem_usage=False, **kwargs
        )
        made.register_to_config(_name_or_path=model.name)
        return made


def _components(index: str) -> Iterator[tuple[str, type]]:
    """The components of a pipeline that may have weights: name, class."""
    with open(index, encoding="utf-8") as file:
        content = json.load(file)
    for name, value in content.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
            library, kind = value
            if library in ("diffusers", "transformers") or hasattr(diffusers.pipelines, library):
                yield name, _class(library, kind)


def _class(library: str, name: str) -> type:
    modules: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
    module = modules.get(library) or getattr(diffusers.pipelines, library)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise UsageError(
            f"{library} {getattr(module, '__version__', '')} has no class {name}.".replace("  ", " "),
            hint="Install the version that the model was made with.",
        )
    return found


class _Weights:
    """The weights of the components of one sealed model."""

    def __init__(self, model: SealedModel, variant: str | None, use_safetensors: bool | None) -> None:
        self._model = model
        self._variant = variant
        self._use_safetensors = use_safetensors

    def has_variant(self, folder: str) -> bool:
        return self._variant is not None and any(
            path.startswith(f"{folder}/") and f".{self._variant}." in posixpath.basename(path)
            for path in self._model.files
        )

    def _variant_of(self, folder: str) -> str | None:
        return self._variant if not folder or self.has_variant(folder) else None

    def transformers_model(self, kind: type, folder: str, dtype: Any) -> Any:
        # Its name since 4.56; the former gives a warning.
        new = tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56)
        return transformers_loader.from_pretrained(
            self._model,
            auto_class=kind,
            subfolder=folder,
            variant=self._variant_of(folder),
            use_safetensors=self._use_safetensors,
            **{"dtype" if new else "torch_dtype": dtype},
        )

    def model(self, kind: Any, place: str, folder: str, dtype: Any, options: Mapping[str, Any]) -> Any:
        """A model of diffusers; ``place`` is where its configuration lies."""
        config, unused = kind.load_config(place, return_unused_kwargs=True, **options)
        if config.get("quantization_config"):
            raise UsageError(f"{folder or kind.__name__} has quantized weights, which are not loaded.")
        with _default_dtype(dtype), _Unfilled():
            made = kind.from_config(config, **unused)
        state = sharded.state_dict(
            self._model, folder, _STEMS, self._variant_of(folder), self._use_safetensors
        )
        if hasattr(made, "_fix_state_dict_keys_on_load"):
            made._fix_state_dict_keys_on_load(state)
        _assign(made, state, folder or kind.__name__)
        made.register_to_config(_name_or_path=self._model.name)
        return made.eval()


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """As diffusers: modules are made under the dtype that is asked for, and their buffers have it."""
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Unfilled(TorchFunctionMode):
    """Parameters are made and not filled, since they will be replaced; their memory is never touched.

    Buffers are computed as always: those that are not saved must be right.
    """

    _FILLS = frozenset(
        ("uniform_", "normal_", "fill_", "zero_", "copy_", "mul_", "add_", "erfinv_", "clamp_")
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, torch.nn.Parameter):
            # Some functions of torch.nn.init come here themselves, others what they call.
            name = getattr(func, "__name__", "")
            if name in self._FILLS or getattr(func, "__module__", "") == "torch.nn.init":
                return target
        return func(*args, **kwargs)


def _assign(module: Any, state: dict[str, Any], what: str) -> None:
    """Put weights in the place of the parameters; those of another dtype than these are converted."""
    expected = module.state_dict()
    keep = getattr(module, "_keep_in_fp32_modules", None) or ()
    for name in expected.keys() & state.keys():
        if expected[name].shape != state[name].shape:
            raise UsageError(
                f"{what}: {name} has the shape {tuple(state[name].shape)}, "
                f"and its configuration says {tuple(expected[name].shape)}."
            )
        in_fp32 = expected[name].is_floating_point() and not set(keep).isdisjoint(name.split("."))
        state[name] = state[name].to(torch.float32 if in_fp32 else expected[name].dtype)
    lacking = sorted(expected.keys() - state.keys())
    if lacking:
        raise UsageError(
            f"{what} lacks {len(lacking)} of the weights that its configuration asks for.",
            hint="The first are " + ", ".join(lacking[:4]) + ".",
        )
    module.load_state_dict(state, strict=False, assign=True)
