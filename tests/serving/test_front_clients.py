"""Who fits a rule, and how often."""

from __future__ import annotations

import hashlib

import pytest
from front_process import Pki

from strongroom.serving.call import Client
from strongroom.serving.clients import Access, client_of, with_token
from strongroom.serving.config import ClientRule
from strongroom.serving.status import Code, RequestError


def refused(access, client, model="m"):
    """The code; None where it is let in."""
    try:
        access.check(client, model)
    except RequestError as error:
        return error.code
    return None


def test_names_come_from_the_certificate(tmp_path):
    certificate, _ = Pki(tmp_path).issue("one", ["a.example", "127.0.0.1"], ["spiffe://a/b"])
    client = client_of("192.0.2.1", certificate.read_bytes())
    assert (client.address, client.subject) == ("192.0.2.1", "CN=one")
    assert client.names == ("a.example", "spiffe://a/b")
    assert client_of("192.0.2.1", None) == Client("192.0.2.1")
    assert client_of("192.0.2.1", b"\x30\x00") == Client("192.0.2.1")


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("abc", None), ("", None)],
)
def test_the_header_of_a_token(header, token):
    client = with_token(Client("a"), header)
    assert client.token == token
    assert "abc" not in repr(client)


def test_one_rule_is_enough():
    digest = hashlib.sha256(b"abc").hexdigest()
    rules = (
        ClientRule(subject="CN=one"),
        ClientRule(name="a.example"),
        ClientRule(token_sha256=digest.upper()),
    )
    access = Access(lambda model: rules)
    for client in (
        Client(subject="CN=one"),
        Client(subject="CN=two", names=("b.example", "a.example")),
        Client(token="abc"),
    ):
        assert refused(access, client) is None
    for client in (
        Client(subject="CN=on"),
        Client(subject="cn=one"),
        Client(subject="CN=two", names=("x.a.example",)),
        Client(token="abd"),
        Client(token=digest),
        Client(token=""),
    ):
        assert refused(access, client) is Code.PERMISSION_DENIED
    assert refused(access, Client(address="CN=one")) is Code.UNAUTHENTICATED


def test_rules_that_change_hold_at_once():
    rules = [(), (ClientRule(subject="CN=one"),)]
    access = Access(lambda model: rules[0])
    assert refused(access, Client()) is None
    rules.reverse()
    assert refused(access, Client()) is Code.UNAUTHENTICATED


def test_a_quota_is_of_one_client_and_comes_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("strongroom.serving.clients.time.monotonic", lambda: now[0])
    rules = tuple(ClientRule(subject=f"CN={name}", requests_per_second=2) for name in "ab")
    access = Access(lambda model: rules)
    a, b = (Client(subject=f"CN={name}") for name in "ab")
    assert [refused(access, a) for _ in range(3)] == [None, None, Code.RESOURCE_EXHAUSTED]
    assert refused(access, b) is None
    now[0] += 0.5
    assert [refused(access, a) for _ in range(2)] == [None, Code.RESOURCE_EXHAUSTED]
    now[0] += 100
    assert [refused(access, a) for _ in range(3)] == [None, None, Code.RESOURCE_EXHAUSTED]


def test_administrators():
    rule = ClientRule(subject="CN=one")
    Access(lambda model: (), None).check_admin(Client())
    Access(lambda model: (), (rule,)).check_admin(Client(subject="CN=one"))
    for admins, client, code in (
        ((), Client(subject="CN=one"), Code.PERMISSION_DENIED),
        ((rule,), Client(subject="CN=two"), Code.PERMISSION_DENIED),
        ((rule,), Client(), Code.UNAUTHENTICATED),
    ):
        with pytest.raises(RequestError) as caught:
            Access(lambda model: (), admins).check_admin(client)
        assert caught.value.code is code
