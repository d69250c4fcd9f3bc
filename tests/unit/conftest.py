import pytest

from strongroom import SymmetricKey


@pytest.fixture(scope="session")
def key():
    return SymmetricKey.generate()


@pytest.fixture(scope="session")
def other_key():
    return SymmetricKey.generate()
