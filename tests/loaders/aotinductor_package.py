"""A compiled package with weights full of the mark, made in a process of its own.

    python aotinductor_package.py make FOLDER BYTES
    python aotinductor_package.py load SEALED

In a process of its own because of the compiler's warnings. What does not depend on the model stays in
torch's own cache in the temporary directory, and later ones take half the time.
"""

import subprocess
import sys
from pathlib import Path

from marking import COLUMNS, marked

COUNT = 4


def network(size):
    import torch

    rows = max(1, size // COUNT // (4 * COLUMNS))

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


def make(folder, size):
    """The place of a package for :func:`network`."""
    subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "make", folder, str(size)],
        check=True,
        capture_output=True,
    )
    return folder / "m.pt2"


def main():
    import torch

    action, place, *size = sys.argv[1:]
    if action == "make":
        program = torch.export.export(network(int(*size)), (torch.zeros(2, COLUMNS),))
        torch._inductor.aoti_compile_and_package(program, package_path=str(Path(place, "m.pt2")))
    else:
        from strongroom.loaders import torch as loader

        model = loader.aoti_load_package(place)
        model(torch.zeros(2, COLUMNS))
        print("loaded")


if __name__ == "__main__":
    main()
