"""The server's CA and certificate as files: made with the server, renewed while it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from strongroom.errors import os_errors
from strongroom.keyserver.opening import now
from strongroom.keyserver.settings import Config
from strongroom.pki.certificates import end_of, hosts_of, issue, new_ca

__all__ = ["LOCAL", "make_certificates", "renew_certificate", "write_new"]

LOCAL: Final = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, which every certificate has: for health checks, and for trying it out."""


def write_new(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a new file, readable by its owner alone unless ``mode`` says otherwise, durably.

    Raises:
        AlreadyExists: there is one.
    """
    data = content.encode() if isinstance(content, str) else content
    with os_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def make_certificates(place: Path, server_id: str, host: str) -> None:
    """A new directory with a CA and a certificate for ``host``.

    Raises:
        AlreadyExists: it is there.
    """
    with os_errors(place):
        place.mkdir(mode=0o700)
    ca, ca_key = new_ca(f"strongroom {server_id}", now())
    certificate, key = issue(ca, ca_key, host, [host, *LOCAL], now())
    write_new(place / "ca.pem", ca, 0o644)
    write_new(place / "ca.key", ca_key)
    write_new(place / "server.pem", certificate, 0o644)
    write_new(place / "server.key", key)


def renew_certificate(config: Config, hosts: Sequence[str]) -> datetime:
    """A new certificate and key of the server's own CA, put in place of the old ones.

    A running server takes them by itself. First the key is replaced, then the certificate; a server
    that looks in between keeps the pair that it has.

    Args:
        config: of the server.
        hosts: names and addresses; none takes those of the old certificate.

    Returns:
        When it ends.

    Raises:
        NotFound: the CA is not where ``init`` put it, beside the certificate.
        InvalidKey: the files are not what they should be.
    """
    place = config.tls.certificate.parent
    with os_errors(place):
        ca, ca_key = (place / "ca.pem").read_bytes(), (place / "ca.key").read_bytes()
        old = config.tls.certificate.read_bytes()
    names = list(hosts) or hosts_of(old)
    certificate, key = issue(ca, ca_key, names[0], [*names, *LOCAL], now())
    for path, content, mode in (
        (config.tls.key, key, 0o600),
        (config.tls.certificate, certificate, 0o644),
    ):
        beside = path.with_name(path.name + ".new")
        with os_errors(path):
            beside.unlink(missing_ok=True)
            write_new(beside, content, mode)
            os.replace(beside, path)
    return end_of(certificate)
