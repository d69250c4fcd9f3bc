"""Real evidence, recorded, with the time at which it verifies and the verdict to expect: data/manifest.json,
which also names the source and the licence of every file."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
MANIFEST: dict[str, dict[str, Any]] = {
    entry["file"]: entry for entry in json.loads((DATA / "manifest.json").read_text())["files"]
}


def read(name: str) -> bytes:
    """A file of data/ by its name in the manifest."""
    return (DATA / name).read_bytes()


def fixed_time(name: str) -> datetime:
    """The moment for which the expected verdict holds."""
    return datetime.fromisoformat(MANIFEST[name]["fixed_time"])
