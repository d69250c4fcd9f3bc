"""Invariant: of any bytes as a quote or as collateral, the verifier gives the claims of the quote that was signed, or raises EvidenceError."""

from datetime import UTC, datetime
from functools import cache

import atheris

with atheris.instrument_imports(include=["strongroom"]):
    import seeds

    from strongroom.attest import dcap
    from strongroom.attest.evidence import Evidence
    from strongroom.attest.roots import production
    from strongroom.attest.verify import Context, verify
    from strongroom.errors import EvidenceError
    from strongroom.testing.intel import IntelPki

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PKI = IntelPki.create(NOW)
CONTEXT = Context(NOW, PKI.roots(production()))
KINDS = ("sgx", "tdx")
QUOTES = {"sgx": PKI.sgx_quote(b"bound"), "tdx": PKI.tdx_quote(b"bound")}


@cache
def collateral(kind: str) -> bytes:
    return PKI.collateral(kind)


CLAIMS = {
    kind: verify(Evidence(kind, QUOTES[kind], (collateral(kind),)), CONTEXT).digest for kind in KINDS
}


def target(data: bytes) -> None:
    """The first byte says the kind, and whether the rest is a quote or its collateral."""
    if not data:
        return
    kind, rest = KINDS[data[0] & 1], data[1:]
    if data[0] & 2:
        evidence = Evidence(kind, QUOTES[kind], (rest,))
    else:
        evidence = Evidence(kind, rest, (collateral(kind),))
    for judge in (lambda: verify(evidence, CONTEXT).digest, lambda: dcap.describe(evidence)):
        try:
            found = judge()
        except EvidenceError as error:
            message = str(error)
            assert message.isprintable()
            assert len(message) < 1000
        else:
            assert isinstance(found, dict) or found == CLAIMS[kind]


def inputs():
    for number, kind in enumerate(KINDS):
        yield bytes([number]) + QUOTES[kind]
        yield bytes([number | 2]) + collateral(kind)


if __name__ == "__main__":
    seeds.fuzz(target, inputs())
