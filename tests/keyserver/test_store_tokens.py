"""Tokens of administrators."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from stores import AUDITOR, OWNER, START, sql

from strongroom.errors import NotAuthorised, NotFound, UsageError
from strongroom.keyserver.store import Actor


def test_a_token_names_its_owner(store):
    id, token = store.add_token("bob", "operator", None, OWNER)
    assert re.fullmatch(r"srt_[A-Za-z0-9_-]{43}", token)
    assert store.token(token) == Actor("bob", "operator", "token")
    (record,) = store.tokens()
    assert (record.id, record.name, record.role, record.created) == (id, "bob", "operator", START)
    assert record.expires is None


def test_the_database_has_a_hash_only(store):
    _, token = store.add_token("bob", "operator", None, OWNER)
    everything = (
        repr(sql(store.url, "SELECT * FROM tokens")) + repr(store.audit()) + repr(store.tokens())
    )
    assert token not in everything and token[4:] not in everything


@pytest.mark.parametrize("change", ["", "srt_", "srt_" + "A" * 43, "x", "ü" * 40])
def test_other_tokens_are_nobodys(store, change):
    _, token = store.add_token("bob", "operator", None, OWNER)
    with pytest.raises(NotAuthorised) as caught:
        store.token(change)
    assert not change or change not in str(caught.value) or change == "x"
    for almost in (token[:-1], token + "A", token.swapcase(), token.replace("srt_", "srt-")):
        with pytest.raises(NotAuthorised):
            store.token(almost)


def test_tokens_expire(store, clock):
    _, token = store.add_token("bob", "owner", START + timedelta(hours=1), OWNER)
    clock.move(minutes=59, seconds=59)
    store.token(token)
    clock.move(seconds=1)
    with pytest.raises(NotAuthorised):
        store.token(token)


@pytest.mark.parametrize("year", [1, 1969, 2256, 9999])
def test_ends_that_cannot_be_kept_are_refused(store, year):
    with pytest.raises(UsageError, match="The end of a token"):
        store.add_token("bob", "owner", START.replace(year=year), OWNER)
    assert store.tokens() == []


def test_a_token_that_has_ended_is_not_made(store, clock):
    for end in (START - timedelta(days=1), START):
        with pytest.raises(UsageError, match="passed already"):
            store.add_token("bob", "owner", end, OWNER)
    assert store.tokens() == []


def test_dropped_tokens_are_worthless(store):
    id, token = store.add_token("bob", "owner", None, OWNER)
    store.drop_token(id, OWNER)
    with pytest.raises(NotAuthorised):
        store.token(token)
    with pytest.raises(NotFound):
        store.drop_token(id, OWNER)
    assert [one["event"] for one in store.audit()][1:] == ["token.added", "token.dropped"]


def test_nobody_gives_a_role_above_his_own(store):
    operator = Actor("otto", "operator", "token")
    store.add_token("t", "operator", None, operator)
    for actor, role in ((operator, "owner"), (AUDITOR, "auditor"), (Actor("x", "?", "x"), "auditor")):
        with pytest.raises(NotAuthorised):
            store.add_token("t", role, None, actor)
    for name, role in (("t", "root"), ("", "auditor"), ("a\nb", "auditor"), ("x" * 101, "auditor")):
        with pytest.raises(UsageError):
            store.add_token(name, role, None, OWNER)
