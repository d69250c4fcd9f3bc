"""What the tests of GPUs share: recorded and synthetic evidence, and a source that is a dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache

from recorded import read

from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Roots, production
from strongroom.attest.verify import Context
from strongroom.errors import MissingEndorsement
from strongroom.format.encoding import b64url
from strongroom.testing.nvidia import NvidiaPki

AT = datetime(2025, 8, 21, 12, tzinfo=UTC)
"""When the recorded report, its manifests and its OCSP response all hold."""

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NONCE = bytes(range(32))
DRIVER_ID = "NV_GPU_DRIVER_GH100_550.90.07"
VBIOS_ID = "NV_GPU_VBIOS_1010_0200_882_96009F0001"


@cache
def pki() -> NvidiaPki:
    return NvidiaPki(NOW - timedelta(days=1))


def roots() -> Roots:
    return pki().roots(production())


def context(now: datetime = NOW, endorsements: object = None) -> Context:
    return Context(now, roots(), endorsements)


def recorded(name: str = "h100", report: bytes | None = None, pem: bytes | None = None) -> dict:
    return {
        "arch": "HOPPER",
        "uuid": "GPU-0",
        "report": b64url(report or read(f"nvidia/{name}.report")),
        "certificates": (pem or read(f"nvidia/{name}.pem")).decode(),
    }


def evidence_of(*devices: dict, endorsements: tuple[bytes, ...] = ()) -> Evidence:
    return Evidence("nvidia", json.dumps({"devices": list(devices)}).encode(), endorsements)


def manifests() -> tuple[bytes, bytes]:
    return read(f"nvidia/{DRIVER_ID}.xml"), read(f"nvidia/{VBIOS_ID}.xml")


class Known:
    """Answers from a dictionary of (what, one member) and counts the questions."""

    def __init__(self, answers: Mapping[tuple[str, str], bytes]) -> None:
        self._answers = answers
        self.asked: list[Wanted] = []

    def fetch(self, wanted: Wanted) -> bytes:
        self.asked.append(wanted)
        (member,) = wanted.members.values()
        if (wanted.what, member) not in self._answers:
            raise MissingEndorsement("none")
        return self._answers[wanted.what, member]
