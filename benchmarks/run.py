"""How fast and how small: every figure as a ratio taken in this run.

    python benchmarks/run.py [--directory .bench] [--rounds 5] [--quick] [--output docs/benchmarks]

Each measurement is a fresh process; the cases take turns, so that a slow minute of the machine
hits all of them. Ratios are of medians; minima are printed beside them. Needs some 15 GB of disk
and 14 GB of memory (Fernet needs most of it); --quick leaves the large model out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
from cases import CASES, settle
from models import make

MIB = 1 << 20
ONCE = ("Fernet (model_cryptor)",)  # half a minute each; one round is enough for a factor of 50


@dataclass
class Result:
    """Measurements of one case: seconds, and bytes of peak memory over the interpreter."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)


def warm(path: str) -> None:
    """Have the file in the page cache."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(8 * MIB)
        while file.readinto(buffer):
            pass


def cool(path: str) -> None:
    """Have nothing of the file in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(case: str, paths: dict[str, str], tiny: dict[str, str]) -> dict[str, float]:
    kind = CASES[case][0]
    command = [sys.executable, str(HERE / "cases.py"), case, paths[kind], tiny[kind]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def rounds(
    cases: Sequence[str], paths: dict[str, str], tiny: dict[str, str], count: int, cold: bool
) -> dict[str, Result]:
    results = {case: Result() for case in cases}
    for number in range(count):
        for case in cases:
            if number and case in ONCE:
                continue
            path = paths[CASES[case][0]]
            (cool if cold else warm)(path)
            one = measure(case, paths, tiny)
            results[case].seconds.append(one["seconds"])
            results[case].peaks.append(one["peak"])
    return results


def sealing(source: str, directory: Path, count: int) -> dict[str, Result]:
    """Sealing a file against copying it, both to the same disk, from a warm page cache."""
    target = directory / "sealing.out"
    script = (
        "import sys, time, json, strongroom\n"
        "strongroom.open\n"
        "start = time.perf_counter()\n"
        "strongroom.seal(sys.argv[1], sys.argv[2], key=bytes(range(32)))\n"
        "seconds = time.perf_counter() - start\n"
        "status = open('/proc/self/status').read().split()\n"
        "print(json.dumps([seconds, int(status[status.index('VmHWM:') + 1]) * 1024]))\n"
    )
    results = {name: Result() for name in ("cp", "cp, then fsync", "strongroom seal")}
    for _ in range(count):
        for name, result in results.items():
            target.unlink(missing_ok=True)
            os.sync()
            warm(source)
            settle(2 * os.path.getsize(source))
            start = time.perf_counter()
            if name == "strongroom seal":
                command = [sys.executable, "-c", script, source, str(target)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, peak = json.loads(done.stdout)
                result.seconds.append(seconds)
                result.peaks.append(peak)
                continue
            subprocess.run(["cp", source, str(target)], check=True)
            if name == "cp, then fsync":
                descriptor = os.open(target, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            result.seconds.append(time.perf_counter() - start)
            result.peaks.append(0)
    target.unlink(missing_ok=True)
    return results


def import_time(count: int) -> Result:
    """``import strongroom`` over an empty interpreter."""
    script = "import time; s = time.perf_counter(); import strongroom; print(time.perf_counter() - s)"
    result = Result()
    for _ in range(count):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        result.seconds.append(float(done.stdout))
    return result


@dataclass
class Ratio:
    """One line of the verdict: what was measured against what, and the bound it should keep."""

    what: str
    value: float
    bound: float
    at_least: bool = False
    unit: str = "×"

    def row(self) -> str:
        sign = "≥" if self.at_least else "≤"
        kept = self.value >= self.bound if self.at_least else self.value <= self.bound
        return f"| {self.what} | {self.value:.3g} {self.unit} | {sign} {self.bound:g} {self.unit} | {'yes' if kept else '**no**'} |"


def table(title: str, results: dict[str, Result], size: int) -> list[str]:
    lines = [
        f"\n### {title}\n",
        "| case | median s | minimum s | GB/s | peak memory, × model |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        peak = statistics.median(result.peaks) / size
        rate = size / result.median / 1e9
        lines.append(
            f"| {name} | {result.median:.3f} | {result.minimum:.3f} | {rate:.2f} | {peak:.2f} |"
        )
    return lines


OURS = "strongroom safetensors"
LARGE = [name for name in CASES if not name.startswith("one tensor")]
COLD = ["safetensors", "torch.load", OURS, "strongroom torch"]
SINGLE = ["one tensor, safe_open + clone", "one tensor, strongroom"]


def load_ratios(hot: dict[str, Result], cold: dict[str, Result], size: int) -> list[Ratio]:
    def ratio(one: str, other: str, results: dict[str, Result] = hot) -> float:
        return results[one].median / results[other].median

    peers = (("cryptotensors", 2), ("tensorizer, encrypted", 3), ("Fernet (model_cryptor)", 40))
    over = (max(hot[OURS].peaks) - size) / MIB
    return [
        Ratio("cold load / plain safetensors", ratio(OURS, "safetensors", cold), 0.9),
        Ratio("warm load / plain safetensors + clone", ratio(OURS, "safetensors + clone"), 0.65),
        Ratio("warm load / torch.load", ratio(OURS, "torch.load"), 0.45),
        Ratio("warm load / floor", ratio(OURS, "floor"), 1.7),
        *(
            Ratio(f"{peer} / warm load", ratio(peer, OURS), bound, at_least=True)
            for peer, bound in peers
        ),
        Ratio("warm strongroom torch / torch.load", ratio("strongroom torch", "torch.load"), 1.0),
        Ratio("peak memory of a load over the model", over, 64, unit="MiB"),
    ]


def chart(results: dict[str, Result], size: int, path: Path) -> None:
    """Bars of the warm loads; the slowest is cut so that the others can be told apart."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted(results, key=lambda name: results[name].median, reverse=True)
    values = [results[name].median for name in names]
    limit = 1.25 * sorted(values)[-2]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2))
    colours = ["#3f51b5" if name.startswith("strongroom") else "#b0b7c3" for name in names]
    axes.barh(names, [min(value, limit) for value in values], color=colours)
    for index, value in enumerate(values):
        mark = "  (bar cut)" if value > limit else ""
        axes.text(min(value, limit), index, f" {value:.2f} s{mark}", va="center", fontsize=9)
    axes.set_xlim(0, limit * 1.18)
    axes.set_xlabel("seconds")
    axes.set_title(f"Loading {size / 1e9:.2f} GB from a warm page cache (less is better)", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(".bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(".bench/results"))
    options = parser.parse_args()
    tiny, small = (make(options.directory, name) for name in ("tiny", "resnet"))
    big = small if options.quick else make(options.directory, "llama")
    size = os.path.getsize(big["safetensors"])

    hot = rounds(LARGE, big, tiny, options.rounds, cold=False)
    cold = rounds(COLD, big, tiny, 2 * options.rounds, cold=True)  # disks vary more than processors
    lines = [
        f"Measured by `{' '.join(['python', 'benchmarks/run.py', *sys.argv[1:]])}` on {machine()}.",
        *table(f"Warm page cache, {size / 1e9:.2f} GB", hot, size),
        *table(f"Cold page cache, {size / 1e9:.2f} GB", cold, size),
    ]
    ratios = load_ratios(hot, cold, size)
    if not options.quick:
        resnet = rounds(LARGE, small, tiny, options.rounds, cold=False)
        resnet_size = os.path.getsize(small["safetensors"])
        lines += table(f"Warm page cache, ResNet-50, {resnet_size / 1e6:.0f} MB", resnet, resnet_size)
        single = rounds(SINGLE, big, tiny, options.rounds, cold=False)
        lines += table("One tensor of 16.8 MB", single, 2048 * 2048 * 2)
        plain, ours = (single[name].median for name in SINGLE)
        ratios.append(Ratio("one tensor / plain safe_open + clone", ours / plain, 1.5))
    sealed = sealing(big["safetensors"], options.directory, options.rounds)
    lines += table("Sealing", sealed, size)
    seal = sealed["strongroom seal"]
    ratios += [
        Ratio(
            "speed of sealing / cp, then fsync",
            sealed["cp, then fsync"].median / seal.median,
            0.8,
            True,
        ),
        Ratio("speed of sealing / cp", sealed["cp"].median / seal.median, 0.8, True),
        Ratio("peak memory of sealing", max(seal.peaks) / MIB, 128, unit="MiB"),
        Ratio("size overhead", (os.path.getsize(big["sealed"]) / size - 1) * 100, 0.01, unit="%"),
        Ratio("import strongroom", import_time(options.rounds).median * 1000, 150, unit="ms"),
    ]
    lines += ["\n### Ratios\n", "| what | measured | bound | kept |", "|---|---|---|---|"]
    lines += [ratio.row() for ratio in ratios]

    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    options.output.with_suffix(".md").write_text(text)
    raw = {name: vars(result) for name, result in {**hot, **sealed}.items()}
    raw["cold"] = {name: vars(result) for name, result in cold.items()}
    options.output.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    chart(hot, size, options.output.with_suffix(".png"))
    width = shutil.get_terminal_size().columns
    print(text + "=" * min(width, 80))
    print(f"Written: {options.output}.md, .json, .png")


if __name__ == "__main__":
    main()
