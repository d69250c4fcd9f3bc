#!/usr/bin/env -S python3 -I -S
"""Whether a server of this container is well, for its HEALTHCHECK: exit code 0, or 1.

    probe http://127.0.0.1:8502/healthz
    probe https://127.0.0.1:8443/readyz
    probe unix:///run/strongroom/keys.sock

The first two must answer 200; of the third, a key cache, any status will do. Of Python no more than sockets is
loaded: 0.03 s of processor time, or 0.06 with TLS, where ``strongroom plumbing probe`` takes 0.5, every time.
Certificates are not verified, as by Kubernetes: nothing is sent or read that would have to be believed.
"""

import socket
import sys

SECONDS = 5
MOST = 1 << 20


def answers_200(connection: socket.socket, host: str, path: str) -> bool:
    """Whether a GET is answered with 200."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    with connection.makefile("rb") as file:
        return file.readline(200).split(b" ")[1:2] == [b"200"]


def cache_answers(path: str) -> bool:
    """Whether a key cache says how it is: a size of 4 bytes, and so much JSON, there and back."""
    request = b'{"v":1,"op":"status"}'
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(len(request).to_bytes(4, "big") + request)
        with connection.makefile("rb") as file:
            size = int.from_bytes(file.read(4), "big")
            said = file.read(size) if 2 <= size <= MOST else b""
    return len(said) == size and said[:1] == b"{" and b'"error":' not in said


def well(url: str) -> bool:
    """Whether what is there is well."""
    kind, _, rest = url.partition("://")
    if kind == "unix":
        return cache_answers(rest)
    host, _, path = rest.partition("/")
    name, _, port = host.rpartition(":")
    with socket.create_connection((name.strip("[]"), int(port)), SECONDS) as connection:
        if kind == "http":
            return answers_200(connection, host, "/" + path)
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(connection, server_hostname=name) as wrapped:
            return answers_200(wrapped, host, "/" + path)


if __name__ == "__main__":
    try:
        found = len(sys.argv) == 2 and sys.argv[1].startswith(("http://", "https://", "unix://"))
        sys.exit(0 if found and well(sys.argv[1]) else 1)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
