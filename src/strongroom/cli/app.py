"""The commands together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from strongroom import __version__
from strongroom.cli import (
    attest,
    audit,
    bench,
    inspect,
    keycache,
    keygen,
    keys,
    keyserver,
    loadtest,
    mount,
    nodes,
    pki,
    plumbing,
    policy,
    rewrap,
    run,
    seal,
    serve,
    tokens,
    transfer,
    triton,
    unseal,
    verify,
)
from strongroom.cli.process import PROGRAM
from strongroom.cli.verb import Group, paragraphs

__all__ = ["app"]


_HELP = """
Seal deep-learning models at rest, and load them straight into memory.

SRC and DST are paths, URLs such as s3://bucket/model (with the extra "remote"), or - for
standard input and output of a single file.

Without a key option, the key is the one in the file that STRONGROOM_KEY_FILE names, or the one
in STRONGROOM_KEY, or else in the key server that the model names. STRONGROOM_THREADS says how many threads to use.

Exit codes: 0 done, 2 wrong usage, 3 malformed or unsupported, 4 no key fits, 5 tampered or
truncated, 6 evidence or policy, 7 unavailable (a retry may help), 70 a bug, 130 interrupted.
"""


class _Program(Group):
    examples = """
strongroom keygen -o key.txt
strongroom seal resnet50/ -o resnet50.sealed -k key.txt
strongroom inspect resnet50.sealed
strongroom verify resnet50.sealed -k key.txt
strongroom unseal resnet50.sealed -o copy/ -k key.txt
"""


app = typer.Typer(
    name=PROGRAM,
    cls=_Program,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback with local variables would print keys.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"{PROGRAM} {__version__}", file=sys.stdout)
        raise typer.Exit


@app.callback(help=paragraphs(_HELP))
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The program itself."""


for _module in (
    keygen,
    seal,
    unseal,
    inspect,
    verify,
    rewrap,
    transfer,
    serve,
    mount,
    run,
    bench,
    loadtest,
):
    _module.register(app)
for _group in (attest, policy, keyserver, keycache, keys, audit, nodes, tokens, pki, triton):
    app.add_typer(_group.app)
app.add_typer(plumbing.app)
