"""Shared by the tests of the codecs; what they work with is in ``foreign.py``."""

import foreign
import pytest


@pytest.fixture
def memory_source():
    """Bytes → a source over them."""
    return foreign.memory_source


@pytest.fixture
def collected():
    """An output that keeps what is written, in ``data``."""
    return foreign.Collected()
