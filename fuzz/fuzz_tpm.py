"""Invariant: of any bytes, structures, evidence and certificates of a TPM raise StrongroomError, or are
authentic and say what the recorded ones say."""

import base64
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/attest"))

with atheris.instrument_imports(include=["strongroom", "json"]):
    import seeds
    from recorded import read

    from strongroom.attest.evidence import Evidence
    from strongroom.attest.roots import production
    from strongroom.attest.tpm import describe
    from strongroom.attest.tpm_credential import enrol
    from strongroom.attest.tpm_evidence import TpmEvidence
    from strongroom.attest.tpm_keys import parse_public, parse_signature, parse_spki
    from strongroom.attest.tpm_structures import parse_attest
    from strongroom.attest.verify import Context, verify
    from strongroom.errors import StrongroomError

INDICES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 16)
RAW = read("tpm/pcr.bin")
PCRS = {index: RAW[32 * at : 32 * at + 32] for at, index in enumerate(INDICES)}
CERTIFICATE = read("tpm/ekcert.der")
PARTS = [read(f"tpm/{name}") for name in ("ak.pub", "q.msg", "q.sig")]
OURS = TpmEvidence.build(*PARTS, {"sha256": PCRS}, CERTIFICATE).data
COCO = json.dumps(json.loads(read("tpm/coco.json"))).encode()
SPKI = base64.b64decode(json.loads(COCO)["ak_public"])
ROOTS = replace(production(), tpm=(read("tpm/swtpm_localca_issuer.pem"),))
CONTEXT = Context(datetime(2026, 11, 21, tzinfo=UTC), ROOTS)


def said(evidence: Evidence) -> dict:
    claims = verify(evidence, CONTEXT)
    # The name covers attributes that nobody looks at; the key does not change with them.
    values = {name: value for name, value in claims.values.items() if name != "ak_name"}
    return {**values, "bound": claims.bound.hex(), "platform": claims.platform}


KNOWN = [said(Evidence("tpm", data)) for data in (OURS, COCO)]
PARSERS = [parse_attest, parse_public, parse_signature, parse_spki]


def target(data: bytes) -> None:
    which, data = data[:1], data[1:]
    try:
        if which in b"0123" and which:
            PARSERS[int(which)](data)
        elif which == b"4":
            describe(Evidence("tpm", data))
            assert said(Evidence("tpm", data)) in KNOWN
        elif which == b"5":
            assert said(Evidence("tpm", OURS, (data,))) == KNOWN[0]
        else:
            enrol(Evidence("tpm", data), CONTEXT)
            raise AssertionError("the recorded certificate is of another authority")
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 1000


if __name__ == "__main__":
    given = [
        (b"0", PARTS[1]),
        (b"1", PARTS[0]),
        (b"2", PARTS[2]),
        (b"3", SPKI),
    ]
    given += [(b"4", OURS), (b"4", COCO), (b"5", CERTIFICATE), (b"6", OURS)]
    given += [(b"5", read("tpm/swtpm_localca_issuer.pem"))]
    seeds.fuzz(target, [which + data for which, data in given])
