"""AOTInductor packages: compiled models with their weights in a shared library.

torch unpacks a package below ``$TMPDIR`` and leaves it there while the model lives. Here it gets a
package that is unpacked already: small files in a private directory in memory, and in the place of the
library and of weights links to memory files. The dynamic loader takes a library from a memory file also
where ``/dev/shm`` may hold no programs (``noexec``), as in containers.
"""

from __future__ import annotations

import json
import os
import posixpath
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from strongroom.errors import NotFound, StorageError, UsageError, os_errors
from strongroom.loaders.source import (
    DAMAGED_ARCHIVE,
    ModelSource,
    check_members,
    extra_for,
    opened,
    pick,
    start_of,
)
from strongroom.model.memory import BufferPool, allocate, memory_file
from strongroom.model.memory_directory import memory_directory
from strongroom.model.parallel import for_each
from strongroom.model.payload import WriteAt
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import torch
except ModuleNotFoundError as error:
    raise extra_for(error, "torch", "Loading PyTorch models", "torch") from None

__all__ = ["aoti_load_package"]

_MODELS: Final = "data/aotinductor/"
_CONSTANTS: Final = "data/constants/"
_PIECE: Final = 4 << 20
_SMALL: Final = 1 << 20
# Larger files go to memory files: in a container /dev/shm often has no more than 64 MB.

_CPU_TESTS: Final = {
    "AVX2": "_is_avx2_supported",
    "AVX512": "_is_avx512_supported",
    "AVX512_VNNI": "_is_vnni_supported",
    "AMX_TILE": "_is_amx_tile_supported",
}
# Words of AOTI_CPU_ISA in the metadata → functions of torch.cpu.


def aoti_load_package(
    f: ModelSource,
    /,
    run_single_threaded: bool = False,
    device_index: int = -1,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    model_name: str = "model",
    num_runners: int = 1,
) -> Any:
    """``torch._inductor.aoti_load_package`` from a sealed model.

    torch copies the weights out of the library, so that there are two copies. The dynamic loader lets
    go of the library with the model or at the end of the process: some libraries cannot be unloaded,
    with torch's own call neither. Of a package for a GPU the other files are kept until the model is
    gone, since kernels are read from them when they are first used.

    Needs torch 2.13: those before know no way around a temporary directory.

    Args:
        f: the place of a sealed file or directory, or an open model.
        run_single_threaded: as in torch.
        device_index: as in torch.
        path: the ``.pt2`` file, if there are several.
        model_name: as in ``torch._inductor.package.load_package``.
        num_runners: as in ``torch._inductor.package.load_package``.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: no such model in the package, or none that this machine or this torch can run.
        StorageError: the system does not let a program run from memory.
    """
    with opened(f, key) as model, ExitStack() as stack:
        name = pick(model, path, (".pt2",), "AOTInductor")
        directory = stack.enter_context(memory_directory())
        with model.open(name) as file, _archive(file, name) as archive:
            check_members(archive.infolist(), file.size, name)
            members = _members(archive, model_name, name)
            _check_machine(archive, members, name)
            for member in members:
                _place(model, name, archive, member, directory, stack)
        made = _load(directory, model_name, run_single_threaded, num_runners, device_index)
        if made.get_metadata().get("AOTI_DEVICE_KEY") != "cpu":
            weakref.finalize(made.loader, stack.pop_all().close)
        return made


@contextmanager
def _archive(file: Any, name: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except DAMAGED_ARCHIVE:
        raise UsageError(f"{name} is not an AOTInductor package, or a damaged one.") from None


def _inside(member: str) -> str:
    """The path of a member without the folder that packages lie in since torch 2.7."""
    return member if member.startswith("data/") else member.partition("/")[2]


def _members(archive: zipfile.ZipFile, model_name: str, name: str) -> list[zipfile.ZipInfo]:
    """What belongs to one model of the package.

    Raises:
        UsageError: it is not there, or not compiled.
    """
    wanted = (f"{_MODELS}{model_name}/", _CONSTANTS)
    inside = [_inside(member) for member in archive.namelist()]
    if not any(path.startswith(wanted[0]) for path in inside):
        names = sorted({p[len(_MODELS) :].partition("/")[0] for p in inside if p.startswith(_MODELS)})
        if not names:
            raise UsageError(f"{name} is not an AOTInductor package.")
        raise NotFound(
            f"{name} has no model {model_name!r}.",
            hint="It has: " + ", ".join(names[:8]) + " (model_name=…).",
        )
    if not any(path.startswith(wanted[0]) and path.endswith(".so") for path in inside):
        raise UsageError(
            f"{name} holds the source code of a model, and compilers write to temporary files.",
            hint="Compile it before it is sealed: without aot_inductor.package_cpp_only.",
        )
    found = [m for m in archive.infolist() if _inside(m.filename).startswith(wanted) and not m.is_dir()]
    for member in found:
        path = member.filename
        if posixpath.normpath(path) != path or path.startswith(("..", "/")):
            raise UsageError(f"{name} has a file with a name that leads out of it.")
    if len({member.filename for member in found}) < len(found):
        raise UsageError(f"{name} has two files with one name.")
    return found


def _check_machine(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], name: str) -> None:
    """Refuse code that would end the process with an illegal instruction.

    torch compiles small programs to find out, and only warns.
    """
    for member in members:
        if not member.filename.endswith("wrapper_metadata.json"):
            continue
        needs = str(_metadata(archive, member).get("AOTI_CPU_ISA", "")).split()
        tests = {word: getattr(torch.cpu, _CPU_TESTS.get(word, ""), None) for word in needs}
        missing = [word for word, test in tests.items() if test is not None and not test()]
        if missing:
            raise UsageError(
                f"{name} was compiled for a CPU with {', '.join(missing)}, which this one has not.",
                hint="Compile the package on a machine like this one.",
            )


def _metadata(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    if member.file_size > _SMALL:
        raise zipfile.BadZipFile
    try:
        found = json.loads(archive.read(member))
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise zipfile.BadZipFile
    return found


def _place(
    model: SealedModel,
    name: str,
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    directory: str,
    stack: ExitStack,
) -> None:
    target = os.path.join(directory, member.filename)
    with os_errors(member.filename):
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    if member.file_size <= _SMALL and not target.endswith(".so"):
        content = archive.read(member)
        with os_errors(member.filename), open(target, "xb") as out:
            out.write(content)
        return

    def fill(write_at: WriteAt) -> None:
        if member.compress_type == zipfile.ZIP_STORED:
            start, pool = start_of(model, name, member), BufferPool(_PIECE)

            def work(number: int) -> None:
                offset = number * _PIECE
                with pool.buffer() as buffer:
                    piece = buffer[: min(_PIECE, member.file_size - offset)]
                    model.read_into(name, piece, start + offset)
                    write_at(offset, piece)

            for_each(-(-member.file_size // _PIECE), work)
            return
        buffer, offset = allocate(_PIECE), 0
        with archive.open(member) as packed:
            while count := packed.readinto(buffer):  # type: ignore[attr-defined]  # IO[bytes] in typeshed
                write_at(offset, buffer[:count])
                offset += count

    place = stack.enter_context(memory_file("package", fill))
    with os_errors(member.filename):
        os.symlink(place, target)


def _load(directory: str, *arguments: Any) -> Any:
    try:
        from torch.export.pt2_archive._package import AOTICompiledModel

        return AOTICompiledModel(torch._C._aoti.AOTIModelPackageLoader(directory, *arguments))
    except (ImportError, AttributeError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, RuntimeError) or "zip archive" in text:
            raise UsageError(
                f"torch {torch.__version__} loads no AOTInductor package without temporary files.",
                hint="Install torch 2.13 or newer.",
            ) from None
        if "failed to map segment" in text or "Operation not permitted" in text:
            raise StorageError(
                "The system does not let a program run from memory.",
                hint="Allow it in the rules of SELinux or AppArmor, or load the exported program instead of "
                "the compiled one.",
            ) from None
        raise
