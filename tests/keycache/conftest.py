"""A key server that can lie and die, the real one, and key caches as processes."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "keyserver"))

from caches import Cache
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
def cache(tmp_path, stub):
    """A cache of the stub, started; its directory is its own."""
    place = tmp_path / "run"
    place.mkdir(mode=0o755)
    made = Cache(place / "keys.sock", stub.profile_file)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def as_nobody():
    """Skips where a process cannot become another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as another user")
    return 65534
