"""One measurement in a fresh process: import, warm up, measure, print JSON.

    python benchmarks/cases.py CASE PATH TINY

A load is measured until every tensor is in RAM and one element per 4 KiB page has been read.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import KEY, jwk, signing_jwk

_PAGE = 4096


def settle(size: int) -> None:
    """Touch and free ``size`` bytes.

    A virtual machine may have given its free pages back to the host (free page reporting, ballooning);
    taking them again costs ten times a page fault, and would be charged to whoever comes next.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, size, _PAGE):
            memory[offset] = 1


def touch(tensors: dict[str, Any]) -> float:
    """Read one byte of every page of every tensor."""
    import torch

    total = 0
    for tensor in tensors.values():
        if tensor.numel():
            total += int(tensor.reshape(-1).view(torch.uint8)[::_PAGE].sum())
    return total


def safetensors_views(path: str) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def safetensors_clone(path: str) -> Any:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def torch_load(path: str) -> Any:
    import torch

    return torch.load(path)


def floor(path: str) -> Any:
    """Two threads of pread into huge pages, no decryption: nothing that copies can be faster."""
    import torch

    size = os.path.getsize(path)
    memory = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)[:size]
    descriptor = os.open(path, os.O_RDONLY)
    offsets = iter(range(0, size, 1 << 20))
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            os.preadv(descriptor, [view[offset : offset + (1 << 20)]], offset)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    return {"all": torch.frombuffer(view, dtype=torch.uint8)}


def sealed_safetensors(path: str) -> Any:
    import strongroom

    return strongroom.loaders.safetensors.load_file(path, key=KEY)


def sealed_torch(path: str) -> Any:
    import strongroom

    return strongroom.loaders.torch.load(path, key=KEY)


def tensorizer(path: str) -> Any:
    from tensorizer import DecryptionParams, TensorDeserializer

    deserializer = TensorDeserializer(path, device="cpu", encryption=DecryptionParams.from_key(KEY))
    return dict(deserializer)


def cryptotensors(path: str) -> Any:
    from cryptotensors.torch import load_file

    return load_file(path)


def fernet(path: str) -> Any:
    """As model_cryptor does it: the whole file through Fernet, then torch.load."""
    import io

    import torch
    from cryptography.fernet import Fernet

    token = Path(path).read_bytes()
    plaintext = Fernet(base64.urlsafe_b64encode(KEY)).decrypt(token)
    return torch.load(io.BytesIO(plaintext))


_TENSOR = "model.layers.7.self_attn.q_proj.weight"


def one_tensor_plain(path: str, name: str = _TENSOR) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {"one": file.get_tensor(name).clone()}


def one_tensor_sealed(path: str, name: str = _TENSOR) -> Any:
    import strongroom

    with strongroom.loaders.safetensors.safe_open(path, framework="pt", key=KEY) as file:
        return {"one": file.get_tensor(name)}


CASES: dict[str, tuple[str, Callable[..., Any]]] = {
    "safetensors": ("safetensors", safetensors_views),
    "safetensors + clone": ("safetensors", safetensors_clone),
    "torch.load": ("pt", torch_load),
    "floor": ("safetensors", floor),
    "strongroom safetensors": ("sealed", sealed_safetensors),
    "strongroom torch": ("pt.sealed", sealed_torch),
    "tensorizer, encrypted": ("tensors", tensorizer),
    "cryptotensors": ("cryptotensors", cryptotensors),
    "Fernet (model_cryptor)": ("fernet", fernet),
    "one tensor, safe_open + clone": ("safetensors", one_tensor_plain),
    "one tensor, strongroom": ("sealed", one_tensor_sealed),
}


def _status(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(case: str, path: str, tiny: str) -> dict[str, float]:
    """Seconds and peak memory over what the process had after its imports and one small load."""
    load = CASES[case][1]
    if case == "cryptotensors":
        import cryptotensors as ct

        ct.register_direct_key_provider(keys=[jwk(), signing_jwk()])
    if case.startswith("one tensor"):
        touch(load(path, "model.norm.weight"))  # imports, as in a process that serves
    else:
        touch(load(tiny))
    settle(2 * os.path.getsize(path))  # the model, and the page cache or the copy that somebody makes
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts from what is resident now
    before = _status("VmRSS")
    start = time.perf_counter()
    touched = touch(load(path))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": _status("VmHWM") - before, "touched": touched}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:4])))
