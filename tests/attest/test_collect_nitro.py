"""The Nitro security module: a stand-in for the ioctl reads the request from memory and writes the answer,
as drivers/misc/nsm.c does."""

from __future__ import annotations

import ctypes
import errno
import struct
from datetime import UTC, datetime

import cbor2
import pytest
from recorded import read

from strongroom.attest.collect import open_collector
from strongroom.attest.collect.auto import find_collector
from strongroom.attest.collect.nitro import IOCTL, NitroCollector, NsmRaw
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import MissingExtra, NotFound, StorageError, Unavailable, UsageError
from strongroom.testing.nitro import NitroPki

DOCUMENT = read("nitro/user_data.cose")
BOUND = bytes(range(64))


class Nsm:
    """The driver, with what it was asked; ``answer`` makes the response of the module."""

    def __init__(self, answer=lambda request: {"Attestation": {"document": DOCUMENT}}) -> None:
        self.requests: list = []
        self._answer = answer

    def __call__(self, descriptor: int, command: int, message: NsmRaw) -> int:
        if command != 0xC0200A00:
            raise OSError(errno.EINVAL, "")
        # The four numbers as C sees them.
        request_at, request_size, answer_at, answer_size = struct.unpack("<4Q", bytes(message))
        if request_size > 0x1000:
            raise OSError(errno.EMSGSIZE, "")
        request = cbor2.loads(ctypes.string_at(request_at, request_size))
        self.requests.append(request)
        answer = self._answer(request)
        data = (answer if isinstance(answer, bytes) else cbor2.dumps(answer))[:answer_size]
        ctypes.memmove(answer_at, data, len(data))
        ctypes.memmove(ctypes.addressof(message) + 24, struct.pack("<Q", len(data)), 8)
        return 0


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "nsm"
    path.touch()
    return str(path)


def test_the_command_is_that_of_the_kernels_header():
    """_IOWR(0x0A, 0, struct nsm_raw): read and write, 32 bytes."""
    assert IOCTL == (1 | 2) << 30 | 32 << 16 | 0x0A << 8 | 0
    assert [getattr(NsmRaw, name).offset for name in ("request", "response")] == [0, 16]


def test_a_document(device):
    nsm = Nsm()
    evidence = NitroCollector(device, ioctl=nsm).collect(BOUND)
    assert (evidence.kind, evidence.data, evidence.endorsements) == ("nitro", DOCUMENT, ())
    assert nsm.requests == [
        {"Attestation": {"user_data": BOUND, "nonce": None, "public_key": None}},
    ]


def test_a_collected_document_verifies(device):
    now = datetime.now(UTC)
    pki = NitroPki.create(now)

    def answer(request):
        return {"Attestation": {"document": pki.document(request["Attestation"]["user_data"])}}

    evidence = NitroCollector(device, ioctl=Nsm(answer)).collect(BOUND)
    assert verify(evidence, Context(now, pki.roots(production()))).bound == BOUND


def test_a_public_key_goes_into_the_document(device):
    nsm = Nsm()
    NitroCollector(device, public_key=b"key", ioctl=nsm).collect(b"x")
    assert nsm.requests[0]["Attestation"] == {"user_data": b"x", "nonce": None, "public_key": b"key"}


@pytest.mark.parametrize("key", [b"", bytes(1025)])
def test_a_public_key_that_has_no_room(device, key):
    with pytest.raises(UsageError, match="1 to 1024"):
        NitroCollector(device, public_key=key)


@pytest.mark.parametrize("size", [0, 513])
def test_nothing_or_too_much_cannot_be_bound(device, size):
    with pytest.raises(UsageError, match="1 to 512"):
        NitroCollector(device, ioctl=Nsm()).collect(bytes(size))


def test_an_error_of_the_module_is_said(device):
    nsm = Nsm(lambda request: {"Error": "InvalidArgument"})
    with pytest.raises(Unavailable, match="answers InvalidArgument"):
        NitroCollector(device, ioctl=nsm).collect(BOUND)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        cbor2.dumps({"Attestation": {"document": DOCUMENT}})[:-1],
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps({"Attestation": []}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Attestation": {"document": b""}}),
        cbor2.dumps(["Attestation"]),
        cbor2.dumps({"Error": 7}),
        cbor2.dumps(None),
    ],
)
def test_another_answer_is_an_error(device, answer):
    with pytest.raises(Unavailable, match="not a document"):
        NitroCollector(device, ioctl=Nsm(lambda request: answer)).collect(BOUND)


def test_an_answer_that_was_cut_off_is_an_error(device):
    """The driver cuts it to the room that there is, and says nothing."""
    nsm = Nsm(lambda request: {"Attestation": {"document": bytes(0x3000)}})
    with pytest.raises(Unavailable, match="not a document"):
        NitroCollector(device, ioctl=nsm).collect(BOUND)


def test_an_error_of_the_driver(device):
    def fail(descriptor, command, message):
        raise OSError(errno.ETIMEDOUT, "")

    with pytest.raises(StorageError, match="timed out"):
        NitroCollector(device, ioctl=fail).collect(BOUND)


def test_the_real_ioctl_on_what_is_no_such_device(device):
    """The structure does travel into the kernel, which refuses it for a plain file."""
    with pytest.raises(StorageError, match="inappropriate ioctl"):
        NitroCollector(device).collect(BOUND)


def test_outside_of_an_enclave(tmp_path):
    with pytest.raises(NotFound, match="does not run in a Nitro enclave"):
        open_collector(f"nitro:{tmp_path}/nsm")


def test_auto_takes_it(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nsm").touch()
    assert find_collector(str(tmp_path)).kind == "nitro"


def test_without_the_package(device, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cbor2", None)
    with pytest.raises(MissingExtra) as caught:
        NitroCollector(device)
    assert "attest" in (caught.value.hint or "")
