"""What a sealed load costs over the plain one, framework by framework.

    python benchmarks/frameworks.py [--size 200] [--rounds 5] [--only NAME] [--output FILE]

Every module of benchmarks/loading/ has cases: how to build a plain model, how its framework best loads
it from memory, how strongroom loads the sealed copy. Each measurement is a fresh process, which has
loaded a tiny model of the same kind before; plain and sealed take turns; files are in the page cache.
Seconds are medians and their ratio; memory is the highest growth, in multiples of the model.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType

from cases import settle

HERE = Path(__file__).parent
KEY = bytes(range(32))
MIB = 1 << 20
TINY = MIB


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loading_{name}", HERE / "loading" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def touch(place: Path) -> None:
    """Bring a model into the page cache."""
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                buffer = bytearray(MIB)
                while file.readinto(buffer):
                    pass


def measure(name: str, case: str, way: str, folder: Path) -> None:
    """In a process of its own: print seconds and bytes."""
    _, plain, sealed = module(name).CASES[case]
    load = plain if way == "plain" else lambda place: sealed(place, KEY)
    tiny, large = (Path((folder / f"{size}.{way}").read_text()) for size in ("tiny", "large"))
    load(tiny)
    touch(large)
    settle(int((folder / "size").read_text()) * 3)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest value begins anew, proc(5)
    before = memory("VmRSS")
    start = time.perf_counter()
    kept = load(large)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, memory("VmHWM") - before]), flush=True)
    del kept
    os._exit(0)  # how a framework is taken down is not measured


def prepare(name: str, case: str, size: int, folder: Path) -> None:
    """In a process of its own: build and seal."""
    import strongroom

    build = module(name).CASES[case][0]
    for label, bytes_ in (("tiny", TINY), ("large", size)):
        (folder / label).mkdir()
        plain = build(folder / label, bytes_)
        sealed = folder / f"{label}.model"
        strongroom.seal(plain, sealed, key=KEY)
        (folder / f"{label}.plain").write_text(str(plain))
        (folder / f"{label}.sealed").write_text(str(sealed))
    with strongroom.open(folder / "large.model", key=KEY) as model:
        (folder / "size").write_text(str(model.size))


def child(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), *arguments]
    # Blocks freed inside a process go back to the system, and do not hide a copy.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def compare(name: str, case: str, size: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        folder = Path(temporary)
        child("prepare", name, case, str(size), temporary)
        actual = int((folder / "size").read_text())
        seconds: dict[str, list[float]] = {"plain": [], "sealed": []}
        peaks: dict[str, list[float]] = {"plain": [], "sealed": []}
        for number in range(rounds):
            for way in ("plain", "sealed") if number % 2 else ("sealed", "plain"):
                took, peak = json.loads(child("measure", name, case, way, temporary))
                seconds[way].append(took)
                peaks[way].append(peak / actual)
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "case": case,
        "size": actual,
        "plain_s": statistics.median(seconds["plain"]),
        "sealed_s": statistics.median(seconds["sealed"]),
        "ratio": statistics.median(seconds["sealed"]) / statistics.median(seconds["plain"]),
        "ratio_of_minima": min(seconds["sealed"]) / min(seconds["plain"]),
        "plain_peak": statistics.median(peaks["plain"]),
        "sealed_peak": statistics.median(peaks["sealed"]),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:5], Path(sys.argv[5]))
        return
    if sys.argv[1:2] == ["prepare"]:
        prepare(*sys.argv[2:4], int(sys.argv[4]), Path(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=200, help="MB of weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="a module of benchmarks/loading/")
    parser.add_argument("--output", type=Path, help="write JSON there")
    arguments = parser.parse_args()
    found = []
    print(
        f"{'case':34}{'MB':>6}{'plain s':>9}{'sealed s':>9}{'ratio':>7}{'minima':>7}  peak plain → sealed"
    )
    for path in sorted((HERE / "loading").glob("*.py")):
        if arguments.only in (None, path.stem):
            for case in module(path.stem).CASES:
                row = compare(path.stem, case, arguments.size * 10**6, arguments.rounds)
                found.append(row)
                print(
                    f"{case:34}{row['size'] / 1e6:6.0f}{row['plain_s']:9.3f}{row['sealed_s']:9.3f}"
                    f"{row['ratio']:7.2f}{row['ratio_of_minima']:7.2f}"
                    f"  {row['plain_peak']:.2f} → {row['sealed_peak']:.2f}",
                    flush=True,
                )
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
