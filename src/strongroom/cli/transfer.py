"""``strongroom import`` and ``strongroom export``."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from strongroom.cli.keyring import open_sealed, sealers
from strongroom.cli.terminal import (
    binary_output,
    note,
    print_json,
    progress_bar,
    rate_text,
    shown,
    size_text,
)
from strongroom.cli.terminal import (
    plain as escaped,
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
    PassphraseFd,
    PassphraseOpens,
    Quiet,
    RecipientFile,
    RecipientOption,
    SegmentSize,
    Source,
    flag,
    parse_pairs,
    utf8,
    verb,
)
from strongroom.compat.registry import CODECS, codec
from strongroom.compat.transfer import export_model, plan_import
from strongroom.errors import UsageError
from strongroom.format.encoding import b64url
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.model.seal import SealJob
from strongroom.model.writer import build_meta

__all__ = ["register"]

_IMPORTS = """
strongroom import resnet50.onnx.crt --from model-cryptor --source-key license.pem -o resnet50.sealed -k key.txt
strongroom import enc_files/ --from gramine --source-key wrap_key -O path=enc_files -o model.sealed -k key.txt
strongroom import 1/ --from laiye --source-key aes.key -o model.sealed -k key.txt
strongroom import model.pt.jwe --from kserve-jwe --source-key key.jwk -o model.pt.sealed -R team.pub
"""
_EXPORTS = """
strongroom export model.sealed --to gramine --target-key wrap_key -O path=enc_files -o enc_files -k key.txt
strongroom export model.sealed --to gramine --target-key model: -O path=models/net -O mount=/models/net -o models/net
strongroom export model.pt.sealed --to kserve-jwe --target-key key.jwk -o model.pt.jwe -k key.txt
strongroom export model.sealed --to laiye --target-key aes.key --insecure-legacy --plain 'variables/*' -o 1 -k key.txt
"""

_NAMES = ", ".join(CODECS)

ForeignOption = Annotated[
    list[str] | None,
    typer.Option(
        "-O",
        "--option",
        metavar="NAME=VALUE",
        show_default=False,
        help="An option of the format; a wrong one lists those that there are. Can be repeated.",
    ),
]


def _plain(help: str) -> Any:
    return typer.Option("--plain", metavar="GLOB", show_default=False, help=f"{help} Can be repeated.")


def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", show_default=False, help="What another system has encrypted."),
    ],
    output: Output,
    format: Annotated[
        str, typer.Option("--from", metavar="FORMAT", show_default=False, help=f"One of {_NAMES}.")
    ],
    source_key: Annotated[
        str | None,
        typer.Option(
            "--source-key",
            metavar="FILE",
            show_default=False,
            help="The key file of the other system, or env:NAME.",
        ),
    ] = None,
    option: ForeignOption = None,
    plain: Annotated[
        list[str] | None, _plain("Files of a directory that are not encrypted; sealed as they are.")
    ] = None,
    key: Key = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientFile = None,
    name: ModelName = None,
    version: ModelVersion = None,
    meta: Meta = None,
    segment_size: SegmentSize = DEFAULT_SEGMENT,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Seal what another system has encrypted.

    Plaintext lies in memory only. What is not authentic is refused, where the format can tell, and
    leaves nothing behind. The source stays as it is; DST is complete or not there.
    """
    if json and output == "-":
        raise UsageError("With -o - the sealed file is on standard output, and no JSON can be.")
    if output == "-":
        binary_output()
    wrapped_for = sealers(key, recipient, recipients_file, environment=True)
    plan = plan_import(source, format, source_key, parse_pairs(option, "-O"), plain or ())
    described = build_meta(
        utf8(name, "--name"),
        utf8(version, "--version"),
        parse_pairs(meta, "--meta"),
        imported=dict(plan.origin),
    )
    started, done = time.perf_counter(), 0
    with progress_bar(
        f"Importing {shown(source)}", None, wanted=not (quiet or no_progress)
    ) as progress:

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress:
                progress(size)

        bundle = plan.seal(output, SealJob(wrapped_for, described, (), segment_size, force, count))
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "source": shown(source),
                "destination": shown(output),
                "format": format,
                "bundle": b64url(bundle),
                "decrypted": list(plan.decrypted),
                "plain": list(plan.plain),
                "size": done,
                "seconds": round(seconds, 6),
            }
        )
    elif not quiet:
        note(
            f"Imported {shown(source)} to {shown(output, 'standard output')}: "
            f"{_files(len(plan.decrypted))} decrypted, {size_text(done)} in {seconds:.2f} s "
            f"({rate_text(done, seconds)})."
        )
        if plan.plain:
            note(f"In clear there, sealed now: {escaped(', '.join(plan.plain))}.")
        note(plan.unprotected, label="note: ")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def export(
    source: Source,
    output: Output,
    format: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", show_default=False, help=f"One of {_NAMES}."),
    ],
    target_key: Annotated[
        str | None,
        typer.Option(
            "--target-key",
            metavar="FILE",
            show_default=False,
            help="The key file of the other system, or env:NAME; for Gramine also model:, a key that is "
            "derived from that of the model.",
        ),
    ] = None,
    option: ForeignOption = None,
    plain: Annotated[
        list[str] | None, _plain("Files of a directory that the other system wants in clear.")
    ] = None,
    insecure_legacy: Annotated[
        bool, flag("--insecure-legacy", help="Write a format that is too weak for what it is used for.")
    ] = False,
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a sealed model in the format of another system.

    Plaintext lies in memory only, but for files that --plain names. DST is complete or not there.
    What that system must be told to read it, such as the mounts of a Gramine manifest, is printed.
    """
    if json and output == "-":
        raise UsageError("With -o - the file is on standard output, and no JSON can be.")
    if output == "-":
        binary_output()
    started = time.perf_counter()
    with open_sealed(source, key, passphrase, passphrase_fd) as model:
        size = model.size
        written = export_model(
            model,
            output,
            format,
            target_key,
            parse_pairs(option, "-O"),
            plain=plain or (),
            insecure_legacy=insecure_legacy,
            overwrite=force,
        )
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "source": shown(source),
                "destination": shown(output),
                "format": format,
                "files": written.files,
                "configuration": written.configuration,
                "size": size,
                "seconds": round(seconds, 6),
            }
        )
    elif not quiet:
        note(
            f"Exported {shown(source)} to {shown(output, 'standard output')}: "
            f"{_files(len(written.files))}, {size_text(size)} in {seconds:.2f} s "
            f"({rate_text(size, seconds)})."
        )
        note(codec(format).unprotected, label="note: ")
        if written.configuration:
            # To be pasted or redirected, where standard output does not take the file.
            print(written.configuration, end="", file=sys.stderr if output == "-" else sys.stdout)


def register(app: typer.Typer) -> None:
    """Add the two verbs."""
    verb(app, "import", import_, _IMPORTS)
    verb(app, "export", export, _EXPORTS)
