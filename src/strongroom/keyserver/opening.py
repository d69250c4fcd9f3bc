"""From the configuration to an open store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from strongroom.crypto.secret import SecretBytes
from strongroom.keyserver.config import Config, database_url, passphrase_of
from strongroom.keyserver.kek import RootKek, open_kek
from strongroom.keyserver.store import Store

__all__ = ["now", "open_root_key", "open_store"]


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
