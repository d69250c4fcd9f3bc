"""Answers: for one request, from one server; whatever is changed, nothing comes out."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from strongroom.crypto.hpke import KEMS, MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import UntrustedAnswer, UsageError
from strongroom.format.encoding import b64url, canonical_json, unb64url_text
from strongroom.release.answer import (
    Lease,
    Refused,
    Released,
    open_answer,
    refuse_key,
    seal_key,
    sign,
    sign_answer,
    verify_signed,
)
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.names import KeyName

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SERVER = SIGNING.public_key().public_bytes_raw()
SECRET = SecretBytes(bytes(range(32)))
PUBLIC = MLKEM768X25519.public_of(SECRET)
FIRST = WantedKey(KeyName("m", 3), bytes(16))
SECOND = WantedKey(KeyName("n"), bytes(16))
BINDING = Binding(bytes(32), "https://keys.example", MLKEM768X25519.alg, PUBLIC, (FIRST, SECOND))
LEASE = Lease("lease", NOW + timedelta(hours=1), NOW + timedelta(minutes=30))
DEK = bytes(range(100, 132))


def seal(binding=BINDING, wanted=FIRST, version=3, lease=LEASE, dek=DEK):
    return seal_key(binding, wanted, version, lease, SecretBytes(dek))


RELEASED = seal()
REFUSED = refuse_key(SECOND, "policy")
ANSWER = sign_answer(BINDING, [RELEASED, REFUSED], NOW, SIGNING)


def answer(given, binding=BINDING, **changes):
    """Signed by the right server, whatever it says."""
    signed = sign_answer(binding, given, NOW, SIGNING)
    return sign({**json.loads(unb64url_text(signed["payload"])), **changes}, SIGNING)


def refused(value, binding=BINDING, secret=SECRET, server=SERVER):
    with pytest.raises(UntrustedAnswer) as caught:
        open_answer(value, binding, secret, server)
    # What opens and is not believed must not lie in a traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_opened():
    time, (first, second) = open_answer(ANSWER, BINDING, SECRET, SERVER)
    assert time == NOW
    assert isinstance(first, Released)
    assert (first.wanted, first.version, first.lease) == (FIRST, 3, LEASE)
    assert bytes(first.dek.buffer) == DEK
    assert second == Refused(SECOND, "policy")
    assert "DEK" not in repr(first)
    assert DEK.hex() not in repr(first) + json.dumps(ANSWER)


@pytest.mark.parametrize("suite", sorted(KEMS))
def test_each_suite(suite):
    kem = KEMS[suite]
    secret = SecretBytes.random(kem.secret_size)
    binding = replace(BINDING, suite=suite, public_key=kem.public_of(secret), keys=(FIRST,))
    value = sign_answer(binding, [seal(binding)], NOW, SIGNING)
    _, (released,) = open_answer(value, binding, secret, SERVER)
    assert bytes(released.dek.buffer) == DEK


def test_a_recipient_that_is_no_key():
    with pytest.raises(UsageError):
        seal(replace(BINDING, public_key=b"short"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {},
        {"payload": ANSWER["payload"]},
        {"signature": ANSWER["signature"]},
        {**ANSWER, "signature": ""},
        {**ANSWER, "signature": b64url(bytes(64))},
        {**ANSWER, "signature": ANSWER["signature"] + "="},
        {**ANSWER, "signature": None},
        {**ANSWER, "payload": ANSWER["payload"] + "A"},
        {**ANSWER, "payload": ""},
        {**ANSWER, "payload": json.loads(unb64url_text(ANSWER["payload"]))},
    ],
)
def test_unsigned(value):
    refused(value)


def test_every_byte_of_payload_and_signature_counts():
    for name in ("payload", "signature"):
        raw = unb64url_text(ANSWER[name])
        step = max(1, len(raw) // 97)
        for index in range(0, len(raw), step):
            changed = bytearray(raw)
            changed[index] ^= 1
            refused({**ANSWER, name: b64url(bytes(changed))})


def test_another_spelling_of_the_same_payload():
    raw = json.dumps(json.loads(unb64url_text(ANSWER["payload"]))).encode()
    refused({**ANSWER, "payload": b64url(raw)})


def test_signed_by_another():
    refused(sign_answer(BINDING, [RELEASED, REFUSED], NOW, Ed25519PrivateKey.generate()))
    refused(ANSWER, server=Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    refused(ANSWER, server=bytes(32))
    refused(ANSWER, server=b"")


def test_a_signature_of_the_same_key_over_something_else():
    """The domain is signed too: no token, no statement, no other protocol is an answer."""
    raw = unb64url_text(ANSWER["payload"])
    for message in (raw, b"strongroom/v1/release\0" + raw, b"strongroom/v1/answer" + raw):
        refused({**ANSWER, "signature": b64url(SIGNING.sign(message))})


@pytest.mark.parametrize(
    "change",
    [
        {"challenge": bytes(range(32))},
        {"server_id": "https://keys.example2"},
        {"public_key": MLKEM768X25519.public_of(SecretBytes(bytes(32)))},
        {"keys": (FIRST,)},
        {"keys": (SECOND, FIRST)},
        {"keys": (FIRST, FIRST)},
        {"keys": (FIRST, replace(SECOND, key=KeyName("o")))},
        {"keys": (replace(FIRST, key=KeyName("m", 2)), SECOND)},
        {"keys": (replace(FIRST, key=KeyName("m")), SECOND)},
        {"keys": (replace(FIRST, bundle=bytes(range(16))), SECOND)},
        {"keys": (FIRST, SECOND, SECOND)},
    ],
)
def test_replayed_for_another_request(change):
    other = replace(BINDING, **change)
    refused(ANSWER, other)
    # Also where the server is made to sign the old results for the new request.
    refused(answer([RELEASED, REFUSED], other), other)


@pytest.mark.parametrize(
    "change", [{"challenge": bytes(range(32))}, {"server_id": "https://keys.example2"}]
)
def test_a_refusal_replayed_for_another_request(change):
    """Nothing is sealed in it, and a cache that believed it would wipe a key."""
    alone = replace(BINDING, keys=(SECOND,))
    open_answer(answer([REFUSED], alone), alone, SECRET, SERVER)
    refused(answer([REFUSED], alone), replace(alone, **change))


def test_another_one_time_key():
    refused(ANSWER, secret=SecretBytes(bytes(32)))


def test_results_exchanged():
    both = replace(BINDING, keys=(FIRST, replace(FIRST, key=KeyName("n", 3))))
    first, second = seal(both, both.keys[0]), seal(both, both.keys[1], dek=bytes(32))
    open_answer(answer([first, second], both), both, SECRET, SERVER)
    refused(answer([second, first], both), both)
    for name in ("encrypted_key", "lease", "released", "bundle", "version", "name"):
        if first[name] != second[name]:
            exchanged = [{**first, name: second[name]}, {**second, name: first[name]}]
            refused(answer(exchanged, both), both)


@pytest.mark.parametrize(
    "change",
    [
        {"released": 4},
        {"released": True},
        {"released": None},
        {"released": "3"},
        {"lease": {**LEASE.to_json(), "id": "other"}},
        {"lease": {**LEASE.to_json(), "not_after": "2030-01-01T00:00:00.000Z"}},
        {"lease": {**LEASE.to_json(), "renew_after": "2030-01-01T00:00:00.000Z"}},
        {"lease": {**LEASE.to_json(), "not_after": "never"}},
        {"lease": {**LEASE.to_json(), "not_after": None}},
        {"lease": {}},
        {"lease": None},
        {"encrypted_key": ""},
        {"encrypted_key": b64url(bytes(1168))},
        {"encrypted_key": RELEASED["encrypted_key"][:-4]},
        {"encrypted_key": RELEASED["encrypted_key"] + "AAAA"},
        {"name": "o"},
        {"version": "current"},
        {"bundle": b64url(bytes(range(16)))},
    ],
)
def test_changed_results(change):
    refused(answer([{**RELEASED, **change}, REFUSED]))


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_members_that_are_missing(name):
    refused(answer([{key: value for key, value in RELEASED.items() if key != name}, REFUSED]))


@pytest.mark.parametrize(
    "results", [None, {}, "ab", [], [RELEASED], [RELEASED, REFUSED, REFUSED], [1, 2], [[], []]]
)
def test_results_that_are_none(results):
    refused(answer([RELEASED, REFUSED], results=results))


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"v": "1"}, {"v": None}, {"time": None}, {"time": "x"}, {"server_id": ""}],
)
def test_changed_payloads(change):
    refused(answer([RELEASED, REFUSED], **change))


@pytest.mark.parametrize("size", [1, 16, 31, 33, 64])
def test_a_key_of_another_size(size):
    refused(answer([seal(dek=bytes(size)), REFUSED]))


def test_a_refusal_that_brings_a_key():
    """What is refused is refused, whatever else is said."""
    _, (first, _) = open_answer(
        answer([{**RELEASED, "refused": "policy"}, REFUSED]), BINDING, SECRET, SERVER
    )
    assert first == Refused(FIRST, "policy")


def test_the_current_version_may_be_any():
    binding = replace(BINDING, keys=(SECOND,))
    value = sign_answer(binding, [seal(binding, SECOND, 7)], NOW, SIGNING)
    _, (released,) = open_answer(value, binding, SECRET, SERVER)
    assert released.version == 7
    assert released.wanted.key.version is None


def test_another_version_than_the_one_that_was_asked_for():
    """Sealed and signed by the server itself."""
    refused(answer([seal(version=2), REFUSED]))


@given(
    st.dictionaries(st.text(st.characters(codec="ascii"), max_size=5), st.integers(0, 9) | st.text())
)
def test_signed_payloads(payload):
    signed = sign(payload, SIGNING)
    assert verify_signed(json.loads(json.dumps(signed)), SERVER) == payload
    assert unb64url_text(signed["payload"]) == canonical_json(payload)


def test_signed_and_no_strict_json():
    for raw in (b'{"a":1,"a":2}', b"[1]", b'{"a":NaN}', b"\xff", b"{"):
        signature = SIGNING.sign(b"strongroom/v1/answer\0" + raw)
        with pytest.raises(UntrustedAnswer):
            verify_signed({"payload": b64url(raw), "signature": b64url(signature)}, SERVER)
