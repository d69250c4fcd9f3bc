"""Seal for a key in a key server, open without a key."""

import json
import subprocess
import sys

import pytest
from release_stub import TOKEN

import strongroom
from strongroom.errors import (
    HeaderTampered,
    InvalidKey,
    Malformed,
    NoKey,
    NoMatchingRecipient,
    ReleaseDenied,
    UsageError,
)
from strongroom.format.header import Header
from strongroom.providers.by_model import KeyOfModel
from strongroom.providers.keyserver.source import KeyOfHeader


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights" * 1000)
    return tmp_path / "model"


@pytest.fixture
def profile(stub, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(stub.profile_file))
    return stub


@pytest.fixture
def sealed(model, profile, tmp_path):
    place = tmp_path / "model.sealed"
    strongroom.seal(model, place, recipients=f"{profile.url}/team/resnet50")
    return place


def recipient(place):
    return strongroom.inspect(place).header.recipients[0]


def test_sealed_and_opened_without_a_key(sealed, stub):
    assert recipient(sealed) == {"alg": "keyserver", "uri": stub.url, "kid": "team/resnet50@1"}
    with strongroom.open(sealed) as found:
        assert found.read("weights.bin") == b"weights" * 1000
    assert strongroom.verify(sealed) == 7000
    strongroom.unseal(sealed, sealed.parent / "again")
    for key in (f"{stub.url}/team/resnet50", f"{stub.url}/team/resnet50@1"):
        assert strongroom.verify(sealed, key=key) == 7000
    assert stub.keys["team/resnet50"][0][0] == strongroom.inspect(sealed).header.bundle


def test_tokens_go_where_they_belong(sealed, stub):
    strongroom.verify(sealed)
    assert dict(stub.tokens) == {
        "/v1/keys": f"Bearer {TOKEN}",
        "/v1/challenge": None,
        "/v1/release": None,
    }


def test_a_token_in_the_environment(model, profile, tmp_path, monkeypatch):
    profile.write_profile(token_file=None)
    monkeypatch.setenv("STRONGROOM_TOKEN", "srt_of-mine")
    strongroom.seal(model, tmp_path / "m.sealed", recipients=f"{profile.url}/m")
    strongroom.verify(tmp_path / "m.sealed")
    assert dict(profile.tokens) == {
        "/v1/keys": "Bearer srt_of-mine",
        "/v1/challenge": None,
        "/v1/release": None,
    }


def test_the_next_version(model, sealed, stub, tmp_path):
    strongroom.seal(model, tmp_path / "2.sealed", key=f"{stub.url}/team/resnet50")
    assert recipient(tmp_path / "2.sealed")["kid"] == "team/resnet50@2"
    assert strongroom.verify(tmp_path / "2.sealed") == strongroom.verify(sealed) == 7000
    with pytest.raises(strongroom.errors.AlreadyExists):
        strongroom.seal(model, tmp_path / "3.sealed", key=f"{stub.url}/team/resnet50@1")
    assert not (tmp_path / "3.sealed").exists()


def test_another_key_of_the_same_server(sealed, stub):
    for key in (f"{stub.url}/other", f"{stub.url}/team/resnet50@2"):
        with pytest.raises(NoMatchingRecipient, match="team/resnet50@1"):
            strongroom.open(sealed, key=key)


def test_a_key_in_the_environment_wins(model, profile, tmp_path, monkeypatch):
    both = tmp_path / "both.sealed"
    key = strongroom.SymmetricKey.generate()
    (tmp_path / "key.txt").write_bytes(key.encode())
    strongroom.seal(model, both, key=key, recipients=f"{profile.url}/m")
    monkeypatch.setenv("STRONGROOM_KEY_FILE", str(tmp_path / "key.txt"))
    assert strongroom.verify(both) == 7000
    assert profile.count("/v1/release") == 0
    monkeypatch.delenv("STRONGROOM_KEY_FILE")
    assert strongroom.verify(both) == 7000
    assert profile.count("/v1/release") == 1


def test_no_key_and_no_key_server(model, profile, tmp_path):
    strongroom.seal(model, tmp_path / "m.sealed", key=bytes(range(32)))
    with pytest.raises(NoKey, match="No key was given"):
        strongroom.open(tmp_path / "m.sealed")
    assert not profile.asked[1:]


def test_by_model_id(model, profile, tmp_path):
    place = tmp_path / "m.sealed"
    strongroom.seal(model, place, key=f"{profile.url}/acme/m", meta={"model_id": "acme/m"})
    with strongroom.open(place, key=KeyOfModel(profile.url + "/{model_id}")) as found:
        assert found.read("weights.bin")
    with strongroom.open(place, key=KeyOfModel(None)) as found:
        assert found.read("weights.bin")


def test_rewrap(model, profile, tmp_path):
    place = tmp_path / "m.sealed"
    key = bytes(range(32))
    strongroom.seal(model, place, key=key)
    strongroom.rewrap(place, key=key, recipients=f"{profile.url}/m")
    assert strongroom.verify(place) == 7000
    strongroom.rewrap(place, new_key=key)
    assert strongroom.verify(place, key=key) == 7000
    with pytest.raises(NoKey):
        strongroom.verify(place)


def test_the_file_leads_to_no_other_server(sealed, stub, tmp_path, monkeypatch):
    """The header is written by whoever made the file."""
    (tmp_path / ".config" / "strongroom").mkdir(parents=True)
    monkeypatch.delenv("STRONGROOM_KEYSERVER")
    asked = len(stub.asked)
    with pytest.raises(NoKey, match="no profile"):
        strongroom.open(sealed)
    other = stub.profile(url="https://keys.example", server_id="other")
    (tmp_path / ".config" / "strongroom" / "keyserver.json").write_text(json.dumps(other))
    with pytest.raises(NoKey, match="of which there is no profile"):
        strongroom.open(sealed)
    with pytest.raises(NoKey, match="of which there is no profile"):
        strongroom.open(sealed, key=f"{stub.url}/team/resnet50")
    assert len(stub.asked) == asked
    # The right one, in its place, and reached by another name.
    mine = json.dumps(stub.profile(token_file=None))
    (tmp_path / ".config" / "strongroom" / "keyserver.json").write_text(mine)
    assert strongroom.verify(sealed) == 7000
    monkeypatch.setenv("STRONGROOM_KEYSERVER", f"https://127.0.0.1:{stub.port}")
    assert strongroom.verify(sealed) == 7000


def test_refused(sealed, stub):
    stub.refuse["team/resnet50"] = "policy"
    with pytest.raises(ReleaseDenied, match=r"team/resnet50@1.*does not accept") as caught:
        strongroom.open(sealed)
    assert caught.value.code == "policy"
    assert caught.value.exit_code == 4
    assert "audit" in caught.value.hint


def test_a_planted_key_opens_nothing(sealed, stub):
    bundle, _ = stub.keys["team/resnet50"][0]
    stub.keys["team/resnet50"] = [(bundle, bytes(range(32)))]
    with pytest.raises(HeaderTampered):
        strongroom.open(sealed)


def test_other_bundle(model, sealed, stub, tmp_path):
    stub.keys["team/resnet50"] = [(bytes(16), stub.keys["team/resnet50"][0][1])]
    with pytest.raises(ReleaseDenied) as caught:
        strongroom.open(sealed)
    assert caught.value.code == "bundle"


@pytest.mark.parametrize(
    "url",
    [
        "https://keys.example",
        "https://keys.example/",
        "https://user@keys.example/m",
        "https://keys.example/m?x=1",
        "https://keys.example/m@0",
        "https://keys.example/../m",
        "https:keys",
    ],
)
def test_urls_that_name_no_key(model, tmp_path, url):
    with pytest.raises(UsageError):
        strongroom.seal(model, tmp_path / "x", key=url)


def header(*kids):
    entries = tuple({"alg": "keyserver", "uri": "https://k", "kid": kid} for kid in kids)
    return Header(bytes(16), "m", recipients=entries)


def test_entries_of_a_header(profile):
    opener = KeyOfHeader(NoKey("none"))
    for kids in (["m@x"], [""], ["../m"], ["a", "m@0"]):
        with pytest.raises((Malformed, ReleaseDenied), match=r"name of a key|no such key"):
            opener.unwrap(header(*kids))
    with pytest.raises(Malformed, match="is not the name"):
        opener.unwrap(Header(bytes(16), "m", recipients=({"alg": "keyserver"},)))


def test_a_header_does_not_make_a_machine_ask_for_ever(profile):
    opener = KeyOfHeader(NoKey("none"))
    with pytest.raises(Malformed, match="more than 8"):
        opener.unwrap(header(*(f"m{index}" for index in range(9))))
    assert profile.asked == []
    with pytest.raises(ReleaseDenied):
        opener.unwrap(header(*(f"m{index}" for index in range(8))))
    assert profile.count("/v1/release") == 8


def test_the_first_that_is_released(profile):
    dek = profile.add("b", bundle=bytes(16))
    key = KeyOfHeader(NoKey("none")).unwrap(header("a", "b"))
    assert bytes(key.buffer) == dek


def test_the_command_line(model, stub, tmp_path):
    def run(*arguments, **environment):
        command = [sys.executable, "-m", "strongroom", *map(str, arguments)]
        return subprocess.run(
            command, env={"HOME": str(tmp_path), **environment}, capture_output=True, text=True
        )

    place, here = tmp_path / "m.sealed", {"STRONGROOM_KEYSERVER": str(stub.profile_file)}
    done = run("seal", model, "-o", place, "-r", f"{stub.url}/m", **here)
    assert done.returncode == 0, done.stderr
    assert "m@1" in run("inspect", place).stdout
    assert run("verify", place, **here).returncode == 0
    stub.refuse["m"] = "evicted"
    refused = run("verify", place, **here)
    assert refused.returncode == 4
    assert "evicted" in refused.stderr
    nobody = run("verify", place)
    assert nobody.returncode == 4
    assert "no profile" in nobody.stderr


def test_through_a_cache(sealed, stub, cache, monkeypatch):
    assert strongroom.verify(sealed, key=cache.uri) == 7000
    monkeypatch.setenv("STRONGROOM_KEYSERVER", cache.uri)
    assert strongroom.verify(sealed) == 7000
    assert strongroom.verify(sealed, key=f"{stub.url}/team/resnet50") == 7000
    assert stub.count("/v1/release") == 1
    assert cache.status()["leases"][0]["served"] == 3


def test_a_cache_does_not_seal(model, cache, tmp_path, stub, monkeypatch):
    with pytest.raises(InvalidKey, match="can open and not seal"):
        strongroom.seal(model, tmp_path / "x", key=cache.uri)
    monkeypatch.setenv("STRONGROOM_KEYSERVER", cache.uri)
    with pytest.raises(UsageError, match="names a key cache"):
        strongroom.seal(model, tmp_path / "x", key=f"{stub.url}/m")


def test_nothing_is_imported_for_it_before(tmp_path):
    code = (
        "import strongroom, sys; print(sorted(m for m in sys.modules if 'keyserver' in m"
        " or m.startswith(('ssl', 'http', 'asyncio', 'strongroom.attest', 'strongroom.release'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
