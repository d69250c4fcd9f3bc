"""``strongroom verify``."""

from __future__ import annotations

import time

import typer

from strongroom.cli.keyring import open_sealed, opener
from strongroom.cli.terminal import binary_input, print_json, progress_bar, rate_text, shown, size_text
from strongroom.cli.verb import (
    Json,
    Key,
    NoProgress,
    PassphraseFd,
    PassphraseOpens,
    Quiet,
    Source,
    verb,
)
from strongroom.format.encoding import b64url
from strongroom.keys import Identity
from strongroom.model.payload import Progress
from strongroom.model.stream import unseal_stream

__all__ = ["register"]

_EXAMPLES = """
strongroom verify resnet50.sealed -k key.txt
strongroom verify model.pt.sealed --passphrase-fd 3 3< passphrase.txt
strongroom verify s3://models/resnet50.sealed -k key.txt --json
"""


def _verify_stdin(identities: list[Identity], progress: Progress | None) -> int:
    size = 0

    def count(plaintext: memoryview | bytes) -> None:
        nonlocal size
        size += len(plaintext)
        if progress:
            progress(len(plaintext))

    unseal_stream(binary_input(), lambda: identities, count)
    return size


def verify(
    source: Source,
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Authenticate every segment of every file, and write nothing.

    Exit code 5 says that the model was changed or is cut; the message says where.
    """
    started = time.perf_counter()
    wanted = not (quiet or no_progress)
    label = f"Verifying {shown(source, 'standard input')}"
    bundle: str | None = None
    if source == "-":
        files = 1
        # Now, since the passphrase may be the first line of the same pipe.
        identities = opener(key, passphrase, passphrase_fd)()
        with progress_bar(label, None, wanted=wanted) as progress:
            size = _verify_stdin(identities, progress)
    else:
        with open_sealed(source, key, passphrase, passphrase_fd) as model:
            with progress_bar(label, model.size, wanted=wanted) as progress:
                size = model.verify(progress)
            files, bundle = len(model.files), b64url(model.bundle)
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "source": shown(source),
                "authenticated": True,
                "bundle": bundle,
                "files": files,
                "size": size,
                "seconds": round(seconds, 6),
            }
        )
    elif not quiet:
        files_text = "1 file" if files == 1 else f"{files} files"
        print(
            f"{shown(source, 'standard input')} is authentic and complete: {files_text}, {size_text(size)} "
            f"in {seconds:.2f} s ({rate_text(size, seconds)})."
        )


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "verify", verify, _EXAMPLES)
