"""``strongroom unseal``."""

from __future__ import annotations

import time

import typer

from strongroom.cli.keyring import open_sealed, opener
from strongroom.cli.terminal import (
    binary_input,
    binary_output,
    note,
    progress_bar,
    rate_text,
    shown,
    size_text,
)
from strongroom.cli.verb import (
    Force,
    Key,
    NoProgress,
    Output,
    PassphraseFd,
    PassphraseOpens,
    Quiet,
    Source,
    verb,
)
from strongroom.keys import Identity
from strongroom.model.output import open_file_output
from strongroom.model.payload import Progress
from strongroom.model.seal import unseal_model
from strongroom.model.stream import unseal_stream

__all__ = ["register"]

_EXAMPLES = """
strongroom unseal resnet50.sealed -o resnet50/ -k key.txt
strongroom unseal model.pt.sealed -o model.pt --passphrase
strongroom unseal model.pt.sealed -o - -k key.txt | sha256sum
curl -s https://models.example/model.pt.sealed | strongroom unseal - -o model.pt -k key.txt
"""


def _unseal_stdin(
    destination: str, identities: list[Identity], force: bool, progress: Progress | None
) -> int:
    """Unseal what comes through standard input; return the bytes of plaintext."""
    stream = binary_input()
    output = open_file_output(destination, overwrite=force, private=True)
    size = 0

    def write(plaintext: memoryview | bytes) -> None:
        nonlocal size
        output.write(plaintext)
        size += len(plaintext)
        if progress:
            progress(len(plaintext))

    try:
        unseal_stream(stream, lambda: identities, write)
        output.commit()
    except BaseException:
        output.abort()
        raise
    return size


def unseal(
    source: Source,
    output: Output,
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    force: Force = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Write the plaintext of a sealed model, readable by you alone.

    A model can be loaded without this: see strongroom.load. DST is complete or not there. Through a
    pipe, every byte is authentic, but whether it was all of them only the exit code says.
    """
    if output == "-":
        binary_output()
    wanted = not (quiet or no_progress)
    started = time.perf_counter()
    label = f"Unsealing {shown(source, 'standard input')}"
    if source == "-":
        # Now, since the passphrase may be the first line of the same pipe.
        identities = opener(key, passphrase, passphrase_fd)()
        with progress_bar(label, None, wanted=wanted) as progress:
            size = _unseal_stdin(output, identities, force, progress)
    else:
        with open_sealed(source, key, passphrase, passphrase_fd) as model:
            size = model.size
            with progress_bar(label, size, wanted=wanted) as progress:
                unseal_model(model, output, overwrite=force, progress=progress)
    seconds = time.perf_counter() - started
    if not quiet:
        note(
            f"Unsealed {shown(source, 'standard input')} to {shown(output, 'standard output')}: "
            f"{size_text(size)} in {seconds:.2f} s "
            f"({rate_text(size, seconds)})."
        )


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "unseal", unseal, _EXAMPLES)
