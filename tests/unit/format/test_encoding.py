import base64
import functools
import json
import string
from enum import StrEnum
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import Malformed
from strongroom.format import encoding
from strongroom.format.encoding import b64url, canonical_json, dump_json, load_json, unb64url

ALPHABET = string.ascii_letters + string.digits + "-_"

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=100))
def test_base64url_round_trip(data):
    text = b64url(data)
    assert set(text) <= set(ALPHABET)
    assert unb64url(text, "x") == data
    assert unb64url(text, "x", len(data)) == data


@given(st.text(ALPHABET, max_size=12))
def test_one_spelling_for_every_value(text):
    try:
        data = unb64url(text, "x")
    except Malformed as error:
        assert error.field == "x"
    else:
        assert b64url(data) == text


def test_exactly_one_of_the_last_characters_is_canonical():
    # One byte: two characters, of the second only its upper two bits count.
    accepted = []
    for last in ALPHABET:
        try:
            accepted.append(unb64url("A" + last, "x"))
        except Malformed:
            continue
    assert sorted(accepted) == [bytes([n]) for n in (0, 1, 2, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "AA==",
        "AAA=",
        "A+==",
        "ab/d",
        "a b",
        "AAAA\n",
        "ÄÄÄÄ",
        "\0",
        1,
        None,
        b"AAAA",
        [],
        True,
    ],
)
def test_not_base64url(text):
    with pytest.raises(Malformed) as caught:
        unb64url(text, "bundle")
    assert caught.value.field == "bundle"


def test_size():
    with pytest.raises(Malformed, match="has 3 bytes, not 4"):
        unb64url("AAAA", "salt", 4)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_json_round_trip(value):
    assert load_json(dump_json(value), "x") == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"1", "is not a JSON object"),
        (b'{"a":1,"a":2}', "has a duplicate key"),
        (b'{"b":{"a":1,"a":1}}', "has a duplicate key"),
        (b'{"b":[{"a":1,"\\u0061":1}]}', "has a duplicate key"),
        (b'{"a":NaN}', "holds NaN"),
        (b'{"a":Infinity}', "holds Infinity"),
        (b'{"a":-Infinity}', "holds -Infinity"),
        (b'{"a":1e999}', "Out of range"),
        (b'{"a":' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a":"\xff"}', "is not UTF-8"),
        (b'{"a":"\\udc00"}', "is not UTF-8"),
        (b'{"\\udc00":1}', "is not UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        ('{"a":"ä"}'.encode("latin-1"), "is not UTF-8"),
        (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", "nested too deeply"),
        (b'{"a":' * 32 + b"[]" + b"}" * 32, "nested too deeply"),
        (b'{"a":' * 200000, "nested too deeply"),
        (b'{"a":' + b"[" * 200000 + b"]" * 200000 + b"}", "nested too deeply"),
    ],
)
def test_json_refused(data, problem):
    with pytest.raises(Malformed, match=problem) as caught:
        load_json(data, "header")
    assert caught.value.field == "header"
    assert len(str(caught.value)) < 300


TEXTS = st.sampled_from(
    ['{"a":1,"a":2}', '{"a":-0}', '{"a":1.50}', '{"a":1E2}', '{"a":1e-7}', '{"a":5e-324}', '{"a":-0.0}']
) | st.builds(
    lambda value, spaces, plain: json.dumps(
        value, separators=(", ", ": ") if spaces else (",", ":"), ensure_ascii=not plain
    ),
    st.dictionaries(st.text(), JSON, max_size=5),
    st.booleans(),
    st.booleans(),
)
CUTS = st.tuples(
    st.integers(0, 200), st.integers(0, 200), st.sampled_from(["", '"', ",", "1", '"a":1,'])
)


@given(TEXTS, CUTS)
def test_what_is_read_does_not_depend_on_what_reads_it(text, cut):
    begin, size, instead = cut
    for one in (text, text[:begin] + instead + text[begin + size % 3 :]):
        data = one.encode("utf-8", "surrogatepass")
        quickly = encoding._compact_json()(data)
        if quickly is not None:
            assert repr(quickly) == repr(encoding._parse_slowly(data))


def test_deepest_json():
    assert load_json(b'{"a":' + b"[" * 31 + b"]" * 31 + b"}", "header")


def test_dump_refuses_what_load_refuses():
    with pytest.raises(ValueError, match="JSON compliant"):
        dump_json({"a": float("nan")})


def test_urlsafe_alphabet_is_the_standard_librarys():
    data = bytes(range(256))
    assert b64url(data) == base64.urlsafe_b64encode(data).decode().rstrip("=")


NAMES = st.text(string.printable)
CANONICAL = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(CANONICAL)
def test_a_canonical_form_is_read_back_and_is_the_same_again(value):
    content = canonical_json(value)
    back = json.loads(content)
    assert back == json.loads(json.dumps(value))
    assert canonical_json(back) == content
    # Whatever has written it, these are the bytes of the standard library.
    standard = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert content == standard.encode()


class Text(str):
    pass


class Names(dict):
    pass


class Number(int):
    pass


class List(list):
    pass


class Pair(NamedTuple):
    one: int
    other: str


class State(StrEnum):
    GONE = "gone"


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (
            {"b": 1, "a": [None, True, "\u00e9\u2028\U0001f511\n"]},
            '{"a":[null,true,"\u00e9\u2028\U0001f511\\n"],"b":1}',
        ),
        ({"a": {"_": {}, "Z": [], "1": ()}}, '{"a":{"1":[],"Z":[],"_":{}}}'),
        ({Text("b"): Text("x"), "a": -(2**53) + 1}, '{"a":-9007199254740991,"b":"x"}'),
        ({"a": [Names(c="x", b=1), Number(7), State.GONE]}, '{"a":[{"b":1,"c":"x"},7,"gone"]}'),
        ([Pair(1, "x"), List([2])], '[[1,"x"],[2]]'),
        (
            "".join(map(chr, range(0x20))) + '\x7f"\\/',
            '"' + r"\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f"
            r"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f"
            '\x7f\\"\\\\/"',
        ),
        (functools.reduce(lambda inner, _: [inner], range(300), 1), "[" * 300 + "1" + "]" * 300),
    ],
    ids=["order", "nested", "subclasses", "heirs", "tuples", "escapes", "deep"],
)
def test_canonical_forms(value, content):
    assert canonical_json(value) == content.encode()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1.0, "has a float"),
        (b"x", "has a bytes"),
        ({1, 2}, "has a set"),
        (object(), "has a object"),
        (2**53, "has a number"),
        (-(2**53), "has a number"),
        ({"\u00e9": 1}, "name that is not ASCII"),
        ({1: 1}, "name that is not ASCII"),
        ({None: 1}, "name that is not ASCII"),
        ({b"a": 1}, "name that is not ASCII"),
        ({"a": 1, True: 1}, "name that is not ASCII"),
    ],
    ids=[
        *("float", "bytes", "set", "object", "great", "small"),
        *("accent", "number", "none", "name of bytes", "mixed"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_has_no_canonical_form_is_refused_however_deep(value, problem, depth):
    for _ in range(depth):
        value = {"x": [value]}
    with pytest.raises(ValueError, match=problem):
        canonical_json(value)


def test_a_lone_surrogate_has_no_canonical_form():
    with pytest.raises(ValueError, match="surrogates not allowed"):
        canonical_json({"x": "\ud800"})
