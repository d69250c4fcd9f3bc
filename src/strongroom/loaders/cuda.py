"""Whether there is a CUDA driver and a GPU, found out before a library is entered that would crash."""

from __future__ import annotations

import ctypes
from importlib import metadata
from typing import Final

from strongroom.errors import Unavailable, UsageError

__all__ = ["cuda_of", "require_driver"]

_LIBRARY: Final = "libcuda.so.1"
_NO_GPU: Final = "Run it on a machine with an NVIDIA GPU; in a container, start that with --gpus all."
_NO_DEVICE: Final = 100
_STUB_LIBRARY: Final = 34
# CUresult, cuda.h


def require_driver(what: str, cuda: int = 0) -> None:
    """Return if the CUDA driver works and has a GPU.

    TensorRT's ``Runtime`` holds a null pointer where the driver is missing or too old, and any use of
    it then ends the process (seen in 11.4). The calls made here fail with a number instead.

    Args:
        what: "Loading TensorRT engines", the beginning of the message.
        cuda: the major version of CUDA that the driver must be good for; 0 for any.

    Raises:
        UsageError: there is no driver or no GPU, or the driver is too old.
        Unavailable: there is a driver, and it does not start now.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise UsageError(
            f"{what} needs a CUDA driver, and this machine has none.", hint=_NO_GPU
        ) from None
    status = driver.cuInit(0)
    if status == _STUB_LIBRARY:
        raise UsageError(
            f"{what} needs a CUDA driver; {_LIBRARY} is the stub that programs are linked with.",
            hint="Take the folder named stubs out of LD_LIBRARY_PATH.",
        )
    if status not in (0, _NO_DEVICE):
        raise Unavailable(
            f"{what} needs a CUDA driver, and the one here does not start (CUDA error {status}).",
            hint="nvidia-smi says more.",
        )
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        raise UsageError(f"{what} needs a GPU, and the CUDA driver sees none.", hint=_NO_GPU)
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value < cuda * 1000:
        raise UsageError(
            f"{what} needs a driver for CUDA {cuda}; "
            f"the one here is for CUDA {version.value // 1000}.{version.value % 1000 // 10}.",
            hint="Update the driver, or install the package for its version of CUDA.",
        )


def cuda_of(package: str) -> int:
    """The major version of CUDA that TensorRT's bindings in ``package`` are built for; 0 if unknown."""
    for major in range(11, 20):
        try:
            metadata.distribution(f"{package}_cu{major}_bindings")
        except metadata.PackageNotFoundError:
            continue
        return major
    return 0
