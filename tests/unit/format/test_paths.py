import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import Malformed
from strongroom.format.paths import check_path


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b",
        "1/model.onnx",
        "größe",
        ".hidden",
        "...",
        "a..b",
        "..a",
        "a b",
        "a\nb",
        "C:",
        "~",
        "x" * 1024,
        "MANIFEST",
    ],
)
def test_accepted(path):
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "../a", "a/..", "a/../b", "a\\b", "\\", "a\0", "\0",
        "x" * 1025, "ä" * 513, unicodedata.normalize("NFD", "ä"), "\ud800", "a/\udcff", "\u212b", None, 1, b"a", ["a"], True,
    ],
)  # fmt: skip
def test_refused(path):
    with pytest.raises(Malformed) as caught:
        check_path(path, "files[3].path")
    assert caught.value.field == "files[3].path"


@given(st.text(max_size=30))
def test_what_is_accepted_stays_below_its_root(text):
    try:
        path = check_path(text)
    except Malformed:
        return
    parts = path.split("/")
    assert path == text
    assert all(part not in ("", ".", "..") for part in parts)
    assert not set(path) & {"\0", "\\"}
    assert unicodedata.normalize("NFC", path) == path
    assert len(path.encode()) <= 1024
