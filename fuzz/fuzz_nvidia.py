"""Invariant: of any bytes, reports, manifests, OCSP responses, evidence of GPUs and tokens raise
StrongroomError, or are authentic and say what the recorded ones say."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/attest"))

with atheris.instrument_imports(include=["strongroom", "json"]):
    import seeds
    from recorded import fixed_time, read

    from strongroom.attest.certificates import load_certificates
    from strongroom.attest.evidence import Evidence
    from strongroom.attest.nvidia_dice import _parse
    from strongroom.attest.nvidia_ocsp import verify_response
    from strongroom.attest.nvidia_report import parse_report
    from strongroom.attest.nvidia_rim import parse_rim, verify_rim
    from strongroom.attest.roots import Issuer, production
    from strongroom.attest.verify import Context, verify
    from strongroom.errors import StrongroomError
    from strongroom.format.encoding import b64url

AT = datetime(2025, 8, 21, 12, tzinfo=UTC)
REPORT = read("nvidia/h100.report")
PEM = read("nvidia/h100.pem")
RIMS = [
    read(f"nvidia/{name}.xml")
    for name in ("NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001")
]
OCSP = read("nvidia/h100_l4.ocsp")
TOKEN = read("tokens/gcp_confidential_space.jwt").strip()
ISSUER = Issuer(
    "https://confidentialcomputing.googleapis.com",
    "z08381475938604996746",
    root=read("tokens/gcp_confidential_space_root.pem"),
)
ROOTS = replace(production(), issuers=[ISSUER])
_, CHIP, CHIP_ISSUER, *_ = load_certificates(PEM)
DEVICE = json.dumps(
    {"devices": [{"report": b64url(REPORT), "certificates": PEM.decode()}]}, separators=(",", ":")
).encode()
DICE = load_certificates(PEM)[0].extensions[-1].value.value


def rim_of(data: bytes):
    rim = verify_rim(parse_rim(data), ROOTS.nvidia_rim, AT)
    return rim.version, rim.product, rim.measurements


KNOWN_RIMS = [rim_of(data) for data in RIMS]
KNOWN_GPU = verify(Evidence("nvidia", DEVICE, RIMS), Context(AT, ROOTS))
KNOWN_TOKEN = verify(
    Evidence("jwt", TOKEN), Context(fixed_time("tokens/gcp_confidential_space.jwt"), ROOTS)
)


def report(data: bytes) -> None:
    found = parse_report(data)
    assert found.signed + found.signature == data
    assert len(found.nonce) == 32
    assert found.vbios.isprintable()


def rim(data: bytes) -> None:
    assert rim_of(data) in KNOWN_RIMS


def response(data: bytes) -> None:
    assert verify_response(data, CHIP, CHIP_ISSUER, AT) > AT


def gpu(data: bytes) -> None:
    claims = verify(Evidence("nvidia", data, RIMS), Context(AT, ROOTS))
    assert claims == KNOWN_GPU


def token(data: bytes) -> None:
    at = fixed_time("tokens/gcp_confidential_space.jwt")
    assert verify(Evidence("jwt", data), Context(at, ROOTS)) == KNOWN_TOKEN


def dice(data: bytes) -> None:
    try:
        assert len(_parse(data).fwid) == 48
    except (ValueError, IndexError):
        return


TARGETS = [report, rim, response, gpu, token, dice]


def target(data: bytes) -> None:
    if not data:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 1000


if __name__ == "__main__":
    bodies = [[REPORT], RIMS, [OCSP], [DEVICE], [TOKEN, b'[["JWT","%s"],{}]' % TOKEN], [DICE]]
    seeds.fuzz(target, [bytes([kind]) + one for kind, found in enumerate(bodies) for one in found])
