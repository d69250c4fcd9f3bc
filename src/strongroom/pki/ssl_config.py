"""TensorFlow Serving's ``ssl.cfg``: the text form of its ``SSLConfig``, with the key in it."""

from __future__ import annotations

__all__ = ["ssl_config"]


def _quoted(pem: bytes) -> str:
    text = pem.decode("ascii").strip()
    return "'" + text.replace("\n", "\\n") + "'"


def ssl_config(server_key: bytes, server_certificate: bytes, custom_ca: bytes) -> bytes:
    """The content of a ``--ssl_config_file`` for mutual TLS; it holds the private key.

    Args:
        server_key: PEM.
        server_certificate: PEM, with those above it.
        custom_ca: PEM, of those who sign for clients.
    """
    return (
        f"server_key: {_quoted(server_key)}\n"
        f"server_cert: {_quoted(server_certificate)}\n"
        f"custom_ca: {_quoted(custom_ca)}\n"
        "client_verify: true\n"
    ).encode()
