"""Profiles: strict, found where they belong, and asked for no other server."""

import json
import os
from dataclasses import replace

import pytest

from strongroom.crypto.hpke import MLKEM768X25519, X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import NoKey, NotFound, UsageError
from strongroom.format.encoding import b64url
from strongroom.providers.keyserver.profile import Profile, find_profile, read_profile, server_url

PUBLIC = MLKEM768X25519.public_of(SecretBytes(bytes(range(32))))
MEMBERS = {
    "url": "https://keys.example:8443",
    "server_id": "keys.example-01",
    "signing_key": b64url(bytes(32)),
    "registration_key": {"suite": MLKEM768X25519.alg, "public_key": b64url(PUBLIC)},
}


@pytest.fixture
def write(tmp_path):
    def write(name="keyserver.json", **changes):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({**MEMBERS, **changes}))
        return place

    return write


def test_a_profile(write, tmp_path):
    found = read_profile(write(ca="PEM", attester="tsm", token_file="t", client_certificate="/c.pem"))
    assert (found.url, found.server_id, found.signing_key) == (
        "https://keys.example:8443",
        "keys.example-01",
        bytes(32),
    )
    assert (found.registration_suite, found.registration_key) == (MLKEM768X25519.alg, PUBLIC)
    assert (found.ca, found.attester) == ("PEM", "tsm")
    assert found.token_file == str(tmp_path / "t")
    assert (found.client_certificate, found.client_key) == ("/c.pem", None)


def test_members_that_are_null(write):
    members = ("ca", "attester", "token_file", "client_certificate", "client_key")
    found = read_profile(write(**dict.fromkeys(members)))
    assert {getattr(found, name) for name in members} == {None}


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://keys.example"},
        {"url": "https://"},
        {"url": "https://user@keys.example"},
        {"url": "https://keys.example/path"},
        {"url": "https://keys.example?x"},
        {"url": "https://keys.example:x"},
        {"url": "https://keys.example:99999"},
        {"url": "https://kéys.example"},
        {"url": None},
        {"server_id": ""},
        {"server_id": "x" * 201},
        {"server_id": 7},
        {"signing_key": b64url(bytes(31))},
        {"signing_key": b64url(bytes(32)) + "="},
        {"signing_key": None},
        {"registration_key": None},
        {"registration_key": {"suite": "HPKE-P256", "public_key": b64url(PUBLIC)}},
        {"registration_key": {"suite": ["x"], "public_key": b64url(PUBLIC)}},
        {"registration_key": {"suite": X25519.alg, "public_key": b64url(PUBLIC)}},
        {"registration_key": {"suite": X25519.alg}},
        {"ca": 1},
        {"attester": ""},
        {"token_file": "a\0b"},
        {"client_key": "k.pem"},
        {"more": 1},
    ],
    ids=str,
)
def test_no_profile(write, changes):
    with pytest.raises(UsageError, match=r"keyserver\.json|key server"):
        read_profile(write(**changes))


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_members_that_are_missing(name):
    with pytest.raises(UsageError, match=f"lacks {name}"):
        Profile.parse({key: value for key, value in MEMBERS.items() if key != name})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"url": 1, "url": 2}', "x" * 300_000])
def test_files_that_hold_none(tmp_path, content):
    (tmp_path / "p").write_text(content)
    with pytest.raises(UsageError):
        read_profile(tmp_path / "p")
    with pytest.raises(NotFound):
        read_profile(tmp_path / "absent")


@pytest.mark.parametrize("mode", [0o602, 0o646, 0o666, 0o777])
def test_everybody_could_pin_another_server(write, mode):
    place = write()
    place.chmod(mode)
    with pytest.raises(UsageError, match="by everybody") as caught:
        read_profile(place)
    assert "chmod" in caught.value.hint


def test_one_spelling_of_urls():
    assert server_url("https://Keys.Example:443/") == "https://keys.example"
    assert server_url("https://[::1]:8443") == "https://[::1]:8443"


@pytest.mark.parametrize(
    ("uri", "mine"),
    [
        ("https://keys.example:8443", True),
        ("https://KEYS.example:8443/", True),
        ("keys.example-01", True),
        ("https://keys.example", False),
        ("https://keys.example:8443.evil.example", False),
        ("https://keys.example:8443@evil.example", False),
        ("https://keys.example:8443/x", False),
        ("http://keys.example:8443", False),
        ("//keys.example:8443", False),
        ("file:///etc/passwd", False),
        ("", False),
    ],
)
def test_which_server_it_is_of(uri, mine):
    profile = Profile.parse(MEMBERS)
    assert profile.answers_for(uri) is mine
    assert replace(profile, chosen=True).answers_for(uri)


class TestPlaces:
    @pytest.fixture
    def environ(self, tmp_path):
        return {"HOME": str(tmp_path)}

    def test_nowhere(self, environ):
        if os.path.exists("/etc/strongroom/keyserver.json"):
            pytest.skip("this machine has a profile")
        with pytest.raises(NoKey, match="no profile") as caught:
            find_profile("https://keys.example:8443", environ)
        assert ".config/strongroom" in caught.value.hint

    def test_at_home(self, environ, write):
        write(".config/strongroom/keyserver.json")
        assert find_profile("https://keys.example:8443", environ).server_id == "keys.example-01"
        assert find_profile(None, environ).server_id == "keys.example-01"
        with pytest.raises(NoKey, match=r"key server https://other\.example"):
            find_profile("https://other.example", environ)

    def test_where_the_system_says(self, environ, write, tmp_path):
        write("xdg/strongroom/keyserver.json")
        environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
        assert find_profile(None, environ).server_id == "keys.example-01"

    def test_a_broken_one_is_not_passed_over(self, environ, write):
        write(".config/strongroom/keyserver.json", url="x")
        with pytest.raises(UsageError):
            find_profile(None, environ)

    def test_named_by_the_environment(self, environ, write):
        environ["STRONGROOM_KEYSERVER"] = str(write("here.json"))
        assert find_profile("https://another.example", environ).url == "https://keys.example:8443"
        environ["STRONGROOM_KEYSERVER"] += "x"
        with pytest.raises(NotFound):
            find_profile(None, environ)

    def test_reached_elsewhere(self, environ, write):
        environ["STRONGROOM_KEYSERVER"] = "https://10.0.0.1:8443"
        with pytest.raises(NoKey):
            find_profile(None, environ)  # a URL alone is nothing to trust
        write(".config/strongroom/keyserver.json")
        found = find_profile("https://keys.example:8443", environ)
        assert (found.address, found.url) == ("https://10.0.0.1:8443", "https://keys.example:8443")

    def test_a_cache_is_no_server(self, environ):
        environ["STRONGROOM_KEYSERVER"] = "unix:///run/x.sock"
        with pytest.raises(UsageError, match="key cache"):
            find_profile(None, environ)
