"""``strongroom triton``: the repository agent of NVIDIA Triton."""

from __future__ import annotations

from typing import Annotated

import typer

from strongroom.cli.terminal import note, print_json, shown
from strongroom.cli.verb import Group, Json, Quiet, paragraphs, verb

__all__ = ["app"]

_HELP = """
Sealed models in an unchanged NVIDIA Triton.

Triton loads the repository agent for each model whose config.pbtxt names it, and gets the plaintext from it in
memory. See the how-to "Serve with Triton".
"""

_INSTALL = """
strongroom triton install /opt/tritonserver/repoagents
sudo /opt/venv/bin/strongroom triton install /opt/tritonserver/repoagents
"""


class _Triton(Group):
    examples = "strongroom triton install /opt/tritonserver/repoagents"


def install(
    directory: Annotated[
        str,
        typer.Argument(
            metavar="DIR", show_default=False, help="What Triton's --repoagent-directory says."
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build the repository agent, and put it into DIR/strongroom.

    It is a few lines of C around the Python that runs this, whose path is in it: run it by the Python, or in the
    virtual environment, that Triton's process shall use. It takes a C compiler and Python's shared library, and
    no part of Triton. 24.06 is the first Triton that says when a model is loaded.
    """
    from strongroom.triton.install import install as build
    from strongroom.triton.install import shared_python

    path = build(directory)
    if json:
        print_json({"library": shown(path), "python": shared_python()})
    elif not quiet:
        note(f"Built {shown(path)}.")


app = typer.Typer(name="triton", cls=_Triton, no_args_is_help=True, help=paragraphs(_HELP))

verb(app, "install", install, _INSTALL)
