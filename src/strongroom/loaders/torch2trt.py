"""torch2trt modules from sealed state dicts.

torch2trt is not on PyPI: https://github.com/NVIDIA-AI-IOT/torch2trt
"""

from __future__ import annotations

from typing import Any

from strongroom.errors import MissingExtra
from strongroom.loaders import torch as torch_loader
from strongroom.loaders.cuda import cuda_of, require_driver
from strongroom.loaders.source import ModelSource
from strongroom.providers.sources import KeySource

__all__ = ["load"]


def load(
    source: ModelSource,
    map_location: Any = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """The ``torch2trt.TRTModule`` of a sealed state dict.

    The file is what ``torch.save(module.state_dict(), …)`` writes of a ``TRTModule``: its engine is a
    ``bytearray`` in it, which ``weights_only`` loading allows. TensorRT gets that, so there is one copy
    of the engine in memory besides its own, freed when the module is made.

    Args:
        source: the place of a sealed file or directory, or an open model.
        map_location: as in ``torch.load``, for tensors that were saved along.
        path: the file, if there are several.

    Raises:
        UsageError: there is no CUDA driver or no GPU (found before TensorRT is entered, which would
            end the process).
        Unavailable: the CUDA driver does not start.
        MissingExtra: torch2trt is not installed.
        StrongroomError: the model cannot be opened, or is not authentic.
    """
    require_driver("Loading torch2trt modules", cuda_of("tensorrt"))
    try:
        from torch2trt import TRTModule
    except ModuleNotFoundError as error:
        if error.name != "torch2trt":
            raise
        missing = MissingExtra("Loading torch2trt modules", "tensorrt,torch")
        missing.hint = (
            "Install torch2trt, which is not on PyPI: "
            "pip install git+https://github.com/NVIDIA-AI-IOT/torch2trt"
        )
        raise missing from None
    module = TRTModule()
    module.load_state_dict(torch_loader.load(source, map_location, key=key, path=path))
    return module
