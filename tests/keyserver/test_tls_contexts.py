"""Whose client certificates are accepted: from the files, when they change, and as time goes by."""

from __future__ import annotations

import os
import ssl
from datetime import timedelta

import pytest
from client_pki import NOW, Authority
from structlog.testing import capture_logs

from strongroom.errors import InvalidKey, NotFound
from strongroom.keyserver.settings import Tls
from strongroom.keyserver.tls_contexts import Certificates, client_certificate
from strongroom.keyserver.tls_files import make_certificates

ROOT, OTHER = Authority("root"), Authority("other")
MIDDLE = Authority("middle", ROOT)
ALICE, BOB, CAROL = ROOT.client("alice"), ROOT.client("bob"), MIDDLE.client("carol")


@pytest.fixture(scope="module")
def of_server(tmp_path_factory):
    place = tmp_path_factory.mktemp("tls") / "tls"
    make_certificates(place, "s", "localhost")
    return place


class Here:
    """The files of a server, and handshakes with its contexts."""

    def __init__(self, place, of_server, crl):
        self.place = place
        self.ca, self.crl = place / "clients.pem", place / "clients.crl"
        self.now = NOW
        self.ca.write_bytes(ROOT.pem)
        if crl:
            self.crl.write_bytes(ROOT.crl())
        self._server = of_server
        self.tls = Tls(
            of_server / "server.pem", of_server / "server.key", self.ca, self.crl if crl else None
        )

    def made(self):
        self.certificates = Certificates(self.tls, lambda: self.now)
        return self

    def write(self, path, content):
        before = os.stat(path).st_mtime_ns
        path.write_bytes(content)
        os.utime(path, ns=(before + 1_000_000, before + 1_000_000))

    def handshake(self, certificate=None):
        """What the server sees of a client with ``certificate``."""
        client = ssl.create_default_context(cafile=self._server / "ca.pem")
        if certificate is not None:
            (self.place / "client").write_bytes(certificate)
            client.load_cert_chain(self.place / "client")
        one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self.certificates.context.wrap_bio(one, two, server_side=True)
        ours = client.wrap_bio(two, one, server_hostname="localhost")
        waiting = [ours, server]
        while waiting:
            for side in list(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    pass
        return client_certificate(server)

    def accepts(self, certificate):
        try:
            return self.handshake(certificate) is not None
        except ssl.SSLCertVerificationError:
            return False


@pytest.fixture
def with_ca(tmp_path, of_server):
    return Here(tmp_path, of_server, crl=False).made()


@pytest.fixture
def with_crl(tmp_path, of_server):
    return Here(tmp_path, of_server, crl=True).made()


def pem(*certificates):
    return [one[: one.index(b"-----END CERTIFICATE-----")].split() for one in certificates]


def test_what_the_server_sees_of_a_client(with_ca):
    assert with_ca.handshake() is None
    assert client_certificate(None) is None
    seen = with_ca.handshake(ALICE)
    assert ssl.PEM_cert_to_DER_cert(ALICE[: ALICE.index(b"-----BEGIN PRIV")].decode()) == seen.leaf
    assert seen.intermediates == b""
    assert pem(seen.root) == pem(ROOT.pem)
    assert not with_ca.accepts(OTHER.client("alice"))


def test_an_intermediate_that_the_client_sends_leads_to_its_root(with_ca):
    assert not with_ca.accepts(CAROL)
    seen = with_ca.handshake(CAROL + MIDDLE.pem)
    assert pem(seen.intermediates, seen.root) == pem(MIDDLE.pem, ROOT.pem)
    forged = Authority("middle", OTHER)
    assert not with_ca.accepts(forged.client("carol") + forged.pem)
    # Or the file has it.
    with_ca.write(with_ca.ca, ROOT.pem + MIDDLE.pem)
    with_ca.certificates.reload()
    assert pem(with_ca.handshake(CAROL).intermediates) == pem(MIDDLE.pem)


def test_a_ca_that_is_taken_away_is_believed_no_more(with_ca):
    assert not with_ca.certificates.changed()
    count = with_ca.certificates.clients
    with_ca.write(with_ca.ca, OTHER.pem)
    assert with_ca.certificates.changed()
    with_ca.certificates.reload()
    assert not with_ca.certificates.changed()
    assert with_ca.certificates.clients == count + 1
    assert not with_ca.accepts(ALICE)
    assert with_ca.accepts(OTHER.client("eve"))


def test_a_renewed_certificate_of_the_server_ends_no_connection(with_ca):
    count = with_ca.certificates.clients
    os.utime(with_ca.tls.certificate)
    with_ca.certificates.reload()
    assert with_ca.certificates.clients == count


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_ca_file_that_cannot_be_read_changes_nothing(with_ca, content):
    if content is None:
        with_ca.ca.unlink()
    else:
        with_ca.write(with_ca.ca, content)
    with pytest.raises((InvalidKey, NotFound), match=r"clients\.pem"):
        with_ca.certificates.reload()
    assert with_ca.accepts(ALICE)
    with pytest.raises((InvalidKey, NotFound)):
        Certificates(with_ca.tls, lambda: NOW)


def test_who_is_revoked_is_refused_and_nobody_else(with_crl):
    assert with_crl.accepts(ALICE) and with_crl.accepts(BOB)
    with_crl.write(with_crl.crl, ROOT.crl(ALICE))
    assert with_crl.certificates.changed()
    with_crl.certificates.reload()
    assert not with_crl.accepts(ALICE)
    assert with_crl.accepts(BOB)
    assert with_crl.handshake() is None  # who has no certificate needs none
    with_crl.write(with_crl.crl, ROOT.crl(BOB))
    with_crl.certificates.reload()
    assert with_crl.accepts(ALICE)


def test_intermediates_need_lists_too(with_crl):
    assert with_crl.accepts(ALICE)
    assert not with_crl.accepts(CAROL + MIDDLE.pem)
    with_crl.write(with_crl.crl, ROOT.crl() + MIDDLE.crl())
    with_crl.certificates.reload()
    assert with_crl.accepts(CAROL + MIDDLE.pem)
    for lists in (ROOT.crl() + MIDDLE.crl(CAROL), ROOT.crl(MIDDLE.pem) + MIDDLE.crl()):
        with_crl.write(with_crl.crl, lists)
        with_crl.certificates.reload()
        assert not with_crl.accepts(CAROL + MIDDLE.pem)
        assert with_crl.accepts(ALICE)


def test_a_list_that_has_ended_refuses_and_the_log_says_so(with_crl):
    for lists, why in (
        (ROOT.crl(end=-timedelta(hours=1)), "its list ended"),
        (OTHER.crl(), "it has no list"),
    ):
        with_crl.write(with_crl.crl, lists)
        with capture_logs() as logs:
            with_crl.certificates.reload()
        (said,) = logs
        assert (said["log_level"], said["ca"]) == ("error", "CN=root")
        assert said["why"].startswith(why)
        assert not with_crl.accepts(ALICE)
        assert with_crl.handshake() is None
    # As a start finds it.
    with capture_logs() as logs:
        Certificates(with_crl.tls, lambda: NOW)
    assert [one["ca"] for one in logs] == ["CN=root"]


def test_a_list_that_ends_while_the_server_runs_ends_connections(with_crl):
    count = with_crl.certificates.clients
    with_crl.now = NOW + timedelta(hours=23)
    assert not with_crl.certificates.changed()
    with_crl.now = NOW + timedelta(hours=25)
    assert with_crl.certificates.changed()
    with capture_logs() as logs:
        with_crl.certificates.reload()
    assert [one["ca"] for one in logs] == ["CN=root"]
    assert with_crl.certificates.clients > count
    assert not with_crl.certificates.changed()  # said once


def test_a_list_of_somebody_else_in_its_name_refuses(with_crl):
    with_crl.write(with_crl.crl, ROOT.crl(forged=True))
    with_crl.certificates.reload()
    assert not with_crl.accepts(ALICE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        OTHER.pem,
        ROOT.crl() + OTHER.pem,
        ROOT.crl().replace(b"MI", b"AA", 1),
        ROOT.crl()[:200],
    ],
    ids=["empty", "nonsense", "certificate", "with a certificate", "broken", "cut"],
)
def test_a_file_that_is_no_revocation_lists_changes_nothing(with_crl, content):
    """Of a certificate in it OpenSSL would make a CA that is believed."""
    with_crl.write(with_crl.crl, ROOT.crl(ALICE))
    with_crl.certificates.reload()
    with_crl.write(with_crl.crl, content)
    with pytest.raises(InvalidKey, match=r"clients\.crl"):
        with_crl.certificates.reload()
    assert not with_crl.accepts(ALICE)
    assert with_crl.accepts(BOB)
    assert not with_crl.accepts(OTHER.client("eve"))
    with pytest.raises(InvalidKey):
        Certificates(with_crl.tls, lambda: NOW)
