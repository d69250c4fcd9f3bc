"""A key server that can lie and die, the real one, and key caches as processes."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "keyserver"))

from caches import Cache, LocalCache
from release_stub import StubServer

from strongroom.providers.keyserver.profile import VARIABLE


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch, tmp_path):
    for name in ("STRONGROOM_KEY", "STRONGROOM_KEY_FILE", VARIABLE, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def stub(tmp_path):
    server = StubServer(tmp_path / "stub")
    yield server
    server.stop()


@pytest.fixture
def place(tmp_path):
    """Where a cache may have its socket."""
    (tmp_path / "run").mkdir(mode=0o755)
    return tmp_path / "run" / "keys.sock"


@pytest.fixture
def cache(place, stub):
    """A cache of the stub, in this process."""
    made = LocalCache(place, stub.profile_file).start()
    yield made
    made.stop()


@pytest.fixture
def process(place, stub):
    """A cache of the stub, as a process."""
    made = Cache(place, stub.profile_file).start()
    yield made
    made.stop()


@pytest.fixture
def as_nobody():
    """Skips where a process cannot become another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as another user")
    return 65534
