"""The profile of a key server: where it is, and the keys by which it is known.

Its owner hands it out as a JSON file; nothing in it is secret. A client goes to no server whose
profile it does not have. Looked for in this order: the file that ``STRONGROOM_KEYSERVER`` names,
``~/.config/strongroom/keyserver.json``, ``/etc/strongroom/keyserver.json``. Where the variable is a
URL instead, the server of the profile is reached there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from strongroom.crypto.hpke import KEMS
from strongroom.errors import NoKey, NotFound, UsageError, os_errors
from strongroom.format.encoding import parse_json, unb64url_text

__all__ = ["VARIABLE", "Profile", "find_profile", "read_profile", "server_url"]

VARIABLE: Final = "STRONGROOM_KEYSERVER"
_MAX_PROFILE: Final = 256 << 10
"""Bytes: a profile has two, and more where the CA is a bundle of a company's."""

_NEEDED: Final = {"url", "server_id", "signing_key", "registration_key"}
_OPTIONAL: Final = {"ca", "attester", "client_certificate", "client_key", "token_file"}


def server_url(text: object) -> str:
    """``https://keys.example:8443``, checked and in one spelling: lower case, without the port 443.

    Raises:
        UsageError: it is not the URL of a server.
    """
    parts = urlsplit(text) if isinstance(text, str) else urlsplit("")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (
        parts.scheme != "https"
        or not host
        or not host.isascii()
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise UsageError(
            "This is not the URL of a key server.", hint="Write https://keys.example:8443."
        )
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}" if port in (None, 443) else f"https://{host}:{port}"


def _wrong(problem: str) -> UsageError:
    return UsageError(
        f"The profile of the key server {problem}.", hint="Fetch it from the owner of the server again."
    )


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise _wrong(f"has a {name} that is no text")
    return value


def _bytes(value: object, name: str, size: int) -> bytes:
    try:
        data = unb64url_text(value)
    except ValueError as error:
        raise _wrong(f"has a {name} that {error}") from None
    if len(data) != size:
        raise _wrong(f"has a {name} of {len(data)} bytes, not {size}")
    return data


@dataclass(frozen=True, slots=True)
class Profile:
    """One key server, as its owner described it.

    Attributes:
        url: where it is, as :func:`server_url` writes it.
        server_id: its name in what is signed.
        signing_key: Ed25519, 32 bytes: signs its answers.
        registration_suite, registration_key: HPKE; new keys are sealed to it.
        ca: certificates, PEM, that vouch for its TLS certificate; None takes those of the system.
        attester: how evidence is collected here, such as ``tsm`` or ``tpm``; None collects none.
        client_certificate, client_key: paths, PEM, for mTLS.
        token_file: path of a token.
        chosen: the environment said to ask this server, whatever a sealed file names.
        reached_at: URL at which it is reached instead of ``url``.
    """

    url: str
    server_id: str
    signing_key: bytes
    registration_suite: str
    registration_key: bytes
    ca: str | None = None
    attester: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    token_file: str | None = None
    chosen: bool = False
    reached_at: str | None = None

    @classmethod
    def parse(cls, members: Mapping[str, Any], folder: str = "") -> Profile:
        """Check the members of a profile; relative paths in it are relative to ``folder``.

        Raises:
            UsageError: a member is missing, unknown or wrong.
        """
        if missing := sorted(_NEEDED - set(members)):
            raise _wrong(f"lacks {', '.join(missing)}")
        if unknown := sorted(set(members) - _NEEDED - _OPTIONAL):
            raise _wrong(f"has unknown members: {', '.join(unknown)}")
        server_id = _text(members, "server_id") or ""
        if not 0 < len(server_id) <= 200:
            raise _wrong("has a server_id that is no short text")
        registration = members["registration_key"]
        if not isinstance(registration, dict) or set(registration) != {"suite", "public_key"}:
            raise _wrong("has a registration_key that is not suite and public_key")
        suite = registration["suite"]
        kem = KEMS.get(suite) if isinstance(suite, str) else None
        if kem is None:
            raise _wrong("has a registration_key of a suite that is not known")
        public = _bytes(registration["public_key"], "registration_key", kem.public_size)
        paths = {
            name: os.path.join(folder, path) if (path := _text(members, name)) else None
            for name in ("client_certificate", "client_key", "token_file")
        }
        if paths["client_key"] and not paths["client_certificate"]:
            raise _wrong("has a client_key without a client_certificate")
        return cls(
            url=server_url(members["url"]),
            server_id=server_id,
            signing_key=_bytes(members["signing_key"], "signing_key", 32),
            registration_suite=kem.alg,
            registration_key=public,
            ca=_text(members, "ca"),
            attester=_text(members, "attester"),
            client_certificate=paths["client_certificate"],
            client_key=paths["client_key"],
            token_file=paths["token_file"],
        )

    @property
    def address(self) -> str:
        """The URL to connect to."""
        return self.reached_at or self.url

    def answers_for(self, uri: str) -> bool:
        """Whether what a sealed file or a caller names is this server."""
        if self.chosen or uri == self.server_id:
            return True
        try:
            return server_url(uri) == self.url
        except UsageError:
            return False


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """The profile in a file.

    Raises:
        UsageError: it is none, or everybody can write to it.
        NotFound: nothing is there.
    """
    name = os.fspath(path)
    with os_errors(name), open(name, "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(_MAX_PROFILE + 1)
    # Who can change it decides which server gets to see what, and whose keys are used.
    if status.st_mode & stat.S_IWOTH:
        raise UsageError(f"{name} can be written by everybody.", hint=f"chmod o-w {name}")
    if len(content) > _MAX_PROFILE:
        raise UsageError(f"{name} is too large to be the profile of a key server.")
    try:
        members = parse_json(content)
    except ValueError as error:
        raise UsageError(f"{name} {error}.") from None
    try:
        return Profile.parse(members, os.path.dirname(os.path.abspath(name)))
    except UsageError as error:
        error.within(name)
        raise


def _default_places(environ: Mapping[str, str]) -> list[str]:
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "~", ".config")
    own = os.path.join(os.path.expanduser(home), "strongroom", "keyserver.json")
    return [own, "/etc/strongroom/keyserver.json"]


def _from_default_place(environ: Mapping[str, str], uri: str | None) -> Profile:
    for place in _default_places(environ):
        try:
            return read_profile(place)
        except NotFound:
            continue
    raise NoKey(
        "There is no profile of a key server here."
        if uri is None
        else "The key is in a key server, and there is no profile of one here.",
        hint="Put the profile that the owner of the server gave you in "
        f"~/.config/strongroom/keyserver.json, or set {VARIABLE} to its path.",
    )


def find_profile(uri: str | None = None, environ: Mapping[str, str] = os.environ) -> Profile:
    """The profile of the server that is to be asked.

    Args:
        uri: URL or id of the server that a sealed file or a caller names. Not trusted: it selects
            among servers that are known here, of which there is one.

    Raises:
        NoKey: there is no profile, or it is of another server.
        UsageError, NotFound: the profile cannot be used.
    """
    place = environ.get(VARIABLE)
    if not place:
        profile = _from_default_place(environ, uri)
    elif place.startswith("https:"):
        profile = replace(_from_default_place(environ, uri), reached_at=server_url(place), chosen=True)
    elif place.startswith("unix:"):
        raise UsageError(
            f"{VARIABLE} names a key cache, which opens models and does nothing else.",
            hint="To seal or to administer, set it to the profile of the key server.",
        )
    else:
        profile = replace(read_profile(place), chosen=True)
    if uri is not None and not profile.answers_for(uri):
        raise NoKey(
            f"The key is in the key server {uri}, of which there is no profile here.",
            hint=f"The profile here is of {profile.url}. Set {VARIABLE} to the path of the other one; "
            "take it from the owner of that server, not from the model.",
        )
    return profile
