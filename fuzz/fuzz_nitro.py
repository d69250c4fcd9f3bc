"""Invariant: of any bytes as a document, or inside of a signed one, the verifier gives claims of what was signed, or raises EvidenceError."""

from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(include=["strongroom"]):
    import cbor2
    import seeds

    from strongroom.attest import nitro
    from strongroom.attest.evidence import Evidence
    from strongroom.attest.roots import production
    from strongroom.attest.verify import Context, verify
    from strongroom.errors import EvidenceError
    from strongroom.testing.nitro import NitroPki

NOW = datetime(2026, 7, 1, tzinfo=UTC)
PKI = NitroPki.create(NOW)
CONTEXT = Context(NOW, PKI.roots(production()))
DOCUMENT = PKI.document(b"bound", nonce=b"nonce", public_key=b"key")
CLAIMS = verify(Evidence("nitro", DOCUMENT), CONTEXT)


def target(data: bytes) -> None:
    """The first byte says whether the rest is a document, or what the enclave's key signs."""
    if not data:
        return
    signed = data[0] & 1
    evidence = Evidence("nitro", PKI.sign(data[1:]) if signed else data[1:])
    for judge in (lambda: verify(evidence, CONTEXT), lambda: nitro.describe(evidence)):
        try:
            found = judge()
        except EvidenceError as error:
            message = str(error)
            assert message.isprintable()
            assert len(message) < 1000
        else:
            if isinstance(found, dict):
                continue
            found.digest  # noqa: B018 - every claim can be written down
            assert signed or found == CLAIMS


def inputs():
    yield b"\x00" + DOCUMENT
    yield b"\x00\xd2" + DOCUMENT
    payload = cbor2.loads(DOCUMENT)[2]
    yield b"\x01" + payload
    yield b"\x01\xbf" + payload[1:] + b"\xff"


if __name__ == "__main__":
    seeds.fuzz(target, inputs())
