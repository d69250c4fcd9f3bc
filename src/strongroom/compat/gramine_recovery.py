"""Gramine's recovery log: a file as it was before a write that was interrupted.

::

    log    = records, in ``<file>.gramine.recovery``
    record = number of a node: u64 LE ‖ the node as it was: 4096 bytes, encrypted

The log is applied in memory, to what is read; neither file is changed. Nothing in it is authentic as
such: the nodes have to authenticate like any others. It can bring a file back to an older state, and so
can whoever may write the file.
"""

from __future__ import annotations

import struct
from typing import Final

from strongroom.compat.gramine_nodes import NODE
from strongroom.errors import FormatError
from strongroom.model.storage import Source

__all__ = ["LOG_SUFFIX", "RecoveredSource"]

LOG_SUFFIX: Final = ".gramine.recovery"
_NUMBER: Final = struct.Struct("<Q")
_RECORD: Final = _NUMBER.size + NODE
_RECORDS: Final = 256
"""Read at once: 1 MiB."""


class RecoveredSource:
    """A :class:`strongroom.model.storage.Source`: a file with the records of a log in their places.

    Memory: some 100 bytes a record.

    Raises:
        FormatError: the log is cut, or a record lies far outside the file.
    """

    threads: Final = 1

    def __init__(self, source: Source, log: Source) -> None:
        self.name = source.name
        self.request = source.request
        self._source = source
        self._log = log
        if log.size % _RECORD:
            raise FormatError(
                f"{log.name} is no complete recovery log: it has {log.size} bytes.",
                hint=f"Such a log has records of {_RECORD} bytes.",
            )
        count = log.size // _RECORD
        # The log restores nodes that the file has or, if it was cut, had.
        most = source.size // NODE + count
        self._records: dict[int, int] = {}
        self.size = source.size
        records = memoryview(bytearray(min(count, _RECORDS) * _RECORD))
        for first in range(0, count, _RECORDS):
            part = records[: min(_RECORDS, count - first) * _RECORD]
            log.read_into(first * _RECORD, part)
            for at in range(0, len(part), _RECORD):
                (number,) = _NUMBER.unpack_from(part, at)
                if number >= most:
                    raise FormatError(
                        f"{log.name} does not belong to this file: it has a node {number}.",
                        hint=f"{source.name} has {source.size // NODE} nodes.",
                    )
                self._records[number] = first * _RECORD + at + _NUMBER.size
                self.size = max(self.size, (number + 1) * NODE)

    def read_into(self, offset: int, out: memoryview) -> None:
        present = max(0, min(len(out), self._source.size - offset))
        self._source.read_into(offset, out[:present])
        out[present:] = bytes(len(out) - present)
        end = offset + len(out)
        for number in range(offset // NODE, -(-end // NODE)):
            place = self._records.get(number)
            if place is not None:
                begin = number * NODE
                low, high = max(begin, offset), min(begin + NODE, end)
                self._log.read_into(place + low - begin, out[low - offset : high - offset])

    def close(self) -> None:
        self._log.close()
        self._source.close()
