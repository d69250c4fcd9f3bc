"""cryptotensors' files, written by their own package, become plain safetensors files."""

import base64
import builtins
import importlib
import json
import os
import sys

import foreign
import pytest
import safetensors
import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptotensors.torch import load_file, save_file

from strongroom.compat.cryptotensors import CryptotensorsCodec, parse_keys
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AccessError,
    ForeignTampered,
    FormatError,
    InvalidKey,
    StrongroomError,
    UsageError,
)
from strongroom.model.storage import LocalSource

KEY = bytes(range(60, 92))
SEED = bytes(range(92, 124))


def encoded(raw):
    return base64.b64encode(raw).decode()


def enc_key(raw=KEY, alg="aes256gcm", kid="models"):
    return {"kty": "oct", "alg": alg, "kid": kid, "k": encoded(raw)}


def sign_key(seed=SEED, kid="release"):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    return {"kty": "okp", "alg": "ed25519", "kid": kid, "d": encoded(seed), "x": encoded(public)}


def public(jwk):
    return {name: value for name, value in jwk.items() if name != "d"}


def jwks(*keys):
    return json.dumps({"keys": keys or [enc_key(), public(sign_key())]}).encode()


@pytest.fixture
def made(tmp_path):
    """Tensors → the bytes of a file of cryptotensors."""

    def make(state, metadata=None, **config):
        place = tmp_path / "made"
        keys = {"enc_key": enc_key(), "sign_key": sign_key()}
        save_file(state, place, metadata=metadata, config=keys | config)
        return place.read_bytes()

    return make


def codec(keys=None, **options):
    return CryptotensorsCodec(SecretBytes(keys or jwks()), options)


def opened(data, keys=None, path="m.cryptotensors", **options):
    ((path, plain),) = foreign.decrypted(codec(keys, **options), data, path).items()
    assert path == "m.safetensors"
    return plain


def same(data, tensors):
    found = safetensors.torch.load(data)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        one, other = (t.reshape(-1).view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(one, other)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]
SMALL = {"a": torch.arange(40.0), "c": torch.ones(3, dtype=torch.uint8)}


@pytest.mark.parametrize("version", ["1", "2"])
def test_every_dtype(made, version, tmp_path):
    torch.manual_seed(5)
    tensors = {f"{n}.größe": (torch.rand(n + 1, 3) * 9).to(dtype) for n, dtype in enumerate(DTYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    plain = opened(made(tensors, {"format": "pt", "note": "größer"}, version=version))
    same(plain, tensors)
    (tmp_path / "plain").write_bytes(plain)
    with safetensors.safe_open(tmp_path / "plain", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "größer"}


def test_no_metadata(made, tmp_path):
    plain = opened(made(SMALL))
    same(plain, SMALL)
    for word in (b"__encryption__", b"__signature__", b"__policy__", b"__crypto_keys__"):
        assert word not in plain


def test_several_chunks(made):
    tensors = {"w": torch.randn(3 << 20), "v": torch.randn(7)}
    same(opened(made(tensors)), tensors)


@pytest.mark.parametrize(
    ("alg", "size"), [("aes128gcm", 16), ("aes256gcm", 32), ("chacha20poly1305", 32)]
)
def test_ciphers(made, alg, size):
    key = enc_key(KEY[:size], alg)
    same(opened(made(SMALL, enc_key=key), jwks(key, sign_key())), SMALL)


def test_local_files_are_read_where_they_lie(made, tmp_path):
    place = tmp_path / "m.cryptotensors"
    place.write_bytes(made(SMALL))
    source = LocalSource(place)
    os.unlink(place)  # by the open file, whatever the name is now
    (file,) = codec().decrypt(source, "m.cryptotensors")
    plain = bytearray()
    file.copy_to(plain.extend)
    same(bytes(plain), SMALL)


URL = base64.urlsafe_b64encode(KEY).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "content",
    [
        jwks(),
        jwks(sign_key(), enc_key()),
        json.dumps([enc_key(), sign_key()]).encode() + b"\n",
        json.dumps({"enc_key": enc_key(), "sign_key": sign_key()}).encode(),
        jwks({"kty": "oct", "k": URL}, {"kty": "OKP", "crv": "Ed25519", "x": public(sign_key())["x"]}),
        jwks(enc_key(KEY[::-1], kid="old"), sign_key(KEY, "old"), enc_key(), sign_key()),
    ],
)
def test_forms_of_keys(made, content):
    same(opened(made(SMALL), content), SMALL)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        KEY,
        b"{",
        jwks()[:-1],
        jwks() + b"\xff",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":["x"]}',
        json.dumps(enc_key()).encode(),
        jwks(enc_key()),
        jwks(sign_key()),
        jwks(enc_key(KEY[:31]), sign_key()),
        jwks(enc_key() | {"k": "!" * 44}, sign_key()),
        jwks(enc_key() | {"k": 7}, sign_key()),
        jwks(enc_key() | {"kid": 7}, sign_key()),
        jwks(enc_key(), {"kty": "okp", "d": sign_key()["d"]}),
        jwks(enc_key(), {"kty": "EC", "x": sign_key()["x"]}),
    ],
)
def test_not_keys(content):
    with pytest.raises(InvalidKey) as caught:
        codec(content)
    assert foreign.says_nothing(caught.value, KEY, SEED, encoded(KEY).encode())


def test_keys_are_not_shown():
    (enc, sign) = parse_keys(SecretBytes(jwks(enc_key(), sign_key())))
    assert encoded(KEY)[:8] not in repr((enc, sign))
    assert len(sign.raw) == 32
    with pytest.raises(InvalidKey, match="needs a key"):
        CryptotensorsCodec(None)


def test_which_key_is_meant(made):
    data = made(SMALL)
    with pytest.raises(InvalidKey, match="names the key models"):
        opened(data, jwks(enc_key(kid="a"), enc_key(KEY[::-1], kid="b"), sign_key()))
    with pytest.raises(InvalidKey, match="names the key release"):
        opened(data, jwks(enc_key(), sign_key(kid="a"), sign_key(kid="b")))
    with pytest.raises(InvalidKey, match="cryptotensors can use"):
        opened(data, jwks(enc_key(alg="A256GCM"), sign_key()))


def test_wrong_keys(made):
    secret = b"the weights of a model!!"
    data = made({"w": torch.frombuffer(bytearray(secret), dtype=torch.float32)})
    for keys, what in (
        (jwks(enc_key(KEY[::-1]), sign_key()), "encrypted under another key"),
        (jwks(enc_key(), sign_key(KEY)), "signed with another key"),
    ):
        with pytest.raises(ForeignTampered, match=what) as caught:
            opened(data, keys)
        assert caught.value.exit_code == 5
        assert foreign.says_nothing(caught.value, secret, KEY, KEY[::-1], encoded(KEY).encode())


def test_every_byte(made):
    data = made(SMALL, {"format": "pt"})
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(StrongroomError) as caught:
            opened(bytes(changed))
        assert caught.value.exit_code in (3, 4, 5), position


def test_a_file_that_has_lost_its_encryption(made, tmp_path):
    """The package takes it for plain, and gives what is encrypted for weights."""
    data = made(SMALL).replace(b"__encryption__", b"__encryptiom__")
    (tmp_path / "m.safetensors").write_bytes(data)
    assert not torch.equal(load_file(tmp_path / "m.safetensors")["a"], SMALL["a"])
    with pytest.raises(FormatError, match="not encrypted by cryptotensors"):
        opened(data)


def test_tensors_in_clear(made):
    data = made(SMALL, tensors=["a"])
    with pytest.raises(ForeignTampered, match="1 tensors in clear") as caught:
        opened(data)
    assert "partial=true" in caught.value.hint
    same(opened(data, partial="true"), SMALL)
    # It says that they are not authentic, and so it is.
    changed = data[:-1] + b"\7"
    assert data[-1:] == b"\1"
    assert not torch.equal(safetensors.torch.load(opened(changed, partial="true"))["c"], SMALL["c"])


def test_a_policy_that_denies(made):
    deny = "package model\nallow = false"
    with pytest.raises(AccessError, match="access policy") as caught:
        opened(made(SMALL, policy={"local": deny, "remote": deny}))
    assert caught.value.exit_code == 4


def test_a_tensor_in_the_place_of_another(made):
    data = made({"a": torch.ones(4), "b": torch.zeros(4)})
    with pytest.raises(ForeignTampered):
        opened(data[:-32] + data[-16:] + data[-32:-16])


def test_truncations_and_what_follows(made):
    data = made(SMALL)
    for size in [*range(0, len(data), 13), len(data) - 1]:
        with pytest.raises(StrongroomError) as caught:
            opened(data[:size])
        assert caught.value.exit_code in (3, 5)
    with pytest.raises(FormatError):
        opened(data + b"x")


@pytest.mark.parametrize("data", [b"", b"PK\3\4", bytes(200), b"\xff" * 100, b"\2\0\0\0\0\0\0\0{}"])
def test_something_else(data):
    with pytest.raises(FormatError):
        opened(data)


def test_a_plain_safetensors_file():
    with pytest.raises(FormatError, match="not encrypted"):
        opened(safetensors.torch.save(SMALL))


def test_a_file_that_changes_meanwhile(made, tmp_path):
    place = tmp_path / "m.cryptotensors"
    data = made(SMALL)
    place.write_bytes(data)
    (file,) = codec().decrypt(LocalSource(place), "m.cryptotensors")
    with open(place, "r+b") as changing:
        changing.write(data.replace(b"__encryption__", b"__encryptiom__"))
    with pytest.raises(ForeignTampered, match="changed while it was read"):
        file.copy_to(lambda data: None)


def test_names_and_options():
    assert codec().recognises("a/m.safetensors", b"\x10\x03\0\0\0\0\0\0{")
    assert codec().recognises("m.cryptotensors", b"\x10\x03\0\0\0\0\0\0{")
    assert not codec().recognises("config.json", b"{")
    assert codec().plain_path("a/m.safetensors") == "a/m.safetensors"
    assert codec().plain_path("a/m.safetensors.cryptotensors") == "a/m.safetensors"
    assert codec().plain_path("a/m.cryptotensors") == "a/m.safetensors"
    with pytest.raises(UsageError, match="true or false"):
        codec(partial="1")
    with pytest.raises(UsageError, match="imported, not written"):
        foreign.encrypted(codec(), b"data")


@pytest.mark.parametrize(
    ("name", "hint"), [("cryptotensors", "pip install cryptotensors"), ("torch", "strongroom[torch]")]
)
def test_without_the_packages(monkeypatch, name, hint):
    real = builtins.__import__

    def missing(wanted, *arguments):
        if wanted.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "strongroom.compat.cryptotensors")
    with pytest.raises(UsageError, match="not installed") as caught:
        importlib.import_module("strongroom.compat.cryptotensors")
    assert hint in caught.value.hint


LARGE = 256 << 20


def write_large(path):
    tensors = {f"{n}": torch.full((LARGE // 64,), float(n)) for n in range(16)}
    save_file(tensors, path, config={"enc_key": enc_key(), "sign_key": sign_key()})


def read_large(path):
    size = 0

    def write(data):
        nonlocal size
        size += len(data)

    codec().decrypt(LocalSource(path), "m.cryptotensors")[0].copy_to(write)
    assert size > LARGE


def test_memory_of_a_large_file(tmp_path):
    place = tmp_path / "m.cryptotensors"
    foreign.peak_memory("test_cryptotensors", "write_large", place)
    peak = foreign.peak_memory("test_cryptotensors", "read_large", place)
    place.unlink()
    print(f"{peak >> 20} MiB for {LARGE >> 20} MiB")
    assert 16 << 20 < peak < 160 << 20
