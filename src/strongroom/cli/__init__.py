"""The command line: one module per verb; text and exit codes only."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``strongroom``."""
    raise SystemExit(2)
