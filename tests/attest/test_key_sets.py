"""Issuers take new keys: their sets are followed, and nobody who writes tokens makes a server ask for ever."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from web_server import Reply, serving, tls_names

from strongroom.attest.endorsements import RenewableSource, Wanted
from strongroom.attest.jws import verify_token
from strongroom.attest.roots import Issuer
from strongroom.attest.sources import ChainSource, KeySetFile, KeySets, endorsement_source, key_sets
from strongroom.errors import MissingEndorsement, NotAuthentic, StrongroomError, Unavailable
from strongroom.testing.authority import Authority
from strongroom.testing.tokens import TokenIssuer

NOW = datetime.now(UTC).replace(microsecond=0)
NAME = "https://issuer.example/a=b"
WANTED = Wanted("jwks", {"issuer": NAME})
OLD, NEW, STRANGER = (TokenIssuer(NAME, NOW, kid=kid) for kid in ("one", "two", "three"))
BOTH = json.dumps({"keys": [OLD.jwk(), NEW.jwk()]}).encode()
BAD = [
    Unavailable("It does not answer."),
    MissingEndorsement("It is not there."),
    b"",
    b"<html>",
    b'{"keys":[]}',
    json.dumps({"keys": [OLD.jwk()] * 65}).encode(),
]
BAD_IDS = ["down", "absent", "empty", "page", "no-keys", "too-many"]


class Source:
    """Answers what it is set to, and counts."""

    def __init__(self, answer):
        self.answer = answer
        self.count = 0

    def fetch(self, wanted):
        self.count += 1
        if isinstance(self.answer, StrongroomError):
            raise type(self.answer)(self.answer.message)
        return self.answer


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now

    def add(self, **more):
        self.now += timedelta(**more)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source():
    return Source(OLD.jwks)


@pytest.fixture
def sets(source, clock):
    return KeySets(source, clock)


def accepts(sets, issuer, header=None):
    """Whether a token of the key is good; the time of its claims stands."""
    try:
        verify_token(issuer.token(header=header), [Issuer(NAME, "test-server")], NOW, sets)
    except NotAuthentic as error:
        assert "no such key" in str(error)
        return False
    return True


# From an issuer


def test_a_set_is_asked_for_once_an_hour(sets, source, clock):
    for _ in range(5):
        assert accepts(sets, OLD)
    assert source.count == 1
    clock.add(minutes=60)
    assert accepts(sets, OLD)
    assert source.count == 2


def test_a_rotation_is_followed(sets, source, clock):
    assert accepts(sets, OLD)
    source.answer = NEW.jwks
    clock.add(minutes=2)
    assert accepts(sets, OLD)
    assert source.count == 1
    assert accepts(sets, NEW)
    assert source.count == 2
    # What the issuer has withdrawn is worth nothing from then on.
    assert not accepts(sets, OLD)


def test_a_flood_of_unknown_keys_causes_one_look_a_minute(sets, source, clock):
    assert accepts(sets, OLD)
    for _ in range(100):
        assert not accepts(sets, STRANGER)
    assert source.count == 1
    for minute in range(1, 4):
        clock.add(seconds=60)
        for number in range(100):
            assert not accepts(sets, STRANGER, {"kid": f"k{number}"})
            assert accepts(sets, OLD)
        assert source.count == 1 + minute


@pytest.mark.parametrize("answer", BAD, ids=BAD_IDS)
def test_the_old_set_stays_where_no_new_one_can_be_read(sets, source, clock, answer):
    assert accepts(sets, OLD)
    source.answer = answer
    clock.add(minutes=2)
    for _ in range(10):
        assert not accepts(sets, NEW)
        assert accepts(sets, OLD)
    assert source.count == 2
    source.answer = BOTH
    clock.add(minutes=1)
    assert accepts(sets, NEW)
    assert accepts(sets, OLD)
    assert source.count == 3


@pytest.mark.parametrize("answer", BAD, ids=BAD_IDS)
def test_no_set_from_the_network_outlives_its_hour(sets, source, clock, answer):
    """A look that failed does not make it younger."""
    assert accepts(sets, OLD)
    source.answer = answer
    clock.add(minutes=59)
    assert not accepts(sets, NEW)
    clock.add(minutes=1)
    expected = MissingEndorsement if isinstance(answer, MissingEndorsement) else Unavailable
    for _ in range(10):
        with pytest.raises(expected):
            sets.fetch(WANTED)
    assert source.count == 3
    clock.add(seconds=10)
    source.answer = NEW.jwks
    assert accepts(sets, NEW)


def test_tokens_that_name_no_unknown_key_ask_nothing(sets, source, clock):
    assert accepts(sets, OLD)
    clock.add(minutes=2)
    assert accepts(sets, OLD, {"kid": None})
    with pytest.raises(NotAuthentic):  # the right name, and another key
        verify_token(STRANGER.token(header={"kid": "one"}), [Issuer(NAME, "test-server")], NOW, sets)
    with pytest.raises(NotAuthentic):  # for somebody else
        verify_token(STRANGER.token({"aud": "other"}), [Issuer(NAME, "test-server")], NOW, sets)
    assert source.count == 1


def test_a_clock_that_is_set_back_makes_nothing_fresh(sets, source, clock):
    assert accepts(sets, OLD)
    clock.add(days=-1)
    assert accepts(sets, OLD)
    assert source.count == 2


def test_who_comes_while_it_is_looked_goes_by_the_old_set(source, clock, monkeypatch):
    monkeypatch.setattr(key_sets, "_PATIENCE", 0.01)
    looking, go = threading.Event(), threading.Event()

    class Slow(Source):
        def fetch(self, wanted):
            if self.count:
                looking.set()
                assert go.wait(60)
            return super().fetch(wanted)

    slow = Slow(OLD.jwks)
    sets = KeySets(slow, clock)
    assert accepts(sets, OLD)
    clock.add(minutes=2)
    slow.answer = NEW.jwks
    found = []
    first = threading.Thread(target=lambda: found.append(accepts(sets, NEW)))
    first.start()
    try:
        assert looking.wait(60)
        assert accepts(sets, OLD)
        assert not accepts(sets, NEW)
    finally:
        go.set()
        first.join(60)
    assert found == [True]
    assert accepts(sets, NEW)
    assert slow.count == 2


def test_many_at_once_cause_one_fetch(sets, source):
    threads = [threading.Thread(target=accepts, args=(sets, STRANGER)) for _ in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert source.count == 1


def test_other_kinds_are_not_asked_for(sets, source):
    with pytest.raises(MissingEndorsement):
        sets.fetch(Wanted("nvidia-ocsp", {"request": "00"}))
    assert source.count == 0


def test_a_set_that_is_configured_as_it_is_stays_so(sets, source):
    fixed = [Issuer(NAME, "test-server", jwks=OLD.jwks)]
    with pytest.raises(NotAuthentic, match="no such key"):
        verify_token(NEW.token(), fixed, NOW, sets)
    assert source.count == 0


def test_over_https(tmp_path: Path, clock):
    since, until = NOW - timedelta(days=1), NOW + timedelta(days=1)
    root = Authority.make("web root", since, until)
    leaf = Authority.make("127.0.0.1", since, until, root, ca=False, extensions=tls_names())
    with serving(leaf, tmp_path) as server:
        issuer = Issuer(server.url, "test-server")
        of = {kid: TokenIssuer(server.url, NOW, kid=kid) for kid in ("one", "two")}
        server.replies["/keys"] = Reply(of["one"].jwks)
        spec = f"jwks:{server.url}={server.url}/keys"
        found = endorsement_source([f"files:{tmp_path}", spec], ca=root.pem, clock=clock)
        verify_token(of["one"].token(), [issuer], NOW, found)
        server.replies["/keys"] = Reply(of["two"].jwks)
        for _ in range(20):
            with pytest.raises(NotAuthentic):
                verify_token(of["two"].token(), [issuer], NOW, found)
        assert server.asked == ["/keys"]
        clock.add(minutes=1)
        for _ in range(20):
            verify_token(of["two"].token(), [issuer], NOW, found)
        assert server.asked == ["/keys"] * 2


# In a file


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys=1.json"
    path.write_bytes(OLD.jwks)
    return path


def test_a_file_is_followed(file):
    source = KeySetFile(NAME, file)
    assert accepts(source, OLD)
    file.write_bytes(BOTH)
    assert accepts(source, OLD)
    assert accepts(source, NEW)
    replacement = file.with_suffix(".new")
    replacement.write_bytes(NEW.jwks)
    replacement.replace(file)
    assert accepts(source, NEW)
    assert not accepts(source, OLD)


@pytest.mark.parametrize("content", BAD[2:], ids=BAD_IDS[2:])
def test_a_file_that_is_no_key_set_takes_nothings_place(file, content):
    source = KeySetFile(NAME, file)
    assert accepts(source, OLD)
    file.write_bytes(content)
    assert accepts(source, OLD)
    file.unlink()
    assert accepts(source, OLD)
    file.mkdir()
    assert accepts(source, OLD)
    file.rmdir()
    file.write_bytes(NEW.jwks)
    assert accepts(source, NEW)
    assert not accepts(source, OLD)
    with pytest.raises(Unavailable):
        file.write_bytes(content)
        KeySetFile(NAME, file).fetch(WANTED)


def test_a_file_is_not_read_again_while_it_is_the_same(file):
    source = KeySetFile(NAME, file)
    before = file.stat()
    assert accepts(source, OLD)
    # The same file with the same marks: what is in it now is not looked at, whatever tokens say.
    with open(file, "r+b") as opened:
        opened.write(b" " * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(10):
        assert not accepts(source, NEW)
        assert accepts(source, OLD)


def test_a_file_is_of_one_issuer(file):
    source = KeySetFile(NAME, file)
    for wanted in (Wanted("jwks", {"issuer": "https://other.example"}), Wanted("amd-crl")):
        with pytest.raises(MissingEndorsement):
            source.fetch(wanted)


def test_a_file_by_its_spec(file):
    source = endorsement_source([f"jwks-file:https%3A%2F%2Fissuer.example%2Fa%3Db={file}"])
    assert isinstance(source, KeySetFile)
    assert accepts(source, OLD)


# Several


def test_the_first_that_has_a_set_is_the_one_that_is_asked_again(source, clock, file):
    """Another source further down does not get a word in because a token says so."""
    last = KeySets(Source(BOTH), clock)
    chain = ChainSource([KeySetFile(NAME, file), last])
    assert isinstance(chain, RenewableSource)
    assert accepts(chain, OLD)
    clock.add(minutes=2)
    assert not accepts(chain, NEW)
    other = KeySetFile("https://other.example", file)
    chain = ChainSource([other, KeySets(source, clock), last])
    assert accepts(chain, OLD)
    clock.add(minutes=2)
    assert not accepts(chain, NEW)
    source.answer = NEW.jwks
    clock.add(minutes=2)
    assert accepts(chain, NEW)
    assert ChainSource([other]).fetch_newer(WANTED, b"old") == b"old"
