"""Gramine's /dev/attestation: pseudo-files that make the quote when it is read."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fuse_tree import FuseTree, Node
from recorded import read

from strongroom.attest.collect import open_collector
from strongroom.attest.collect.auto import find_collector
from strongroom.attest.collect.gramine import GramineCollector
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import MalformedEvidence, NotFound, StorageError, Unavailable, UsageError
from strongroom.testing.intel import IntelPki

BOUND = bytes(range(64))


class Enclave(FuseTree):
    """The pseudo-files, as Gramine's manual says (Attestation and secret provisioning, low level)."""

    def __init__(self, place: Path, kind: bytes, quote) -> None:
        super().__init__(place)
        self.data = bytes(64)
        self.add(self.root, "attestation_type", lambda: kind)
        self.add(self.root, "user_report_data", lambda: self.data)
        self.add(self.root, "quote", lambda: quote(self.data))

    def closed(self, node: Node, written: bytes) -> None:
        self.data = written.ljust(64, b"\x00")


def sgx_quote(data: bytes) -> bytes:
    """A real one, with other report data; nothing here verifies it."""
    quote = bytearray(read("dcap/sgx_v3.bin"))
    quote[48 + 320 : 48 + 384] = data
    return bytes(quote)


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "attestation"
    path.mkdir()
    return path


def test_a_quote(place):
    with Enclave(place, b"dcap", sgx_quote) as enclave:
        evidence = open_collector(f"gramine:{place}").collect(BOUND)
    assert (evidence.kind, evidence.data) == ("sgx", sgx_quote(BOUND))
    assert enclave.writes == [("user_report_data", BOUND)]


def test_a_collected_quote_verifies(place):
    pki = IntelPki.create(datetime.now(UTC))
    with Enclave(place, b"dcap\n", lambda data: pki.sgx_quote(data)):
        evidence = GramineCollector(str(place)).collect(b"short")
    evidence = type(evidence)(evidence.kind, evidence.data, (pki.collateral("sgx"),))
    claims = verify(evidence, Context(datetime.now(UTC), pki.roots(production())))
    assert claims.bound == b"short" + bytes(59)


def test_threads_do_not_get_each_others_quotes(place):
    found: dict[int, bytes] = {}

    def collect(number: int) -> None:
        for _ in range(10):
            found[number] = GramineCollector(str(place)).collect(bytes([number]) * 64).data

    with Enclave(place, b"dcap", sgx_quote):
        threads = [threading.Thread(target=collect, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {number: sgx_quote(bytes([number]) * 64) for number in range(1, 5)}


def test_a_quote_that_is_bound_to_something_else_is_an_error(place):
    with (
        Enclave(place, b"dcap", lambda data: sgx_quote(bytes(64))),
        pytest.raises(Unavailable, match="not bound to what was asked"),
    ):
        GramineCollector(str(place)).collect(BOUND)


@pytest.mark.parametrize("quote", [b"", b"quote", read("dcap/tdx_v4.bin")])
def test_what_is_no_quote_is_an_error(place, quote):
    with Enclave(place, b"dcap", lambda data: quote), pytest.raises((MalformedEvidence, Unavailable)):
        GramineCollector(str(place)).collect(BOUND)


def test_a_quote_that_is_too_large_is_an_error(place):
    with Enclave(place, b"dcap", lambda data: bytes(MAX_EVIDENCE + 1)), pytest.raises(Unavailable):
        GramineCollector(str(place)).collect(BOUND)


def test_a_quoting_enclave_that_does_not_answer(place):
    def fail(data):
        raise OSError(5, "")

    with Enclave(place, b"dcap", fail), pytest.raises(StorageError, match="quote"):
        GramineCollector(str(place)).collect(BOUND)


@pytest.mark.parametrize("kind", [b"none", b"epid", b""])
def test_an_enclave_without_dcap(place, kind):
    with Enclave(place, kind, sgx_quote), pytest.raises(UsageError, match="not 'dcap'") as caught:
        GramineCollector(str(place))
    assert "manifest" in (caught.value.hint or "")


def test_outside_of_an_enclave(tmp_path):
    with pytest.raises(NotFound, match="does not run under Gramine") as caught:
        GramineCollector(str(tmp_path / "attestation"))
    assert "gramine-sgx" in (caught.value.hint or "")


def test_gramine_without_sgx(place):
    """gramine-direct has the directory and none of the files."""
    with pytest.raises(NotFound, match="attestation_type"):
        GramineCollector(str(place))


def test_auto_takes_gramine_before_all_else(tmp_path):
    place = tmp_path / "dev/attestation"
    place.mkdir(parents=True)
    (tmp_path / "dev/nsm").touch()
    with Enclave(place, b"dcap", sgx_quote):
        assert find_collector(str(tmp_path)).kind == "sgx"
    assert os.listdir(place) == []
