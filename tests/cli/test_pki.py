import json
import re
import ssl
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from strongroom.pki.certificates import hosts_of


@pytest.fixture
def place(cli, here):
    assert cli("pki", "init", "pki", "-q").code == 0
    return here / "pki"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_ca_a_server_and_a_client(cli, place):
    assert cli("pki", "server", "pki", "localhost", "127.0.0.1").code == 0
    assert cli("pki", "client", "pki", "loader", "--uri", "spiffe://example.org/loader").code == 0
    assert sorted(one.name for one in place.iterdir()) == sorted(
        ["ca.key", "ca.pem"]
        + [name + end for name in ("server", "loader") for end in (".pem", ".key", ".chain.pem")]
    )
    assert {mode(one) for one in place.glob("*.key")} == {0o600}
    assert mode(place) == 0o700
    assert hosts_of((place / "server.pem").read_bytes()) == ["localhost", "127.0.0.1"]
    chain = (place / "server.chain.pem").read_bytes()
    assert chain == (place / "server.pem").read_bytes() + (place / "ca.pem").read_bytes()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=place / "ca.pem")
    context.load_cert_chain(place / "server.chain.pem", place / "server.key")
    assert cli("pki", "inspect", *sorted(place.glob("*.pem"))).code == 0


def test_nothing_is_replaced_unless_asked(cli, place):
    before = (place / "ca.pem").read_bytes()
    assert cli("pki", "init", "pki").code == 2
    assert cli("pki", "server", "pki", "a.example").code == 0
    server = (place / "server.key").read_bytes()
    (place / "server.pem").unlink()
    again = cli("pki", "server", "pki", "a.example")
    assert again.code == 2 and "exists" in again.error()
    assert (place / "server.key").read_bytes() == server
    assert not (place / "server.pem").exists()
    assert (place / "ca.pem").read_bytes() == before
    assert cli("pki", "server", "pki", "a.example", "--force").code == 0
    assert (place / "server.key").read_bytes() != server
    assert cli("pki", "init", "pki", "--force").code == 0
    assert (place / "ca.pem").read_bytes() != before


def test_the_files_of_the_ca_are_never_those_of_others(cli, place):
    before = (place / "ca.key").read_bytes()
    assert "that of the CA" in cli("pki", "client", "pki", "ca", "--force").error()
    assert cli("pki", "server", "pki", "a.example", "--force", "-o", "pki/../pki/ca").code == 2
    assert (place / "ca.key").read_bytes() == before


def test_other_places_and_lifetimes(cli, place, here):
    said = cli("pki", "client", "pki", "team/loader", "-o", "mine", "--days", 90, "--json")
    assert said.code == 0
    assert json.loads(said.out)["key"] == "mine.key"
    assert (here / "mine.chain.pem").exists()
    assert cli("pki", "client", "pki", "team/loader").code == 2
    for days in (0, 398):
        assert cli("pki", "client", "pki", "x", "--days", days).code == 2
    assert cli("pki", "client", "pki", "x" * 65).code == 2


def test_names_that_the_ca_may_not_sign_for(cli, here):
    assert cli("pki", "init", "pki", "--permit", "example.org").code == 0
    assert cli("pki", "server", "pki", "serving.example.org").code == 0
    refused = cli("pki", "server", "pki", "serving.example.com", "-o", "other")
    assert refused.code == 2
    assert "may not sign for serving.example.com" in refused.error()
    assert not (here / "other.key").exists()
    assert "only for" in cli("pki", "inspect", "pki/ca.pem").out


def test_the_configuration_of_tensorflow_serving(cli, place, here):
    done = cli("pki", "server", "pki", "localhost", "--ssl-config", "ssl.cfg")
    assert done.code == 0
    assert mode(here / "ssl.cfg") == 0o600
    found = dict(re.findall(r"^(\w+): '?(.*?)'?$", (here / "ssl.cfg").read_text(), re.MULTILINE))
    pem = {name: text.replace("\\n", "\n") + "\n" for name, text in found.items()}
    assert pem["server_key"] == (place / "server.key").read_text()
    assert pem["server_cert"] == (place / "server.pem").read_text()
    assert pem["custom_ca"] == (place / "ca.pem").read_text()
    assert found["client_verify"] == "true"
    assert "PRIVATE" not in done.out + done.err


def test_inspection(cli, place):
    cli("pki", "server", "pki", "localhost", "--days", 5, "-q")
    shown = cli("pki", "inspect", "pki/server.chain.pem")
    assert shown.code == 6
    assert "1 thing is wrong with these certificates." in shown.error()
    assert re.search(r"names +DNS:localhost", shown.out)
    assert "It ends in" in shown.out
    listed = json.loads(cli("pki", "inspect", "pki/server.chain.pem", "--json").out)
    assert [one["ca"] for one in listed] == [False, True]
    assert listed[0]["problems"] and not listed[1]["problems"]
    assert cli("pki", "inspect", "missing.pem").code == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "This is a private key."),
        (b"x" * 100, "There is no certificate in it that can be read."),
        (b"", "There is no certificate in it that can be read."),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "This is a request for a certificate"),
        (b"-----BEGIN PUBLIC KEY-----\r\nAAAA\r\n", "This is a public key."),
        (b"-----BEGIN X509 CRL-----\nAAAA\n", "This is a revocation list."),
    ],
)
def test_inspection_of_another_file(cli, place, here, content, sentence):
    (here / "file").write_bytes((place / "ca.key").read_bytes() if content is None else content)
    done = cli("pki", "inspect", "file")
    assert done.code == 4
    assert f"file: {sentence}" in done.err
    assert "hint: Certificates are PEM" in done.err
    assert "PRIVATE" not in done.err


def test_without_a_ca(cli, here):
    missing = cli("pki", "server", "pki", "localhost")
    assert missing.code == 2
    assert "pki/ca.pem: no such file" in missing.err
    assert "hint: Make a CA first: strongroom pki init pki" in missing.err
    (here / "pki").mkdir()
    (here / "pki" / "ca.pem").write_text("x")
    (here / "pki" / "ca.key").write_text("x")
    wrong = cli("pki", "server", "pki", "localhost")
    assert wrong.code == 4 and "certificate cannot be read" in wrong.err


def test_a_key_of_the_ca_that_is_none(cli, place):
    (place / "ca.key").write_text("x")
    assert "is no private key in PEM" in cli("pki", "client", "pki", "loader").err
    key = ec.generate_private_key(ec.SECP256R1())
    under = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    (place / "ca.key").write_bytes(under)
    done = cli("pki", "client", "pki", "loader")
    assert done.code == 4 and "is under a passphrase" in done.err


def test_a_key_that_is_sealed_before_it_is_written(cli, place, here):
    assert cli("keygen", "-o", "key.txt").code == 0
    made = cli("pki", "server", "pki", "localhost", "-k", "key.txt", "--json")
    assert made.code == 0, made.err
    files = json.loads(made.out)
    assert files["key"] == "pki/server.key.sealed"
    assert mode(here / files["key"]) == 0o600
    assert not (place / "server.key").exists()
    opened = cli("unseal", files["key"], "-o", "server.key", "-k", "key.txt")
    assert opened.code == 0, opened.err
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files["certificate"], "server.key")
    # Nothing is replaced, nor sealed for anybody, unless asked.
    before = (here / files["key"]).read_bytes()
    again = cli("pki", "server", "pki", "localhost", "-r", "https://keys.example/server-tls")
    assert again.code == 2 and "exists" in again.error()
    assert (here / files["key"]).read_bytes() == before
    both = cli(
        "pki", "server", "pki", "localhost", "-k", "key.txt", "--ssl-config", "ssl.cfg", "--force"
    )
    assert both.code == 2 and "in the clear" in both.error()
    assert (here / files["key"]).read_bytes() == before
