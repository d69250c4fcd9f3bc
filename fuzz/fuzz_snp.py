"""Invariant: of any bytes as a report, as evidence of Azure or as an endorsement, the verifier gives the claims of what was signed, or raises EvidenceError."""

import json
from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(include=["strongroom"]):
    import seeds

    from strongroom.attest import azure_vtpm, snp
    from strongroom.attest.evidence import Evidence
    from strongroom.attest.roots import production
    from strongroom.attest.verify import Context, verify
    from strongroom.errors import EvidenceError
    from strongroom.testing.amd import SnpPki
    from strongroom.testing.amd_coco import coco_fields
    from strongroom.testing.azure import AzureMachine

NOW = datetime(2026, 7, 1, tzinfo=UTC)
PKI = SnpPki.create(NOW)
MACHINE = AzureMachine.create(PKI)
CONTEXT = Context(NOW, PKI.roots(production()))
REPORT = PKI.report(b"bound", version=5)
ENDORSEMENTS = (PKI.key_der, PKI.chain_pem)
COCO = json.dumps(coco_fields(REPORT)).encode()
VIRTUAL = MACHINE.evidence(b"nonce")


def known(evidence: Evidence) -> dict:
    """The claims, without whether anybody looked at a revocation list, and who has signed."""
    claims = verify(evidence, CONTEXT)
    values = {name: value for name, value in claims.values.items() if name != "revocation"}
    return {"values": values, "bound": claims.bound, "platform": claims.platform}


CLAIMS = {
    "snp": known(Evidence("snp", REPORT, ENDORSEMENTS)),
    "azure-vtpm": known(VIRTUAL),
}


def evidence_of(selector: int, rest: bytes) -> Evidence:
    if selector == 0:
        return Evidence("snp", rest, ENDORSEMENTS)
    if selector == 1:
        return Evidence("azure-vtpm", rest, VIRTUAL.endorsements)
    if selector == 2:
        return Evidence("snp", REPORT, (rest,))
    return Evidence("snp", REPORT, (*ENDORSEMENTS, rest))


def target(data: bytes) -> None:
    """The first byte says what the rest is."""
    if not data:
        return
    evidence = evidence_of(data[0] & 3, data[1:])
    describe = azure_vtpm.describe if evidence.kind == "azure-vtpm" else snp.describe
    for judge in (known, describe):
        try:
            found = judge(evidence)
        except EvidenceError as error:
            message = str(error)
            assert message.isprintable()
            assert len(message) < 1000
        else:
            assert judge is describe or found == CLAIMS[evidence.kind]


def inputs():
    yield b"\x00" + REPORT
    yield b"\x00" + COCO
    yield b"\x01" + VIRTUAL.data
    yield b"\x02" + PKI.table("vek", "ask", "ark")
    yield b"\x03" + PKI.crl()
    yield b"\x03" + PKI.key_der
    yield b"\x03" + PKI.chain_pem


if __name__ == "__main__":
    assert known(Evidence("snp", COCO, ENDORSEMENTS)) == CLAIMS["snp"]
    seeds.fuzz(target, inputs())
