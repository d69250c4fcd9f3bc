"""MiB/s of Gramine's encrypted files: one core, and as many processes as there are cores.

    python benchmarks/gramine.py [--quick] [--directory /dev/shm] [--rounds 5]

A random file on tmpfs, written and read with strongroom's codec; plaintext comes from and goes to memory.
"per CPU second" counts the time of all processes, and is what one core gives when nobody else runs. Where
gramine-sgx-pf-crypt is installed, it takes its turn on the same core, with plaintext from and to a file.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from run import machine

from strongroom.compat.gramine import GramineCodec
from strongroom.crypto.secret import SecretBytes
from strongroom.model.output import open_file_output
from strongroom.model.storage import LocalSource

MIB = 1 << 20
KEY = bytes(range(16))
Seconds = tuple[float, float]


class Content:
    """``size`` bytes of one random MiB over and over: no source that is slow."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._piece = memoryview(os.urandom(MIB))

    def copy_to(self, write, progress=None) -> None:
        for start in range(0, self.size, MIB):
            write(self._piece[: self.size - start])

    def read_into(self, out, offset=0, progress=None) -> int:
        raise NotImplementedError  # the writer asks for everything, in order


def codec(processes: int) -> GramineCodec:
    return GramineCodec(SecretBytes(KEY), {"path": "model", "processes": str(processes)})


def processor_time() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(work: Callable[[], object]) -> Seconds:
    processor, start = processor_time(), time.perf_counter()
    work()
    return time.perf_counter() - start, processor_time() - processor


def encrypt(place: Path, size: int, processes: int) -> None:
    output = open_file_output(place, overwrite=True, private=False)
    codec(processes).encrypt(Content(size), str(place), output)
    output.commit()


def decrypt(place: Path, processes: int) -> None:
    source = LocalSource(place)
    codec(processes).decrypt(source, "model")[0].copy_to(lambda piece: None)
    source.close()


def has_tool() -> bool:
    return shutil.which("gramine-sgx-pf-crypt") is not None


def tool(verb: str, key: Path, source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    command = ["gramine-sgx-pf-crypt", verb, "-w", key, "-i", source, "-o", target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def row(name: str, size: int, measured: list[Seconds]) -> str:
    rates = [size / MIB / wall for wall, _ in measured]
    processor = size / MIB / statistics.median(used for _, used in measured)
    return f"| {name} | {statistics.median(rates):.0f} | {min(rates):.0f} … {max(rates):.0f} | {processor:.0f} |"


def measure(folder: Path, size: int, rounds: int) -> dict[str, list[Seconds]]:
    place, key, plain, again = (folder / name for name in ("sealed", "key", "plain", "again"))
    cores = sorted(os.sched_getaffinity(0))
    several = max(2, len(cores))
    measured: dict[str, list[Seconds]] = defaultdict(list)

    def take(name: str, work: Callable[..., object], *arguments: object) -> None:
        measured[name].append(timed(partial(work, *arguments)))

    if has_tool():
        key.write_bytes(KEY)
        with open(plain, "wb") as file:
            Content(size).copy_to(file.write)
    for _ in range(rounds):
        os.sched_setaffinity(0, cores[:1])
        take("encrypt, one core", encrypt, place, size, 1)
        take("decrypt, one core", decrypt, place, 1)
        if has_tool():
            take("gramine-sgx-pf-crypt encrypt", tool, "encrypt", key, plain, again)
            take("gramine-sgx-pf-crypt decrypt", tool, "decrypt", key, again, plain)
        os.sched_setaffinity(0, cores)
        take(f"encrypt, {several} processes", encrypt, place, size, several)
        take(f"decrypt, {several} processes", decrypt, place, several)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="256 MiB alone, not 1 GiB too")
    options = parser.parse_args()
    folder = options.directory / f"strongroom-gramine-{os.getpid()}"
    folder.mkdir()
    try:
        print(machine())
        for size in (256 * MIB, 1024 * MIB)[: 1 if options.quick else 2]:
            measured = measure(folder, size, options.rounds)
            print(
                f"\n| {size // MIB} MiB | MiB/s, median | least … most | per CPU second |\n|---|---|---|---|"
            )
            for name, times in measured.items():
                print(row(name, size, times))
        if not has_tool():
            print("\ngramine-sgx-pf-crypt is not installed.")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
