from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from strongroom.attest import identities
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic
from strongroom.testing.authority import Authority
from strongroom.testing.tokens import TokenIssuer

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SINCE, UNTIL = NOW - timedelta(days=1), NOW + timedelta(days=30)
CLIENT = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
ROOT = Authority.make("root", SINCE, UNTIL + timedelta(days=1))
ISSUING = Authority.make("issuing", SINCE, UNTIL + timedelta(days=1), ROOT)
SERVER_ID = "server-7"


def der(authority: Authority) -> bytes:
    return authority.certificate.public_bytes(Encoding.DER)


def client(by: Authority = ROOT, extensions=(CLIENT,), until: datetime = UNTIL) -> Authority:
    return Authority.make("gpu-node-1", SINCE, until, by, ca=False, extensions=extensions)


def crl(by: Authority, *revoked: Authority, since: datetime = NOW, days: int = 7) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(since)
        .next_update(since + timedelta(days=days))
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.certificate.serial_number)
            .revocation_date(since)
            .build()
        )
    return builder.sign(by.key, hashes.SHA384()).public_bytes(Encoding.DER)


def test_a_client_certificate() -> None:
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName("node-1.example"),
            x509.UniformResourceIdentifier("spiffe://example/node-1"),
            x509.IPAddress(ip_address("10.0.0.1")),
        ]
    )
    certificate = der(client(extensions=[CLIENT, (names, False)]))
    claims = identities.mtls(certificate, [ROOT.pem], NOW)
    assert claims.kind == "mtls"
    assert claims.values["subject"] == "O=strongroom test,CN=gpu-node-1"
    assert claims.values["san"] == ["dns:node-1.example", "uri:spiffe://example/node-1", "ip:10.0.0.1"]
    assert len(claims.values["sha256"]) == 64
    assert claims.bound == b""
    assert claims.not_after == UNTIL
    assert len(claims.digest) == 32


def test_any_of_several_authorities_and_with_intermediates() -> None:
    other = Authority.make("other", SINCE, UNTIL)
    leaf = der(client(ISSUING))
    assert identities.mtls(leaf, [other.pem, ROOT.pem], NOW, intermediates=ISSUING.pem)
    assert identities.mtls(leaf, [ISSUING.pem], NOW)
    with pytest.raises(NotAuthentic):
        identities.mtls(leaf, [ROOT.pem], NOW)
    with pytest.raises(NotAuthentic, match="No authority"):
        identities.mtls(leaf, [], NOW)
    with pytest.raises(NotAuthentic):
        identities.mtls(leaf, [other.pem], NOW, intermediates=ISSUING.pem)


def test_the_same_key_is_the_same_platform() -> None:
    one = client()
    first = identities.mtls(der(one), [ROOT.pem], NOW)
    assert first.platform.startswith("mtls:")
    assert first.platform != identities.mtls(der(client()), [ROOT.pem], NOW).platform


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)],
        [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), True)],
    ],
)
def test_certificates_that_are_not_for_clients(extensions) -> None:
    with pytest.raises(NotAuthentic, match="clients"):
        identities.mtls(der(client(extensions=extensions)), [ROOT.pem], NOW)


@pytest.mark.parametrize("days", [-2, 31])
def test_validity(days: int) -> None:
    with pytest.raises(NotAuthentic, match="not valid now"):
        identities.mtls(der(client()), [ROOT.pem], NOW + timedelta(days=days))


def test_critical_extensions_that_are_not_known() -> None:
    unknown = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
    with pytest.raises(NotAuthentic, match="critical"):
        identities.mtls(der(client(extensions=[CLIENT, unknown])), [ROOT.pem], NOW)


def test_a_client_cannot_issue_another() -> None:
    first = client()
    with pytest.raises(NotAuthentic):
        identities.mtls(der(client(first)), [ROOT.pem], NOW, intermediates=first.pem)
    with pytest.raises(NotAuthentic):
        identities.mtls(der(client(first)), [first.pem], NOW)


def test_revocation() -> None:
    one, other = client(), client()
    assert identities.mtls(der(one), [ROOT.pem], NOW, crls=[crl(ROOT, other)]).not_after == (
        NOW + timedelta(days=7)
    )
    with pytest.raises(NotAuthentic, match="revoked"):
        identities.mtls(der(one), [ROOT.pem], NOW, crls=[crl(ROOT, one)])
    for bad in (
        crl(ROOT, since=NOW - timedelta(days=8)),
        crl(ROOT, since=NOW + timedelta(days=1)),
        crl(ISSUING),
        crl(Authority.make("root", SINCE, UNTIL)),
    ):
        with pytest.raises(NotAuthentic):
            identities.mtls(der(one), [ROOT.pem], NOW, crls=[bad])
    with pytest.raises(MalformedEvidence):
        identities.mtls(der(one), [ROOT.pem], NOW, crls=[b"x"])


def test_revocation_of_an_authority() -> None:
    leaf = der(client(ISSUING))
    lists = [crl(ISSUING), crl(ROOT, ISSUING)]
    with pytest.raises(NotAuthentic, match="revoked"):
        identities.mtls(leaf, [ROOT.pem], NOW, intermediates=ISSUING.pem, crls=lists)
    with pytest.raises(NotAuthentic, match="no revocation list"):
        identities.mtls(leaf, [ROOT.pem], NOW, intermediates=ISSUING.pem, crls=lists[1:])


@pytest.mark.parametrize("data", [b"", b"x", bytes(100)])
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        identities.mtls(data, [ROOT.pem], NOW)


def test_every_byte_of_a_certificate_is_signed() -> None:
    """But the count of unused bits behind the signature: no identity but ``sha256`` depends on it."""
    good = der(client())
    expected = identities.mtls(good, [ROOT.pem], NOW)
    for at in range(0, len(good), 3):
        bad = bytearray(good)
        bad[at] ^= 1
        try:
            claims = identities.mtls(bytes(bad), [ROOT.pem], NOW)
        except EvidenceError:
            continue
        assert good[at : at + 2] == b"\x00\x30"
        assert claims.platform == expected.platform
        assert claims.values["sha256"] != expected.values["sha256"]


# Tokens.

ISSUER = TokenIssuer("https://oidc.example", NOW)
CLUSTER = TokenIssuer("https://kubernetes.default.svc", NOW, kid="k")


def test_oidc() -> None:
    token = ISSUER.token({"sub": "repo:a/b:ref", "aud": SERVER_ID, "ref": "refs/heads/main"})
    claims = identities.oidc(token, SERVER_ID, [ISSUER.trusted()], NOW)
    assert claims.kind == "oidc"
    assert claims.values["subject"] == "repo:a/b:ref"
    assert claims.values["audience"] == [SERVER_ID]
    assert claims.values["claims"]["ref"] == "refs/heads/main"
    assert claims.bound == b""
    assert claims.not_after == NOW + timedelta(seconds=300)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "server-8"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"exp": None},
        {"exp": 1},
        {"iss": "https://other.example"},
    ],
)
def test_oidc_refused(claims: dict) -> None:
    token = ISSUER.token({"sub": "a", "aud": SERVER_ID} | claims)
    with pytest.raises(NotAuthentic):
        identities.oidc(token, SERVER_ID, [ISSUER.trusted()], NOW)


def test_the_audience_is_the_server_whatever_the_configuration_says() -> None:
    token = ISSUER.token({"sub": "a", "aud": ISSUER.audience})
    with pytest.raises(NotAuthentic, match="audience"):
        identities.oidc(token, SERVER_ID, [ISSUER.trusted()], NOW)
    for audience in ("", SERVER_ID):
        with pytest.raises(NotAuthentic, match="audience"):
            identities.oidc(ISSUER.token({"sub": "a", "aud": None}), audience, [ISSUER.trusted()], NOW)


def test_kubernetes() -> None:
    token = CLUSTER.kubernetes("prod", "serve", aud=[SERVER_ID])
    claims = identities.kubernetes(token, SERVER_ID, [CLUSTER.trusted()], NOW)
    values = claims.values
    assert claims.kind == "kubernetes"
    assert (values["namespace"], values["service_account"]) == ("prod", "serve")
    assert (values["pod"], values["node"]) == ("serve-0", "node-1")
    assert values["issuer"] == CLUSTER.issuer
    assert claims.platform.startswith("kubernetes:")
    assert len(claims.digest) == 32


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "system:serviceaccount:prod:admin"},
        {"sub": None},
        {"kubernetes.io": None},
        {"kubernetes.io": []},
        {"kubernetes.io": {"namespace": "prod"}},
        {"kubernetes.io": {"namespace": "prod", "serviceaccount": "serve"}},
        {"kubernetes.io": {"namespace": 7, "serviceaccount": {"name": "serve"}}},
        {"exp": None},
        {"aud": ["https://kubernetes.default.svc"]},
        {"aud": None},
    ],
)
def test_kubernetes_refused(claims: dict) -> None:
    """The last but two: a token of a Secret, as they were before they had an end."""
    token = CLUSTER.kubernetes("prod", "serve", **({"aud": [SERVER_ID]} | claims))
    with pytest.raises(NotAuthentic):
        identities.kubernetes(token, SERVER_ID, [CLUSTER.trusted()], NOW)


def test_an_account_of_another_cluster() -> None:
    thief = TokenIssuer(CLUSTER.issuer, NOW, kid="k")
    token = thief.kubernetes("prod", "serve", aud=[SERVER_ID])
    with pytest.raises(NotAuthentic, match="signature"):
        identities.kubernetes(token, SERVER_ID, [CLUSTER.trusted()], NOW)


def test_an_oidc_issuer_is_no_cluster() -> None:
    """Whoever may put claims of his choice into a token of an OIDC issuer gets no service account."""
    said = {"namespace": "prod", "serviceaccount": {"name": "serve"}}
    subject = "system:serviceaccount:prod:serve"
    token = ISSUER.token({"aud": SERVER_ID, "sub": subject, "kubernetes.io": said})
    assert identities.oidc(token, SERVER_ID, [ISSUER.trusted()], NOW).kind == "oidc"
    with pytest.raises(NotAuthentic, match="not believed"):
        identities.kubernetes(token, SERVER_ID, [CLUSTER.trusted()], NOW)


def test_no_token_is_repeated_in_a_message() -> None:
    token = ISSUER.token({"sub": "a", "aud": "x"})
    for bad in (token, token[:-4], token + b".", b"Bearer " + token):
        try:
            identities.oidc(bad, SERVER_ID, [ISSUER.trusted()], NOW)
        except EvidenceError as error:
            seen: BaseException | None = error
            while seen is not None:
                for part in token.split(b"."):
                    assert part.decode() not in f"{seen!r} {json.dumps(vars(seen), default=str)}"
                seen = seen.__context__
        else:
            raise AssertionError
