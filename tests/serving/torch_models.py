"""Small modules of PyTorch, and files of them."""

from __future__ import annotations

import numpy as np
import torch

from strongroom.serving.tensors import TensorSpec

ROWS = torch.export.Dim("rows", min=1, max=64)
WIDE = (-1, 16)
X = np.arange(32, dtype=np.float32).reshape(2, 16)


def spec(name, shape=WIDE, dtype="float32"):
    return TensorSpec(name, dtype, shape)


def script(folder, module):
    path = folder / "m.pt"
    torch.jit.script(module.eval()).save(path)
    return path


def export(folder, module, *args, shapes=None, **kwargs):
    path = folder / "m.pt2"
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)
        )

    def forward(self, x):
        return self.layers(x)


class Identity(torch.nn.Module):
    def forward(self, x):
        return x.view(x.size())


class Two(torch.nn.Module):
    def forward(self, x, y):
        return x - y, (x + y).sum(1)


class Looks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, 2)

    def forward(self, x):
        return self.table(x).sum(1)


def plain(module, *args):
    with torch.inference_mode():
        return module.eval()(*args)
