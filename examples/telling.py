"""What the demonstrations share: they say what they do, run the real command line, and count claims."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

console = Console(highlight=False) if sys.stdout.isatty() else Console(width=110, highlight=False)
claims: list[tuple[str, bool]] = []
PROGRAM = Path(sys.executable).with_name("strongroom")


def claim(text: str, holds: bool) -> None:
    claims.append((text, holds))
    console.print(f"  [green]✔[/] {text}" if holds else f"  [bold red]✘ {text}[/]")


def step(title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")


def show(*words: str | Path) -> None:
    console.print(f"[bold cyan]$ {' '.join(map(str, words))}", soft_wrap=True)


def run(*words: str | Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    """The real command line, in a process of its own."""
    show(*(f"{name}={value}" for name, value in environment.items()), "strongroom", *words)
    more = {name: str(value) for name, value in environment.items()}
    done = subprocess.run(
        [PROGRAM, *map(str, words)], env=os.environ | more, text=True, capture_output=True, check=False
    )
    for text in (done.stdout, done.stderr):
        if text.strip():
            console.print(text.rstrip(), markup=False, soft_wrap=True)
    return done
