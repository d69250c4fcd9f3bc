"""model_cryptor's files: the codec against the Fernet class that model_cryptor uses.

    python benchmarks/fernet.py [--size 256] [--rounds 5] [--directory .bench]

Each measurement is a process of its own; the cases take turns; files are in the page cache. Rates are of
plaintext; memory is the highest growth over the imports, in multiples of the file that is read or written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KEY = b"xYjPtWOHLXL5tP1vI4PxagJgjNqsnWmLX4a4qd-ROj4="
MIB = 1 << 20


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


class Null:
    """An output that is no disk."""

    def write(self, data: object) -> None:
        pass


def fernet_decrypt(folder: Path) -> None:
    from cryptography.fernet import Fernet

    Fernet(KEY).decrypt((folder / "model.crt").read_bytes())


def codec_decrypt(folder: Path) -> None:
    from strongroom.compat.fernet import FernetCodec
    from strongroom.crypto.secret import SecretBytes
    from strongroom.model.storage import LocalSource

    codec = FernetCodec(SecretBytes(KEY))
    for file in codec.decrypt(LocalSource(folder / "model.crt"), "model.crt"):
        file.copy_to(Null().write)


def importing(folder: Path) -> None:
    from strongroom.compat.transfer import plan_import
    from strongroom.keys import SymmetricKey
    from strongroom.model.seal import SealJob

    plan = plan_import(folder / "model.crt", "model-cryptor", KEY)
    plan.seal(folder / "imported.sealed", SealJob([SymmetricKey.generate()], {}, overwrite=True))


def drop_in_decrypt(folder: Path) -> None:
    from strongroom.compat.model_cryptor import CryptorFactory, ModelType

    CryptorFactory.instance(ModelType.MODEL_ONNX).decrypt(folder / "model.crt", KEY)


def fernet_encrypt(folder: Path) -> None:
    from cryptography.fernet import Fernet

    Null().write(Fernet(KEY).encrypt((folder / "model").read_bytes()))


def codec_encrypt(folder: Path) -> None:
    from strongroom.compat.fernet import FernetCodec
    from strongroom.crypto.secret import SecretBytes
    from strongroom.model.reader import open_model
    from strongroom.providers import sources

    with open_model(folder / "model.sealed", lambda: sources.identities(KEY)) as model:
        FernetCodec(SecretBytes(KEY)).encrypt(model.content(), "model.crt", Null())  # type: ignore[arg-type]  # writing is all it does


CASES: dict[str, Callable[[Path], None]] = {
    "decrypt: Fernet": fernet_decrypt,
    "decrypt: the codec": codec_decrypt,
    "decrypt: to a sealed file on the disk": importing,
    "decrypt: in place of model_cryptor, to bytes": drop_in_decrypt,
    "encrypt: Fernet": fernet_encrypt,
    "encrypt: the codec, from a sealed file": codec_encrypt,
}


def measure(case: str, folder: Path) -> None:
    """In a process of its own: once for the imports with a tiny model, then the large one."""
    CASES[case](folder / "tiny")
    before, start = peak(), time.perf_counter()
    CASES[case](folder)
    print(json.dumps([time.perf_counter() - start, peak() - before]))


def build(folder: Path, size: int) -> None:
    from cryptography.fernet import Fernet

    import strongroom

    folder.mkdir(parents=True, exist_ok=True)
    data = os.urandom(size)
    (folder / "model").write_bytes(data)
    (folder / "model.crt").write_bytes(Fernet(KEY).encrypt(data))
    strongroom.seal(folder / "model", folder / "model.sealed", key=KEY, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="MiB of plaintext")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(".bench"))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.directory / "fernet"
    if given.case:
        measure(given.case, folder)
        return
    build(folder / "tiny", MIB)
    build(folder, given.size * MIB)
    results: dict[str, list[tuple[float, int]]] = {case: [] for case in CASES}
    for _ in range(given.rounds):
        for case, found in results.items():
            command = [sys.executable, __file__, "--case", case, "--directory", str(given.directory)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(tuple(json.loads(done.stdout)))
    size = given.size * MIB
    print("| case | MB/s | of Fernet's | peak memory, × file |\n|---|---|---|---|")
    for case, found in results.items():
        seconds = statistics.median(one for one, _ in found)
        base = statistics.median(one for one, _ in results[case.split(":")[0] + ": Fernet"])
        memory = max(two for _, two in found) / (folder / "model.crt").stat().st_size
        print(f"| {case} | {size / seconds / 1e6:.0f} | {base / seconds:.2f} × | {memory:.2f} |")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
