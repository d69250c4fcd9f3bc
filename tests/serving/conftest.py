"""For the tests of the model server."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def start(tmp_path):
    """``start(**settings)``: a server, which ends with the test."""
    from front_process import Server

    started = []

    def make(**settings):
        place = tmp_path / f"server-{len(started)}"
        place.mkdir()
        started.append(None)
        started[-1] = Server(place, **settings)
        return started[-1]

    yield make
    for one in started:
        if one is not None:
            one.kill()
