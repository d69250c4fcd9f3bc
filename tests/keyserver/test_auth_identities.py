"""Whom the server believes: roots, issuers and authorities, from the files of its configuration."""

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from client_pki import Authority
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.roots import Roots, production
from strongroom.errors import EvidenceError, NotFound, UsageError
from strongroom.keyserver.config import parse_config
from strongroom.keyserver.identities import Identities
from strongroom.keyserver.settings import Attestation, TokenIssuer
from strongroom.keyserver.tls_contexts import ClientCertificate
from strongroom.keyserver.trust import roots_of, test_root_files

NOW = datetime.now(UTC)
test_root_files.__test__ = False  # not one of pytest's


def der(pem):
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_production_is_the_default():
    assert roots_of(Attestation()) == production()
    assert not roots_of(Attestation()).test


VENDORS = ["intel", "nitro", "nvidia_device", "nvidia_rim", "amd_milan", "amd_genoa", "amd_turin"]


def test_every_vendor_can_have_a_root_for_tests(tmp_path):
    for vendor in VENDORS:
        (tmp_path / f"TEST-ROOT-NOT-FOR-PRODUCTION.{vendor}.pem").write_text(vendor)
    (tmp_path / "TEST-ROOT-NOT-FOR-PRODUCTION.other.pem").write_text("x")
    (tmp_path / "readme").write_text("x")
    roots = roots_of(Attestation(insecure_test_roots=tmp_path))
    assert roots.test
    assert roots.amd == {"Milan": b"amd_milan", "Genoa": b"amd_genoa", "Turin": b"amd_turin"}
    others = {one.name for one in fields(Roots)} - {"amd", "tpm", "issuers", "test"}
    assert {name: getattr(roots, name) for name in others} == {
        name: name.encode() for name in VENDORS if not name.startswith("amd")
    }


def test_one_root_for_tests_marks_all_of_them(tmp_path):
    path = tmp_path / "TEST-ROOT-NOT-FOR-PRODUCTION.nitro.pem"
    path.write_text("nitro")
    roots = roots_of(Attestation(insecure_test_roots=path))
    assert roots.test
    assert roots.nitro == b"nitro"
    assert roots.intel == production().intel


def test_files_of_issuers_and_authorities_are_read(tmp_path):
    (tmp_path / "root").write_text("PEM")
    (tmp_path / "tpm").write_text("PEM")
    issuer = TokenIssuer("i", "a", root=tmp_path / "root", algorithms=["ES256"])
    roots = roots_of(Attestation(tpm_cas=[tmp_path / "tpm"], issuers=[issuer]))
    assert roots.tpm == (b"PEM",)
    assert (roots.issuers[0].root, roots.issuers[0].algorithms) == (b"PEM", ("ES256",))
    for missing in (
        Attestation(tpm_cas=[tmp_path / "none"]),
        Attestation(issuers=[TokenIssuer("i", "a", root=tmp_path / "none")]),
        Attestation(insecure_test_roots=tmp_path / "none"),
    ):
        with pytest.raises(NotFound):
            roots_of(missing)


def identities(tmp_path):
    document = {
        "server_id": "s",
        "tls": {"certificate": "c", "key": "k"},
        "database": {"url": "sqlite:///x"},
        "kek": {"source": "file:x"},
    }
    return Identities.from_config(parse_config(document, tmp_path), None)


def shown(certificate, root, intermediates=b""):
    return ClientCertificate(der(certificate), intermediates, root.pem)


def test_a_certificate_is_verified_again(tmp_path):
    """A connection may be older than the end of a certificate, and TLS takes more."""
    root, other, here = Authority("root"), Authority("root"), identities(tmp_path)
    certificate = root.client("serving")
    (claims,) = here.of(shown(certificate, root), None, NOW)
    assert claims.values["subject"] == "CN=serving"
    assert here.of(shown(certificate, root), None, NOW + timedelta(days=398)) == []
    assert here.of(shown(certificate, other), None, NOW) == []


def test_intermediates_come_with_the_certificate(tmp_path):
    root, here = Authority("root"), identities(tmp_path)
    middle = Authority("middle", root)
    certificate = middle.client("serving")
    assert here.of(shown(certificate, root), None, NOW) == []
    (claims,) = here.of(shown(certificate, root, middle.pem), None, NOW)
    assert claims.values["issuer"] == "CN=middle"


def test_a_server_without_issuers_takes_no_token(tmp_path):
    with pytest.raises(EvidenceError, match="no tokens"):
        identities(tmp_path).of(None, "a.b.c", NOW)
    assert identities(tmp_path).of(None, None, NOW) == []


def test_a_file_that_is_none_of_a_root_for_tests(tmp_path):
    (tmp_path / "root.pem").write_text("x")
    with pytest.raises(UsageError):
        test_root_files(tmp_path)
