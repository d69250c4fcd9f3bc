"""From the configuration to an open store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import UsageError
from strongroom.keyserver.config import database_url, passphrase_of
from strongroom.keyserver.kek import RootKek, open_kek
from strongroom.keyserver.settings import Config
from strongroom.keyserver.store import Actor, Store
from strongroom.release.audit import Head

__all__ = ["accept_head", "now", "open_root_key", "open_store"]


def now() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


def open_root_key(config: Config, passphrase: SecretBytes | None = None) -> RootKek:
    """The root key of a server.

    Args:
        config: of the server.
        passphrase: that was given for it; None takes what the configuration leads to.

    Raises:
        StrongroomError: as :func:`strongroom.keyserver.kek.open_kek`.
    """
    return open_kek(config.kek.source, passphrase or passphrase_of(config))


def accept_head(config: Config, passphrase: SecretBytes | None, actor: Actor, reason: str) -> Head:
    """Go on with a database that is behind its anchor; or give it an anchor.

    Args:
        config: of the server.
        passphrase: as for :func:`open_root_key`.
        actor: who decides it.
        reason: for the audit trail.

    Raises:
        UsageError: the configuration names no anchor.
        StrongroomError: as :meth:`Store.accept_head`.
    """
    if config.audit.anchor is None:
        raise UsageError("The configuration names no anchor.", hint="Set audit.anchor.")
    return Store.accept_head(
        database_url(config),
        open_root_key(config, passphrase),
        config.audit.anchor,
        actor,
        reason,
        clock=now,
        allow_test_roots=config.test,
    )


def open_store(
    config: Config, passphrase: SecretBytes | None = None, clock: Callable[[], datetime] = now
) -> Store:
    """The store of a server; its schema is upgraded where it is of an older release.

    Args:
        config: of the server.
        passphrase: as for :func:`open_root_key`.
        clock: gives the time, with a time zone.

    Raises:
        StrongroomError: the root key or the database does not open, or they do not belong together.
    """
    return Store(
        database_url(config),
        open_root_key(config, passphrase),
        clock=clock,
        anchor=config.audit.anchor,
        allow_test_roots=config.test,
    )
