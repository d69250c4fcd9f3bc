"""Reading a sealed model through ``strongroom mount``, beside the same program reading the plain file.

    python benchmarks/mount.py [--directory .bench] [--size 1024] [--rounds 5] [--no-page-cache]

Plain and mounted take turns; ciphertext and plain file are in the page cache, and what the kernel has kept of the
mounted file is dropped before each round, so that every byte is decrypted. In the rows "again" it is kept, as for the
second process that loads a model. In the last rows, "preloaded", each round has a mount of its own with ``--preload``,
and begins when that is done; CPU of the mount is what the preloading took. Readers are processes of their own, and so is
``strongroom mount``. CPU: of the reader, with its page faults and copies, and of the mount; what the
plain file takes is all the reader's.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from run import machine, warm

PROGRAM = Path(sys.executable).with_name("strongroom")
MIB = 1 << 20
KEY = bytes(range(32))


def sequential(path: str, size: int) -> None:
    """``readinto`` of one buffer."""
    buffer = bytearray(size)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def copy_mapping(path: str) -> None:
    """What is mapped, copied into one buffer of 16 MiB. To map alone takes a plain file 10 ms: nothing is read."""
    import mmap

    buffer = bytearray(16 * MIB)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        for offset in range(0, len(mapping), len(buffer)):
            with memoryview(mapping)[offset : offset + len(buffer)] as part:
                buffer[: len(part)] = part


def load(path: str) -> None:
    """``safetensors.torch.load_file``, which maps the file, and each tensor copied, as into a model's parameters."""
    from safetensors.torch import load_file

    for tensor in load_file(path).values():
        tensor.clone()


READERS = {
    "read, 1 MiB at a time": lambda path: sequential(path, MIB),
    "read, 16 MiB at a time": lambda path: sequential(path, 16 * MIB),
    "copied from a mapping": copy_mapping,
    "safetensors.torch.load_file": load,
}
IMPORTS = {"safetensors.torch.load_file": ("safetensors.torch",)}


def reader(name: str, path: str) -> None:
    """In the process that reads: the work alone is timed."""
    for one in IMPORTS.get(name, ()):
        __import__(one)
    print("ready", flush=True)
    sys.stdin.readline()  # several begin together
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    READERS[name](path)
    seconds = time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_SELF)
    used = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(json.dumps([seconds, used]))


def measure(name: str, paths: list[Path]) -> tuple[float, float]:
    """Wall time until the last of some readers is done, and CPU of all."""
    command = [sys.executable, __file__, "--reader", name]
    children = [
        subprocess.Popen(
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for path in paths
    ]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    found = [json.loads(child.communicate()[0]) for child in children]
    return max(one[0] for one in found), sum(one[1] for one in found)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget(path: Path) -> None:
    """Drop what the kernel has kept of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def prepare(directory: Path, size: int) -> Path:
    """Two sealed models of ``size`` MiB, and their key."""
    import torch
    from safetensors.torch import save_file

    import strongroom

    place = directory / f"mount-{size}"
    if not (place / "done").exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "key.txt").write_bytes(base64.urlsafe_b64encode(KEY))
        for name in ("a", "b"):
            tensors = {
                f"{i:04}": torch.randint(0, 1 << 15, (16 * MIB // 2,), dtype=torch.int16)
                for i in range(size // 16)
            }
            save_file(tensors, place / f"{name}.safetensors")
            strongroom.seal(
                place / f"{name}.safetensors", place / f"{name}.sealed", key=KEY, overwrite=True
            )
        (place / "done").touch()
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path(".bench"))
    parser.add_argument("--size", type=int, default=1024, help="MiB of each of two models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-page-cache", action="store_true")
    parser.add_argument("--only", default="", help="measurements whose name holds this")
    parser.add_argument("--reader", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        reader(*arguments.reader)
        return

    place = prepare(arguments.directory, arguments.size)
    shown = place / "shown"
    shown.mkdir(exist_ok=True)
    for one in place.iterdir():
        if one.is_file():
            warm(str(one))
    command = [PROGRAM, "mount", place / "a.sealed", place / "b.sealed", shown, "-k", place / "key.txt"]
    mount = subprocess.Popen([*command, *(["--no-page-cache"] if arguments.no_page_cache else [])])
    while not os.path.ismount(shown):
        time.sleep(0.1)
    print(machine())
    print(f"\n{arguments.size} MiB; medians of {arguments.rounds} rounds\n")
    print("| | plain s | mounted s | ratio | mounted GB/s | CPU s/GiB: plain | reader | mount |")
    print("|---|---|---|---|---|---|---|---|")
    try:
        for name, readers in [*((one, 1) for one in READERS), ("read, 16 MiB at a time", 2)]:
            if arguments.only in name:
                row(name, readers, place, shown, mount.pid, arguments)
                if readers == 1 and not arguments.no_page_cache:
                    row(name, readers, place, shown, mount.pid, arguments, again=True)
    finally:
        mount.terminate()
        mount.wait()
    for name in () if arguments.no_page_cache else READERS:
        if arguments.only in name:
            preloaded(name, place, shown, arguments)


def preloaded(name: str, place: Path, shown: Path, arguments: argparse.Namespace) -> None:
    """A row of mounts that have preloaded one model."""
    plain, mounted = [], []
    command = [PROGRAM, "mount", place / "a.sealed", shown, "-k", place / "key.txt", "--preload"]
    for _ in range(arguments.rounds):
        plain.append(measure(name, [place / "a.safetensors"]))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as mount:
            mount.stderr.readline()  # the files are there
            used = -cpu_of(mount.pid)
            assert "preloaded" in mount.stderr.readline()
            used += cpu_of(mount.pid)
            mounted.append((*measure(name, [shown / "a.safetensors"]), used))
            mount.terminate()
    line(f"{name}, preloaded", plain, mounted, arguments.size / 1024)


def row(
    name: str,
    readers: int,
    place: Path,
    shown: Path,
    pid: int,
    arguments: argparse.Namespace,
    *,
    again: bool = False,
) -> None:
    files = [f"{one}.safetensors" for one in ("a", "b")[:readers]]
    for one in files if again else ():
        warm(str(shown / one))
    plain, mounted = [], []
    for _ in range(arguments.rounds):
        plain.append(measure(name, [place / one for one in files]))
        for one in () if again else files:
            forget(shown / one)
        before = cpu_of(pid)
        mounted.append((*measure(name, [shown / one for one in files]), cpu_of(pid) - before))
    label = name + (f", {readers} at once" if readers > 1 else "") + (", again" if again else "")
    line(label, plain, mounted, readers * arguments.size / 1024)


def line(
    label: str, plain: list[tuple[float, float]], mounted: list[tuple[float, float, float]], gib: float
) -> None:
    """Print medians of wall time and CPU."""
    p, m = statistics.median(one[0] for one in plain), statistics.median(one[0] for one in mounted)
    cpu = [statistics.median(one[1] for one in plain) / gib]
    cpu += [statistics.median(one[index] for one in mounted) / gib for index in (1, 2)]
    figures = f"{p:.2f} | {m:.2f} | {m / p:.2f} | {gib * 1.0737 / m:.2f} | {cpu[0]:.2f} | {cpu[1]:.2f} | {cpu[2]:.2f}"
    print(f"| {label} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
