"""CAs of client certificates, one below the other, and their revocation lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from strongroom.pki.certificates import issue

NOW = datetime.now(UTC).replace(microsecond=0)


class Authority:
    """A CA; without ``above`` a root."""

    def __init__(self, name: str, above: Authority | None = None) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signer = above or self
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if above is None else above._certificate.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=40))
            .not_valid_after(NOW + timedelta(days=400))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False)
            .sign(signer._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(Encoding.PEM)

    def client(self, name: str) -> bytes:
        """A certificate and its key, PEM."""
        key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return b"".join(issue(self.pem, key, name, [], NOW))

    def crl(self, *revoked: bytes, end: timedelta = timedelta(days=1), forged: bool = False) -> bytes:
        """A revocation list, PEM, of yesterday; ``forged`` signs it with another key."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(NOW - timedelta(days=1))
            .next_update(NOW + end)
        )
        for one in revoked:
            serial = x509.load_pem_x509_certificate(one).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(
                entry.revocation_date(NOW - timedelta(days=1)).build()
            )
        key = ec.generate_private_key(ec.SECP256R1()) if forged else self._key
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
