import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import LimitExceeded, Malformed, StrongroomError, UnsupportedVersion
from strongroom.format import limits
from strongroom.format.manifest import Entry, Manifest

SALT, DIGEST = bytes(range(32)), "0123456789abcdef" * 4

names = st.sampled_from(["a", "b", "c", "a.sealed", "b.sealed", "größe", "MANIFEST"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
entries = st.builds(
    lambda path, size, clear: (
        Entry(path, size, sha256=DIGEST) if clear else Entry(path, size, salt=SALT)
    ),
    paths,
    st.integers(0, 1 << 40),
    st.booleans(),
)


def collides(entries):
    """What the rules say, slowly: two files in one place, or one file above another."""
    places = [entry.stored_as for entry in entries] + ["MANIFEST.sealed"]
    for group in (places, [entry.path for entry in entries]):
        for one, other in itertools.combinations(group, 2):
            if one == other or one.startswith(other + "/") or other.startswith(one + "/"):
                return True
    return False


@given(st.lists(entries, max_size=6))
def test_round_trip_or_refusal(files):
    if any(entry.path == "MANIFEST" for entry in files):
        return
    try:
        manifest = Manifest.of(files)
    except Malformed as error:
        assert error.field == "files"
        assert collides(files)
        return
    assert not collides(files)
    assert Manifest.parse(manifest.encode()) == manifest
    assert [entry.path for entry in manifest.files] == sorted(entry.path for entry in files)


def test_as_the_format_writes_it():
    manifest = Manifest.of(
        [Entry("config.pbtxt", 310, sha256=DIGEST), Entry("1/model.onnx", 102442, salt=SALT)]
    )
    assert (
        manifest.encode()
        == (
            '{"v":1,"files":[{"path":"1/model.onnx","size":102442,'
            '"salt":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"},'
            f'{{"path":"config.pbtxt","size":310,"sha256":"{DIGEST}"}}]}}'
        ).encode()
    )


def test_stored_as():
    assert Entry("a/b", 0, salt=SALT).stored_as == "a/b.sealed"
    assert Entry("a/b", 0, sha256=DIGEST).stored_as == "a/b"


def test_version():
    with pytest.raises(UnsupportedVersion):
        Manifest.parse(b'{"v":2,"other":[]}')


def test_reserved_name():
    with pytest.raises(Malformed) as caught:
        Manifest.parse(Manifest((Entry("MANIFEST", 0, salt=SALT),)).encode())
    assert caught.value.field == "files[0].path"


def test_too_large_to_be_read_is_too_large_to_be_written(monkeypatch):
    manifest = Manifest.of([Entry(f"{n:04}", 0, salt=SALT) for n in range(100)])
    monkeypatch.setattr("strongroom.format.manifest.MAX_MANIFEST", len(manifest.encode()))
    manifest.encode()
    monkeypatch.setattr("strongroom.format.manifest.MAX_MANIFEST", len(manifest.encode()) - 1)
    with pytest.raises(LimitExceeded):
        manifest.encode()
    assert limits.MAX_MANIFEST == 64 << 20


@given(st.binary(max_size=200))
def test_anything_else_is_refused_in_this_tree(data):
    with pytest.raises(StrongroomError):
        Manifest.parse(data)
