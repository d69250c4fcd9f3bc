"""The TLS contexts of the server, made anew from their files: certificate, client CAs, revocation lists.

OpenSSL can add to what a context believes and take nothing away, so a change makes a new context, all of
it or none; connections are made from the newest.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from strongroom.attest.certificate_parsing import quiet
from strongroom.errors import InvalidKey, os_errors
from strongroom.keyserver.settings import Tls
from strongroom.web.contexts import NewestContext
from strongroom.web.logs import log
from strongroom.web.protocol import CONNECTION

__all__ = ["CLIENT_CERTIFICATE", "Certificates", "ClientCertificate", "client_certificate"]

CLIENT_CERTIFICATE: Final = CONNECTION
"""In the scope of a request: the client's :class:`.ClientCertificate`; None where it sent none."""

_MAX_FILE: Final = 16 << 20
"""Bytes of certificates or lists: a list has some 40 for each certificate that it revokes."""

_BLOCK: Final = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----\s*$", re.MULTILINE)
_END_OF_CRL: Final = b"-----END X509 CRL-----"


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client's certificate as the handshake has verified it.

    Attributes:
        leaf: DER.
        intermediates: PEM, the issuer of ``leaf`` first; from the client or from the file of CAs.
        root: PEM, from the file of CAs.
    """

    leaf: bytes
    intermediates: bytes
    root: bytes


def client_certificate(tls: Any) -> ClientCertificate | None:
    """What the other side of a connection has shown; None where it has shown nothing.

    Args:
        tls: the ``ssl.SSLObject`` of a connection whose handshake is over; None for one without TLS.
    """
    leaf = None if tls is None else tls.getpeercert(binary_form=True)
    if leaf is None:
        return None
    if hasattr(tls, "get_verified_chain"):  # of Python 3.13
        chain = [ssl.DER_cert_to_PEM_cert(one) for one in tls.get_verified_chain()]
    else:
        chain = [one.public_bytes() for one in tls._sslobj.get_verified_chain()]
    return ClientCertificate(leaf, "".join(chain[1:-1]).encode(), chain[-1].encode())


class Certificates:
    """The TLS context, and the files that it is made of.

    Args:
        tls: the section of the configuration.
        clock: now, with a time zone.

    Raises:
        InvalidKey, NotFound, UsageError: the files cannot be used.

    Attributes:
        context: for listeners.
        clients: goes up when other client certificates than before are accepted: connections of those
            before have to end.
    """

    def __init__(self, tls: Tls, clock: Callable[[], datetime]) -> None:
        self._tls = tls
        self._clock = clock
        self._seen: tuple[Any, ...] = ()
        self._believed = b""
        self._lists_end: datetime | None = None
        self.clients = 0
        self.context = NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self.reload()

    def changed(self) -> bool:
        """The files are not those that were read last, or a revocation list has ended since then.

        Raises:
            NotFound, UsageError: one cannot be looked at.
        """
        return self._ended() or self._stamp() != self._seen

    def reload(self) -> None:
        """Read all files again. Where one cannot be used, everything stays as it was.

        Raises:
            InvalidKey, NotFound, UsageError: it cannot; says which.
        """
        if self._ended():
            self._lists_end, self._believed = None, b""
            self.clients += 1
        self._seen = self._stamp()
        context = _context(self._tls)
        contents = [_content(path) for path in self._client_files()]
        lists = _lists_in(self._tls.client_crl, contents[1]) if self._tls.client_crl else []
        self.context.current = context
        believed = hashlib.sha256(b"\0".join(contents)).digest()
        if believed != self._believed:
            self._believed = believed
            self.clients += 1
            self._say(contents[:1], lists)
        now = self._clock()
        ends = [end for one in lists if (end := one.next_update_utc) and end >= now]
        self._lists_end = min(ends, default=None)

    def _ended(self) -> bool:
        return self._lists_end is not None and self._lists_end < self._clock()

    def _client_files(self) -> list[Path]:
        return [path for path in (self._tls.client_ca, self._tls.client_crl) if path is not None]

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in (self._tls.certificate, self._tls.key, *self._client_files()):
            with os_errors(path):
                found.append(os.stat(path))
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)

    def _say(
        self, authorities: Sequence[bytes], lists: Sequence[x509.CertificateRevocationList]
    ) -> None:
        """Log whose clients are refused, all of them: a list is missing or not valid now."""
        if self._tls.client_crl is None:
            return
        now = self._clock()
        with quiet():
            ends: dict[str, list[datetime]] = {one: [] for one in _names_in(authorities)}
            for one in lists:
                theirs = ends.setdefault(one.issuer.rfc4514_string(), [])
                if one.last_update_utc <= now and one.next_update_utc is not None:
                    theirs.append(one.next_update_utc)
        for name, found in ends.items():
            last = max(found, default=None)
            if last is None or last < now:
                why = f"its list ended {last:%Y-%m-%d %H:%M} UTC" if last else "it has no list"
                log.error("all client certificates of this CA are refused", ca=name, why=why)


def _names_in(authorities: Sequence[bytes]) -> list[str]:
    try:
        return [
            one.subject.rfc4514_string()
            for content in authorities
            for one in x509.load_pem_x509_certificates(content)
        ]
    except ValueError:  # what OpenSSL can read and this library cannot
        return []


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A resumed session would bring a client certificate that nobody has verified again.
    context.num_tickets = 0
    with os_errors(tls.certificate):
        try:
            context.load_cert_chain(tls.certificate, tls.key, password="")
        except ssl.SSLError:
            raise InvalidKey(
                f"{tls.certificate} and {tls.key} are not a certificate and its key."
            ) from None
    for path, what in ((tls.client_ca, "certificates"), (tls.client_crl, "revocation lists")):
        if path is not None:
            with os_errors(path):
                try:
                    context.load_verify_locations(path)
                except ssl.SSLError:
                    raise InvalidKey(f"{path} holds no {what} in PEM.") from None
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
    if tls.client_crl is not None:
        # Of every CA above a certificate: one that is missing, or has ended, refuses.
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    return context


def _content(path: Path) -> bytes:
    with os_errors(path), open(path, "rb") as file:
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise InvalidKey(f"{path} has more than {_MAX_FILE >> 20} MiB.")
    return content


def _lists_in(path: Path, content: bytes) -> list[x509.CertificateRevocationList]:
    """The revocation lists of a file that has nothing else: OpenSSL would believe a CA in it."""
    if set(_BLOCK.findall(content)) != {b"X509 CRL"}:
        raise InvalidKey(f"{path} does not hold revocation lists in PEM, and those alone.")
    parts = content.split(_END_OF_CRL)[:-1]
    try:
        with quiet():
            lists = [x509.load_pem_x509_crl(part + _END_OF_CRL + b"\n") for part in parts]
    except ValueError:
        raise InvalidKey(f"{path} holds a revocation list that cannot be read.") from None
    if any(one.next_update_utc is None for one in lists):
        raise InvalidKey(f"{path} holds a revocation list that does not say until when it holds.")
    return lists
