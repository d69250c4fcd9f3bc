"""Diffusers: an unconditional pipeline, in single precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Diffusers imports ONNX Runtime

import diffusers
import torch

UNIT = 2.4e6
# Bytes of a network of width 32; they grow with its square.


def build(folder: Path, size: int) -> Path:
    torch.manual_seed(0)
    width = max(32, round((size / UNIT) ** 0.5) * 32)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def in_memory(model: Any) -> Any:
    """The plain load maps its files and reads nothing; what is loaded from memory is in memory."""
    for parameter in model.unet.parameters():
        parameter.data = parameter.data.clone()
    return model


def plain(place: Path) -> Any:
    return in_memory(diffusers.DDPMPipeline.from_pretrained(place, low_cpu_mem_usage=False))


def sealed(place: Path, key: bytes) -> Any:
    from strongroom.loaders import diffusers as loader

    return loader.from_pretrained(place, key=key)


CASES = {"diffusers from_pretrained": (build, plain, sealed)}
