"""JSON text in a source, walked through without holding it: strings may be of any length."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from strongroom.errors import FormatError, LimitExceeded
from strongroom.model.storage import Source

__all__ = ["MAX_STRING", "JsonScanner"]

MAX_STRING: Final = 64 << 10
"""Bytes of JSON text of a string that :meth:`JsonScanner.string` reads."""

_WINDOW: Final = 1 << 20
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class JsonScanner:
    """Reads a source from front to back through a window of 1 MiB.

    Attributes:
        observers: called with the text, in order and without gaps, no later than at :meth:`sync`; one
            that is added later sees what comes after that. A piece is valid during the call.
    """

    def __init__(self, source: Source, window: int = _WINDOW) -> None:
        assert window > MAX_STRING + 2
        self.observers: list[Callable[[memoryview], object]] = []
        self._source = source
        self._buffer = bytearray(min(window, max(1, source.size)))
        self._start = 0  # where in the source the buffer begins
        self._filled = 0
        self._at = 0
        self._observed = 0

    @property
    def position(self) -> int:
        """Offset in the source of the next byte."""
        return self._start + self._at

    def sync(self) -> None:
        """Let the observers see all text before :attr:`position`."""
        with memoryview(self._buffer) as view:
            for observer in self.observers:
                observer(view[self._observed : self._at])
        self._observed = self._at

    def peek(self) -> bytes:
        """The next character that is not white space, left where it is; empty at the end."""
        while True:
            self._require(1)
            match = _SPACE.match(self._buffer, self._at, self._filled)
            assert match  # also matches nothing
            self._at = match.end()
            if self._at < self._filled:
                return bytes(self._buffer[self._at : self._at + 1])
            if self.position == self._source.size:
                return b""

    def take(self, character: bytes) -> None:
        """Go past ``character``, and white space before it.

        Raises:
            FormatError: something else comes.
        """
        if self.peek() != character:
            raise self._unexpected(character.decode())
        self._at += 1

    def string(self) -> str:
        """The value of the string that comes next.

        Raises:
            FormatError: no string comes, or one that is not valid.
            LimitExceeded: it is longer than :data:`MAX_STRING`.
        """
        self.take(b'"')
        self._require(MAX_STRING)
        end = min(self._filled, self._at + MAX_STRING)
        match = _REST_OF_STRING.match(self._buffer, self._at, end)
        if not match:
            if end - self._at == MAX_STRING:
                raise LimitExceeded(
                    f"{self._source.name}: the text at byte {self.position} is too long."
                )
            raise self._unexpected('"')
        try:
            value = json.loads('"' + self._buffer[self._at : match.end()].decode())
        except ValueError:  # of encodings too
            raise self._unexpected("valid text") from None
        self._at = match.end()
        assert isinstance(value, str)
        return value

    def skip_plain_string(self) -> tuple[int, int]:
        """Go past a string of any length; the offsets in the source of what is between its quotes.

        It ends at the next quote: for strings that cannot have one, such as base64.
        """
        self.take(b'"')
        start = self.position
        while True:
            self._require(1)
            end = self._buffer.find(b'"', self._at, self._filled)
            if end >= 0:
                break
            self._at = self._filled
            if self.position == self._source.size:
                raise self._unexpected('"')
        self._at = end
        span = start, self.position
        self._at += 1
        return span

    def finish(self) -> None:
        """Check that nothing but white space follows."""
        if self.peek():
            raise self._unexpected("the end")

    def _require(self, count: int) -> None:
        """Have ``count`` bytes from the position in the window, or all that there are."""
        if self._filled - self._at >= count or self._start + self._filled == self._source.size:
            return
        self.sync()
        rest = self._buffer[self._at : self._filled]
        self._start, self._at, self._observed = self.position, 0, 0
        self._filled = min(len(self._buffer), self._source.size - self._start)
        self._buffer[: len(rest)] = rest
        with memoryview(self._buffer) as view:
            self._source.read_into(self._start + len(rest), view[len(rest) : self._filled])

    def _unexpected(self, wanted: str) -> FormatError:
        return FormatError(
            f"{self._source.name} is no such file: {wanted} is expected at byte {self.position}.",
            hint="It is cut short, damaged, or of another format.",
        )
