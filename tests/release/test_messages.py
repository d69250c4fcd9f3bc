"""Requests, challenges and names: what is none is refused, and what is one comes back the same."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_EVIDENCES
from strongroom.crypto.hpke import MLKEM768X25519, X25519
from strongroom.errors import MalformedEvidence, StrongroomError, UsageError
from strongroom.format.encoding import b64url
from strongroom.release.binding import WantedKey
from strongroom.release.limits import MAX_KEYS
from strongroom.release.messages import Challenge, ReleaseRequest, parse_time, time_text
from strongroom.release.names import KeyName, parse_key_url

NOW = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
BUNDLE = bytes(range(16))
REQUEST = ReleaseRequest(
    bytes(32),
    X25519.alg,
    bytes(range(32)),
    (WantedKey(KeyName("m", 3), BUNDLE), WantedKey(KeyName("team/n"), BUNDLE)),
    (Evidence("tdx", b"quote", (b"collateral",)), Evidence("nvidia", b"report")),
)
JSON = REQUEST.to_json()
CHALLENGE = Challenge(bytes(32), "https://keys.example", NOW)

names = st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,20}){0,3}", fullmatch=True
)
key_names = st.builds(KeyName, names, st.none() | st.integers(1, 10**9))
wanted = st.builds(WantedKey, key_names, st.binary(min_size=16, max_size=16))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def with_(path, value):
    """The request's JSON with one member replaced."""
    found = json.loads(json.dumps(JSON))
    at = found
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return found


def without(*path):
    found = json.loads(json.dumps(JSON))
    at = found
    for part in path[:-1]:
        at = at[part]
    del at[path[-1]]
    return found


class TestRequests:
    def test_there_and_back(self):
        assert ReleaseRequest.from_json(json.loads(json.dumps(JSON))) == REQUEST

    @given(
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=32, max_size=32),
        st.lists(wanted, min_size=1, max_size=5, unique_by=lambda one: (one.key, one.bundle)),
        st.lists(st.builds(Evidence, st.sampled_from(["tdx", "tpm"]), st.binary()), max_size=3),
    )
    def test_any(self, challenge, public, keys, evidence):
        request = ReleaseRequest(challenge, X25519.alg, public, tuple(keys), tuple(evidence))
        assert ReleaseRequest.from_json(json.loads(json.dumps(request.to_json()))) == request

    def test_without_evidence(self):
        assert ReleaseRequest.from_json(without("evidence")).evidence == ()

    @given(anything)
    def test_nonsense(self, value):
        with pytest.raises(UsageError):
            ReleaseRequest.from_json(value)

    @given(
        st.sampled_from(
            [
                ("challenge",),
                ("recipient",),
                ("recipient", "suite"),
                ("recipient", "public_key"),
                ("keys",),
                ("keys", 0),
                ("keys", 0, "name"),
                ("keys", 0, "bundle"),
                ("evidence", 0),
                ("evidence", 0, "data"),
            ]
        ),
        anything,
    )
    def test_nonsense_inside(self, path, value):
        """Never another exception, and never a request that says something else than its JSON."""
        document = with_(path, value)
        try:
            request = ReleaseRequest.from_json(document)
        except StrongroomError:
            return
        assert request.to_json() == document

    @pytest.mark.parametrize(
        "path",
        [
            ("challenge",),
            ("recipient",),
            ("keys",),
            ("recipient", "suite"),
            ("recipient", "public_key"),
            ("keys", 0, "name"),
            ("keys", 0, "version"),
            ("keys", 0, "bundle"),
        ],
    )
    def test_missing(self, path):
        with pytest.raises(UsageError, match="lacks"):
            ReleaseRequest.from_json(without(*path))

    @pytest.mark.parametrize("path", [("more",), ("recipient", "more"), ("keys", 0, "more")])
    def test_unknown_members(self, path):
        with pytest.raises(UsageError, match="unknown"):
            ReleaseRequest.from_json(with_(path, 1))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("challenge",), b64url(bytes(31))),
            (("challenge",), b64url(bytes(33))),
            (("challenge",), b64url(bytes(32)) + "="),
            (("challenge",), b64url(bytes(32))[:-1] + "B"),  # stray bits: another spelling
            (("challenge",), list(bytes(32))),
            (("recipient", "suite"), "HPKE-P256"),
            (("recipient", "suite"), ["HPKE-X25519"]),
            (("recipient", "suite"), MLKEM768X25519.alg),  # of another size
            (("recipient", "public_key"), b64url(bytes(33))),
            (("keys",), []),
            (("keys",), [JSON["keys"][0]] * 2),
            (("keys",), {"0": JSON["keys"][0]}),
            (("keys", 0, "version"), 0),
            (("keys", 0, "version"), -1),
            (("keys", 0, "version"), True),
            (("keys", 0, "version"), 3.0),
            (("keys", 0, "version"), "3"),
            (("keys", 0, "version"), "latest"),
            (("keys", 0, "version"), None),
            (("keys", 0, "version"), 10**9 + 1),
            (("keys", 0, "name"), ""),
            (("keys", 0, "name"), "m@3"),
            (("keys", 0, "name"), "../m"),
            (("keys", 0, "name"), "m\n"),
            (("keys", 0, "name"), "M" * 201),
            (("keys", 0, "name"), "m\u0301"),
            (("keys", 0, "bundle"), b64url(bytes(15))),
            (("evidence",), {}),
            (("evidence",), [JSON["evidence"][0]] * (MAX_EVIDENCES + 1)),
        ],
        ids=str,
    )
    def test_wrong(self, path, value):
        with pytest.raises(UsageError):
            ReleaseRequest.from_json(with_(path, value))

    def test_so_many_keys(self):
        def keys(count):
            return [{**JSON["keys"][0], "name": f"m{index}"} for index in range(count)]

        assert len(ReleaseRequest.from_json(with_(("keys",), keys(MAX_KEYS))).keys) == MAX_KEYS
        with pytest.raises(UsageError):
            ReleaseRequest.from_json(with_(("keys",), keys(MAX_KEYS + 1)))

    @pytest.mark.parametrize(
        "evidence",
        [
            None,
            {},
            {"kind": "tdx"},
            {"kind": "tdx", "data": "AA", "more": 1},
            {"kind": "", "data": "AA"},
            {"kind": "k" * 41, "data": "AA"},
            {"kind": "tdx", "data": "A"},
            {"kind": "tdx", "data": b64url(bytes((64 << 10) + 3))},
            {"kind": "tdx", "data": "AA", "endorsements": ["AA"] * 33},
            {"kind": "tdx", "data": "AA", "endorsements": [b64url(bytes(600 << 10))] * 2},
            {"kind": "tdx", "data": "AA", "endorsements": "AA"},
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_evidence_that_is_none(self, evidence):
        with pytest.raises(MalformedEvidence):
            ReleaseRequest.from_json(with_(("evidence", 0), evidence))

    def test_one_version_and_the_current_one_are_two_keys(self):
        keys = [JSON["keys"][0], {**JSON["keys"][0], "version": "current"}]
        assert len(ReleaseRequest.from_json(with_(("keys",), keys)).keys) == 2


class TestChallenges:
    def test_there_and_back(self):
        assert Challenge.from_json(json.loads(json.dumps(CHALLENGE.to_json()))) == CHALLENGE

    @given(anything)
    def test_nonsense(self, value):
        with pytest.raises(UsageError):
            Challenge.from_json(value)

    @pytest.mark.parametrize(
        "change",
        [
            {"challenge": b64url(bytes(16))},
            {"server_id": ""},
            {"server_id": "x" * 201},
            {"server_id": None},
            {"expires": "2026-03-01T12:00:00"},
            {"expires": "soon"},
            {"expires": 1772366400},
            {"more": 1},
        ],
        ids=str,
    )
    def test_wrong(self, change):
        with pytest.raises(UsageError):
            Challenge.from_json({**CHALLENGE.to_json(), **change})


class TestTimes:
    def test_one_spelling(self):
        assert time_text(NOW) == "2026-03-01T12:00:00.123Z"
        east = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert time_text(east) == time_text(NOW)
        assert parse_time(time_text(NOW), "x") == NOW

    @given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
    def test_to_the_millisecond_and_never_later(self, moment):
        found = parse_time(time_text(moment), "x")
        assert timedelta() <= moment - found < timedelta(milliseconds=1)

    @pytest.mark.parametrize(
        "text",
        [
            *(None, 5, "", "now", "2026-03-01", "2026-13-01T00:00:00Z", "12:00Z"),
            *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
        ],
    )
    def test_none(self, text):
        with pytest.raises(UsageError, match="is not a time"):
            parse_time(text, "It")


class TestNames:
    @given(key_names)
    def test_there_and_back(self, name):
        assert KeyName.parse(str(name)) == name
        assert parse_key_url(f"https://keys.example:8443/{name}") == ("https://keys.example:8443", name)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "@",
            "@3",
            "m@",
            "m@0",
            "m@03",
            "m@-1",
            "m@+1",
            "m@1.0",
            "m@x",
            "m@3@4",
            "m@²",
            "m@٣",
            "a//b",
            "/a",
            "a/",
            "..",
            "a/../b",
            ".a",
            "a b",
            "a%2fb",
            "é",
            f"m@{10**9 + 1}",
        ],
    )
    def test_none(self, text):
        with pytest.raises(UsageError):
            KeyName.parse(text)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "m",
            "http://k/m",
            "https:///m",
            "https://k",
            "https://k/",
            "https://u@k/m",
            "https://u:p@k/m",
            "https://k/m?a",
            "https://k/m#a",
            "https://k/a/../m",
            "ftp://k/m",
            "https://k/m@0",
        ],
    )
    def test_no_urls(self, url):
        with pytest.raises(UsageError):
            parse_key_url(url)
