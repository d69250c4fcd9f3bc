"""Databases for the tests of the key server."""

from __future__ import annotations

import pytest
from postgres import Postgres, binaries


@pytest.fixture(scope="session")
def postgres():
    """A running PostgreSQL."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """The URL of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keyserver.db"
    return request.getfixturevalue("postgres").database()
