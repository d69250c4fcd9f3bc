"""Compile the repository agent for the Python that runs this, and put it where Triton looks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import resources
from typing import Final

from strongroom.errors import StorageError, UsageError, os_errors

__all__ = ["LIBRARY", "NAME", "install", "shared_python"]

NAME: Final = "strongroom"
LIBRARY: Final = f"libtritonrepoagent_{NAME}.so"
_COMPILERS: Final = ("cc", "gcc", "clang")
_SOURCES: Final = ("agent.c", "tritonrepoagent.h")


def _candidates() -> Iterator[str]:
    name = sysconfig.get_config_var("INSTSONAME") or sysconfig.get_config_var("LDLIBRARY") or ""
    if ".so" not in name:
        # A program with all of Python inside; its distribution may bring the library too.
        name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        folders += [os.path.join(folder, multiarch) for folder in folders]
    return (os.path.join(folder, name) for folder in folders if folder)


def shared_python() -> str:
    """The libpython of this Python.

    Raises:
        UsageError: it has none.
    """
    for path in _candidates():
        if os.path.isfile(path):
            return os.path.realpath(path)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise UsageError(
        f"Python {version} at {sys.executable} has no shared library, which the agent needs.",
        hint=f"apt-get install libpython{version}; or build Python with --enable-shared.",
    )


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), *_COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    raise UsageError(
        "There is no C compiler, which builds the agent.",
        hint="apt-get install gcc libc6-dev; or run this where there is one, with the same Python at the "
        "same place, and copy the library.",
    )


def _define(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'-D{name}="{escaped}"'


def install(directory: str) -> str:
    """Build the agent and place it as Triton wants it: ``DIRECTORY/strongroom/libtritonrepoagent_strongroom.so``.

    Args:
        directory: for Triton's ``--repoagent-directory``; made if it is not there.

    Returns:
        The path of the library. What was there is replaced at once or not at all.

    Raises:
        UsageError: there is no compiler or no shared Python, or ``directory`` cannot be written to.
        StorageError: the compiler failed.
    """
    library, compiler = shared_python(), _compiler()
    folder = os.path.join(directory, NAME)
    with os_errors(directory):
        os.makedirs(folder, exist_ok=True)
    with os_errors(folder), tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:
        for name in _SOURCES:
            content = resources.files("strongroom.triton").joinpath("native", name).read_bytes()
            with open(os.path.join(place, name), "wb") as file:
                file.write(content)
        built = os.path.join(place, LIBRARY)
        command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC"]
        command += ["-shared", "-fvisibility=hidden", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
        command += ["-Wl,-z,nodelete,-z,relro,-z,now", "-o", built, os.path.join(place, "agent.c")]
        # Not sys.executable resolved: the interpreter of a virtual environment is a link, whose place counts.
        command += [
            _define("AGENT_LIBPYTHON", library),
            _define("AGENT_PYTHON", sys.executable),
        ]
        command += ["-ldl", "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the C compiler
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise StorageError(
                f"{compiler} failed to build the agent: {said[0] if said else f'exit code {done.returncode}'}",
                hint="apt-get install gcc libc6-dev",
            )
        target = os.path.join(folder, LIBRARY)
        os.replace(built, target)
    return target
