"""How much memory a load takes at most, over the process with its framework imported.

The figures are those of docs/reference/frameworks.md; memory files and files in /dev/shm count.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import loading_cases
import pytest

import strongroom

SIZE = 212 << 20  # five layers of GGUF, nine tenths of it or more in every case
SLACK = 64 << 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", loading_cases.COPIES)
def test_peak(case, tmp_path, key):
    sealed = {}
    for name, size in (("large", SIZE), ("tiny", 1 << 20)):
        plain = tmp_path / name
        plain.mkdir()
        source = loading_cases.CASES[case][0](plain, size)
        sealed[name] = tmp_path / f"{name}.sealed"
        strongroom.seal(source, sealed[name], key=key)
        shutil.rmtree(plain)
    with strongroom.open(sealed["large"], key=key) as model:
        size = model.size
    assert size > SIZE * 0.9
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("loading_cases.py"), "peak", case),
            *(sealed["large"], sealed["tiny"]),
        ],
        # Blocks freed inside the process go back to the system, and do not hide a copy.
        env=os.environ
        | {
            "STRONGROOM_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "MALLOC_MMAP_THRESHOLD_": "131072",
        },
        capture_output=True,
        text=True,
    )
    shutil.rmtree(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    peak, kept = map(int, done.stdout.split())
    most, after = loading_cases.COPIES[case]
    print(f"{case}: peak {peak / size:.2f}, kept {kept / size:.2f} of {size >> 20} MiB")
    assert peak <= most * size + SLACK
    assert kept <= after * size + SLACK
    # And the figures are not too good to be true: the model is there.
    assert peak >= 0.8 * most * size
