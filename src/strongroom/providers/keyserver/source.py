"""Key servers as keys: who seals registers the DEK there, who opens asks for it.

The recipient in a sealed file has no key material: ``{"alg": "keyserver", "uri": "https://keys.example",
"kid": "resnet50@3"}``. Whoever made the file wrote it; it selects among servers that are known here,
and leads to no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    Malformed,
    NoKey,
    NoMatchingRecipient,
    ReleaseDenied,
    UntrustedAnswer,
    UsageError,
)
from strongroom.format.header import Header
from strongroom.providers.keyserver.profile import VARIABLE, Profile, find_profile
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName, check_version, parse_key_url

__all__ = ["ALG", "KeyOfHeader", "KeyServerKey", "key_server_key", "register", "wanted_keys"]

ALG: Final = "keyserver"
_MAX_META: Final = 1000
_MAX_ENTRIES: Final = 8
"""Each may cost an attestation and a request; a header that nobody has authenticated could hold thousands."""

_TOKEN: Final = "STRONGROOM_TOKEN"


def wanted_keys(header: Header, name: KeyName | None = None) -> Iterator[tuple[str | None, WantedKey]]:
    """Where the header says that keys are, and which: the entries of ``keyserver``, with their ``uri``.

    Args:
        name: the only key that is wanted; without a version it takes that of the entry.

    Raises:
        Malformed: the name of a key is none, or there are too many.
    """
    entries = [(index, one) for index, one in enumerate(header.recipients) if one["alg"] == ALG]
    if len(entries) > _MAX_ENTRIES:
        raise Malformed("recipients", f"has more than {_MAX_ENTRIES} of a key server")
    for index, entry in entries:
        try:
            said = KeyName.parse(entry.get("kid", ""))
        except UsageError:
            raise Malformed(f"recipients[{index}].kid", "is not the name of a key") from None
        if name is None or name == said or name == KeyName(said.name):
            yield entry.get("uri"), WantedKey(said, header.bundle)


def register(
    profile: Profile, key: KeyName, dek: SecretBytes, header: Header, token: str | None = None
) -> KeyName:
    """Give a DEK to the key server, under its name and the bundle that it is for; name and version.

    Args:
        token: of an operator; by default what the profile names.

    Raises:
        NotAuthorised: the token or certificate may not.
        AlreadyExists: there is this version already.
        ServerUnavailable, StrongroomError: it was not registered, or nobody knows.
    """
    from strongroom.providers.admin import AdminClient
    from strongroom.providers.keyserver.transport import Transport

    meta = {
        f"model_{name}": value
        for name in ("name", "version")
        if isinstance(value := header.meta.get(name), str) and len(value) <= _MAX_META
    }
    transport = Transport(profile)
    try:
        made = AdminClient(transport, profile, token).add_key(key, header.bundle, dek, meta)
    finally:
        transport.close()
    try:
        return KeyName(key.name, check_version(made.get("version")))
    except UsageError:
        raise UntrustedAnswer("The key server does not say which version it registered.") from None


def _ask(profile: Profile, wanted: WantedKey) -> SecretBytes:
    from strongroom.providers.keyserver.client import ReleaseClient, open_attester

    client = ReleaseClient(profile, open_attester(profile.attester))
    try:
        return client.release([wanted])[0].dek
    finally:
        client.close()


class KeyServerKey:
    """A key in a key server, ``https://keys.example/resnet50@3``: to seal for and to open with.

    Args:
        uri: of the server, which must be the one whose profile is here.
        key: its name there.
    """

    def __init__(self, uri: str, key: KeyName, environ: Mapping[str, str] = os.environ) -> None:
        self._uri = uri
        self._key = key
        self._environ = environ

    def wrap(self, dek: SecretBytes, header: Header) -> dict[str, Any]:
        profile = find_profile(self._uri, self._environ)
        made = register(profile, self._key, dek, header, self._environ.get(_TOKEN) or None)
        return {"alg": ALG, "uri": profile.url, "kid": str(made)}

    def unwrap(self, header: Header) -> SecretBytes:
        wanted = [one for _, one in wanted_keys(header, self._key)]
        if not wanted:
            raise NoMatchingRecipient(f"The model is not sealed for {self!r}.")
        if _in_cache(self._environ):
            from strongroom.providers.unix_socket import KeyCache

            return KeyCache(self._environ[VARIABLE]).first(wanted)
        profile = find_profile(self._uri, self._environ)
        return _ask(profile, wanted[0])

    def __repr__(self) -> str:
        return f"<KeyServerKey {self._uri}/{self._key}>"


def key_server_key(url: str, environ: Mapping[str, str] = os.environ) -> KeyServerKey:
    """The key that a URL names.

    Raises:
        UsageError: it is no such URL.
    """
    uri, key = parse_key_url(url)
    return KeyServerKey(uri, key, environ)


def _in_cache(environ: Mapping[str, str]) -> bool:
    return environ.get(VARIABLE, "").startswith("unix:")


class KeyOfHeader:
    """Where nobody named a key: the key server that the header names, if it is known here.

    Args:
        missing: raised for a model that is in no key server.
    """

    def __init__(self, missing: NoKey, environ: Mapping[str, str] = os.environ) -> None:
        self._missing = missing
        self._environ = environ

    def unwrap(self, header: Header) -> SecretBytes:
        found = list(wanted_keys(header))
        if not found:
            raise self._missing
        if _in_cache(self._environ):
            from strongroom.providers.unix_socket import KeyCache

            return KeyCache(self._environ[VARIABLE]).first([wanted for _, wanted in found])
        unknown: NoKey | None = None
        refused: ReleaseDenied | None = None
        for uri, wanted in found:
            try:
                return _ask(find_profile(uri or "that is not named", self._environ), wanted)
            except NoKey as error:
                unknown = unknown or error
            except ReleaseDenied as error:
                refused = refused or error
        raise refused or unknown or self._missing

    def __repr__(self) -> str:
        return "<KeyOfHeader>"
