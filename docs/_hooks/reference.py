"""MkDocs hooks: what is made at build time, from the commands themselves and from the test vectors."""

from __future__ import annotations

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = "<!-- generated: command line -->"
VECTORS_MARKER = "<!-- generated: test vectors -->"
FORMATS_MARKER = "<!-- generated: foreign formats -->"
VECTORS = Path(__file__).parents[2] / "tests" / "vectors" / "v1" / "vectors.json"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups before their members."""
    import typer

    from strongroom.cli.app import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for child, member in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {child}", member)

    yield from walk("strongroom", typer.main.get_command(app))


def _cell(text: str) -> str:
    for char in "\\|<>*_":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split())


def _default(parameter: Any) -> str:
    shown = parameter.show_default
    if isinstance(shown, str):
        return _cell(shown)
    default = parameter.default
    # Typer marks what has no default with a sentinel of its own.
    if not shown or default is None or default is False or "UNSET" in repr(default):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def _value(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    return f" {parameter.metavar or parameter.name.upper()}"


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        else:
            flags = sorted(parameter.opts, key=len)
            names = ", ".join(f"`{flag}`" for flag in flags[:-1])
            value = _value(parameter).replace("|", "\\|")
            names += (", " if names else "") + f"`{flags[-1]}{value}`"
        required = "required" if parameter.required else _default(parameter)
        yield f"| {names} | {_cell(getattr(parameter, 'help', None) or '')} | {required} |"


def markdown() -> str:
    """The reference of all commands."""
    parts = []
    for name, command in commands():
        level = "##" if " " not in name or " plumbing " not in name else "###"
        parts += [f"{level} {name}", inspect.cleandoc(command.help or "")]
        if not hasattr(command, "commands"):
            arguments = [
                parameter.metavar or parameter.name.upper()
                for parameter in command.params
                if parameter.param_type_name == "argument"
            ]
            usage = " ".join([name, *arguments, "[OPTIONS]"])
            parts.append(f"```text\n{usage}\n```")
        if rows := list(_options(command)):
            parts.append("\n".join(["| option | meaning | default |", "|---|---|---|", *rows]))
        if examples := getattr(type(command), "examples", ""):
            lines = "\n".join(f"$ {line}" for line in examples.strip().splitlines())
            parts.append(f"```console\n{lines}\n```")
    return "\n\n".join(parts) + "\n"


def vectors() -> str:
    """All test vectors, by what a reader must do with them."""
    groups = defaultdict(list)
    for vector in json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]:
        detail = ", ".join(f"{name} `{value}`" for name, value in vector.get("detail", {}).items())
        groups[vector["expect"]].append(f"* `{vector['name']}`" + (f": {detail}" if detail else ""))
    return "\n\n".join(
        f"### {expect} ({len(names)})\n\n" + "\n".join(sorted(names))
        for expect, names in sorted(groups.items(), key=lambda group: (group[0] != "ok", group[0]))
    )


def formats() -> str:
    """All foreign formats: a table, then the options and the weaknesses of each."""
    from strongroom.compat.registry import CODECS, codec

    rows, parts = [], []
    for name in CODECS:
        kind = codec(name)
        written = "with `--insecure-legacy`" if kind.legacy else "yes" if kind.writes else "no"
        rows.append(f"| [`{name}`](#{name}) | {_cell(kind.title)} | yes | {written} |")
        parts += [f"## {name}", f"{_cell(kind.title)}.", f"*Not protected:* {_cell(kind.unprotected)}"]
        if kind.options:
            lines = [f"| `{option}` | {_cell(text)} |" for option, text in kind.options.items()]
            parts.append("\n".join(["| option | meaning |", "|---|---|", *lines]))
    table = "\n".join(["| name | what it is | read | written |", "|---|---|---|---|", *rows])
    return "\n\n".join([table, *parts]) + "\n"


def on_page_markdown(text: str, **kwargs: Any) -> str:
    """Put what is generated in the place of its marker."""
    if MARKER in text:
        text = text.replace(MARKER, markdown())
    if VECTORS_MARKER in text:
        text = text.replace(VECTORS_MARKER, vectors())
    if FORMATS_MARKER in text:
        text = text.replace(FORMATS_MARKER, formats())
    return text


_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Docstrings name things with Sphinx roles, which Markdown does not know: keep the name."""
    return _ROLE.sub("", html)
