"""The members of ``keyserver.toml``, with their defaults; :mod:`.config` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = [
    "Attestation",
    "Audit",
    "Auth",
    "Config",
    "Database",
    "Gramine",
    "IdentityIssuer",
    "Kek",
    "Limits",
    "Listen",
    "MtlsRole",
    "Tls",
    "TokenIssuer",
    "Verification",
]


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how the server listens.

    Attributes:
        host: address of an interface, or a name.
        port: TCP port; 0 takes a free one and logs it.
        workers: processes that answer.
        drain_seconds: after SIGTERM: how long ``/readyz`` says 503 before new connections are refused.
        stop_seconds: after that: how long requests in flight may take to finish.
    """

    host: str = "127.0.0.1"
    port: int = 8443
    workers: int = 1
    drain_seconds: float = 5.0
    stop_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Tls:
    """The server's certificate, and whose client certificates are looked at.

    Attributes:
        certificate: PEM, with the chain.
        key: PEM, readable by the server alone.
        client_ca: PEM of those who sign client certificates; none are asked for without it.
        client_crl: PEM of the revocation lists of all of them; without it none is revoked.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_crl: Path | None = None


@dataclass(frozen=True, slots=True)
class Database:
    """Where records are kept: exactly one member, or ``STRONGROOM_KEYSERVER_DATABASE``.

    Attributes:
        url: of SQLAlchemy: ``sqlite:///keyserver.db`` or ``postgresql+psycopg://…``.
        url_file: file with such a URL, where it has a password in it.
    """

    url: str | None = None
    url_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Kek:
    """The root key-encryption key.

    Attributes:
        source: which one, as the key store reads it; relative to the file for ``file:``.
        passphrase_file: file with the passphrase, up to the end of its first line.
        passphrase_env: environment variable with the passphrase.
    """

    source: str
    passphrase_file: Path | None = None
    passphrase_env: str | None = None


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Somebody whose tokens are believed; see :class:`strongroom.attest.roots.Issuer`.

    Attributes:
        issuer: the ``iss`` member, exactly.
        audience: the ``aud`` member that a token must have.
        jwks: file with the key set, which is read again when it has changed.
        root: PEM file, where tokens carry a chain instead.
        algorithms: that are accepted.
    """

    issuer: str
    audience: str
    jwks: Path | None = None
    root: Path | None = None
    algorithms: list[str] = field(default_factory=lambda: ["RS256", "ES256", "ES384", "PS256"])


@dataclass(frozen=True, slots=True)
class Attestation:
    """Whom the verifier believes, and where it asks for endorsements.

    Attributes:
        endorsements: specs of sources, asked in this order; none by default.
        insecure_test_roots: directory of roots for tests; see :mod:`.trust`.
        tpm_cas: PEM files of CAs of TPMs' endorsement keys.
        issuers: of attestation tokens.
    """

    endorsements: list[str] = field(default_factory=list)
    insecure_test_roots: Path | None = None
    tpm_cas: list[Path] = field(default_factory=list)
    issuers: list[TokenIssuer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verification:
    """The processes that verify evidence.

    Attributes:
        workers: how many for each process that answers.
        timeout_seconds: for one request's evidence.
        memory_mb: MiB that one of them may use above what it starts with.
    """

    workers: int = 2
    timeout_seconds: float = 5.0
    memory_mb: int = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What one address, connection and request may use.

    Attributes:
        requests_per_second: for each source address, for ever.
        burst: for each source address, at once.
        connections: open at once, in one process.
        connections_per_address: open at once from one address, in one process.
        release_bytes: body of a release.
        body_bytes: body of everything else.
        head_seconds: from the opening of a connection, or the first byte, to the end of the headers.
        body_seconds: for a body to arrive.
        answer_seconds: for a client to take a part of an answer.
    """

    requests_per_second: float = 50.0
    burst: int = 200
    connections: int = 4096
    connections_per_address: int = 256
    release_bytes: int = 2 << 20
    body_bytes: int = 256 << 10
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    answer_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class MtlsRole:
    """Who a client certificate is, for administration: by subject or by fingerprint.

    Attributes:
        name: in the audit trail.
        role: owner, operator or auditor.
        subject: as RFC 4514 writes it, exactly: ``CN=alice,O=Example``.
        sha256: of the certificate, hexadecimal.
    """

    name: str
    role: Literal["owner", "operator", "auditor"]
    subject: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class IdentityIssuer:
    """Somebody whose tokens stand for an identity; their audience is the id of this server.

    Attributes:
        kind: of the claims that policies see.
        issuer: the ``iss`` member, exactly.
        jwks: file with the key set, read again when it has changed; without it a source of
            endorsements is asked.
        algorithms: that are accepted.
    """

    kind: Literal["oidc", "kubernetes"]
    issuer: str
    jwks: Path | None = None
    algorithms: list[str] = field(default_factory=lambda: ["RS256", "ES256", "ES384", "PS256"])


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may do what, besides the holders of tokens of the server.

    Attributes:
        mtls: client certificates that may administer.
        issuers: of tokens that a release may be asked with.
    """

    mtls: list[MtlsRole] = field(default_factory=list)
    issuers: list[IdentityIssuer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit trail.

    Attributes:
        anchor: file outside of the database to which the head of the chain is written.
    """

    anchor: Path | None = None


@dataclass(frozen=True, slots=True)
class Gramine:
    """The port for clients of Gramine's secret provisioning; without the section there is none.

    Attributes:
        port: TCP port; 0 takes a free one and logs it.
        host: address of an interface, or a name; None takes that of ``listen``.
    """

    port: int = 4433
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A server: see the sections."""

    server_id: str
    tls: Tls
    database: Database
    kek: Kek
    listen: Listen = field(default_factory=Listen)
    attestation: Attestation = field(default_factory=Attestation)
    verification: Verification = field(default_factory=Verification)
    limits: Limits = field(default_factory=Limits)
    auth: Auth = field(default_factory=Auth)
    audit: Audit = field(default_factory=Audit)
    gramine: Gramine | None = None

    @property
    def test(self) -> bool:
        """Evidence under roots for tests is believed here."""
        return self.attestation.insecure_test_roots is not None
