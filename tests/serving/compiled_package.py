"""A package of AOTInductor, made in a process of its own because of the compiler's cache and warnings.

python compiled_package.py FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


def network():
    """Adds to its input in place, and gives a dict with a tensor, a pair of a tensor and nothing."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(16, 4)

        def forward(self, x, *, mask):
            x.add_(1)
            return {"y": self.layer(x) * mask, "z": (x, None)}

    return Network().eval().requires_grad_(False)


@cache
def package() -> bytes:
    """Compiled once in a test run, which takes a quarter of a minute."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, folder],
            env=os.environ
            | {
                "TORCHINDUCTOR_CACHE_DIR": folder,
                "TMPDIR": folder,
                # Without these it takes twice as long.
                "TORCHINDUCTOR_VEC_ISA_OK": "1",
                "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
                "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0",
            },
            check=True,
            capture_output=True,
        )
        return Path(folder, "m.pt2").read_bytes()


def main(folder):
    import torch

    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    program = torch.export.export(
        network(),
        (torch.zeros(2, 16),),
        {"mask": torch.ones(2, 1)},
        dynamic_shapes={"x": rows, "mask": rows},
    )
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(Path(folder, "m.pt2")),
        # For one package it takes longer than it saves.
        inductor_configs={"aot_inductor.precompile_headers": False},
    )


if __name__ == "__main__":
    main(sys.argv[1])
