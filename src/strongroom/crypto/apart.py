"""Libraries that call the OpenSSL they were made for, whatever else is in the process.

Others may export functions of the same names to the whole process: SoftHSM and tpm2-tss crash in
those of TensorFlow. Loaded here before anybody else loads it, a library looks into its own
dependencies first.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["load_apart"]


def load_apart(library: str | os.PathLike[str]) -> None:
    """Load a shared library, by path or name; it stays loaded.

    Raises:
        OSError: there is no such library, or it cannot be loaded.
    """
    # Linux has the flag; elsewhere libraries name where each function is from.
    mode = os.RTLD_NOW | getattr(os, "RTLD_DEEPBIND", 0)
    ctypes.CDLL(os.fspath(library), mode=mode)
