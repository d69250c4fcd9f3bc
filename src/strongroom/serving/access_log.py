"""The line of each request: who asked what, and how it went; never a header, a query or a payload."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

__all__ = ["AccessLog"]

_REMEMBERED: Final = 4096
"""Beginnings of lines; a line made anew takes 8 µs, with its beginning known 2."""


class AccessLog:
    """Lines that are kept until :meth:`flush`: one write takes as long as ten lines.

    Args:
        stream: None is standard error.
        wanted: without it nothing is written.
    """

    def __init__(self, stream: BinaryIO | None = None, *, wanted: bool = True) -> None:
        if stream is None and sys.stderr is not None:
            stream = sys.stderr.buffer
        self._stream = stream
        self._wanted = wanted and stream is not None
        self._lines: list[str] = []
        self._beginnings: dict[tuple[Any, ...], str] = {}
        self._second, self._moment = 0, ""

    def request(
        self,
        api: str,
        what: str,
        status: int | str,
        seconds: float,
        client: str,
        subject: str | None,
        model: str | None,
        version: int | None,
        size: int,
        trace: str | None = None,
    ) -> None:
        """Note a request; safe from any thread.

        Args:
            api: ``tfs``, ``v2`` or what else of this server was asked.
            what: method and path, or method of gRPC.
            status: of the answer.
            seconds: that it took.
            client: address.
            subject: of its certificate.
            model, version: that were asked, where they are there.
            size: of the request's body, in bytes.
            trace: its id, where it is traced.
        """
        if not self._wanted:
            return
        of = (api, what, client, subject, model, version, status)
        begin = self._beginnings.get(of)
        if begin is None:
            begin = self._begin(of)
        now = time.time()
        second = int(now)
        if second != self._second:
            self._moment = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        traced = "" if trace is None else f'"trace":"{trace}",'
        self._lines.append(
            f'{begin},"ms":{seconds * 1000:.3f},"bytes":{size},{traced}'
            f'"timestamp":"{self._moment}.{int((now - second) * 1000):03}Z"}}\n'
        )

    def _begin(self, of: tuple[Any, ...]) -> str:
        """What the lines of one client about one thing have in common."""
        names = ("api", "request", "client", "subject", "model", "version", "status")
        line = {name: value for name, value in zip(names, of, strict=True) if value is not None}
        line["request"] = str(line["request"])[:300]
        # In ASCII: terminals and tools take some other characters for ends of lines and for commands.
        said = json.dumps({"event": "request", "level": "info", **line}, separators=(",", ":"))[:-1]
        if len(self._beginnings) >= _REMEMBERED:
            self._beginnings.clear()
        self._beginnings[of] = said
        return said

    def flush(self) -> None:
        """Write what there is."""
        lines, self._lines = self._lines, []
        if lines and self._stream is not None:
            try:
                self._stream.write("".join(lines).encode())
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads the log: no reason to stop
