"""Signatures of enclaves: built and signed here by the letter of Intel's manual, changed, and read."""

from __future__ import annotations

import hashlib
import json
import struct
from functools import cache

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from strongroom.attest.sgx_measure import SIZE, EnclaveSignature
from strongroom.errors import MalformedEvidence, NotAcceptable, NotAuthentic
from strongroom.release.policy import Policy

MR_ENCLAVE = bytes(range(32))
FLAGS = 0x04
XFRM = 0x03


@cache
def signing_key(exponent=3, bits=3072):
    return rsa.generate_private_key(exponent, bits)


def sigstruct(
    *,
    flags=FLAGS,
    mr_enclave=MR_ENCLAVE,
    prod_id=7,
    svn=3,
    key=None,
    header=None,
    q1=None,
    q2=None,
    exponent=3,
):
    """A SIGSTRUCT, member by member as the manual's table has them."""
    key = key or signing_key()
    first = header or (
        bytes.fromhex("06000000e10000000000010000000000")
        + struct.pack("<L", 0)
        + bytes.fromhex("31122620")
        + bytes.fromhex("01010000600000006000000001000000")
        + struct.pack("<L", 0)
        + bytes(84)
    )
    body = (
        struct.pack("<LL", 0, 0xFFFFFFFF)
        + bytes(4)
        + bytes(16)
        + struct.pack("<QQ", flags, XFRM)
        + struct.pack("<QQ", 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFF9FF1B)
        + mr_enclave
        + bytes(16)
        + bytes(16)
        + struct.pack("<HH", prod_id, svn)
    )
    assert (len(first), len(body)) == (128, 128)
    signature = int.from_bytes(key.sign(first + body, padding.PKCS1v15(), hashes.SHA256()), "big")
    modulus = key.public_key().public_numbers().n
    if q1 is None:
        q1 = signature**2 // modulus
    if q2 is None:
        q2 = (signature**3 - q1 * signature * modulus) // modulus
    size = key.key_size // 8

    def number(value):
        return value.to_bytes(size, "little").ljust(384, b"\0")

    return (
        first
        + number(modulus)
        + struct.pack("<L", exponent)
        + number(signature)
        + body
        + bytes(12)
        + number(q1)
        + number(q2)
    )


def test_what_a_signature_says():
    data = sigstruct()
    assert len(data) == SIZE == 1808
    found = EnclaveSignature.parse(data)
    modulus = signing_key().public_key().public_numbers().n
    assert found.values == {
        "mr_enclave": MR_ENCLAVE.hex(),
        "mr_signer": hashlib.sha256(modulus.to_bytes(384, "little")).hexdigest(),
        "isv_prod_id": 7,
        "isv_svn": 3,
        "attributes": "04000000000000000300000000000000",
        "attributes_mask": "ffffffffffffffff1bfff9ffffffffff",
        "misc_select": 0,
        "misc_mask": "ffffffff",
        "isv_family_id": bytes(16).hex(),
        "isv_ext_prod_id": bytes(16).hex(),
        "vendor": "00000000",
    }
    assert (found.debug, found.privileges) == (False, ())


def test_debugging_and_privileges_are_told():
    assert EnclaveSignature.parse(sigstruct(flags=FLAGS | 2)).debug
    found = EnclaveSignature.parse(sigstruct(flags=FLAGS | 0x30))
    assert found.privileges == ("the provisioning key", "the EINIT token key")


def test_every_changed_byte_is_found():
    data = sigstruct()
    for at in range(SIZE):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises((MalformedEvidence, NotAuthentic)):
            EnclaveSignature.parse(bytes(changed))


@pytest.mark.parametrize("data", [b"", b"\0" * SIZE, b"{}"], ids=["nothing", "zeros", "text"])
def test_what_is_no_signature(data):
    with pytest.raises(MalformedEvidence, match="no signature of an SGX enclave"):
        EnclaveSignature.parse(data)


@pytest.mark.parametrize("cut", [1, 100, SIZE - 1])
def test_cut_and_longer(cut):
    data = sigstruct()
    with pytest.raises(MalformedEvidence):
        EnclaveSignature.parse(data[:-cut])
    with pytest.raises(MalformedEvidence):
        EnclaveSignature.parse(data + bytes(cut))


def test_keys_that_sgx_does_not_take():
    with pytest.raises(NotAuthentic, match="RSA-3072"):
        EnclaveSignature.parse(sigstruct(key=signing_key(65537), exponent=65537))
    with pytest.raises(NotAuthentic, match="RSA-3072"):
        EnclaveSignature.parse(sigstruct(key=signing_key(3, 2048)))
    # As it would pass who believes the member, and not the arithmetic.
    with pytest.raises(NotAuthentic, match="wrong"):
        EnclaveSignature.parse(sigstruct(key=signing_key(65537)))


def test_reserved_bytes_that_are_signed_are_refused_all_the_same():
    first = sigstruct()[:128]
    with pytest.raises(MalformedEvidence, match="must be zero"):
        EnclaveSignature.parse(sigstruct(header=first[:100] + b"\1" + first[101:]))


@pytest.mark.parametrize("wrong", [{"q2": 12345}, {"q1": 12345, "q2": 0}], ids=["q2", "q1"])
def test_quotients_that_the_processor_would_refuse(wrong):
    with pytest.raises(NotAuthentic, match="Q1 and Q2"):
        EnclaveSignature.parse(sigstruct(**wrong))


def test_policies():
    enclave = EnclaveSignature.parse(sigstruct())
    signer = {"mr_signer": enclave.values["mr_signer"], "prod_id": 7, "min_svn": 3}
    assert enclave.requirement() == {"kind": "sgx", "mr_enclave": MR_ENCLAVE.hex(), **signer}
    assert enclave.requirement(by_signer=True) == {"kind": "sgx", **signer}
    with pytest.raises(NotAcceptable, match="debugging"):
        EnclaveSignature.parse(sigstruct(flags=FLAGS | 2)).requirement()
    nameless = EnclaveSignature.parse(sigstruct(prod_id=0))
    assert nameless.requirement()["prod_id"] == 0
    with pytest.raises(NotAcceptable, match="product number"):
        nameless.requirement(by_signer=True)
    for found in (enclave.requirement(), enclave.requirement(by_signer=True), nameless.requirement()):
        Policy.parse({"id": "m", "version": 1, "keys": ["m"], "any": [found]})


# The command


@pytest.fixture
def command(tmp_path, capsys):
    from strongroom.cli.process import run

    place = tmp_path / "serve.sig"

    def call(*arguments, **options):
        place.write_bytes(sigstruct(**options))
        capsys.readouterr()
        code = run(["attest", "sgx-measure", str(place), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_command_shows_it(command):
    code, out, _ = command()
    assert code == 0
    assert MR_ENCLAVE.hex() in out
    assert "correctly signed" in out
    assert "debugging" not in out
    assert "for debugging" in command(flags=FLAGS | 2)[1]
    code, out, _ = command("--json")
    assert json.loads(out)["mr_enclave"] == MR_ENCLAVE.hex()
    assert json.loads(out)["debug"] is False


def test_the_command_writes_a_policy_that_the_evidence_of_this_enclave_meets(command):
    """From the signature to the verdict: over a quote of the same enclave, in a PKI of the tests."""
    from datetime import UTC, datetime

    from strongroom.attest.roots import production
    from strongroom.attest.verify import Context, verify
    from strongroom.release.decision import Presented, evaluate
    from strongroom.testing.intel import IntelPki

    code, out, _ = command("--policy", "resnet-sgx", "--keys", "models/resnet/")
    assert code == 0
    document = json.loads(out)
    assert (document["id"], document["version"]) == ("resnet-sgx", 1)
    assert document["keys"] == ["models/resnet/"]
    policy = Policy.parse({**document, "test_roots": True})
    now = datetime.now(UTC).replace(microsecond=0)
    pki = IntelPki.create(now)
    context = Context(now, pki.roots(production()))
    said = {
        "mr_signer": bytes.fromhex(document["any"][0]["mr_signer"]),
        "isv_prod_id": 7,
        "isv_svn": 4,
    }

    def allowed(**claims):
        found = verify(pki.evidence("sgx", bytes(64), **{**said, **claims}), context)
        presented = Presented(
            now=now,
            claims=[found],
            expected_primary={"sgx": found.bound},
            expected_secondary=found.bound,
            allow_test_roots=True,
        )
        return evaluate(policy, presented).allowed

    assert allowed(mr_enclave=MR_ENCLAVE)
    assert not allowed(mr_enclave=bytes(32))
    assert not allowed(mr_enclave=MR_ENCLAVE, isv_svn=2)


def test_the_command_refuses(command):
    code, out, err = command("--policy", "m", flags=FLAGS | 2)
    assert (code, out) == (6, "")
    assert "debugging" in err
    code, _, err = command("--keys", "m")
    assert code == 2
    assert "--policy" in err
    code, out, err = command("--policy", "m", "--keys", "models/*")
    assert (code, out) == (6, "")
    assert "wildcard" in err
    assert command("--policy", "m", "--by-signer", prod_id=0)[0] == 6
    code, out, _ = command("--policy", "m", "--by-signer", "--policy-version", "4")
    assert code == 0
    assert "mr_enclave" not in out
    assert json.loads(out)["version"] == 4
    assert command(q2=1)[0] == 6


def test_the_command_tells_of_privileges(command):
    code, _, err = command("--policy", "m", flags=FLAGS | 0x10)
    assert code == 0
    assert "provisioning key" in err
