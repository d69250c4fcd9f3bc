import pytest
import v2_engine

from strongroom.serving.v2.rest import V2Rest


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    with v2_engine.serving(tmp_path_factory.mktemp("v2")) as made:
        yield made


@pytest.fixture(scope="session")
def api(engine):
    return V2Rest(engine, control=True)


@pytest.fixture(scope="session")
def http_address(engine):
    with v2_engine.http_server(engine) as address:
        yield address


@pytest.fixture(scope="session")
def grpc_address(engine):
    with v2_engine.grpc_server(engine) as address:
        yield address
