"""Hugging Face Transformers: models, single or sharded, and their tokenizers and configurations.

Weights are decrypted once, into the memory that the parameters then are views of. The small files
(configuration, vocabulary) are put where the library reads them, a private directory in memory, for
the moment of the call.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.providers.sources import KeySource

try:
    import torch
    import transformers
except ModuleNotFoundError as error:
    missing = extra_for(error, error.name or "", "Loading Transformers models", "transformers")
    raise (missing if error.name in ("torch", "transformers") else error) from None

from strongroom.loaders import sharded

__all__ = ["from_pretrained"]

_STEMS: Final = (("model", "safetensors"), ("pytorch_model", "bin"))

_REFUSED: Final = {
    "state_dict": "the weights come from the sealed model",
    "gguf_file": "GGUF files are not loaded from sealed models",
    "offload_folder": "it would write weights to a disk",
    "trust_remote_code": "it would write code of the model to a disk",
}


def from_pretrained(
    source: ModelSource,
    *,
    key: KeySource | None = None,
    auto_class: Any = None,
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **kwargs: Any,
) -> Any:
    """``auto_class.from_pretrained`` from a sealed model.

    Args:
        source: the place of a sealed directory, or an open model.
        auto_class: a class of transformers, or its name: a model class, ``AutoModelFor…``,
            ``AutoTokenizer``, ``AutoConfig`` …; by default the one that ``config.json`` names.
        subfolder: where the files are in the model, as in transformers.
        variant: which weights, as in transformers.
        use_safetensors: which kind of weights, as in transformers; by default what is there.
        kwargs: as for the class's own ``from_pretrained``.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: an argument that would put parts of the model on a disk, or has no meaning here.
    """
    for name, reason in _REFUSED.items():
        if kwargs.get(name):
            raise UsageError(f"{name} cannot be used with a sealed model: {reason}.")
    with opened(source, key) as model, ExitStack() as stack:
        directory = stack.enter_context(memory_directory())
        place_files(model, sharded.small_files(model, subfolder), directory, subfolder)
        if isinstance(auto_class, str):
            auto_class = _class(auto_class)
        if auto_class is not None and not _is_model(auto_class):
            return auto_class.from_pretrained(directory, **kwargs)
        config = kwargs.pop("config", None)
        if config is None:
            config, kwargs = _config(directory, kwargs)
        model_class = _model_class(auto_class, config)
        state = sharded.state_dict(model, subfolder, _STEMS, variant, use_safetensors)
        loaded = model_class.from_pretrained(None, config=config, state_dict=state, **kwargs)
        if model_class.can_generate() and kwargs.get("generation_config") is None:
            # Without a path transformers makes one of defaults.
            one = loaded[0] if kwargs.get("output_loading_info") else loaded
            one.generation_config = _generation_config(directory)
        return loaded


def _class(name: str) -> Any:
    found = getattr(transformers, name, None)
    if found is None:
        raise UsageError(
            f"transformers {transformers.__version__} has no class {name}.",
            hint="Import the class and pass it: auto_class=…",
        )
    return found


def _is_model(auto_class: Any) -> bool:
    # AutoModel… are no PreTrainedModel, and are the only Auto classes with from_config.
    return hasattr(auto_class, "from_config") or (
        isinstance(auto_class, type) and issubclass(auto_class, transformers.PreTrainedModel)
    )


def _config(directory: str, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The configuration, with those keyword arguments in it that are its attributes, and the others."""
    config = transformers.AutoConfig.from_pretrained(directory)
    others = {}
    for name, value in kwargs.items():
        if hasattr(config, name) and name not in ("dtype", "torch_dtype", "quantization_config"):
            setattr(config, name, value)
        else:
            others[name] = value
    return config, others


def _model_class(auto_class: Any, config: Any) -> Any:
    if auto_class is None:
        if not getattr(config, "architectures", None):
            raise UsageError(
                "config.json names no class for this model.",
                hint="Say which: auto_class=transformers.AutoModel…",
            )
        return _class(config.architectures[0])
    if hasattr(auto_class, "from_config"):
        # An Auto class wants a path; the class that it stands for takes a state dict.
        with torch.device("meta"):
            return type(auto_class.from_config(config))
    return auto_class


def _generation_config(directory: str) -> Any:
    try:
        return transformers.GenerationConfig.from_pretrained(directory)
    except OSError:
        # As in transformers: older models say it in config.json.
        return transformers.GenerationConfig.from_pretrained(
            directory, config_file_name="config.json", _from_model_config=True
        )
