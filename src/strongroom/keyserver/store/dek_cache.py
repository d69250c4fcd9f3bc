"""Keys that were just used, so that an HSM is asked once for a fleet and not once for a machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from strongroom.crypto.secret import SecretBytes

__all__ = ["DekCache"]

T = TypeVar("T")

_SECONDS: Final = 5.0
_MOST: Final = 256
"""Keys: each has a page of locked memory."""


class DekCache:
    """Keys by what they are wrapped with, for seconds; then they are wiped, asked for or not.

    Args:
        seconds: that a key stays.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float = _SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[bytes, tuple[float, SecretBytes]] = {}
        self._making: dict[bytes, threading.Lock] = {}
        self._timer: threading.Timer | None = None

    def get(self, name: bytes, make: Callable[[], SecretBytes]) -> SecretBytes:
        """A copy of the key of this name, made where it is not at hand; once for all who wait for it."""
        with self._lock:
            if (copy := self._copy(name)) is not None:
                return copy
            making = self._making.setdefault(name, threading.Lock())
        with making:
            try:
                with self._lock:
                    if (copy := self._copy(name)) is not None:
                        return copy
                made = make()
                with self._lock:
                    while len(self._found) >= _MOST:
                        self._found.pop(next(iter(self._found)))[1].wipe()
                    self._found[name] = (self._clock() + self._seconds, made)
                    self._wipe_later()
                    return SecretBytes(made.buffer)
            finally:
                with self._lock:
                    self._making.pop(name, None)

    def use(self, name: bytes, make: Callable[[], SecretBytes], what: Callable[[SecretBytes], T]) -> T:
        """What ``what`` makes of the key of this name, without a copy where it is at hand: to map, lock and
        unmap a page takes 20 µs, and makes all threads forget where their pages are.
        """
        with self._lock:
            self._drop_old()
            entry = self._found.get(name)
            if entry is not None:
                return what(entry[1])
        with self.get(name, make) as copy:
            return what(copy)

    def has(self, name: bytes) -> bool:
        """Whether :meth:`get` would not have to make it."""
        with self._lock:
            self._drop_old()
            return name in self._found

    def _copy(self, name: bytes) -> SecretBytes | None:
        self._drop_old()
        entry = self._found.get(name)
        return None if entry is None else SecretBytes(entry[1].buffer)

    def _drop_old(self) -> None:
        now = self._clock()
        for name in [name for name, (until, _) in self._found.items() if until <= now]:
            self._found.pop(name)[1].wipe()

    def _wipe_later(self) -> None:
        if self._timer is None and self._found:
            self._timer = threading.Timer(self._seconds, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        with self._lock:
            self._timer = None
            self._drop_old()
            self._wipe_later()

    def clear(self) -> None:
        """Wipe all."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for _, secret in self._found.values():
                secret.wipe()
            self._found.clear()
