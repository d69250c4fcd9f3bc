"""The time by which leases end: no clock that is set back makes one longer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from strongroom.providers.keyserver.client import boot_seconds

__all__ = ["LeaseClock", "wall_time"]


def wall_time() -> datetime:
    """The system's clock, which an administrator of the machine can set."""
    return datetime.now(UTC)


class LeaseClock:
    """The later of two times: the system's clock, and the server's signed time plus what has passed since.

    Args:
        wall: the system's clock.
        boot: a clock in seconds that is never set, and runs while the machine sleeps.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = wall_time,
        boot: Callable[[], float] = boot_seconds,
    ) -> None:
        self._wall = wall
        self.boot = boot
        self._anchor: tuple[datetime, float] | None = None

    def heard(self, server: datetime, asked_at: float) -> None:
        """Take the time that the server has signed.

        Args:
            server: its time, from an answer.
            asked_at: :attr:`boot` before it was asked, so that the way of the answer is not lost.
        """
        if self._anchor is None or server - self._since(asked_at) > self._anchor[0]:
            self._anchor = server, asked_at

    def _since(self, boot: float) -> timedelta:
        """From the anchor to ``boot``."""
        return timedelta(seconds=boot - self._anchor[1]) if self._anchor else timedelta()

    def now(self) -> datetime:
        """Now, with a time zone."""
        wall = self._wall()
        if self._anchor is None:
            return wall
        return max(wall, self._anchor[0] + self._since(self.boot()))
