"""Who on this machine may have which key: rules on what the kernel says of a peer."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from strongroom.errors import NotAuthorised

__all__ = ["Allow", "KeyRule", "Peer", "Rules", "peer_of"]

_PEERCRED: Final = struct.Struct("3i")
_PEERGROUPS: Final = 59
"""SO_PEERGROUPS of Linux 4.13, which Python has no name for."""

_MAX_GROUPS: Final = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, by the kernel's word at the time of connecting.

    Attributes:
        pid, uid, gid: effective, of the process that called ``connect``.
        gids: its supplementary groups.
    """

    pid: int
    uid: int
    gid: int
    gids: frozenset[int] = frozenset()

    @property
    def exe(self) -> str | None:
        """The program that runs under the pid now; None where it cannot be seen, or was replaced."""
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/{self.pid}/exe")
            return None if path.endswith(" (deleted)") else path
        return None


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, gid = _PEERCRED.unpack(raw)
    groups = b""
    with contextlib.suppress(OSError):  # More groups than fit, or an older kernel: none count.
        groups = connection.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, _MAX_GROUPS * 4)
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"{len(groups) // 4}I", groups)))


@dataclass(frozen=True, slots=True)
class Allow:
    """Peers that may: by user or group; and of these, where programs are named, only by them.

    A rule on programs keeps mistakes out, not an attacker who runs as an allowed user: he can make an
    allowed program do his work.

    Attributes:
        uids, gids: numbers; one that fits is enough.
        exes: absolute paths of programs.
    """

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    exes: frozenset[str] = frozenset()

    def permits(self, peer: Peer) -> bool:
        """Whether this peer may. With neither users nor groups, nobody may."""
        return self.names(peer) and (not self.exes or peer.exe in self.exes)

    def names(self, peer: Peer) -> bool:
        """Whether this user or a group of his is named, whatever the program."""
        return peer.uid in self.uids or not self.gids.isdisjoint({peer.gid, *peer.gids})


@dataclass(frozen=True, slots=True)
class KeyRule:
    """A rule for one key, ``team/resnet50``, or for all below a name, ``team/*``."""

    name: str
    allow: Allow

    def covers(self, name: str) -> bool:
        """Whether it is about this key."""
        return name.startswith(self.name[:-1]) if self.name.endswith("/*") else name == self.name


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules: that of the key itself counts, else the longest above it, else ``default``."""

    default: Allow
    keys: Sequence[KeyRule] = field(default=())

    def check(self, peer: Peer, name: str) -> None:
        """Refuse a peer that may not have the key.

        Raises:
            NotAuthorised: by its user, group or program.
        """
        about = [rule for rule in self.keys if rule.covers(name)]
        # "team/*" is as long as "team/m", which is about less.
        closest = max(about, key=lambda rule: (rule.name == name, len(rule.name)), default=None)
        allow = self.default if closest is None else closest.allow
        if not allow.permits(peer):
            raise NotAuthorised(
                f"This user or program may not have the key {name}.",
                hint="The rules of the key cache say who may.",
            )

    def check_status(self, peer: Peer) -> None:
        """Refuse a peer that may not see what is held.

        Raises:
            NotAuthorised: it is not among those of ``default``.
        """
        if not self.default.names(peer):
            raise NotAuthorised("This user or program may not see what the key cache holds.")
