"""Who approves a change of a policy: by the version in force, for this change, once."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from made_claims import digits, document, requirement

from strongroom.errors import InvalidPolicy, NotAuthorised
from strongroom.format.encoding import b64url
from strongroom.release.approvals import (
    check_successor,
    overlapping,
    policy_for,
    policy_statement,
    verify_approval,
    verify_approvals,
)
from strongroom.release.policy import Policy

KEYS = {name: Ed25519PrivateKey.generate() for name in ("ann", "bob", "cay", "eve")}


def approvers(*names, needed=2):
    keys = {name: b64url(KEYS[name].public_key().public_bytes_raw()) for name in names}
    return {"needed": needed, "approvers": keys}


IN_FORCE = Policy.parse(document(version=4, approvals=approvers("ann", "bob", "cay")))
NEXT = Policy.parse(
    document(
        requirement("tdx", mr_td=digits("e", 48)), version=5, approvals=approvers("ann", "bob", "cay")
    )
)


SERVER = b"\x07" * 32


def signed(policy, previous, *names, server=SERVER):
    return {name: KEYS[name].sign(policy_statement(policy, previous, server)) for name in names}


def test_two_of_three():
    assert verify_approvals(NEXT, IN_FORCE, signed(NEXT, IN_FORCE, "cay", "ann"), SERVER) == (
        "ann",
        "cay",
    )
    assert verify_approvals(NEXT, IN_FORCE, signed(NEXT, IN_FORCE, *["ann", "bob", "cay"]), SERVER)


@pytest.mark.parametrize("names", [(), ("ann",), ("cay",)])
def test_too_few(names):
    with pytest.raises(NotAuthorised, match=f"{len(names)} of 2"):
        verify_approvals(NEXT, IN_FORCE, signed(NEXT, IN_FORCE, *names), SERVER)


def test_a_stranger_and_one_whom_the_new_version_names():
    with pytest.raises(NotAuthorised):
        verify_approvals(NEXT, IN_FORCE, signed(NEXT, IN_FORCE, "ann", "bob", "eve"), SERVER)
    taken_over = Policy.parse(document(version=5, approvals=approvers("eve", needed=1)))
    with pytest.raises(NotAuthorised):
        verify_approvals(taken_over, IN_FORCE, signed(taken_over, IN_FORCE, "eve"), SERVER)
    dropped = Policy.parse(document(version=5))
    with pytest.raises(NotAuthorised):
        verify_approvals(dropped, IN_FORCE, {}, SERVER)
    # With the approvals that the version in force asks for, approvers can change.
    assert verify_approvals(taken_over, IN_FORCE, signed(taken_over, IN_FORCE, "ann", "bob"), SERVER)


def test_one_person_under_another_name():
    doubled = {"ann": signed(NEXT, IN_FORCE, "ann")["ann"], "bob": signed(NEXT, IN_FORCE, "ann")["ann"]}
    with pytest.raises(NotAuthorised, match="by bob"):
        verify_approvals(NEXT, IN_FORCE, doubled, SERVER)


def test_an_approval_is_of_one_change_alone():
    good = signed(NEXT, IN_FORCE, "ann", "bob")
    other = Policy.parse({**NEXT.to_json(), "description": "something else"})
    later = Policy.parse({**NEXT.to_json(), "version": 6})
    elsewhere = Policy.parse({**NEXT.to_json(), "id": "llama-test"})
    in_force = Policy.parse({**IN_FORCE.to_json(), "description": "other", "version": 4})
    for policy in (other, later):
        with pytest.raises(NotAuthorised):
            verify_approvals(policy, IN_FORCE, good, SERVER)
    with pytest.raises(NotAuthorised):
        verify_approvals(NEXT, in_force, good, SERVER)
    with pytest.raises(InvalidPolicy):
        verify_approvals(elsewhere, IN_FORCE, good, SERVER)
    # Nor a signature over the digest, or the document, without saying what it is for.
    for message in (NEXT.digest, policy_statement(NEXT, None, SERVER), b""):
        with pytest.raises(NotAuthorised):
            verify_approval(NEXT, IN_FORCE, "ann", KEYS["ann"].sign(message), SERVER)


def test_an_approval_is_for_one_server():
    """What was approved for the staging server is not approved for the one with the real keys."""
    with pytest.raises(NotAuthorised):
        verify_approvals(NEXT, IN_FORCE, signed(NEXT, IN_FORCE, "ann", "bob", server=bytes(32)), SERVER)


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "longer"])
def test_a_signature_that_is_none(change):
    good = signed(NEXT, IN_FORCE, "ann")["ann"]
    bad = {
        "flip": bytes([good[0] ^ 1]) + good[1:],
        "cut": good[:-1],
        "empty": b"",
        "longer": good + b"\0",
    }[change]
    with pytest.raises(NotAuthorised):
        verify_approval(NEXT, IN_FORCE, "ann", bad, SERVER)


@pytest.mark.parametrize("version", [1, 3, 4])
def test_an_old_version_does_not_return(version):
    old = Policy.parse({**NEXT.to_json(), "version": version})
    with pytest.raises(InvalidPolicy) as caught:
        verify_approvals(old, IN_FORCE, signed(old, IN_FORCE, "ann", "bob"), SERVER)
    assert caught.value.path == "version"
    check_successor(old, None)


def test_the_first_version_and_one_without_approvals_ask_nobody():
    assert verify_approvals(IN_FORCE, None, {}, SERVER) == ()
    plain = Policy.parse(document(version=4))
    assert verify_approvals(NEXT, plain, {}, SERVER) == ()
    with pytest.raises(NotAuthorised):
        verify_approval(NEXT, plain, "ann", b"", SERVER)


def policy(name, *keys, **members):
    return Policy.parse({**document(**members), "id": name, "keys": list(keys)})


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a/b", "a/", True),
        ("a", "a/", False),
        ("a/", "a/", True),
        ("a/b/", "a/", True),
        ("a/b/", "a/c/", False),
        ("ab/", "a/", False),
        ("a/b", "a/b/", False),
        ("a/bc", "a/b/", False),
    ],
)
def test_policies_that_share_a_key(one, other, meet):
    first, second = policy("first", one), policy("second", other)
    assert bool(overlapping(first, [second])) == meet
    assert bool(overlapping(second, [first])) == meet
    # As the meaning has it: some name that both cover.
    names = ["a", "b", "ab", "a/b", "a/c", "a/bc", "a/b/x", "a/b/y/z", "a/c/x", "ab/x", "a/x", "c"]
    assert any(first.covers(name) and second.covers(name) for name in names) == meet


def test_a_new_policy_cannot_give_away_what_an_older_one_guards():
    guard = policy("guard", "models/", approvals=approvers("ann", "bob"))
    thief = policy("thief", "models/llama", "other")
    assert overlapping(thief, [guard]) == [("guard", "models/llama")]
    assert overlapping(policy("guard", "models/", version=2), [guard]) == []
    assert overlapping(policy("thief", "models/llama", shadow=True), [guard]) == []
    assert overlapping(thief, [policy("guard", "models/", shadow=True)]) == []


def test_the_policy_of_a_key_is_one_or_none():
    guard, thief = policy("guard", "models/"), policy("thief", "models/llama")
    shadow = policy("watch", "models/", shadow=True)
    assert policy_for([shadow, guard], "models/llama") is guard
    assert policy_for([guard, thief], "models/llama") is None
    assert policy_for([guard, thief], "models/other") is guard
    assert policy_for([shadow], "models/llama") is None
    assert policy_for([], "models/llama") is None


def test_the_statement_is_what_it_was():
    """Approvers sign bytes: they do not change from one release to the next."""
    one = Policy.parse(
        {"id": "p", "version": 1, "keys": ["k"], "any": [{"kind": "mtls", "subject": "CN=a"}]}
    )
    digest = b64url(one.digest)
    assert policy_statement(one, None, SERVER) == (
        b'strongroom/v1/policy\0{"id":"p","policy":"'
        + digest.encode()
        + b'","previous":null,"server":"'
        + b64url(SERVER).encode()
        + b'","v":1,"version":1}'
    )
    text = b'{"any":[{"kind":"mtls","subject":"CN=a"}],"id":"p","keys":["k"],"version":1}'
    assert one.digest == hashlib.sha256(text).digest()
