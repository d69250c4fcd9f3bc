"""What a location is: a local path, or a URL for fsspec; and how a URL is taken apart."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from strongroom.errors import UsageError

__all__ = ["base_name", "is_http", "is_url", "join", "local", "public", "scheme"]

_URL: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*(?:::[a-zA-Z0-9+.-]+)*)://")
_LOCAL: Final = frozenset({"file", "local"})


def scheme(location: str) -> str:
    """``s3`` of ``s3://bucket/key``; empty for a path."""
    match = _URL.match(location)
    return match.group(1).lower() if match else ""


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a location is for fsspec and not a local path (``file://`` is one)."""
    return isinstance(location, str) and scheme(location) not in {"", *_LOCAL}


def is_http(url: str) -> bool:
    """Whether it is plain HTTP, where nothing can be listed or written."""
    return scheme(url) in {"http", "https"}


def local(location: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """``file:///a%20b`` as the path that it means (RFC 8089); anything else as it is.

    Raises:
        UsageError: a ``file://`` URL of another machine.
    """
    if not isinstance(location, str) or scheme(location) not in _LOCAL:
        return location
    host, slash, path = location.split("://", 1)[1].partition("/")
    if host not in {"", "localhost"}:
        raise UsageError(
            f"{location} names a file of another machine.", hint="Local files are file:///path."
        )
    return unquote(slash + path)


def public(url: str) -> str:
    """The URL for messages: without user, password, query and fragment, which may be secrets."""
    start, separator, rest = url.rpartition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{start}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def join(url: str, path: str) -> str:
    """The URL of a file below an HTTP URL; the query, which may be a token for all of it, stays."""
    stem, mark, query = url.partition("?")
    return f"{stem.rstrip('/')}/{quote(path)}{mark}{query}"


def base_name(url: str) -> str:
    """The name of the file that a URL names."""
    if is_http(url):
        return unquote(urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1])
    return url.rstrip("/").rsplit("/", 1)[-1]
