"""How a key cache is set up: a TOML file, and the options of the command line over it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from strongroom.errors import UsageError, os_errors
from strongroom.keycache.rules import Allow, KeyRule, Rules
from strongroom.release.names import check_name

__all__ = ["Config", "group_id", "read_config", "user_id"]

_MAX_CONFIG: Final = 1 << 20
_MEMBERS: Final = {"server", "socket", "attester", "group", "allow", "keys"}
_ALLOW: Final = {"users", "groups", "programs"}


@dataclass(frozen=True, slots=True)
class Config:
    """How a key cache is set up.

    Attributes:
        server: path of the profile, or URL, of the key server; None takes the profile of this machine.
        socket: absolute path.
        attester: what collects evidence; None takes that of the profile.
        gid: the group that may connect; None is that of the process.
        allow: who may have any key for which ``keys`` has no rule, besides root and the cache's own user.
        keys: rules for names.
    """

    server: str | None = None
    socket: str | None = None
    attester: str | None = None
    gid: int | None = None
    allow: Allow = field(default_factory=Allow)
    keys: Sequence[KeyRule] = ()

    @property
    def rules(self) -> Rules:
        """Who may have which key."""
        own = replace(self.allow, uids=self.allow.uids | {0, os.geteuid()})
        return Rules(own, self.keys)


def user_id(user: int | str) -> int:
    """A user's number, of a number or a name.

    Raises:
        UsageError: there is no such user.
    """
    return _number(user, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(group: int | str) -> int:
    """A group's number, of a number or a name.

    Raises:
        UsageError: there is no such group.
    """
    return _number(group, "group", lambda name: grp.getgrnam(name).gr_gid)


def _number(value: object, what: str, look_up: Callable[[str], int]) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is int and 0 <= value < 1 << 32:
        return value
    try:
        if isinstance(value, str):
            return look_up(value)
    except (KeyError, ValueError):
        pass
    raise UsageError(f"There is no {what} {value!r}.")


def _allow(members: object, where: str) -> Allow:
    if not isinstance(members, dict) or not set(members) <= _ALLOW:
        raise UsageError(f"{where} has the members users, groups and programs, and no others.")
    for name, value in members.items():
        if not isinstance(value, list) or not value:
            raise UsageError(f"{where}.{name} is no list, or an empty one.")
    programs = members.get("programs", [])
    if not all(isinstance(one, str) and os.path.isabs(one) for one in programs):
        raise UsageError(f"{where}.programs are absolute paths.")
    return Allow(
        frozenset(map(user_id, members.get("users", []))),
        frozenset(map(group_id, members.get("groups", []))),
        frozenset(map(os.path.realpath, programs)),
    )


def _rule(name: str, members: object) -> KeyRule:
    check_name(name.removesuffix("/*"))
    allow = _allow(members, f"keys.{name}")
    if not allow.uids and not allow.gids:
        raise UsageError(f"keys.{name} names neither users nor groups: nobody could have the key.")
    return KeyRule(name, allow)


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise UsageError(f"{name} is no text.")
    return value


def read_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in a file; a relative path of a profile is relative to it.

    Raises:
        UsageError: it is none, or everybody can write to it.
        NotFound: nothing is there.
    """
    place = os.path.abspath(os.fspath(path))
    with os_errors(place), open(place, "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(_MAX_CONFIG + 1)
    if status.st_mode & stat.S_IWOTH:
        raise UsageError(f"{place} can be written by everybody.", hint=f"chmod o-w {place}")
    if len(content) > _MAX_CONFIG:
        raise UsageError(f"{place} is too large.")
    try:
        return _parse(tomllib.loads(content.decode()), os.path.dirname(place))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place} is not TOML: {error}.") from None
    except UsageError as error:
        error.within(place)
        raise


def _parse(members: Mapping[str, Any], folder: str) -> Config:
    if unknown := sorted(set(members) - _MEMBERS):
        raise UsageError(f"There are unknown members: {', '.join(unknown)}.")
    server, group, keys = _text(members, "server"), members.get("group"), members.get("keys", {})
    if server is not None and not server.startswith("https:"):
        server = os.path.join(folder, server)
    if not isinstance(keys, dict):
        raise UsageError("keys is no table of names.")
    return Config(
        server=server,
        socket=_text(members, "socket"),
        attester=_text(members, "attester"),
        gid=None if group is None else group_id(group),
        allow=_allow(members["allow"], "allow") if "allow" in members else Allow(),
        keys=[_rule(name, rule) for name, rule in keys.items()],
    )
