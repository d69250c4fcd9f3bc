"""Shared by the tests of the loaders: a key, and a model sealed with one call."""

from pathlib import Path

import pytest

import strongroom
from strongroom.model.storage import LocalSource

KEY = bytes(range(32))


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def seal(tmp_path):
    """Seal a file or directory, and give the place of the sealed model."""

    def do(source: Path, **options) -> Path:
        destination = tmp_path / f"{source.name}.sealed"
        strongroom.seal(source, destination, key=KEY, **options)
        return destination

    return do


@pytest.fixture
def ranges(monkeypatch):
    """What is read of sealed files while a test runs: a list of (first byte, bytes)."""
    seen: list[tuple[int, int]] = []
    real = LocalSource.read_into

    def read_into(self, offset, out):
        seen.append((offset, len(out)))
        real(self, offset, out)

    monkeypatch.setattr(LocalSource, "read_into", read_into)
    return seen
