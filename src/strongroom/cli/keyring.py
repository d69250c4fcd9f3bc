"""From the key options of a command line to identities and recipients."""

from __future__ import annotations

import getpass
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Final

from strongroom.errors import InvalidKey, NoKey, UsageError
from strongroom.keys import Identity, Passphrase, Recipient
from strongroom.model.reader import SealedModel, open_model
from strongroom.providers import sources

__all__ = ["ask_passphrase", "open_sealed", "opener", "read_passphrase", "sealers"]

_MAX_PASSPHRASE: Final = 1 << 16
_NO_KEY_HINT: Final = "Give -k FILE or --passphrase, or set STRONGROOM_KEY_FILE or STRONGROOM_KEY."


def _prompt(text: str) -> str:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        with warnings.catch_warnings():
            # Where the echo cannot be switched off, getpass warns and goes on.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(text)
    except (OSError, getpass.GetPassWarning):
        raise UsageError(
            "There is no terminal to ask for the passphrase.",
            hint="Send it through a file descriptor: --passphrase-fd 3 3< FILE",
        ) from None
    except (EOFError, UnicodeError):
        raise InvalidKey("No passphrase was given.") from None


def ask_passphrase(what: str = "Passphrase", *, twice: bool = False) -> Passphrase:
    """Ask on the controlling terminal, without echo.

    Raises:
        UsageError: there is no terminal, or the second answer differs.
        InvalidKey: the answer is empty.
    """
    passphrase = _prompt(f"{what}: ")
    if twice and passphrase and _prompt(f"{what} again: ") != passphrase:
        raise UsageError("The two passphrases differ.", hint="Run it again; nothing was written.")
    return Passphrase(passphrase)


def read_passphrase(descriptor: int) -> Passphrase:
    """The first line that ``descriptor`` gives, and not a byte more: a model may follow on it.

    Raises:
        UsageError: it cannot be read, or is a terminal (which would show the passphrase).
        InvalidKey: the line is empty, or too long to be one.
    """
    line = bytearray()
    try:
        if os.isatty(descriptor):
            raise UsageError(
                f"File descriptor {descriptor} is a terminal.", hint="Use --passphrase to be asked."
            )
        while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
            line += byte
            if len(line) > _MAX_PASSPHRASE:
                raise InvalidKey(f"A passphrase has at most {_MAX_PASSPHRASE} bytes.")
        return Passphrase(bytes(line.removesuffix(b"\r")))
    except (OSError, OverflowError):
        raise UsageError(
            f"File descriptor {descriptor} cannot be read.", hint="Open it: --passphrase-fd 3 3< FILE"
        ) from None
    finally:
        line[:] = bytes(len(line))


def opener(
    keys: Sequence[str] | None, passphrase: bool, descriptor: int | None
) -> Callable[[], list[Identity]]:
    """Who can open, once somebody asks: a prompt comes after the model has been found."""

    def identities() -> list[Identity]:
        found: list[sources.KeySource] = [*(keys or [])]
        if passphrase:
            found.append(ask_passphrase())
        if descriptor is not None:
            found.append(read_passphrase(descriptor))
        try:
            return sources.identities(found or None, hint=_NO_KEY_HINT)
        except NoKey as error:
            error.hint = _NO_KEY_HINT
            raise

    return identities


def open_sealed(
    source: str, keys: Sequence[str] | None, passphrase: bool, descriptor: int | None
) -> SealedModel:
    """Open a sealed model with the key options of a verb."""
    return open_model(source, opener(keys, passphrase, descriptor))


def _public(text: str) -> str:
    if os.path.exists(text):
        raise UsageError(
            f"-r takes a recipient itself, and {text} is a file.", hint=f"Give the file: -R {text}"
        )
    if ":" not in text:
        raise InvalidKey(
            "What was given with -r is not a recipient.",
            hint="A recipient is the line hpke-…:… that keygen prints, or the URL of a key in a key server.",
        )
    return text


def sealers(
    keys: Sequence[str] | None,
    recipients: Sequence[str] | None,
    files: Sequence[str] | None,
    passphrases: Sequence[Passphrase] = (),
    *,
    environment: bool,
) -> list[Recipient]:
    """Who can open what is sealed.

    Args:
        keys: of -k.
        recipients: of -r.
        files: of -R.
        passphrases: asked for or read already.
        environment: whether the key in the environment counts if nobody else is named.
    """
    found: list[sources.KeySource] = [*(keys or []), *map(_public, recipients or [])]
    for path in files or []:
        found += sources.read_recipients(path)
    found += passphrases
    if not found and not environment:
        raise UsageError("A model must be sealed for somebody.", hint="Name the new key or recipient.")
    try:
        return sources.recipients(found or None)
    except NoKey as error:
        error.hint = _NO_KEY_HINT
        raise
