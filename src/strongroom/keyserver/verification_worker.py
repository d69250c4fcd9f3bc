"""A process that verifies evidence for the key server, which starts it; it holds no key.

    python -m strongroom.keyserver.verification_worker DESCRIPTOR MEMORY_MIB

Evidence comes from machines that nobody knows yet. Whatever it does to a parser happens here, within
a bound of memory; the server stops a worker that takes too long.
"""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from strongroom.attest.endorsements import EndorsementSource
from strongroom.attest.evidence import Claims
from strongroom.attest.registry import KINDS, verifier_of
from strongroom.attest.verify import Context, verify
from strongroom.crypto.secret import keep_out_of_core_dumps
from strongroom.errors import (
    EvidenceError,
    MalformedEvidence,
    MissingExtra,
    StrongroomError,
    Unavailable,
)
from strongroom.format.encoding import parse_json
from strongroom.keyserver.verification_frames import (
    SIZE,
    answer_frame,
    error_frame,
    parse_request,
    roots_from_json,
)

__all__ = ["main"]


def _receive(connection: socket.socket) -> bytes | None:
    def exactly(size: int) -> bytes | None:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            count = connection.recv_into(view[done:])
            if not count:
                return None
            done += count
        return bytes(data)

    head = exactly(SIZE.size)
    return None if head is None else exactly(SIZE.unpack(head)[0])


def _answer(body: bytes, roots: Any, source: EndorsementSource | None) -> bytes:
    try:
        evidence, now = parse_request(body)
        started = time.perf_counter()
        claims: list[Claims] = [verify(one, Context(now, roots, source)) for one in evidence]
        return answer_frame(claims, time.perf_counter() - started)
    except (EvidenceError, Unavailable) as error:
        return error_frame(error)
    except StrongroomError as error:
        return error_frame(EvidenceError(error.message, hint=error.hint))
    except MemoryError:
        return error_frame(MalformedEvidence("Verifying the evidence takes too much memory."))
    except Exception as error:
        # A parser that hostile evidence has brought down; its words may quote that evidence.
        return error_frame(
            MalformedEvidence(f"The evidence broke its parser ({type(error).__name__}).")
        )


def main(descriptor: int, memory: int) -> None:
    """Answer until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server stops its workers itself
    keep_out_of_core_dumps()
    connection = socket.socket(fileno=descriptor)
    setup = _receive(connection)
    if setup is None:
        return
    members = parse_json(setup)
    from strongroom.attest.sources import endorsement_source

    roots, source = roots_from_json(members["roots"]), endorsement_source(members["endorsements"])
    for kind in KINDS:
        with suppress(MissingExtra):
            verifier_of(kind)
    # What is imported later would count against the bound.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    bound = used + (memory << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    gc.freeze()  # as in the server
    connection.sendall(SIZE.pack(0))
    while (body := _receive(connection)) is not None:
        connection.sendall(_answer(body, roots, source))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
