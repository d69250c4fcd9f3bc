"""Where the time of a warm or cold load goes, and what was tried: one knob at a time.

    python benchmarks/parts.py [--directory .bench] [--rounds 7] [--cold]

strongroom's way is 4 threads, segments of 1 MiB, two of them with one pread, into huge pages.
Every variant reads the sealed large model's ciphertext in pieces, and decrypts (or not) into fresh memory; the
variants take turns in one process, and each frees its memory before the next. Decryption runs over the real
ciphertext with a key that does not fit its segmentation, so encryption is timed in its place: the same AES-GCM
work per byte.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import mmap
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cases import settle
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from models import make
from run import cool, machine, warm

KIB, MIB = 1 << 10, 1 << 20
HUGE = 2 * MIB


@dataclass(frozen=True)
class Variant:
    """One way to load; the default is what strongroom does."""

    name: str
    threads: int = 4
    segment: int = MIB
    at_once: int = 2  # segments read with one call
    huge: bool = True
    read: str = "pread"  # pread, mmap, direct, or none
    encrypt: bool = True
    populate: bool = False
    fresh_scratch: bool = False


WARM = (
    Variant("strongroom's way"),
    Variant("no AES: read and fault only", encrypt=False),
    Variant("no read: AES and fault only", read="none"),
    Variant("4 KiB pages", huge=False),
    Variant("populated first", populate=True),
    Variant("1 thread", threads=1),
    Variant("2 threads", threads=2),
    Variant("8 threads", threads=8),
    Variant("mmap of the ciphertext", read="mmap"),
    Variant("one segment a call", at_once=1),
    Variant("four segments a call", at_once=4),
    Variant("segments of 64 KiB", segment=64 * KIB),
    Variant("segments of 256 KiB", segment=256 * KIB),
    Variant("segments of 4 MiB", segment=4 * MIB),
    Variant("fresh scratch for every call", fresh_scratch=True),
)
COLD = (
    Variant("strongroom's way"),
    Variant("1 thread", threads=1),
    Variant("2 threads", threads=2),
    Variant("8 threads", threads=8),
    Variant("mmap of the ciphertext", read="mmap"),
    Variant("one segment a call", at_once=1),
    Variant("O_DIRECT", read="direct"),
    Variant("O_DIRECT, 8 threads", read="direct", threads=8),
)


def run(variant: Variant, path: str) -> float:
    """Seconds of one load."""
    size = os.path.getsize(path) // (16 * MIB) * 16 * MIB
    start = time.perf_counter()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size + HUGE, flags=flags)
    memory.madvise(mmap.MADV_HUGEPAGE if variant.huge else mmap.MADV_NOHUGEPAGE)
    out = memoryview(memory)[:size]
    if variant.populate:
        memory.madvise(23)  # MADV_POPULATE_WRITE
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if variant.read == "direct" else 0))
    mapped = memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
    cipher = AESGCM(bytes(32))
    piece = variant.segment * variant.at_once
    pieces = itertools.count()

    def work() -> None:
        scratch = memoryview(mmap.mmap(-1, piece))
        for number in pieces:
            begin = number * piece
            if begin >= size:
                return
            target, source = out[begin : begin + piece], scratch
            if variant.fresh_scratch:
                source = memoryview(mmap.mmap(-1, piece))
            if variant.read == "mmap":
                source = mapped[begin : begin + piece]
            elif variant.read != "none":
                os.preadv(descriptor, [source if variant.encrypt else target], begin)
            for at in range(0, piece if variant.encrypt else 0, variant.segment):
                end = at + variant.segment
                cipher.encrypt_into(bytes(12), source[at : end - 16], None, target[at:end])

    threads = [threading.Thread(target=work) for _ in range(variant.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    os.close(descriptor)
    gc.collect()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(".bench"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    path = make(options.directory, "llama")["sealed"]
    variants = COLD if options.cold else WARM
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for _ in range(options.rounds):
        for variant in variants:
            (cool if options.cold else warm)(path)
            settle(2 * os.path.getsize(path))
            seconds[variant].append(run(variant, path))
    base = statistics.median(seconds[variants[0]])
    cache = "cold" if options.cold else "warm"
    print(f"{os.path.getsize(path) / 1e9:.2f} GB, {cache} page cache, on {machine()}\n")
    print("| variant | median s | minimum s | × strongroom's way |\n|---|---|---|---|")
    for variant, values in seconds.items():
        median = statistics.median(values)
        print(f"| {variant.name} | {median:.3f} | {min(values):.3f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
