"""Certificates, judged by OpenSSL and by Python's ssl."""

import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from strongroom.errors import InvalidKey, UsageError
from strongroom.pki import certificates
from strongroom.pki.certificates import issue, new_ca
from strongroom.pki.inspection import inspect_certificates
from strongroom.pki.ssl_config import ssl_config

NOW = datetime.now(UTC).replace(microsecond=0)
HOSTS = ["localhost", "serving.example.org", "127.0.0.1", "::1"]
TIMEOUT = 60


@pytest.fixture(scope="module")
def authority():
    return new_ca("test CA", NOW)


@pytest.fixture
def files(tmp_path, authority):
    """Files of a CA, a server and a client."""
    server = issue(*authority, HOSTS[0], HOSTS, NOW)
    client = issue(*authority, "loader", [], NOW, uris=["spiffe://example.org/loader"])
    for name, pair in {"ca": authority, "server": server, "client": client}.items():
        (tmp_path / f"{name}.pem").write_bytes(pair[0])
        (tmp_path / f"{name}.key").write_bytes(pair[1])
    return tmp_path


def openssl(*arguments):
    return subprocess.run(
        ["openssl", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "options", "good"),
    [
        ("server", ["-purpose", "sslserver", "-verify_hostname", "serving.example.org"], True),
        ("server", ["-purpose", "sslserver", "-verify_ip", "127.0.0.1"], True),
        ("server", ["-purpose", "sslserver", "-verify_hostname", "other.example.org"], False),
        ("server", ["-purpose", "sslclient"], False),
        ("client", ["-purpose", "sslclient"], True),
        ("client", ["-purpose", "sslserver"], False),
    ],
    ids=["host", "address", "another-host", "server-as-client", "client", "client-as-server"],
)
def test_openssl_verifies(files, name, options, good):
    done = openssl(
        "verify", "-x509_strict", "-CAfile", files / "ca.pem", *options, files / f"{name}.pem"
    )
    assert (done.returncode == 0) is good, done.stderr


def contexts(files, client="client"):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files / "ca.pem")
    server.load_cert_chain(files / "server.pem", files / "server.key")
    server.verify_mode = ssl.CERT_REQUIRED
    caller = ssl.create_default_context(cafile=files / "ca.pem")
    if client:
        caller.load_cert_chain(files / f"{client}.pem", files / f"{client}.key")
    return server, caller


def shake(server, caller, name="localhost"):
    """A TLS handshake in both directions; the peer's certificate as the server sees it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    theirs.settimeout(TIMEOUT)
    seen = []

    def serve():
        try:
            with server.wrap_socket(theirs, server_side=True) as connection:
                seen.append(connection.getpeercert())
                connection.sendall(b"x")
        except ssl.SSLError as error:
            seen.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with caller.wrap_socket(ours, server_hostname=name) as connection:
            # TLS 1.3 refuses a client's certificate after its handshake is done.
            assert connection.recv(1) == b"x"
    finally:
        ours.close()
        thread.join(TIMEOUT)
        theirs.close()
    return seen[0]


def test_mutual_tls(files):
    peer = shake(*contexts(files))
    assert peer["subject"] == ((("commonName", "loader"),),)
    assert ("URI", "spiffe://example.org/loader") in peer["subjectAltName"]
    assert shake(*contexts(files), name="127.0.0.1")


@pytest.mark.parametrize("client", ["", "server"])
def test_a_client_without_a_clients_certificate(files, client):
    with pytest.raises((ssl.SSLError, AssertionError, ConnectionError)):
        shake(*contexts(files, client))


def test_the_server_is_that_of_the_name(files):
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(*contexts(files), name="other.example.org")


def test_s_client_with_the_clients_certificate(files):
    server, _ = contexts(files)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)

        def serve():
            connection, _ = listener.accept()
            with connection, server.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        done = openssl(
            *(
                "s_client",
                "-connect",
                f"127.0.0.1:{listener.getsockname()[1]}",
                "-servername",
                "localhost",
            ),
            *("-CAfile", files / "ca.pem", "-verify_return_error", "-verify_hostname", "localhost"),
            *("-cert", files / "client.pem", "-key", files / "client.key"),
        )
        thread.join(TIMEOUT)
    assert "Verify return code: 0 (ok)" in done.stdout, done.stderr
    assert "TLSv1.3" in done.stdout


def test_every_serial_number_is_another(authority):
    serials = {
        x509.load_pem_x509_certificate(issue(*authority, "a", ["a"], NOW)[0]).serial_number
        for _ in range(20)
    }
    assert len(serials) == 20
    assert max(serials).bit_length() > 128


def test_clocks_that_are_a_little_slow_believe_a_new_certificate(authority):
    for pem in (authority[0], issue(*authority, "a", ["a"], NOW)[0]):
        begin = x509.load_pem_x509_certificate(pem).not_valid_before_utc
        assert begin == NOW - timedelta(hours=1)


def test_what_a_ca_may_is_critical(tmp_path):
    """Whoever does not understand it must not believe the CA; and no CA is made with its key."""
    narrow, key = new_ca("narrow", NOW, permitted=["example.org"])
    found = x509.load_pem_x509_certificate(narrow).extensions
    for kind in (x509.BasicConstraints, x509.KeyUsage, x509.NameConstraints):
        assert found.get_extension_for_class(kind).critical
    assert found.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    leaf = x509.load_pem_x509_certificate(issue(narrow, key, "a", ["a.example.org"], NOW)[0])
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).critical


def test_a_server_with_a_long_name_has_it_as_alternative_name(authority):
    host = ".".join(["a" * 40] * 3)
    found = inspect_certificates(issue(*authority, host, [host], NOW)[0], NOW)[0]
    assert (found.subject, found.names) == (f"CN={host[:64]}", (f"DNS:{host}",))


def test_nothing_outlives_its_authority():
    ca, key = new_ca("short", NOW, days=10)
    certificate, _ = issue(ca, key, "a", ["a"], NOW, days=397)
    assert x509.load_pem_x509_certificate(certificate).not_valid_after_utc == NOW + timedelta(days=10)
    with pytest.raises(InvalidKey, match="ended"):
        issue(ca, key, "a", ["a"], NOW + timedelta(days=11))


def test_the_key_is_that_of_the_certificate(authority):
    with pytest.raises(InvalidKey, match="does not belong"):
        issue(authority[0], new_ca("other", NOW)[1], "a", ["a"], NOW)
    with pytest.raises(InvalidKey, match="cannot be read"):
        issue(b"nothing", authority[1], "a", ["a"], NOW)


@pytest.mark.parametrize(
    ("permitted", "host", "good"),
    [
        (["example.org"], "serving.example.org", True),
        (["example.org"], "example.org", True),
        (["example.org"], "*.example.org", True),
        (["example.org"], "notexample.org", False),
        (["example.org"], "10.0.0.1", False),
        (["10.0.0.0/8"], "10.0.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::1", False),
        (["10.0.0.0/8"], "example.org", False),
        (["example.org", "::1/128"], "::1", True),
    ],
)
def test_name_constraints(tmp_path, permitted, host, good):
    ca, key = new_ca("narrow", NOW, permitted=permitted)
    if good:
        certificate, _ = issue(ca, key, "narrow", [host], NOW)
    else:
        with pytest.raises(UsageError, match="may not sign"):
            issue(ca, key, "narrow", [host], NOW)
        # What somebody who has the key signs all the same is not believed.
        certificate = signed_all_the_same(ca, key, host)
    (tmp_path / "ca.pem").write_bytes(ca)
    (tmp_path / "leaf.pem").write_bytes(certificate)
    done = openssl("verify", "-x509_strict", "-CAfile", tmp_path / "ca.pem", tmp_path / "leaf.pem")
    assert (done.returncode == 0) is good, done.stderr


def signed_all_the_same(ca, key, host):
    with patch.object(certificates, "_check_names"):
        return issue(ca, key, "narrow", [host], NOW)[0]


@pytest.mark.parametrize("name", ["", "a b", "a..b", "-/-", "ü.example", "a,DNS:b", "1.2.3.4/8"])
def test_names_that_are_none(authority, name):
    with pytest.raises(UsageError):
        issue(*authority, "a", [name], NOW)


def test_the_configuration_of_tensorflow_serving(authority):
    text = ssl_config(b"-----KEY-----\nab\ncd\n-----END-----\n", b"cert\n", b"ca\n").decode()
    assert text.splitlines() == [
        r"server_key: '-----KEY-----\nab\ncd\n-----END-----'",
        "server_cert: 'cert'",
        "custom_ca: 'ca'",
        "client_verify: true",
    ]


def test_inspection_of_what_is_right(authority):
    certificate, _ = issue(*authority, HOSTS[0], HOSTS, NOW)
    server, ca = inspect_certificates(certificate + authority[0], NOW)
    assert (server.problems, ca.problems) == ((), ())
    assert server.names == ("DNS:localhost", "DNS:serving.example.org", "IP:127.0.0.1", "IP:::1")
    assert server.usages == ("digital_signature", "server")
    assert (ca.ca, ca.usages) == (True, ("key_cert_sign", "crl_sign"))
    assert server.issuer == ca.subject == "CN=test CA"
    assert server.key == "ECDSA secp256r1"


def test_inspection_agrees_with_openssl(files):
    found = inspect_certificates((files / "server.pem").read_bytes(), NOW)[0]
    said = openssl("x509", "-in", files / "server.pem", "-noout", "-fingerprint", "-sha256", "-serial")
    lines = said.stdout.lower().replace(":", "").splitlines()
    assert lines[0].endswith("=" + found.fingerprint)
    assert int(lines[1].split("=")[1], 16) == int(found.serial, 16)
    der = openssl("x509", "-in", files / "server.pem", "-outform", "DER", "-out", files / "server.der")
    assert der.returncode == 0
    assert inspect_certificates((files / "server.der").read_bytes(), NOW) == [found]


@pytest.mark.parametrize(
    ("days", "words"),
    [(398, "expired on"), (-2, "not valid before"), (390, "ends in 7 days")],
    ids=["expired", "early", "soon"],
)
def test_inspection_of_dates(authority, days, words):
    certificate, _ = issue(*authority, "a", ["a"], NOW)
    (problem,) = inspect_certificates(certificate, NOW + timedelta(days=days))[0].problems
    assert words in problem


def test_inspection_of_what_the_script_of_the_reference_made(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    done = openssl(
        *("req", "-x509", "-nodes", "-days", 3650, "-newkey", "rsa:1024", "-sha1", "-set_serial", 1),
        *("-subj", "/CN=server", "-keyout", key, "-out", certificate),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )
    assert done.returncode == 0, done.stderr
    problems = " ".join(
        inspect_certificates(certificate.read_bytes(), NOW + timedelta(days=1))[0].problems
    )
    for words in (
        "no subject alternative",
        "too short",
        "sha1",
        "serial",
        "more than 398",
        "does not say",
    ):
        assert words in problems


def test_inspection_of_a_ca_that_is_a_server_too(tmp_path):
    done = openssl(
        *("req", "-x509", "-nodes", "-days", 30, "-newkey", "rsa:2048", "-subj", "/CN=server"),
        *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
        *("-addext", "extendedKeyUsage=serverAuth", "-addext", "subjectAltName=DNS:server"),
    )
    assert done.returncode == 0, done.stderr
    found = inspect_certificates((tmp_path / "cert.pem").read_bytes(), NOW)[0]
    assert found.ca
    assert "could sign certificates" in " ".join(found.problems)


def made(
    *, ca=False, signs=None, purposes=(), names=("a",), days=90, key=None, serial=None
) -> x509.Certificate:
    """A certificate by itself; ``signs`` is what its key usage says, None without any."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "made")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), serial or x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if signs is not None:
        builder = builder.add_extension(
            x509.KeyUsage(True, *[False] * 4, signs, *[False] * 3), critical=True
        )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False
        )
    return builder.sign(key, hashes.SHA256())


SERVER, CLIENT = [ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.CLIENT_AUTH]
ANY = [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
SMALL = {"key": ec.generate_private_key(ec.SECP224R1()), "purposes": SERVER}
SHORT = {"key": rsa.generate_private_key(65537, 1536), "purposes": SERVER}
LONG = {"key": rsa.generate_private_key(65537, 2048), "purposes": SERVER}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"ca": True}, ()),
        ({"ca": True, "signs": True, "names": (), "days": 3650}, ()),
        ({"ca": True, "signs": False}, ("does not allow it to sign",)),
        ({"ca": True, "signs": True, "purposes": CLIENT}, ("could sign",)),
        ({"ca": True, "signs": True, "purposes": SERVER}, ("could sign",)),
        ({"signs": True, "purposes": SERVER}, ("and it is no CA",)),
        ({"signs": False, "purposes": SERVER}, ()),
        ({"signs": False, "purposes": SERVER, "days": 398}, ()),
        ({"signs": False, "purposes": SERVER, "days": 399}, ("more than 398",)),
        ({"signs": False, "purposes": CLIENT, "days": 3650, "names": ()}, ()),
        ({"purposes": ANY, "names": (), "days": 399}, ("alternative name", "more than 398")),
        ({"names": (), "days": 399}, ("does not say", "alternative name", "more than 398")),
        (SMALL, ("curve is too small",)),
        (SHORT, ("RSA key is too short",)),
        (LONG, ()),
        ({"purposes": SERVER, "serial": 2**31 - 1}, ("serial number is not random",)),
        ({"purposes": SERVER, "serial": 2**31}, ()),
    ],
)
def test_inspection_finds_each_thing(how, words):
    pem = made(**how).public_bytes(Encoding.PEM)
    problems = inspect_certificates(pem, NOW)[0].problems
    assert len(problems) == len(words), problems
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


@pytest.mark.parametrize(("last", "name"), [(b"\x04", "md5"), (b"\x05", "sha1")])
def test_inspection_of_signatures_by_weak_hashes(last, name):
    der = made(**LONG).public_bytes(Encoding.DER)
    sha256 = bytes.fromhex("2a864886f70d01010b")
    assert der.count(sha256) == 2
    (problem,) = inspect_certificates(der.replace(sha256, sha256[:-1] + last), NOW)[0].problems
    assert problem == f"It is signed with {name}."


def test_inspection_of_a_broken_chain(authority):
    certificate, _ = issue(*authority, "a", ["a"], NOW)
    first, _ = inspect_certificates(certificate + new_ca("test CA", NOW)[0], NOW)
    assert first.problems == ("It is not signed by the one that follows.",)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_inspection_of_what_is_no_certificate(data):
    with pytest.raises(InvalidKey):
        inspect_certificates(data, NOW)
