"""``strongroom run``."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from strongroom.cli.keyring import opener
from strongroom.cli.log import log_to, standard_error
from strongroom.cli.terminal import note, plain, print_error
from strongroom.cli.verb import (
    Key,
    NativeCode,
    PassphraseFd,
    PassphraseOpens,
    Preload,
    Quiet,
    parse_pairs,
    verb,
)

if TYPE_CHECKING:
    from strongroom.mount.run_ready import Readiness

__all__ = ["register"]

_EXAMPLES: Final = """
strongroom run --model resnet=./resnet.sealed -k key.txt -- tritonserver --model-repository {models}
strongroom run --model llama.gguf=./llama.gguf.sealed -- llama-server --model {models}/llama.gguf
strongroom run --model m=./m.sealed --backend tmpfs --wipe-when http://127.0.0.1:8000/ready -- ./server {models}/m
"""
_NOT_FOUND: Final = 127
"""As shells and env(1) have it."""


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- CMD...",
            show_default=False,
            help="The program and its arguments. {models} becomes the directory of the models.",
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]SEALED",
            show_default=False,
            help="A sealed model, and the name that its folder or file has in {models}. Can be repeated.",
        ),
    ],
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    backend: Annotated[
        Literal["auto", "fuse", "tmpfs"],
        typer.Option(
            "--backend",
            help="fuse decrypts what is read; tmpfs puts all files in memory first; auto takes what is "
            "possible, in this order.",
        ),
    ] = "auto",
    preload: Preload = False,
    wipe_when: Annotated[
        str | None,
        typer.Option(
            "--wipe-when",
            metavar="URL",
            show_default=False,
            help="Remove the files when this answers 200. For servers that have read all by then, or mapped "
            "it; takes tmpfs.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME=VALUE",
            show_default=False,
            help="A further variable for the program; {models} in it becomes the directory. Can be repeated.",
        ),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(
            "--unset",
            metavar="NAME",
            show_default=False,
            help="A variable that the program does not get; * stands for anything, as in 'AWS_*'. Can be "
            "repeated.",
        ),
    ] = None,
    allow_native_code: NativeCode = False,
    quiet: Quiet = False,
) -> None:
    """Run a program that reads sealed models as files; no other program can.

    The models are mounted for this program and what it starts alone, where the system allows it. Signals are
    passed on, and the exit code is that of the program, 128 and the number of the signal that killed it.
    When it ends, all it has started does, and the models are gone, whoever was killed. STRONGROOM_MODELS says
    where they are; other variables of strongroom, and those of --key and --unset, do not reach the program.
    """
    from strongroom.mount.models import open_tree
    from strongroom.mount.run import Job, command_environment
    from strongroom.mount.run import run as run_job
    from strongroom.mount.server import LOG

    environment = command_environment(os.environ, key or (), unset or ())
    added = parse_pairs(env, "--env")
    search = {**environment, **added}.get("PATH")
    if shutil.which(command[0], path=search) is None and "{models}" not in command[0]:
        print_error(f"There is no program {command[0]} that could be run.", None)
        raise typer.Exit(_NOT_FOUND)
    log_to(LOG, standard_error(dated=False), logging.WARNING if quiet else logging.INFO)
    job = Job(
        arguments=command,
        environment=environment,
        added=added,
        open_tree=lambda: open_tree(model, opener(key, passphrase, passphrase_fd)),
        backend=backend,
        ready=_readiness(wipe_when),
        native_code=allow_native_code,
        preload=preload,
        say=lambda text: None if quiet else note(plain(text)),
        warn=lambda text: note(plain(text), label="warning: "),
    )
    raise typer.Exit(run_job(job))


def _readiness(url: str | None) -> Readiness | None:
    if url is None:
        return None
    from strongroom.mount.run_ready import Readiness

    return Readiness(url)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "run", run, _EXAMPLES)
