import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import (
    LimitExceeded,
    Malformed,
    NotSealed,
    StrongroomError,
    Truncated,
    UnsupportedVersion,
)
from strongroom.format.encoding import b64url
from strongroom.format.header import MAGIC, Header, HeaderArea, area_size, check_segment_size

BUNDLE = bytes(range(16))


def mac(signed):
    return hmac.digest(b"key", signed, "sha256")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
recipients = st.lists(
    st.builds(
        lambda alg, key, more: {**more, "alg": alg, "encrypted_key": b64url(key)},
        texts,
        st.binary(max_size=50),
        st.dictionaries(st.sampled_from(["kid", "uri"]), texts),
    ),
    max_size=4,
)
headers = st.builds(
    Header,
    bundle=st.binary(min_size=16, max_size=16),
    path=st.sampled_from(["a", "b/c.bin", "größe", "MANIFEST"]),
    segment=st.integers(16, 24).map(lambda power: 1 << power),
    recipients=recipients.map(tuple),
    meta=st.dictionaries(texts, texts | st.integers() | st.lists(texts, max_size=2), max_size=4),
)


@given(headers)
def test_round_trip(header):
    assert Header.parse(header.encode()) == header
    area = HeaderArea.build(header, mac)
    parsed = HeaderArea.parse(area)
    assert parsed.header == header
    assert parsed.size == len(area)
    assert parsed.size % 4096 == 0
    assert parsed.mac == mac(parsed.signed)
    assert area.startswith(MAGIC)
    assert HeaderArea.parse(area + b"payload") == parsed


@given(headers, st.integers(1, 256))
def test_minimum(header, pages):
    assert len(HeaderArea.build(header, mac, minimum=pages * 4096)) >= pages * 4096


def test_layout_by_hand():
    area = HeaderArea.build(Header(BUNDLE, "a"), mac)
    size = int.from_bytes(area[12:16], "big")
    assert area[:8] == bytes.fromhex("8953524D0D0A1A0A")
    assert int.from_bytes(area[8:12], "big") == len(area) == 4096
    assert json.loads(area[16 : 16 + size]) == {
        "v": 1,
        "bundle": "AAECAwQFBgcICQoLDA0ODw",
        "path": "a",
        "segment": 1048576,
        "recipients": [],
        "meta": {},
    }
    assert area[16 + size : 48 + size] == mac(area[: 16 + size])
    assert not any(area[48 + size :])


def test_grows_by_pages_and_not_above_1_mib():
    for fill in range(3700, 4000):
        header = Header(BUNDLE, "a", meta={"fill": "x" * fill})
        needed = 48 + len(header.encode())
        assert len(HeaderArea.build(header, mac)) == (4096 if needed <= 4096 else 8192)
    room = (1 << 20) - 48 - len(Header(BUNDLE, "a", meta={"fill": ""}).encode())
    full = HeaderArea.build(Header(BUNDLE, "a", meta={"fill": "x" * room}), mac)
    assert len(full) == 1 << 20
    assert HeaderArea.parse(full).size == 1 << 20
    with pytest.raises(LimitExceeded):
        HeaderArea.build(Header(BUNDLE, "a", meta={"fill": "x" * (room + 1)}), mac)


@pytest.mark.parametrize("segment", [1 << power for power in range(16, 25)])
def test_segment_sizes(segment):
    assert check_segment_size(segment) == segment


@pytest.mark.parametrize(
    "segment", [0, 1, -65536, 65535, 65537, 1 << 15, 1 << 25, 65536.0, "65536", True, None]
)
def test_other_segment_sizes(segment):
    with pytest.raises(Malformed):
        check_segment_size(segment)


@pytest.mark.parametrize("size", range(17))
def test_area_size_of_a_beginning(size):
    fixed = MAGIC + (4096).to_bytes(4, "big") + (100).to_bytes(4, "big")
    if size == 0:
        with pytest.raises(NotSealed):
            area_size(b"")
    elif size < 16:
        with pytest.raises(Truncated):
            area_size(fixed[:size])
    else:
        assert area_size(fixed) == 4096


@given(st.binary(max_size=64))
def test_area_size_of_anything(data):
    try:
        size = area_size(data)
    except StrongroomError:
        return
    assert 4096 <= size <= 1 << 20
    assert size % 4096 == 0


def test_unsupported_version_comes_before_everything_else():
    with pytest.raises(UnsupportedVersion, match="version 2") as caught:
        Header.parse(b'{"v":2,"anything":"else"}')
    assert caught.value.hint == "Upgrade strongroom."


@given(st.binary(max_size=200))
def test_anything_else_is_refused_in_this_tree(data):
    with pytest.raises(StrongroomError):
        Header.parse(data)
