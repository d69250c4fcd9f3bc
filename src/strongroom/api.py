"""The verbs of strongroom as functions; re-exported by the package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strongroom.errors import UsageError
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.format.paths import SEALED_SUFFIX
from strongroom.model.collect import checked_path
from strongroom.model.inspection import Inspection, inspect_model
from strongroom.model.location import local
from strongroom.model.output import open_file_output
from strongroom.model.payload import Progress
from strongroom.model.reader import SealedModel, open_model
from strongroom.model.rewrap import rewrap_model
from strongroom.model.seal import SealJob, checked_segment_size, seal_model, unseal_model
from strongroom.model.writer import SealedWriter, build_meta
from strongroom.providers import sources
from strongroom.providers.sources import KeySource

if TYPE_CHECKING:
    from strongroom.compat.transfer import ForeignKey

__all__ = [
    "create",
    "export_model",
    "import_model",
    "inspect",
    "load",
    "open",
    "rewrap",
    "seal",
    "unseal",
    "verify",
]

Location = str | os.PathLike[str]


def seal(
    source: Location,
    destination: Location,
    *,
    key: KeySource | None = None,
    recipients: KeySource | None = None,
    clear: Sequence[str] = (),
    name: str | None = None,
    version: str | None = None,
    meta: Mapping[str, Any] | None = None,
    segment_size: int = DEFAULT_SEGMENT,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bytes:
    """Seal a file or a directory.

    Args:
        source: a path or a URL. Symbolic links to files and directories are followed.
        destination: a path or a URL; a directory if ``source`` is one. Complete or not there.
        key: who can open it: see :data:`strongroom.providers.sources.KeySource`. Without ``key``
            and ``recipients``, what ``STRONGROOM_KEY_FILE`` or ``STRONGROOM_KEY`` says.
        recipients: more who can open it, by public key.
        clear: glob patterns of paths or file names that stay in clear; authenticated all the same.
        name: of the model; said in the header, authenticated, not secret.
        version: of the model; as ``name``.
        meta: more to say of it, JSON values by name; as ``name``.
        segment_size: bytes; a power of two from 64 KiB to 16 MiB.
        overwrite: replace what is at ``destination``.
        progress: called with the number of bytes just done, from several threads.

    Returns:
        The bundle: 16 bytes that identify this sealed model.

    Raises:
        StrongroomError: and then nothing is left behind, and what was there stays.
    """
    job = SealJob(
        sources.recipients(key, recipients),
        build_meta(name, version, meta),
        clear,
        segment_size,
        overwrite,
        progress,
    )
    return seal_model(source, destination, job)


def open(source: Location, *, key: KeySource | None = None) -> SealedModel:
    """Open a sealed file or directory.

    The header, the names and the sizes are authenticated here, the contents when they are read.

    Args:
        source: a path or a URL.
        key: path, URI, bytes, Identity or a list of these; by default what the environment says.

    Raises:
        StrongroomError: see :mod:`strongroom.errors`.
    """
    return open_model(source, lambda: sources.identities(key))


def create(
    destination: Location,
    *,
    key: KeySource | None = None,
    recipients: KeySource | None = None,
    path: str | None = None,
    name: str | None = None,
    version: str | None = None,
    meta: Mapping[str, Any] | None = None,
    segment_size: int = DEFAULT_SEGMENT,
    overwrite: bool = False,
) -> SealedWriter:
    """A writable binary file that is sealed as it is written; no plaintext touches the disk.

    Args:
        destination: a path or a URL; the file is there when it is closed, or not at all.
        path: the name of the file inside; by default that of ``destination`` without ``.sealed``.

    The other arguments are those of :func:`seal`.

    Raises:
        StrongroomError: see :mod:`strongroom.errors`.
    """
    destination = local(destination)
    if path is None:
        path = os.path.basename(os.fspath(destination)).removesuffix(SEALED_SUFFIX)
    inside = checked_path(path, os.fspath(destination))
    wrapped_for = sources.recipients(key, recipients)
    checked_segment_size(segment_size)
    output = open_file_output(destination, overwrite=overwrite, private=False)
    return SealedWriter(output, wrapped_for, inside, build_meta(name, version, meta), segment_size)


def unseal(
    source: Location,
    destination: Location,
    *,
    key: KeySource | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the plaintext of a sealed model to ``destination``, readable by the user alone.

    Loading with :func:`open` or :func:`load` needs no plaintext on a disk; this is for leaving.

    Raises:
        StrongroomError: and then nothing is left behind, and what was there stays.
    """
    with open(source, key=key) as model:
        unseal_model(model, destination, overwrite=overwrite, progress=progress)


def verify(source: Location, *, key: KeySource | None = None, progress: Progress | None = None) -> int:
    """Authenticate every segment of every file; write nothing. Returns the bytes of plaintext.

    Raises:
        StrongroomError: with the file, and the segment, that is not authentic.
    """
    with open(source, key=key) as model:
        return model.verify(progress)


def rewrap(
    source: Location,
    *,
    key: KeySource | None = None,
    new_key: KeySource | None = None,
    recipients: KeySource | None = None,
    keep: bool = False,
) -> None:
    """Change who can open a model, without touching its payload; at every moment it is there.

    Args:
        source: a path, or the URL of a directory.
        key: opens it now.
        new_key: opens it afterwards.
        recipients: more who can open it afterwards, by public key.
        keep: those who can open it now still can.

    Raises:
        StrongroomError: and then the model is as it was.
    """
    if new_key is None and recipients is None:
        raise UsageError("A model must be sealed for somebody.", hint="Give a new key or recipient.")
    new = sources.recipients(new_key, recipients)
    rewrap_model(source, lambda: sources.identities(key), new, keep=keep)


def inspect(source: Location) -> Inspection:
    """What a sealed model says of itself. Needs no key; none of it is authenticated.

    Raises:
        FormatError, Truncated, NotFound: it is not a whole sealed model.
    """
    return inspect_model(source)


def import_model(
    source: Location,
    destination: Location,
    *,
    format: str,
    source_key: ForeignKey | None = None,
    options: Mapping[str, str] | None = None,
    plain: Sequence[str] = (),
    key: KeySource | None = None,
    recipients: KeySource | None = None,
    name: str | None = None,
    version: str | None = None,
    meta: Mapping[str, Any] | None = None,
    segment_size: int = DEFAULT_SEGMENT,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bytes:
    """Seal what another system has encrypted. Plaintext lies in memory only, and only in pieces.

    Args:
        source: a file or a directory of that system, a path or a URL.
        destination: as for :func:`seal`.
        format: ``model-cryptor``, ``laiye``, ``gramine``, ``sgx-pytorch``, ``kserve-jwe``,
            ``paddle-cipher``, ``openvino-addon``, ``onnx-byte``, ``tensorizer``, ``cryptotensors``.
        source_key: the key file of that system, ``env:NAME``, or its content as bytes.
        options: of the format, by name.
        plain: glob patterns of files of a directory that are not encrypted.

    The other arguments are those of :func:`seal`. ``meta["imported"]`` says where the model came from.

    Returns:
        The bundle: 16 bytes that identify this sealed model.

    Raises:
        StrongroomError: also if something is not authentic, where the format can tell; and then
            nothing is left behind, and what was there stays.
    """
    from strongroom.compat.transfer import plan_import

    checked_segment_size(segment_size)
    wrapped_for = sources.recipients(key, recipients)
    plan = plan_import(source, format, source_key, options, plain)
    said = build_meta(name, version, meta, imported=dict(plan.origin))
    job = SealJob(wrapped_for, said, (), segment_size, overwrite, progress)
    return plan.seal(destination, job)


def export_model(
    source: Location,
    destination: Location,
    *,
    format: str,
    target_key: ForeignKey | None = None,
    options: Mapping[str, str] | None = None,
    plain: Sequence[str] = (),
    insecure_legacy: bool = False,
    key: KeySource | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write a sealed model in the format of another system. Plaintext lies in memory only.

    Args:
        source: a sealed file or directory.
        format: ``model-cryptor``, ``laiye``, ``gramine``, ``sgx-pytorch``, ``kserve-jwe`` or
            ``paddle-cipher``.
        target_key: the key file of that system, ``env:NAME``, or its content as bytes; for ``gramine``
            also ``model:``, a key that is derived from that of the model.
        options: of the format, by name.
        plain: glob patterns of files that are written in clear, because that system wants them so.
        insecure_legacy: write a format that is too weak for what it is used for.
        key: opens ``source``, as for :func:`open`.

    Returns:
        The paths of the files that were written: in the directory, or ``destination``.

    Raises:
        StrongroomError: and then nothing is left behind, and what was there stays.
    """
    from strongroom.compat import transfer

    with open(source, key=key) as model:
        return transfer.export_model(
            model,
            destination,
            format,
            target_key,
            options,
            plain=plain,
            insecure_legacy=insecure_legacy,
            overwrite=overwrite,
        ).files


def load(
    source: Location,
    *,
    key: KeySource | None = None,
    framework: str | None = None,
    allow_native_code: bool = False,
    **options: Any,
) -> Any:
    """Load a model into memory with the loader of its framework.

    Args:
        source: a path or a URL.
        key: as for :func:`open`.
        framework: one of :data:`strongroom.loaders.registry.FRAMEWORKS`; by default found from names
            and contents.
        allow_native_code: a package of AOTInductor, which is machine code, may be what is found; without
            it, and without ``framework``, none is run.
        options: for the framework's loader, by its own names.

    Returns:
        What the framework's own loader would give.

    Raises:
        UnknownFramework: no loader fits, or several do; or what is found is machine code, and nobody has
            said that it may run.
        StrongroomError: see :mod:`strongroom.errors`.
    """
    from strongroom.loaders import registry

    return registry.load(
        source, key=key, framework=framework, allow_native_code=allow_native_code, **options
    )
