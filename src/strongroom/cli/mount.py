"""``strongroom mount``."""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Callable
from typing import Annotated, Final

import typer

from strongroom.cli.background import Background
from strongroom.cli.keyring import opener
from strongroom.cli.log import log_file, log_to, standard_error, system_log
from strongroom.cli.terminal import size_text
from strongroom.cli.verb import (
    Key,
    NativeCode,
    PassphraseFd,
    PassphraseOpens,
    Preload,
    Quiet,
    flag,
    verb,
)
from strongroom.errors import UsageError

__all__ = ["register"]

_EXAMPLES: Final = """
strongroom mount resnet50.sealed /models/resnet50 -k key.txt
strongroom mount llama=s3://models/llama.sealed bert=./bert.sealed /models -k unix:///run/strongroom/keys.sock
strongroom mount model.onnx.sealed /mnt -k key.txt --no-page-cache --background
"""


def mount(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="SEALED... DIR",
            show_default=False,
            help="Sealed models, each SEALED or NAME=SEALED, and the directory to show them at.",
        ),
    ],
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    no_page_cache: Annotated[
        bool,
        flag(
            "--no-page-cache",
            help="Keep plaintext out of the kernel's page cache too (direct I/O). Files cannot be mapped "
            "shared then (ENODEV), and what is read again is decrypted again.",
        ),
    ] = False,
    preload: Preload = False,
    allow_other: Annotated[
        bool, flag("--allow-other", help="Let other users read, and root; without it only you can.")
    ] = False,
    allow_native_code: NativeCode = False,
    background: Annotated[
        bool,
        flag(
            "--background",
            help="Return when the files are there. What it says then goes to the system log.",
        ),
    ] = False,
    to_file: Annotated[
        str | None,
        typer.Option(
            "--log-file",
            metavar="FILE",
            show_default=False,
            help="Append what it says to this file, in place of standard error or the system log.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Show sealed models as read-only files, for servers that know nothing of strongroom.

    What is read is decrypted in memory then, and nothing is written to a disk. A model alone has its files
    directly in DIR; several have a folder each under their names, or a file where they are a single file. It
    runs until SIGTERM, Ctrl-C or an unmount, and takes away what it has shown. A file that was
    tampered with or cannot be had gives EIO, and a line here that says why. Takes root or fusermount3.

    With --background it returns when the files are there, and with an error and its exit code where they
    will not be. End it by umount DIR; who is not root: fusermount3 -u DIR.
    """
    *sealed, directory = places
    if not sealed:
        raise UsageError("Give the sealed models, and the directory to show them at.")
    from strongroom.mount.fuse import mounted
    from strongroom.mount.models import open_tree
    from strongroom.mount.server import LOG
    from strongroom.web.notify import notify
    from strongroom.web.sockets import allow_many_descriptors

    behind = Background() if background else None
    allow_many_descriptors()  # Each file that was opened once stays open, so that a replaced one is not mixed in.
    log_to(LOG, _handler(to_file, background), logging.WARNING if quiet else logging.INFO)

    with (
        open_tree(sealed, opener(key, passphrase, passphrase_fd), flat=True) as tree,
        mounted(
            tree,
            directory,
            page_cache=not no_page_cache,
            allow_other=allow_other,
            allow_native_code=allow_native_code,
            preload=preload,
        ) as shown,
    ):
        files = sum(not node.is_folder for node in tree)
        count = f"{files} file" if files == 1 else f"{files} files"
        LOG.info("%s: %s, %s", shown.directory, count, size_text(tree.size))

        def ready() -> None:
            if behind is not None:
                behind.ready()
            notify("READY=1")

        _wait(shown.fileno(), ready)
        notify("STOPPING=1")


def _handler(to_file: str | None, background: bool) -> logging.Handler:
    if to_file is not None:
        return log_file(to_file)
    return system_log("strongroom-mount") if background else standard_error(dated=True)


def _wait(ended: int, ready: Callable[[], None]) -> None:
    """Say that all is ready as soon as signals are waited for; wait for one, or for a descriptor that can be read.

    By poll: a signal that comes just before a lock is waited for would not end the waiting.
    """
    numbers = [
        one
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(one) != signal.SIG_IGN
    ]
    signalled, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = signal.set_wakeup_fd(write_end)
        for one in numbers:  # Nothing cuts the end short from here on.
            signal.signal(one, lambda *_: None)
        ready()
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(signalled, select.POLLIN)
        poll.poll()
        signal.set_wakeup_fd(before)
    finally:
        os.close(signalled)
        os.close(write_end)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "mount", mount, _EXAMPLES)
