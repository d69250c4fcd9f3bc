"""What the demonstrations share: they say what they do, run the real command line, and count claims."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

console = Console(highlight=False) if sys.stdout.isatty() else Console(width=110, highlight=False)
claims: list[tuple[str, bool]] = []
PROGRAM = Path(sys.executable).with_name("strongroom")


def made_anew(description: str, default: str) -> Path:
    """The directory of a demonstration, which its command line may name; what an earlier run made goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--directory", type=Path, default=Path(default), help="made anew")
    folder: Path = parser.parse_args().directory
    if folder.exists():
        if not (folder / ".strongroom-demo").exists():
            parser.error(f"{folder} is there and is not of this demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / ".strongroom-demo").touch()
    return folder


def result(more: str = "") -> int:
    """The exit code, once the claims that hold are counted."""
    held = sum(holds for _, holds in claims)
    step("Result")
    console.print(f"{held} of {len(claims)} claims hold{more}.")
    return 0 if held == len(claims) else 1


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
