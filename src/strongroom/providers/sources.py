"""From what a caller calls a key (a path, a URI, bytes, an object, a list) to identities and recipients.

``https:`` names a key in a key server, ``unix:`` the socket of a key cache. Schemes other than these,
``file:`` and ``env:`` are plugins: entry points of the group ``strongroom.key_sources``, named after
the scheme, each a callable that takes the URI and returns an object that is an Identity, a Recipient,
or both. They are imported when used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import InvalidKey, NoKey, UsageError, os_errors
from strongroom.format.limits import MAX_KEY_FILE
from strongroom.keys import HpkeIdentity, HpkeRecipient, Identity, Recipient, SymmetricKey

__all__ = [
    "NO_KEY_HINT",
    "KeySource",
    "identities",
    "parse_key",
    "read_recipients",
    "recipients",
    "refuse_literal",
]

KeySource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | SecretBytes
    | Identity
    | Recipient
    | Sequence["KeySource"]
)
"""A key: path, URI, content of a key file or 32 raw bytes, an Identity or Recipient, or a list of these."""

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):")
_LOOKS_LIKE_KEY: Final = re.compile(
    r"\s*([A-Za-z0-9+/_-]{43}=?|[0-9A-Fa-f]{64}|.*-secret:.*)\s*", re.DOTALL
)
_GROUP: Final = "strongroom.key_sources"
_NO_KEY: Final = "No key was given."
NO_KEY_HINT: Final = "Give key= (on the command line -k), or set STRONGROOM_KEY_FILE or STRONGROOM_KEY."


def parse_key(content: bytes) -> SymmetricKey | HpkeIdentity:
    """Parse the content of a key file: a symmetric key or an HPKE identity.

    Raises:
        InvalidKey: it is neither.
    """
    if b"-secret:" in content:
        try:
            return HpkeIdentity.parse(content.decode("ascii"))
        except UnicodeDecodeError:
            raise InvalidKey("The identity is not ASCII text.") from None
    if content.lstrip().startswith(b"hpke-"):
        raise InvalidKey(
            "This is a recipient, a public key; it can seal and not open.",
            hint="To open, give the identity file that it was made with.",
        )
    return SymmetricKey.parse(content)


def refuse_literal(text: str) -> None:
    """Refuse what looks like a key itself, without repeating it in a message.

    Raises:
        UsageError: it does.
    """
    if _LOOKS_LIKE_KEY.fullmatch(text):
        raise UsageError(
            "A key was given where the path of a key file is expected.",
            hint="Put it in a file (0600) and give its path, or in the variable STRONGROOM_KEY.",
        )


def _read_key_file(path: str | os.PathLike[str]) -> bytes:
    if not os.path.exists(path):
        refuse_literal(os.fspath(path))
    # Unbuffered, and into memory that can be zeroed: what is read may be a key.
    buffer, size = bytearray(MAX_KEY_FILE + 1), 0
    with os_errors(path), open(path, "rb", buffering=0) as file:
        while size < len(buffer) and (count := file.readinto(memoryview(buffer)[size:])):
            size += count
    content = bytes(memoryview(buffer)[:size])
    buffer[:] = bytes(len(buffer))
    if size > MAX_KEY_FILE:
        raise InvalidKey(f"{os.fspath(path)} is too large to be a key file.")
    if not content or content.isspace():
        raise InvalidKey(f"{os.fspath(path)} is empty.", hint="Make a key: strongroom keygen -o FILE")
    return content


def _key_from_file(path: str | os.PathLike[str]) -> SymmetricKey | HpkeIdentity:
    content = _read_key_file(path)
    try:
        return parse_key(content)
    except InvalidKey as error:
        raise InvalidKey(f"{os.fspath(path)}: {error.message}", hint=error.hint) from None
    finally:
        wipe_bytes(content)


def _from_environment(environ: Mapping[str, str], name: str) -> SymmetricKey | HpkeIdentity:
    value = environ.get(name, "")
    if not value:
        refuse_literal(name)
        raise NoKey(f"The environment variable {name} is empty or not set.")
    try:
        return parse_key(value.encode())
    except InvalidKey as error:
        raise InvalidKey(f"{name}: {error.message}", hint=error.hint) from None


def _plugin(scheme: str, uri: str) -> Identity | Recipient:
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=_GROUP, name=scheme):
        source: Identity | Recipient = entry_point.load()(uri)
        return source
    raise UsageError(
        f"There is no key source for {scheme}: URIs.",
        hint="Give a path, file:, env:, https:, unix:, an HPKE recipient, or install the plugin for it.",
    )


def _from_text(text: str, environ: Mapping[str, str]) -> Identity | Recipient:
    match = _SCHEME.match(text)
    if match is None or os.path.exists(text):
        return _key_from_file(text)
    scheme, rest = match.group(1), text[match.end() :]
    if scheme == "file":
        return _key_from_file(rest.removeprefix("//"))
    if scheme == "env":
        return _from_environment(environ, rest)
    if scheme == "https":
        from strongroom.providers.keyserver.source import key_server_key

        return key_server_key(text, environ)
    if scheme == "unix":
        from strongroom.providers.unix_socket import KeyCache

        return KeyCache(text)
    if scheme.endswith("-secret"):
        return _key_from_file(text)  # refuses, without repeating it
    if scheme.startswith("hpke-"):
        return HpkeRecipient.parse(text)
    return _plugin(scheme, text)


def _default(environ: Mapping[str, str]) -> SymmetricKey | HpkeIdentity | None:
    """The key that the environment says; None where it says none."""
    value, path = environ.get("STRONGROOM_KEY"), environ.get("STRONGROOM_KEY_FILE")
    if value and path:
        raise UsageError(
            "STRONGROOM_KEY and STRONGROOM_KEY_FILE are both set.", hint="Unset one of them."
        )
    if value:
        return _from_environment(environ, "STRONGROOM_KEY")
    return _key_from_file(path) if path else None


def _resolve(key: KeySource, environ: Mapping[str, str]) -> Iterable[Identity | Recipient]:
    if isinstance(key, str):
        yield _from_text(key, environ)
    elif isinstance(key, os.PathLike):
        yield _key_from_file(key)
    elif isinstance(key, SecretBytes):
        yield SymmetricKey(SecretBytes(key.buffer))
    elif isinstance(key, bytes | bytearray):
        yield SymmetricKey(SecretBytes(key)) if len(key) == 32 else parse_key(bytes(key))
    elif isinstance(key, Identity | Recipient):
        yield key
    elif isinstance(key, Sequence):
        for one in key:
            if one is None:
                raise UsageError("A list of keys holds None.")
            yield from _resolve(cast("KeySource", one), environ)
    else:
        raise UsageError(
            f"A key cannot be a {type(key).__name__}.",
            hint="Give a path, a URI, bytes, an Identity or Recipient, or a list of these.",
        )


def identities(
    key: KeySource | None, environ: Mapping[str, str] = os.environ, *, hint: str = NO_KEY_HINT
) -> list[Identity]:
    """Those who can open; None means what the environment says, and else the key server that the
    header of the model names.

    Args:
        hint: what to advise where no key was given, and the model names no key server.

    Raises:
        NoKey, InvalidKey, UsageError, NotFound: there are none, or one cannot be used.
    """
    given: KeySource | None = _default(environ) if key is None else key
    if given is None:
        from strongroom.providers.keyserver.source import KeyOfHeader

        return [KeyOfHeader(NoKey(_NO_KEY, hint=hint), environ)]
    found = []
    for one in _resolve(given, environ):
        if not isinstance(one, Identity):
            raise InvalidKey(
                f"{one!r} is a recipient: it can seal and not open.",
                hint="To open, give the identity file that it was made with.",
            )
        found.append(one)
    if not found:
        raise NoKey("The list of keys is empty.")
    return found


def recipients(
    key: KeySource | None,
    public: KeySource | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Recipient]:
    """Those to seal for: the holders of ``key`` and of ``public``; the environment if neither is given.

    Raises:
        NoKey, InvalidKey, UsageError, NotFound: there are none, or one cannot be used.
    """
    given: KeySource | None = [one for one in (key, public) if one is not None] or _default(environ)
    if given is None:
        raise NoKey(_NO_KEY, hint=NO_KEY_HINT)
    found = []
    for one in _resolve(given, environ):
        if not isinstance(one, Recipient):
            raise InvalidKey(f"{one!r} can open and not seal.")
        found.append(one)
    if not found:
        raise NoKey("The list of keys is empty.")
    return found


def read_recipients(path: str | os.PathLike[str]) -> list[HpkeRecipient]:
    """A file of recipients, one a line; empty lines and lines that start with # are skipped.

    Raises:
        InvalidKey: a line is not a recipient, or there is none.
    """
    lines = _read_key_file(path).decode("utf-8", "replace").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            found.append(HpkeRecipient.parse(line))
        except InvalidKey as error:
            raise InvalidKey(f"{os.fspath(path)}, line {number}: {error.message}") from None
    if not found:
        raise InvalidKey(f"{os.fspath(path)} has no recipients.")
    return found
