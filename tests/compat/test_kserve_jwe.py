"""KServe's JWE: the codec against jwcrypto and KServe's own decryptor, and against damage."""

import base64
import json
import os
import string

import foreign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwe, jwk
from kserve_storage.confidential.jwe_decryptor import JWEDecryptor
from kserve_storage.confidential.secret_resolver import SecretResolver

from strongroom.compat.kserve_jwe import KserveJweCodec, parse_key
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, LimitExceeded, UsageError

RAW = bytes(range(200, 232))  # not UTF-8, as a random key is not
TEXT = base64.urlsafe_b64encode(RAW).rstrip(b"=")
JWK = json.dumps({"kty": "oct", "k": TEXT.decode(), "kid": "models-2026", "alg": "A256KW"}).encode()
CHUNK = (1 << 20) // 4 * 3
# Made by jwcrypto 1.6.1, which KServe decrypts with.
TOKEN = (
    b"eyJhbGciOiAiQTI1NktXIiwgImVuYyI6ICJBMjU2R0NNIiwgImtpZCI6ICJtb2RlbHMtMjAyNiJ9.cmySkT1L49i"
    b"k3DtQWji8N-cZ_3R8bSb2mkyWsPpuesiIEcFy09XxEg.tuVftPEJobm6KOKL.ImxqfOqXsZ4KlaeO.h-8l3bFmOP"
    b"W57-WXJLGv3A"
)
ALPHABET = (string.ascii_letters + string.digits + "-_").encode()


def codec(key=RAW, **options):
    return KserveJweCodec(SecretBytes(key), options)


def opened(token, key=RAW, path="m.onnx.jwe", **options):
    (found,) = foreign.decrypted(codec(key, **options), token, path).items()
    return found


def theirs(data, key=RAW, **header):
    """A JWE by jwcrypto; ``alg`` and ``enc`` may be others."""
    protected = {"alg": "A256KW", "enc": "A256GCM"} | header
    token = jwe.JWE(data, json.dumps(protected), algs=[*jwe.default_allowed_algs, "A128KW"])
    token.add_recipient(jwk.JWK(kty="oct", k=base64.urlsafe_b64encode(key).rstrip(b"=").decode()))
    return token.serialize(compact=True).encode()


def opened_by_jwcrypto(token, key=RAW):
    object = jwe.JWE()
    object.deserialize(token.decode(), jwk.JWK(kty="oct", k=base64.urlsafe_b64encode(key).decode()))
    return object.payload, object.jose_header


class Resolver(SecretResolver):
    """A Secret of Kubernetes with one key."""

    def __init__(self, content):
        self.content = content

    def resolve_key(self, resource_id):
        assert resource_id == "kbs:///default/key/1"
        return self.content


def kserve(key):
    return JWEDecryptor(Resolver(key), "kbs:///default/key/1")


def test_a_token_of_jwcrypto():
    assert opened(TOKEN) == ("m.onnx", b"hello kserve")
    assert opened(TOKEN, JWK, kid="models-2026")[1] == b"hello kserve"


@given(st.integers(0, len(TOKEN)), st.integers(0, 30), st.binary(max_size=30))
@settings(max_examples=400, deadline=None)
def test_whatever_stands_there_is_read_or_refused(start, size, instead):
    token = TOKEN[:start] + instead + TOKEN[start + size :]
    if token in (TOKEN, TOKEN + b"\n"):
        return
    with pytest.raises((ForeignTampered, FormatError)):
        opened(token)


SIZES = [1, 2, 3, 4, 5, 100, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 2, 3 * CHUNK + 1]


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_with_jwcrypto(size):
    data = os.urandom(size)
    assert opened(theirs(data)) == ("m.onnx", data)
    assert opened_by_jwcrypto(foreign.encrypted(codec(), data))[0] == data


@given(st.integers(-20, 20), st.integers(0, 2), st.integers(1, CHUNK * 2))
@settings(max_examples=30, deadline=None)
def test_sizes_and_pieces(offset, chunks, piece):
    data = os.urandom(max(0, chunks * CHUNK + offset))
    token = foreign.encrypted(codec(), data, max(piece, 1 + len(data) // 50))
    assert opened(token)[1] == data


def test_an_empty_file():
    # jwcrypto takes an empty plaintext for a failure; the token itself is as RFC 7516 says.
    token = foreign.encrypted(codec(), b"")
    assert opened(token)[1] == b""
    assert token.split(b".")[3] == b""
    with pytest.raises(jwe.InvalidJWEData):
        opened_by_jwcrypto(token)


@pytest.mark.parametrize("key", [RAW, TEXT, JWK], ids=["raw", "base64url", "JWK"])
def test_kserve_opens_a_directory(key, tmp_path):
    files = {"model.onnx": os.urandom(CHUNK + 5), "1/config.pbtxt": b"name: x", "a.jwe.bin": b"eyJ"}
    for path, data in files.items():
        target = tmp_path / codec().foreign_path(path)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(foreign.encrypted(codec(key), data))
        assert JWEDecryptor.is_encrypted(target)
    (tmp_path / "README").write_bytes(b"in clear")
    done = kserve(key).decrypt_directory(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in done} == set(files)
    for path, data in files.items():
        assert (tmp_path / path).read_bytes() == data
    assert not list(tmp_path.rglob("*.jwe"))


def test_kserve_opens_one_file_without_the_suffix(tmp_path):
    (tmp_path / "model").write_bytes(foreign.encrypted(codec(), b"weights"))
    assert JWEDecryptor.is_encrypted(tmp_path / "model")
    assert kserve(RAW).decrypt_file(tmp_path / "model").read_bytes() == b"weights"


def standard(raw):
    return base64.b64encode(raw)


@pytest.mark.parametrize(
    "key",
    [
        RAW,
        TEXT,
        TEXT + b"=",
        standard(RAW),
        JWK,
        json.dumps({"k": standard(RAW).decode(), "kty": "oct"}).encode(),
        json.dumps({"k": TEXT.decode(), "kty": "oct", "use": "enc", "key_ops": ["decrypt"]}).encode(),
    ],
)
def test_forms_of_keys_are_those_of_kserve(key, tmp_path):
    (tmp_path / "m.jwe").write_bytes(theirs(b"weights"))
    assert kserve(key).decrypt_file(tmp_path / "m.jwe").read_bytes() == b"weights"
    assert opened(theirs(b"weights"), key)[1] == b"weights"
    if key is not RAW:
        assert opened(theirs(b"weights"), key + b"\n")[1] == b"weights"


@pytest.mark.parametrize(
    "key",
    [
        b"x",
        RAW[:-1],
        RAW + b"\xff",
        RAW + b"\n",
        b"a" * 32,  # text: KServe takes it for base64url, of 24 bytes
        TEXT[:-1],
        TEXT + b"AA",
        TEXT[:-1] + b"!",
        b"{",
        JWK[:-1],
        JWK + b"\xff",
        b"[]",
        b'{"kty":"oct"}',
        b'{"kty":"oct","k":1}',
        b'{"kty":"oct","k":"AAAA"}',
        b'{"kty":"EC","k":"%s"}' % TEXT,
        b'{"kty":"oct","k":"%s","k":"%s"}' % (TEXT, TEXT),
        b'{"kty":"oct","k":"%s","kid":7}' % TEXT,
        b'{"kty":"oct","k":"%s","alg":"A128KW"}' % TEXT,
        b'{"kty":"oct","k":"%s","use":"sig"}' % TEXT,
        b'{"kty":"oct","k":"%s","key_ops":["sign"]}' % TEXT,
        b'{"kty":"oct","k":"%s","key_ops":"wrapKey"}' % TEXT,
    ],
)
def test_not_a_key(key):
    with pytest.raises(InvalidKey) as caught:
        codec(key)
    assert foreign.says_nothing(caught.value, RAW, TEXT, *([key] if len(key) > 40 else []))


def test_operations_of_rfc_7517():
    for operation in (b"wrapKey", b"unwrapKey"):
        key = b'{"kty":"oct","k":"%s","key_ops":["%s"]}' % (TEXT, operation)
        assert opened(theirs(b"weights"), key)[1] == b"weights"


def test_parse_key():
    assert parse_key(SecretBytes(JWK)) == (SecretBytes(RAW), "models-2026")
    assert parse_key(SecretBytes(TEXT)) == (SecretBytes(RAW), None)
    with pytest.raises(InvalidKey, match="needs a key"):
        KserveJweCodec(None)
    assert "DKys" not in repr(vars(codec())), "nothing of the key is shown"


def test_structure_of_rfc_7516():
    token = foreign.encrypted(codec(JWK), b"hello")
    parts = token.split(b".")
    assert len(parts) == 5
    header, *rest = (base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)) for part in parts)
    assert json.loads(header) == {"alg": "A256KW", "enc": "A256GCM", "kid": "models-2026"}
    assert [len(part) for part in rest] == [40, 12, 5, 16]
    assert set(token) <= {*ALPHABET, ord(".")}
    again = foreign.encrypted(codec(JWK), b"hello").split(b".")
    assert again[0] == parts[0]
    assert all(one != other for one, other in zip(parts[1:], again[1:], strict=True))


def test_key_ids():
    token = foreign.encrypted(codec(TEXT), b"hello")
    assert "kid" not in opened_by_jwcrypto(token)[1]
    named = foreign.encrypted(codec(JWK, kid="größer"), b"hello")
    assert opened_by_jwcrypto(named)[1]["kid"] == "größer"
    assert opened(named, RAW)[1] == opened(named, JWK)[1] == b"hello"
    assert opened(named, RAW, kid="größer")[1] == b"hello"
    for wrong in (token, foreign.encrypted(codec(JWK), b"hello")):
        with pytest.raises(InvalidKey, match="not other"):
            opened(wrong, RAW, kid="other")
    with pytest.raises(UsageError, match="printable"):
        codec(JWK, kid="a\nb")
    with pytest.raises(UsageError, match="no option"):
        codec(JWK, alg="dir")


@pytest.mark.parametrize(
    ("path", "plain"),
    [("a/m.pth.jwe", "a/m.pth"), ("M.JWE", "M"), ("m.bin", "m.bin"), ("a/.jwe", "a/.jwe")],
)
def test_names(path, plain):
    assert opened(theirs(b"x"), path=path)[0] == plain


def test_recognises():
    assert codec().recognises("m.jwe", b"")
    assert codec().recognises("m.JWE", b"anything")
    assert codec().recognises("m", theirs(b"x")[:64])
    assert not codec().recognises("m.onnx", b"\x08\x07")
    assert codec().foreign_path("a/m.pth") == "a/m.pth.jwe"


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"alg": "dir"}, "alg dir"),
        ({"alg": "A128KW"}, "alg A128KW"),
        ({"alg": "A256GCMKW"}, "alg A256GCMKW"),
        ({"enc": "A128GCM"}, "enc A128GCM"),
        ({"enc": "A256CBC-HS512"}, "enc A256CBC-HS512"),
        ({"zip": "DEF"}, "zip"),
    ],
)
def test_other_algorithms(header, what):
    size = {"A128KW": 16, "A128GCM": 16}.get(header.get("alg") or header.get("enc"), 32)
    key = RAW[:size] if "alg" in header else RAW
    token = theirs(b"hello", key, **header)
    with pytest.raises(FormatError, match=what):
        opened(token)


def with_header(token, header):
    encoded = base64.urlsafe_b64encode(header).rstrip(b"=")
    return b".".join([encoded, *token.split(b".")[1:]])


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"A256KW","enc":"A256GCM","crit":["exp"],"exp":1}',
        b'{"alg":"A256KW","enc":"A256GCM","alg":"A256KW"}',
        b'{"enc":"A256GCM"}',
        b'{"alg":"A256KW"}',
        b'{"alg":"A256KW","enc":"A256GCM","kid":1}',
        b'{"alg":["A256KW"],"enc":"A256GCM"}',
        b'{"alg":"A256KW","enc":"A256GCM"',
        b'{"alg":"A256KW","enc":"A256GCM","x":"\xff"}',
        b'{"alg":"A256KW","enc":"A256GCM"} x',
        b'{"a":' + b"[" * 1000,
        b'{"alg":"%s","enc":"A256GCM"}' % (b"x" * 5000),
    ],
)
def test_bad_headers(header):
    with pytest.raises(FormatError) as caught:
        opened(with_header(theirs(b"hello"), header))
    assert len(str(caught.value)) < 200


def test_the_header_is_authenticated():
    token = theirs(b"hello", kid="a")
    changed = with_header(token, b'{"alg":"A256KW","enc":"A256GCM","kid":"b"}')
    with pytest.raises(ForeignTampered, match="changed"):
        opened(changed)
    # The same header in other words: what counts is how it stands there.
    with pytest.raises(ForeignTampered, match="changed"):
        opened(with_header(token, b'{"enc":"A256GCM","alg":"A256KW","kid":"a"}'))


@pytest.mark.parametrize("size", [5, 6, 7, CHUNK + 1])
def test_every_byte(size):
    token = theirs(os.urandom(size))
    end = len(token)
    positions = {*range(200), *range(end - 40, end)} if end > 400 else range(end)
    if end > 400:
        positions |= {end // 2, 1 << 20, (1 << 20) + 90}
    for position in positions:
        for new in b"AB_.=+\n\0\xff" if end < 400 else b"A\n":
            if token[position] == new:
                continue
            changed = token[:position] + bytes([new]) + token[position + 1 :]
            with pytest.raises((ForeignTampered, FormatError)):
                opened(changed)


def test_one_spelling_only():
    """Every character of a part that stands for unused bits has one value that is accepted."""
    token = theirs(b"hello")
    boundaries = [i - 1 for i, char in enumerate(token + b".") if char == ord(".")]
    for position in boundaries:
        for new in ALPHABET:
            if new != token[position]:
                with pytest.raises((ForeignTampered, FormatError)):
                    opened(token[:position] + bytes([new]) + token[position + 1 :])


def test_padding_and_white_space():
    token = theirs(b"hello")
    parts = token.split(b".")
    assert opened(token + b"\n")[1] == b"hello"
    for junk in (b"\n\n", b"\r\n", b" ", b".", b"A", b"=", b"." + token, token):
        with pytest.raises((ForeignTampered, FormatError)):
            opened(token + junk)
    for junk in (b" ", b"\n", b"\xef\xbb\xbf", b"."):
        with pytest.raises(FormatError):
            opened(junk + token)
    for index in range(5):
        padded = [*parts[:index], parts[index] + b"==", *parts[index + 1 :]]
        with pytest.raises((ForeignTampered, FormatError)):
            opened(b".".join(padded))
        broken = [*parts[:index], parts[index][:3] + b"\n" + parts[index][3:], *parts[index + 1 :]]
        with pytest.raises((ForeignTampered, FormatError)):
            opened(b".".join(broken))


def test_truncations():
    token = theirs(b"hello world")
    for size in range(len(token)):
        with pytest.raises((ForeignTampered, FormatError)):
            opened(token[:size])
    large = theirs(bytes(2 * CHUNK))
    for cut in (1, 2, 3, 4, 22, 23, 24, 27, 1 << 20, len(large) - 200):
        with pytest.raises((ForeignTampered, FormatError)):
            opened(large[:-cut])
        if len(large) - 23 - cut > 200:  # the tag stays, the ciphertext is shorter
            with pytest.raises(ForeignTampered):
                opened(large[: -23 - cut] + large[-23:])


def test_parts_of_another_token():
    one, two = (theirs(data).split(b".") for data in (b"hello", b"jello"))
    for index in range(1, 5):
        with pytest.raises(ForeignTampered):
            opened(b".".join([*one[:index], two[index], *one[index + 1 :]]))


@pytest.mark.parametrize(
    "data",
    [b"", b"e", b"eyJ", b"PK\3\4" + bytes(300), b"a.b.c.d.e", b"eyJ" + b"A" * 40000, b"." * 100],
)
def test_something_else(data):
    with pytest.raises(FormatError, match="not a JWE") as caught:
        opened(data)
    assert caught.value.exit_code == 3


def test_json_serialisation():
    token = jwe.JWE(b"hello", json.dumps({"alg": "A256KW", "enc": "A256GCM"}))
    token.add_recipient(jwk.JWK(kty="oct", k=TEXT.decode()))
    with pytest.raises(FormatError, match="JSON") as caught:
        opened(token.serialize().encode())
    assert "JWE.from_jose_token(text).serialize(compact=True)" in caught.value.hint
    compact = jwe.JWE.from_jose_token(token.serialize()).serialize(compact=True)
    assert opened(compact.encode())[1] == b"hello"


def test_wrong_key():
    secret = b"the weights of a model" * 9
    token = theirs(secret, kid="team-a")
    with pytest.raises(ForeignTampered, match="another key") as caught:
        opened(token, RAW[::-1])
    assert "team-a" in caught.value.hint
    assert caught.value.exit_code == 5
    assert foreign.says_nothing(caught.value, secret[:12], RAW, TEXT, RAW[::-1])


def test_nothing_of_the_plaintext_in_errors():
    secret = b"the weights of a model" * 9
    token = bytearray(theirs(secret))
    token[-30] ^= 1
    with pytest.raises((ForeignTampered, FormatError)) as caught:
        opened(bytes(token))
    assert foreign.says_nothing(caught.value, secret[:12], RAW, TEXT)


class Sized:
    """A source that says that it is large, and is not read."""

    name = "large.jwe"
    request = 1 << 20
    threads = None

    def __init__(self, size):
        self.token = theirs(b"hello")
        self.size = size

    def read_into(self, offset, out):
        text = self.token.ljust(1 << 15, b"A")
        if offset > 1 << 20:
            text, offset = self.token[-23:], offset - self.size + 23
        out[:] = text[offset : offset + len(out)]

    def close(self):
        pass


def test_limits_of_gcm():
    class Huge:
        size = (1 << 36) - 31

    with pytest.raises(UsageError, match="64 GiB"):
        codec().encrypt(Huge(), "m", foreign.Collected())
    with pytest.raises(LimitExceeded, match="longer"):
        codec().decrypt(Sized(((1 << 36) + 1000) * 4 // 3), "large.jwe")
    assert codec().decrypt(Sized((1 << 36) + 2), "large.jwe")


LARGE = 300 << 20


def write_large(path):
    """Encrypt 300 MB that are nowhere at once, as a child of the test below."""

    class Large:
        size = LARGE

        def copy_to(self, write, progress=None):
            piece = memoryview(bytes(2 << 20))
            for _ in range(self.size // len(piece)):
                write(piece)

    with open(path, "wb") as file:
        codec().encrypt(Large(), path, file)


def read_large(path):
    """Decrypt them again."""
    from strongroom.model.storage import LocalSource

    count = 0

    def write(data):
        nonlocal count
        count += len(data)

    source = LocalSource(path)
    assert source.size > 4 * LARGE // 3
    codec().decrypt(source, "m.jwe")[0].copy_to(write)
    assert count == LARGE


def test_a_large_file_in_little_memory(tmp_path):
    place = tmp_path / "m.jwe"
    writing = foreign.peak_memory("test_kserve_jwe", "write_large", place)
    reading = foreign.peak_memory("test_kserve_jwe", "read_large", place)
    place.unlink()
    print(f"writing {writing >> 20} MiB, reading {reading >> 20} MiB for {LARGE >> 20} MiB")
    assert 1 << 20 < writing < 64 << 20
    assert 1 << 20 < reading < 64 << 20
