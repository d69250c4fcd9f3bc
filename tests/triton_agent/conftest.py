"""A Triton for the tests of a file. Key servers, key caches and small graphs are those of other tests.

This folder is not called triton: PyTorch would import it in place of the package that has that name.
"""

import sys
from pathlib import Path

import pytest
from triton_server import Repository, Triton

from strongroom.model.owned_directory import OwnedDirectory
from strongroom.triton import install

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / one) for one in ("integrations", "keycache", "loaders", "mount", "serving")]


@pytest.fixture(scope="module")
def memory():
    one = OwnedDirectory("/dev/shm", "strongroom-tests-")
    yield Path(one.path)
    one.remove()


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    place = tmp_path_factory.mktemp("agents")
    install.install(str(place))
    return place


@pytest.fixture(scope="module")
def repository(tmp_path_factory, memory):
    return Repository(tmp_path_factory.mktemp("repository"), memory)


@pytest.fixture(scope="module")
def server(tmp_path_factory, repository, agents, memory):
    place = tmp_path_factory.mktemp("server")
    # What PYTHONPATH says there is for stubs.
    (place / "nowhere" / "strongroom").mkdir(parents=True)
    (place / "nowhere" / "strongroom" / "__init__.py").write_text("raise RuntimeError('of a stub')")
    one = Triton(place, repository.path, agents, "--disable-auto-complete-config").start()
    yield one
    assert one.stop() == 0, one.text()
    assert list(memory.iterdir()) == []


@pytest.fixture
def nothing_left(memory):
    yield
    assert list(memory.iterdir()) == []
