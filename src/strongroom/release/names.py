"""Names of keys: ``resnet50@3``, ``team/llama-70b``, and the URLs that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from strongroom.errors import UsageError

__all__ = ["KeyName", "check_name", "parse_key_url"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_MAX_NAME: Final = 200
_MAX_VERSION: Final = 10**9


def check_name(name: object) -> str:
    """Return ``name`` if it can name a key or a policy.

    Raises:
        UsageError: anything else.
    """
    if not isinstance(name, str) or len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise UsageError(
            "The name of a key is not usable.",
            hint=f"Up to {_MAX_NAME} letters, digits, '.', '_', '-', and '/' between them.",
        )
    return name


def check_version(version: object) -> int:
    """Return ``version`` if it can be the version of a key.

    Raises:
        UsageError: anything else.
    """
    if type(version) is not int or not 1 <= version <= _MAX_VERSION:
        raise UsageError("The version of a key is a number from 1 on.")
    return version


@dataclass(frozen=True, slots=True, order=True)
class KeyName:
    """A key by name and version; ``version`` None means the current one, or the next when one is made."""

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> KeyName:
        """Parse ``name`` or ``name@version``.

        Raises:
            UsageError: it is neither.
        """
        name, at, version = text.partition("@")
        if not at:
            return cls(check_name(name))
        if not version.isascii() or not version.isdigit() or version.startswith("0"):
            raise UsageError("The version of a key is a number from 1 on.", hint="Write name@3.")
        return cls(check_name(name), check_version(int(version)))

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse_key_url(url: str) -> tuple[str, KeyName]:
    """``https://keys.example:8443/resnet50@3`` → the server's URL and the name of the key.

    Raises:
        UsageError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "This is not the URL of a key in a key server.",
            hint="Write https://keys.example/name@version.",
        )
    if "@" in parts.netloc:
        raise UsageError("The URL of a key server has no user and no password.")
    return f"https://{parts.netloc}", KeyName.parse(parts.path.strip("/"))
