"""Databases for the tests of the key server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kek_places import (
    aws_source,
    file_source,
    moto,
    pkcs11_source,
    softhsm,
    tpm,
    tpm_source,
    tpm_state,
    transit,
    vault_source,
)
from postgres import Postgres, binaries
from stores import Clock, Store, kek

sys.path.append(str(Path(__file__).parent.parent / "attest"))  # its TPM

__all__ = [
    "aws_source",
    "file_source",
    "moto",
    "pkcs11_source",
    "softhsm",
    "tpm",
    "tpm_source",
    "tpm_state",
    "transit",
    "vault_source",
]


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
    """The URL of a database of either kind with no store in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keyserver.db"
    return request.getfixturevalue("postgres").emptied()


@pytest.fixture
def clock():
    """A clock that stands."""
    return Clock()


@pytest.fixture
def store(database_url, clock):
    """A new store of either kind, for production."""
    with Store.create(database_url, kek(), clock=clock) as made:
        made.url = database_url
        yield made
