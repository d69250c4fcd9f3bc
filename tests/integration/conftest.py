from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_servers import WebServer, web_server

import strongroom


@pytest.fixture(autouse=True)
def _close_sessions() -> Iterator[None]:
    """fsspec keeps file systems, and their connections, for the life of the process."""
    yield
    from fsspec.asyn import sync
    from fsspec.implementations.http import HTTPFileSystem

    for fs in list(HTTPFileSystem._cache.values()):
        if fs._session is not None:
            sync(fs.loop, fs._session.close)
    HTTPFileSystem.clear_instance_cache()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


@pytest.fixture(scope="session")
def key() -> bytes:
    return os.urandom(32)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of several files, one of them with a name that a URL must encode."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(os.urandom(40_000_000))
    (folder / "config.json").write_text('{"layers": 3}')
    (folder / "sub" / "vocabulary #1? 100%.txt").write_text("one\ntwo\n")
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def sealed(plain: Path, key: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("sealed") / "model.sealed"
    strongroom.seal(plain, destination, key=key, clear=["*.json"], name="model")
    return destination


@pytest.fixture(scope="session")
def sealed_file(plain: Path, key: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("file") / "weights.bin.sealed"
    strongroom.seal(plain / "weights.bin", destination, key=key)
    return destination
