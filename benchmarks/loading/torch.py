"""PyTorch: products of 1024 × 1024, as a state dict, a module, TorchScript, an exported program, compiled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from memory import memory_file

TENSOR = 1024 * 1024 * 4


def state_dict(size: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(1024, 1024) for i in range(max(1, size // TENSOR))}


class Network(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList(state_dict(size).values())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(x @ layer / 32)
        return x


def network(size: int) -> Network:
    return Network(size).eval().requires_grad_(False)


X = torch.zeros(1, 1024)


def build_state_dict(folder: Path, size: int) -> Path:
    torch.save(state_dict(size), folder / "m.pt")
    return folder / "m.pt"


def build_module(folder: Path, size: int) -> Path:
    # Of a class that every process finds under this name.
    layers = [torch.nn.Linear(1024, 1024, bias=False) for _ in range(max(1, size // TENSOR))]
    torch.save(torch.nn.Sequential(*layers), folder / "m.pt")
    return folder / "m.pt"


def build_torchscript(folder: Path, size: int) -> Path:
    torch.jit.save(torch.jit.trace(network(size), X), folder / "m.pt")
    return folder / "m.pt"


def build_export(folder: Path, size: int) -> Path:
    torch.export.save(torch.export.export(network(size), (X,)), folder / "m.pt2")
    return folder / "m.pt2"


def build_package(folder: Path, size: int) -> Path:
    # torch's cache would keep a copy of each.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    program = torch.export.export(network(size), (X,))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "m.pt2"))
    return folder / "m.pt2"


def plain_load(place: Path) -> Any:
    return torch.load(place)


def plain_module(place: Path) -> Any:
    return torch.load(place, weights_only=False)


def plain_torchscript(place: Path) -> Any:
    with memory_file(place) as path:
        return torch.jit.load(path)


def plain_export(place: Path) -> Any:
    with memory_file(place) as path:
        return torch.export.load(path)


def plain_package(place: Path) -> Any:
    from torch.export.pt2_archive._package import AOTICompiledModel

    # It unpacks the package, to a disk if nobody says where else.
    os.environ["TMPDIR"] = "/dev/shm"
    with memory_file(place) as path:
        # Without what aoti_load_package does first: it compiles programs that find out about the CPU.
        loader = torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1)
    return AOTICompiledModel(loader)


def sealed_load(place: Path, key: bytes) -> Any:
    from strongroom.loaders import torch as loader

    return loader.load(place, key=key)


def sealed_module(place: Path, key: bytes) -> Any:
    from strongroom.loaders import torch as loader

    return loader.load(place, key=key, weights_only=False)


def sealed_torchscript(place: Path, key: bytes) -> Any:
    from strongroom.loaders import torch as loader

    return loader.jit_load(place, key=key)


def sealed_export(place: Path, key: bytes) -> Any:
    from strongroom.loaders import torch as loader

    return loader.export_load(place, key=key)


def sealed_package(place: Path, key: bytes) -> Any:
    from strongroom.loaders import torch as loader

    return loader.aoti_load_package(place, key=key)


def build_safetensors(folder: Path, size: int) -> Path:
    from safetensors.torch import save_file

    save_file(state_dict(size), folder / "m.safetensors")
    return folder / "m.safetensors"


def plain_safetensors(place: Path) -> Any:
    from safetensors.torch import load

    return load(place.read_bytes())


def sealed_safetensors(place: Path, key: bytes) -> Any:
    from strongroom.loaders import safetensors as loader

    return loader.load_file(place, key=key)


CASES = {
    "torch.load": (build_state_dict, plain_load, sealed_load),
    "torch.load of a module": (build_module, plain_module, sealed_module),
    "torch.jit.load": (build_torchscript, plain_torchscript, sealed_torchscript),
    "torch.export.load": (build_export, plain_export, sealed_export),
    "aoti_load_package": (build_package, plain_package, sealed_package),
    "safetensors load_file": (build_safetensors, plain_safetensors, sealed_safetensors),
}
