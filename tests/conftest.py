"""For all tests."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings

from strongroom.crypto.apart import load_apart

# Tests of many packages share a process here. Whoever imports tpm2_pytss first must not leave the TPM's
# library to find its OpenSSL in TensorFlow, which comes later.
with suppress(OSError):
    load_apart("libtss2-esys.so.0")

# In the background of a shell that is no terminal's, SIGINT and SIGQUIT are ignored, under nohup SIGHUP, and so
# they would be by all that is started here. A signal with a handler is not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for one in (signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(one) is signal.SIG_IGN:
        signal.signal(one, lambda number, frame: None)

# Some tests make files and directories that other users are to read.
os.umask(0o022)

# How long an example takes says how busy the machine is, and nothing of what is tested. The examples are
# the same each time: what passes here passes everywhere. ``make fuzz`` looks for others.
settings.register_profile(
    "busy",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("busy")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """All frameworks are 1.4 million objects: to look for garbage among them takes 0.7 s each time, 8 s in all here."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """Files with slow tests first: whole files go to processes, and one that comes last leaves the others idle."""
    slow = {one.path for one in items if one.get_closest_marker("slow")}
    items.sort(key=lambda one: one.path not in slow)


_QUIETED = ("uvicorn.access", "sqlalchemy", "httpx", "httpcore", "asyncio", "alembic")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A server's logging ends with its test, whose streams are closed then."""
    loggers = [logging.getLogger(name) for name in (None, *_QUIETED)]
    levels, handlers = [one.level for one in loggers], loggers[0].handlers[:]
    yield
    loggers[0].handlers[:] = handlers
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)
    if "structlog" in sys.modules:
        sys.modules["structlog"].reset_defaults()
