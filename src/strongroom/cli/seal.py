"""``strongroom seal``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from strongroom.cli.keyring import ask_passphrase, read_passphrase, sealers
from strongroom.cli.terminal import (
    binary_input,
    binary_output,
    note,
    print_json,
    progress_bar,
    rate_text,
    shown,
    size_text,
)
from strongroom.cli.verb import (
    Force,
    Json,
    Key,
    Meta,
    ModelName,
    ModelVersion,
    NoProgress,
    Output,
    Quiet,
    RecipientFile,
    RecipientOption,
    SegmentSize,
    flag,
    parse_pairs,
    utf8,
    verb,
)
from strongroom.errors import UsageError
from strongroom.format.encoding import b64url
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.format.paths import SEALED_SUFFIX
from strongroom.model.collect import PlainFile, collect
from strongroom.model.location import base_name
from strongroom.model.seal import SealJob, seal_model, seal_stream
from strongroom.model.writer import build_meta

__all__ = ["register"]

_EXAMPLES = """
strongroom seal model.safetensors -o model.safetensors.sealed -k key.txt
strongroom seal resnet50/ -o resnet50.sealed -k key.txt --name resnet50 --version 3
strongroom seal repo/ -o repo.sealed -R team.pub --clear config.pbtxt --meta licence=MIT
strongroom seal model.pt -o model.pt.sealed --passphrase
strongroom seal model.pt -o s3://models/model.pt.sealed -k key.txt
train | strongroom seal - -o model.pt.sealed -k key.txt
"""


def _path_inside(path: str | None, destination: str) -> str:
    """The name of what comes through standard input."""
    if path is None and destination != "-":
        path = base_name(destination).removesuffix(SEALED_SUFFIX)
    if not path:
        raise UsageError(
            "What comes from standard input has no name.", hint="Give it one: --path model.pt"
        )
    return path


def seal(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", show_default=False, help="A file, a directory, or - for stdin."),
    ],
    output: Output,
    key: Key = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientFile = None,
    passphrase: Annotated[
        bool, flag("--passphrase", help="Ask on the terminal for a passphrase to seal under.")
    ] = False,
    passphrase_fd: Annotated[
        list[int] | None,
        typer.Option(
            "--passphrase-fd",
            metavar="N",
            show_default=False,
            help="Read a passphrase from file descriptor N, up to the end of the line. Can be repeated.",
        ),
    ] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(
            "--clear",
            metavar="GLOB",
            show_default=False,
            help="Files of the directory that stay readable; authenticated all the same. "
            "Can be repeated.",
        ),
    ] = None,
    name: ModelName = None,
    version: ModelVersion = None,
    meta: Meta = None,
    path: Annotated[
        str | None,
        typer.Option(
            "--path",
            metavar="P",
            help="Name of the file inside, when SRC is -.",
            show_default="name of DST without .sealed",
        ),
    ] = None,
    segment_size: SegmentSize = DEFAULT_SEGMENT,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Seal a file or a directory.

    Everyone named by -k, -r, -R or a passphrase can open it. Symbolic links are followed. The source
    stays as it is; DST is complete or not there.
    """
    if json and output == "-":
        raise UsageError("With -o - the sealed file is on standard output, and no JSON can be.")
    described = build_meta(
        utf8(name, "--name"), utf8(version, "--version"), parse_pairs(meta, "--meta")
    )
    total: int | None = None
    if output == "-":
        binary_output()
    if source == "-":
        stream, inside = binary_input(), _path_inside(path, output)
        if clear:
            raise UsageError("--clear is for directories.")
    else:
        if path is not None:
            raise UsageError("--path is for standard input; a file keeps its own name.")
        files = collect(source)
        total = files.size if isinstance(files, PlainFile) else sum(file.size for file in files)
    secrets = [read_passphrase(number) for number in passphrase_fd or []]
    if passphrase:
        secrets.append(ask_passphrase(twice=True))
    wrapped_for = sealers(key, recipient, recipients_file, secrets, environment=True)
    started, done = time.perf_counter(), 0
    label = f"Sealing {shown(source, 'standard input')}"
    with progress_bar(label, total, wanted=not (quiet or no_progress)) as progress:

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress:
                progress(size)

        job = SealJob(wrapped_for, described, clear or (), segment_size, force)
        if source == "-":
            job.progress = count
            bundle = seal_stream(stream, inside, output, job)
            total = done
        else:
            job.progress = progress
            bundle = seal_model(source, output, job)
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "source": shown(source),
                "destination": shown(output),
                "bundle": b64url(bundle),
                "recipients": len(wrapped_for),
                "size": total,
                "seconds": round(seconds, 6),
            }
        )
    elif not quiet:
        size = total or 0
        note(
            f"Sealed {shown(source, 'standard input')} to {shown(output, 'standard output')}: "
            f"{size_text(size)} in {seconds:.2f} s "
            f"({rate_text(size, seconds)})."
        )


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "seal", seal, _EXAMPLES)
