"""How a function becomes a verb, and the options that several verbs share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from strongroom.errors import UsageError

__all__ = [
    "Force",
    "Group",
    "Json",
    "Key",
    "Meta",
    "ModelName",
    "ModelVersion",
    "NativeCode",
    "NoProgress",
    "Output",
    "PassphraseFd",
    "PassphraseOpens",
    "Preload",
    "Quiet",
    "RecipientFile",
    "RecipientOption",
    "SegmentSize",
    "Source",
    "flag",
    "paragraphs",
    "parse_pairs",
    "utf8",
    "verb",
]


def flag(*names: str, help: str) -> Any:
    """An option that takes no value, and so shows no kind of value in the help."""
    return typer.Option(*names, help=help, metavar="")


Source = Annotated[str, typer.Argument(metavar="SRC", show_default=False, help="A sealed model.")]
Output = Annotated[
    str,
    typer.Option(
        "-o", "--output", metavar="DST", show_default=False, help="Where it goes; - is stdout."
    ),
]
Key = Annotated[
    list[str] | None,
    typer.Option(
        "-k", "--key", metavar="KEY", show_default=False, help="Key file or key URI. Can be repeated."
    ),
]
RecipientOption = Annotated[
    list[str] | None,
    typer.Option(
        "-r",
        "--recipient",
        metavar="RECIPIENT",
        show_default=False,
        help="Public key (hpke-…) of somebody who can open it, or https:// and a key in a key server. "
        "Can be repeated.",
    ),
]
RecipientFile = Annotated[
    list[str] | None,
    typer.Option(
        "-R",
        "--recipients-file",
        metavar="FILE",
        show_default=False,
        help="File of recipients, one a line. Can be repeated.",
    ),
]
PassphraseOpens = Annotated[
    bool, flag("--passphrase", help="Ask on the terminal for the passphrase that opens it.")
]
PassphraseFd = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        show_default=False,
        help="Read the passphrase that opens it from file descriptor N, up to the end of the line.",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--name", metavar="N", show_default=False, help="Name of the model. Not secret."),
]
ModelVersion = Annotated[
    str | None,
    typer.Option(
        "--version", metavar="V", show_default=False, help="Version of the model. Not secret."
    ),
]
Meta = Annotated[
    list[str] | None,
    typer.Option(
        "--meta",
        metavar="K=V",
        show_default=False,
        help="More to say of it. Not secret. Can be repeated.",
    ),
]
SegmentSize = Annotated[
    int, typer.Option("--segment-size", metavar="BYTES", help="A power of two, 65536 to 16777216.")
]
Force = Annotated[bool, flag("--force", help="Replace what is at DST.")]
NativeCode = Annotated[
    bool,
    flag("--allow-native-code", help="Let programs and libraries in the models be run from there."),
]
Preload = Annotated[
    bool,
    flag(
        "--preload",
        help="Decrypt all files into the kernel's page cache in the background, as far as there is room: "
        "the first program that reads them finds them there.",
    ),
]
Json = Annotated[bool, flag("--json", help="Print JSON, for scripts.")]
Quiet = Annotated[bool, flag("-q", "--quiet", help="Print errors only.")]
NoProgress = Annotated[bool, flag("--no-progress", help="Show no progress bar.")]


def _print_examples(examples: str) -> None:
    out = Console(highlight=False, markup=False)
    out.print(Text(" Examples", "bold"))
    for line in examples.strip().splitlines():
        # Not wrapped: what is copied from here must run.
        out.print(Text("   $ ", "dim").append(line, "not dim"), soft_wrap=True)
    out.print()


def paragraphs(docstring: str | None) -> str:
    """A docstring for Typer, which takes every line break for a wanted one: one line a paragraph."""
    text = inspect.cleandoc(docstring or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


class _Verb(TyperCommand):
    examples: ClassVar[str]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.examples)


class Group(TyperGroup):
    """A command with subcommands, with examples under its help."""

    examples: ClassVar[str]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.examples)


def utf8(text: str | None, option: str) -> str | None:
    """``text``, unless it holds bytes of the command line that are no UTF-8."""
    if text is not None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"The value of {option} is not UTF-8.") from None
    return text


def parse_pairs(pairs: Sequence[str] | None, option: str) -> dict[str, str]:
    """The values of an option NAME=VALUE that can be repeated."""
    found: dict[str, str] = {}
    for pair in pairs or ():
        utf8(pair, option)
        name, separator, value = pair.partition("=")
        if not name or not separator:
            raise UsageError(f"{option} {pair}: not of the form NAME=VALUE.")
        if name in found:
            raise UsageError(f"{option} {name} is given twice.")
        found[name] = value
    return found


def verb(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    examples: str,
    spelling: Callable[[str], str] | None = None,
) -> None:
    """Add ``function`` to ``app``; its docstring is the help, ``examples`` are lines of shell.

    Args:
        spelling: from the name of an option, without its dashes, to the one that it has here.
    """
    command = type(name, (_Verb,), {"examples": examples})
    settings = {"token_normalize_func": spelling} if spelling else None
    app.command(name, cls=command, help=paragraphs(function.__doc__), context_settings=settings)(
        function
    )
