"""``strongroom plumbing probe``: how a supervisor learns whether a server is well."""

import ssl
from contextlib import ExitStack

import pytest

from answering import answering
from strongroom.cli.process import run


@pytest.fixture
def serve():
    """Starts a server, with TLS where a context is given; its port."""
    with ExitStack() as servers:

        def start(context=None):
            return servers.enter_context(answering({"/readyz": 200, "/healthz": 200}, context))

        yield start


def probe(*arguments):
    return run(["plumbing", "probe", *map(str, arguments)])


def test_well_or_not(serve, capsys):
    port = serve()
    assert probe(f"http://127.0.0.1:{port}/readyz") == 0
    assert probe(f"http://127.0.0.1:{port}/elsewhere") == 7
    assert "503" in capsys.readouterr().err
    # Something else than HTTP, and nobody.
    assert probe(f"https://127.0.0.1:{port}/readyz") == 7
    assert probe("http://127.0.0.1:1/readyz", "--timeout", "5") == 7


@pytest.fixture
def certificates(tmp_path):
    place = tmp_path / "pki"
    for arguments in (
        ("init", place),
        ("server", place, "elsewhere.example"),
        ("client", place, "probe"),
    ):
        assert run(["pki", *map(str, arguments), "--quiet"]) == 0
    return place


def test_a_client_certificate_is_shown_where_it_is_asked_for(serve, certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    url = f"https://127.0.0.1:{serve(context)}/readyz"
    shown = ("--client-cert", certificates / "probe.pem", "--client-key", certificates / "probe.key")
    assert probe(url, *shown) == 0
    assert probe(url) == 7


def test_what_is_asked_for_wrongly(tmp_path):
    (tmp_path / "empty").touch()
    for arguments, code in (
        (("127.0.0.1:8501",), 2),
        (("ftp://127.0.0.1",), 2),
        (("http://127.0.0.1:port/",), 2),
        (("https://127.0.0.1", "--client-key", "k"), 2),
        (("https://127.0.0.1", "--client-cert", tmp_path / "none"), 2),
        (("https://127.0.0.1", "--client-cert", tmp_path / "empty"), 4),
    ):
        assert probe(*arguments) == code, arguments
