"""Shared by the tests that need a GPU: where there is none they are not collected, and say so once."""

from pathlib import Path

import pytest

import strongroom
from strongroom.errors import StrongroomError
from strongroom.loaders.cuda import require_driver

KEY = bytes(range(32))


class WithoutGPU(pytest.File):
    """Stands for all tests of the folder."""

    reason = ""

    def collect(self):
        pytest.skip(f"tests/gpu: {self.reason}")


def pytest_pycollect_makemodule(module_path, parent):
    try:
        require_driver("This folder")
    except StrongroomError as error:
        made = WithoutGPU.from_parent(parent, path=module_path)
        made.reason = str(error)
        return made
    return None  # as usual


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def seal(tmp_path):
    """Seal a file or directory, and give the place of the sealed model."""

    def do(source: Path) -> Path:
        destination = tmp_path / f"{source.name}.sealed"
        strongroom.seal(source, destination, key=KEY)
        return destination

    return do
