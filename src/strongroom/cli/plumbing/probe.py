"""``strongroom plumbing probe``: what supervisors run that can start a program and speak no HTTPS."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from strongroom.cli.verb import verb
from strongroom.errors import InvalidKey, ServerUnavailable, UsageError, os_errors

__all__ = ["register"]

_EXAMPLES: Final = """
strongroom plumbing probe http://127.0.0.1:8501/readyz
strongroom plumbing probe https://127.0.0.1:8501/readyz --client-cert probe.pem --client-key probe.key
"""


def _context(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # As the probes of Kubernetes: the certificate names another host than this one, and nothing that
    # would have to be believed or kept secret is sent or read.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        with os_errors(certificate):
            try:
                context.load_cert_chain(certificate, key, password=lambda: "")
            except ssl.SSLError:
                raise InvalidKey(f"{certificate} is no certificate with a key that fits.") from None
    return context


def probe(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", show_default=False, help="Of /healthz or /readyz, say."),
    ],
    client_cert: Annotated[
        Path | None,
        typer.Option(
            "--client-cert", metavar="FILE", show_default=False, help="To show, where one is asked for."
        ),
    ] = None,
    client_key: Annotated[
        Path | None,
        typer.Option("--client-key", metavar="FILE", show_default=False, help="Its key."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="For the answer.")
    ] = 5.0,
) -> None:
    """Ask a server of this machine whether it is well: exit code 0 where it answers 200, 7 otherwise.

    For supervisors such as Docker's HEALTHCHECK. The certificate of the server is not verified.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("A probe takes a URL.", hint="Write http://127.0.0.1:8501/readyz.")
    if client_key is not None and client_cert is None:
        raise UsageError("A key goes with its certificate.", hint="Give --client-cert.")
    connection = (
        http.client.HTTPConnection(host, port, timeout=timeout)
        if parts.scheme == "http"
        else http.client.HTTPSConnection(
            host, port, timeout=timeout, context=_context(client_cert, client_key)
        )
    )
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        raise ServerUnavailable("Nobody answers.") from None
    finally:
        connection.close()
    if status != 200:
        raise ServerUnavailable(f"It answers {status}.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    verb(app, "probe", probe, _EXAMPLES)
