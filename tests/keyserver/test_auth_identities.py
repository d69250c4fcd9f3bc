"""Whom the server believes: roots, issuers and authorities, from the files of its configuration."""

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from strongroom.attest.roots import Roots, production
from strongroom.errors import EvidenceError, NotFound, UsageError
from strongroom.keyserver.certificates import issue, new_ca
from strongroom.keyserver.config import parse_config
from strongroom.keyserver.identities import Identities
from strongroom.keyserver.settings import Attestation, TokenIssuer
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
    (tmp_path / "jwks").write_text("{}")
    (tmp_path / "tpm").write_text("PEM")
    issuer = TokenIssuer("i", "a", jwks=tmp_path / "jwks", algorithms=["ES256"])
    roots = roots_of(Attestation(tpm_cas=[tmp_path / "tpm"], issuers=[issuer]))
    assert roots.tpm == (b"PEM",)
    assert (roots.issuers[0].jwks, roots.issuers[0].algorithms) == (b"{}", ("ES256",))
    for missing in (
        Attestation(tpm_cas=[tmp_path / "none"]),
        Attestation(issuers=[TokenIssuer("i", "a", jwks=tmp_path / "none")]),
        Attestation(insecure_test_roots=tmp_path / "none"),
    ):
        with pytest.raises(NotFound):
            roots_of(missing)


def identities(tmp_path, *authorities):
    (tmp_path / "clients.pem").write_bytes(b"".join(authorities))
    document = {
        "server_id": "s",
        "tls": {"certificate": "c", "key": "k", "client_ca": "clients.pem"},
        "database": {"url": "sqlite:///x"},
        "kek": {"source": "file:x"},
    }
    return Identities.from_config(parse_config(document, tmp_path), None)


def test_certificates_of_several_authorities_in_one_file(tmp_path):
    one, two, other = (new_ca(name, NOW) for name in ("one", "two", "other"))
    here = identities(tmp_path, b"# a comment\n", one[0], b"\n", two[0])
    for ca, count in ((one, 1), (two, 1), (other, 0)):
        certificate, _ = issue(*ca, "serving", [], NOW)
        claims = here.of(der(certificate), None, NOW)
        assert [one.values["subject"] for one in claims] == ["CN=serving"] * count
    expired, _ = issue(*one, "serving", [], NOW - timedelta(days=9), days=8)
    assert here.of(der(expired), None, NOW) == []


def below(ca, name):
    """A CA under a CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.load_pem_x509_certificate(ca[0]).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        )
        .sign(load_pem_private_key(ca[1], None), hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), secret


def test_an_intermediate_authority_is_believed_where_the_file_has_it(tmp_path):
    root = new_ca("root", NOW)
    middle = below(root, "middle")
    certificate, _ = issue(*middle, "serving", [], NOW)
    assert identities(tmp_path, root[0]).of(der(certificate), None, NOW) == []
    assert len(identities(tmp_path, root[0], middle[0]).of(der(certificate), None, NOW)) == 1


def test_a_file_without_certificates_believes_nobody(tmp_path):
    certificate, _ = issue(*new_ca("one", NOW), "serving", [], NOW)
    assert identities(tmp_path, b"nothing here").of(der(certificate), None, NOW) == []


def test_a_server_without_issuers_takes_no_token(tmp_path):
    with pytest.raises(EvidenceError, match="no tokens"):
        identities(tmp_path).of(None, "a.b.c", NOW)
    assert identities(tmp_path).of(None, None, NOW) == []


def test_a_file_that_is_none_of_a_root_for_tests(tmp_path):
    (tmp_path / "root.pem").write_text("x")
    with pytest.raises(UsageError):
        test_root_files(tmp_path)
