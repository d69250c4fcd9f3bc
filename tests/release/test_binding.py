"""What evidence is bound to: every part of the request, so that it is good for no other."""

import hashlib
import json
from dataclasses import replace

import pytest

from strongroom.attest.evidence import Evidence
from strongroom.attest.registry import KINDS
from strongroom.errors import MalformedEvidence
from strongroom.format.encoding import b64url
from strongroom.release.binding import SHORT, Binding, WantedKey
from strongroom.release.names import KeyName

WANTED = WantedKey(KeyName("resnet50", 3), bytes(range(16)))
BINDING = Binding(
    bytes(range(32)), "https://keys.example", "HPKE-X25519", bytes(range(32, 64)), (WANTED,)
)
GPU = Evidence("nvidia", b"report")

# Written out, so that another implementation can be compared with it.
JCS = (
    '{"challenge":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",'
    '"keys":[{"bundle":"AAECAwQFBgcICQoLDA0ODw","name":"resnet50","version":3}],'
    '"recipient":{"public_key":"ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8","suite":"HPKE-X25519"},'
    '%s"server_id":"https://keys.example","v":1}'
)


def test_the_bytes():
    assert BINDING.for_secondary() == hashlib.sha256((JCS % "").encode()).digest()
    alone = (JCS % '"secondary":[],').encode()
    assert BINDING.for_primary("tdx") == hashlib.sha512(alone).digest()
    assert BINDING.for_primary("tpm") == hashlib.sha256(alone).digest()
    digest = b64url(hashlib.sha256(b"nvidia\0report").digest())
    vouched = (JCS % f'"secondary":["{digest}"],').encode()
    assert BINDING.for_primary("snp", [GPU]) == hashlib.sha512(vouched).digest()


def test_the_current_version_is_said():
    current = replace(BINDING, keys=(replace(WANTED, key=KeyName("resnet50")),))
    assert json.loads(json.dumps(current.to_json()))["keys"][0]["version"] == "current"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sizes(kind):
    assert len(BINDING.for_primary(kind)) == (32 if kind in SHORT else 64)


def test_nothing_is_left_out():
    """No two requests that differ in anything share a hash, of either sort."""
    other = WantedKey(KeyName("resnet50", 4), bytes(16))
    changed = [
        BINDING,
        replace(BINDING, challenge=bytes(32)),
        replace(BINDING, server_id="https://keys.example:8443"),
        replace(BINDING, suite="HPKE-MLKEM768X25519"),
        replace(BINDING, public_key=bytes(32)),
        replace(BINDING, keys=()),
        replace(BINDING, keys=(replace(WANTED, key=KeyName("resnet50")),)),
        replace(BINDING, keys=(replace(WANTED, key=KeyName("resnet50", 4)),)),
        replace(BINDING, keys=(replace(WANTED, key=KeyName("resnet5", 3)),)),
        replace(BINDING, keys=(replace(WANTED, bundle=bytes(16)),)),
        replace(BINDING, keys=(WANTED, other)),
        replace(BINDING, keys=(other, WANTED)),
        replace(BINDING, keys=(WANTED, WANTED)),
    ]
    for kind in ("tdx", "tpm"):
        assert len({one.for_primary(kind) for one in changed}) == len(changed)
    assert len({one.for_secondary() for one in changed}) == len(changed)


def test_secondary_evidence_is_vouched_for_one_by_one():
    second = Evidence("nvidia", b"report 2")
    lists = [[], [GPU], [second], [GPU, second], [second, GPU], [GPU, GPU]]
    assert len({BINDING.for_primary("tdx", one) for one in lists}) == len(lists)


def test_kind_and_data_of_secondary_evidence_do_not_run_together():
    assert Evidence("tdx", b"x").digest != Evidence("tpm", b"x").digest
    assert Evidence("tdx", b"x").digest != Evidence("tdx", b"y").digest
    # The zero between the two must not be in the first.
    with pytest.raises(MalformedEvidence):
        Evidence.from_json({"kind": "a\0b", "data": "AA"})


def test_endorsements_are_not_bound():
    """They are authenticated by the verifier's roots, and may be exchanged for newer ones."""
    assert replace(GPU, endorsements=(b"newer",)).digest == GPU.digest


def test_secondary_evidence_is_no_primary():
    assert BINDING.for_secondary() != BINDING.for_primary("tpm")
    assert BINDING.for_secondary() not in BINDING.for_primary("tdx")
