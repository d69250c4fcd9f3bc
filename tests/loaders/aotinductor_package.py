"""A compiled package with weights full of the mark, made in a process of its own.

    python aotinductor_package.py make FOLDER
    python aotinductor_package.py load SEALED

In a process of its own because of the compiler's cache and its warnings.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from marking import COLUMNS, marked

COUNT = 4
SIZE = 32 << 20


def network():
    import torch

    rows = SIZE // COUNT // (4 * COLUMNS)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(
                torch.from_numpy(marked(rows, seed)) for seed in range(COUNT)
            )

        def forward(self, x):
            # Each weight is used whole, and scaled down: the letters are numbers up to 1e21.
            return sum((x @ (weight * 1e-21).T).sum(1) for weight in self.weights)

    return Network().eval().requires_grad_(False)


@functools.cache
def _made():
    """Compiled once in a test run, which takes a quarter of a minute."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "make", folder],
            env=os.environ
            | {
                # torch's cache keeps what it compiles, weights included.
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


def make(folder):
    """The place of a package for :func:`network`."""
    (folder / "m.pt2").write_bytes(_made())
    return folder / "m.pt2"


def main():
    import torch

    action, place = sys.argv[1:]
    if action == "make":
        program = torch.export.export(network(), (torch.zeros(2, COLUMNS),))
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(place, "m.pt2")),
            # For one package it takes longer than it saves.
            inductor_configs={"aot_inductor.precompile_headers": False},
        )
    else:
        from strongroom.loaders import torch as loader

        model = loader.aoti_load_package(place)
        model(torch.zeros(2, COLUMNS))
        print("loaded")


if __name__ == "__main__":
    main()
