"""sgx-pytorch's encrypted tensors: known vectors, state dicts both ways, and damage."""

import collections
import io
import os
import struct
import zipfile
from fractions import Fraction

import foreign
import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.compat.sgx_pytorch import SgxPytorchCodec, decrypt_tensor, encrypt_tensor, parse_key
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    ForeignTampered,
    FormatError,
    InvalidKey,
    LimitExceeded,
    StrongroomError,
    UsageError,
)
from strongroom.loaders import source

KEY = bytes(range(100, 116))


def key(raw=KEY):
    return SecretBytes(raw)


def codec(raw=KEY, **options):
    return SgxPytorchCodec(key(raw), options)


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def loaded(data):
    return torch.load(io.BytesIO(data), weights_only=True)


def opened(state, raw=KEY, **options):
    """What an import makes of a state dict."""
    ((path, data),) = foreign.decrypted(codec(raw, **options), saved(state), "m.pth").items()
    assert path == "m.pth"
    return loaded(data)


def made(state, raw=KEY, **options):
    """What an export makes of one."""
    return loaded(foreign.encrypted(codec(raw, **options), saved(state)))


def tensor_of(data):
    return torch.frombuffer(bytearray(data), dtype=torch.int32)


def bytes_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def reference(tensor, raw=KEY, model_id=bytes(4), iv=None):
    """An encrypted tensor, put together byte by byte after secure_mkldnn.py with another cipher class."""
    iv = iv or os.urandom(12)
    plain = bytes_of(tensor)
    sealed = AESGCM(raw).encrypt(iv, plain, None)
    half = tensor.dtype == torch.float16
    data = struct.pack(f"<{1 + tensor.dim()}i", tensor.dim(), *tensor.shape)
    data += struct.pack("<I", half) + model_id + bytes(92) + iv + sealed[-16:] + sealed[:-16]
    return tensor_of(data + bytes(len(plain) if half else 0))


# Computed with python-cryptography after the source of sgx-pytorch, c9d37cd; not run in an enclave.
VECTORS = [
    (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        bytes(16),
        bytes(4),
        bytes(range(12)),
        "73a153c9f6731ee773b6a6835e5754f9" + "33ddf3d317862d66e1f11a1db5e5cf2c",
        156,
    ),
    (
        torch.tensor([0.5, -1.0, 2.0]),
        b"\xff" * 16,
        b"\1\0\0\0",
        b"\1" * 12,
        "49ad55174545832a8228d91562900044" + "d6529e3df56e4ea90b1e9764",
        148,
    ),
    (
        torch.tensor([0.5, -1.0, 2.0]).half(),
        b"\xff" * 16,
        b"\1\0\0\0",
        b"\1" * 12,
        "2c4e309080fdc772ac58aad5fa04e155" + "d66a9ebef52e" + "000000000000",
        148,
    ),
]


@pytest.mark.parametrize(("tensor", "raw", "model_id", "iv", "end", "size"), VECTORS)
def test_vectors(tensor, raw, model_id, iv, end, size):
    encrypted = encrypt_tensor(tensor, key(raw), model_id, iv)
    data = bytes_of(encrypted)
    assert (len(data), encrypted.dtype, encrypted.dim()) == (size, torch.int32, 1)
    assert data.endswith(bytes.fromhex(end))
    assert data == bytes_of(reference(tensor, raw, model_id, iv))
    plain = decrypt_tensor(encrypted, key(raw), "weight")
    assert plain.dtype == tensor.dtype
    assert torch.equal(plain, tensor)


class Net(torch.nn.Module):
    """Every kind of layer that secure_mkldnn replaces, and some that it does not."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(2, 3, 3)
        self.conv2 = torch.nn.Conv2d(2, 3, 3, bias=False)
        self.conv3 = torch.nn.Conv3d(2, 3, 3)
        self.norm2 = torch.nn.BatchNorm2d(3)
        self.norm3 = torch.nn.BatchNorm3d(3)
        self.lstm = torch.nn.LSTM(4, 5)
        self.linear = torch.nn.Linear(7, 5)


def state_dict():
    torch.manual_seed(7)
    return Net().state_dict()


PLAIN = {f"norm{n}.{name}" for n in (2, 3) for name in ("running_mean", "running_var")}
PLAIN |= {"norm2.num_batches_tracked", "norm3.num_batches_tracked"}
PLAIN |= {f"lstm.{kind}_{side}_l0" for kind in ("weight", "bias") for side in ("ih", "hh")}


def same(one, other):
    assert list(one) == list(other)
    assert one._metadata == other._metadata
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


def test_import_of_a_state_dict():
    state = state_dict()
    encrypted = collections.OrderedDict(
        (name, tensor if name in PLAIN else reference(tensor)) for name, tensor in state.items()
    )
    encrypted._metadata = state._metadata
    same(opened(encrypted), state)
    Net().load_state_dict(opened(encrypted))


def test_export_of_a_state_dict():
    state = state_dict()
    encrypted = made(state)
    for name, tensor in encrypted.items():
        assert (tensor.dtype == torch.int32) == (name not in PLAIN)
    same(opened(encrypted), state)
    for name in PLAIN:
        assert torch.equal(encrypted[name], state[name])
    # No IV twice.
    heads = [
        bytes_of(t)[4 * (1 + int(t[0])) + 100 :][:12] for n, t in encrypted.items() if n not in PLAIN
    ]
    assert len(set(heads)) == len(heads)


def test_options_of_an_export():
    state = state_dict()
    halves = opened(made(state, dtype="float16"))
    assert halves["linear.weight"].dtype == torch.float16
    assert torch.equal(halves["linear.weight"], state["linear.weight"].half())
    assert halves["norm2.running_var"].dtype == torch.float32

    some = made(state, names="lstm.*")
    assert {name for name in state if some[name].dtype == torch.int32} == {
        n for n in PLAIN if "lstm" in n
    }

    encrypted = made(state, model_id="0a0B0c0d")
    assert bytes_of(encrypted["linear.bias"])[12:16] == bytes([10, 11, 12, 13])
    same(opened(encrypted, model_id="0a0b0c0d"), state)
    with pytest.raises(InvalidKey, match="model id 0a0b0c0d"):
        opened(encrypted, model_id="00000000")


def test_dtypes_are_not_changed_unless_asked():
    doubles = {"weight": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(UsageError, match="float64") as caught:
        made(doubles)
    assert "dtype=float32" in caught.value.hint
    assert opened(made(doubles, dtype="float32"))["weight"].dtype == torch.float32
    with pytest.raises(UsageError, match="bfloat16"):
        made({"bias": torch.ones(3).bfloat16()})
    assert opened(made({"bias": torch.ones(3).half()}))["bias"].dtype == torch.float16
    with pytest.raises(UsageError, match="no dimensions"):
        made({"scale.weight": torch.tensor(1.0)})


def test_views_and_shared_memory_are_written_as_what_they_show():
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a.weight": base.t(), "b.weight": base[1:3, ::2], "c.weight": base}
    for name, tensor in opened(made(state)).items():
        assert torch.equal(tensor, state[name])


def test_what_is_not_a_tensor_stays():
    state = {"weight": torch.ones(2), "extra": {"epoch": 3, "lr": 0.1}, "step": 7}
    result = opened(made(state))
    assert (result["extra"], result["step"]) == (state["extra"], 7)


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(shapes, st.booleans(), st.binary(min_size=4, max_size=4))
@settings(deadline=None)
def test_any_shape(shape, half, model_id):
    tensor = torch.rand(shape).to(torch.float16 if half else torch.float32)
    encrypted = encrypt_tensor(tensor, key(), model_id)
    assert len(encrypted) == 1 + len(shape) + tensor.numel() + 32
    assert torch.equal(decrypt_tensor(reference(tensor, model_id=model_id), key(), "w"), tensor)
    iv = bytes_of(encrypted)[4 * (1 + len(shape)) + 100 :][:12]
    assert bytes_of(encrypted) == bytes_of(reference(tensor, model_id=model_id, iv=iv))


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(-2, 70))
@settings(max_examples=300, deadline=None)
def test_whatever_integers_are_read_or_refused(noise, ndim, first):
    head = struct.pack(f"<{1 + ndim}i", ndim, *[first] * ndim) + bytes(100)
    data = (head + noise)[: (len(head) + len(noise)) // 4 * 4]
    with pytest.raises((ForeignTampered, FormatError)):
        decrypt_tensor(tensor_of(data), key(), "w")


def test_an_empty_tensor():
    tensor = torch.empty(3, 0)
    assert decrypt_tensor(encrypt_tensor(tensor, key()), key(), "w").shape == (3, 0)


PLAIN_INTS = [
    torch.zeros(200, dtype=torch.int32),
    torch.zeros(34, dtype=torch.int32),
    torch.ones(34, dtype=torch.int32),
    torch.arange(500, dtype=torch.int32),
    torch.tensor([1, 2, 3], dtype=torch.int32),
    torch.empty(0, dtype=torch.int32),
    torch.full((40,), -1, dtype=torch.int32),
    torch.ones(6, 34, dtype=torch.int32),
    torch.ones(40, dtype=torch.int64),
    torch.ones(1, dtype=torch.int32).expand(1000),
]


@pytest.mark.parametrize("tensor", PLAIN_INTS, ids=range(len(PLAIN_INTS)))
def test_plain_integers_stay(tensor):
    state = opened({"weight": reference(torch.ones(3)), "indices": tensor})
    assert torch.equal(state["indices"], tensor)
    with pytest.raises(FormatError, match="weight is not encrypted"):
        decrypt_tensor(tensor, key(), "weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_byte(dtype):
    """What GCM covers is refused when it changed; the rest is plain or another shape of the same."""
    tensor = torch.rand(2, 3).to(dtype)
    data = bytes_of(reference(tensor))
    sealed = range(12 + 100, 12 + 128 + 6 * dtype.itemsize)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        state = {"weight": tensor_of(changed), "other.weight": reference(tensor)}
        if position in sealed:
            with pytest.raises(ForeignTampered, match="The tensor weight does not authenticate"):
                opened(state)
        elif position in range(16, 20):  # the model id is not authentic
            assert torch.equal(opened(state)["weight"], tensor)
        else:
            with pytest.raises((ForeignTampered, FormatError), match="The tensor weight"):
                opened(state)


def test_what_is_not_authentic_as_the_docstring_says():
    tensor = torch.rand(2, 6)
    data = bytearray(bytes_of(reference(tensor)))
    data[4:12] = struct.pack("<2i", 3, 4)
    assert torch.equal(opened({"weight": tensor_of(data)})["weight"], tensor.reshape(3, 4))
    one, two = torch.rand(5), torch.rand(5)
    swapped = opened({"a.weight": reference(two), "b.weight": reference(one)})
    assert torch.equal(swapped["a.weight"], two)


def test_truncated_tensors():
    encrypted = reference(torch.rand(8))
    longer = torch.cat([encrypted, torch.zeros(1, dtype=torch.int32)])
    for damaged in [longer, *(encrypted[:size].clone() for size in range(len(encrypted)))]:
        with pytest.raises(FormatError, match="not an encrypted tensor") as caught:
            opened({"bias": damaged, "weight": reference(torch.ones(1))})
    # What is called otherwise is plain; whatever is called so can be said to be.
    state = {"a.bias": torch.arange(9, dtype=torch.int32), "b.weight": reference(torch.ones(1))}
    assert "names=" in caught.value.hint
    assert torch.equal(opened(state, names="b.*")["a.bias"], state["a.bias"])


def test_wrong_key():
    secret = b"the weights of a"
    state = {"fc.weight": reference(tensor_of(secret).view(torch.float32), model_id=b"\1\2\3\4")}
    other = bytes(range(16))
    with pytest.raises(ForeignTampered, match=r"fc\.weight.*another key") as caught:
        opened(state, other)
    assert "01020304" in caught.value.hint
    assert caught.value.exit_code == 5
    assert foreign.says_nothing(caught.value, secret, KEY, other)


@pytest.mark.parametrize(
    "state",
    [{"weight": torch.ones(3)}, {}, {"indices": torch.ones(50, dtype=torch.int32)}],
)
def test_nothing_encrypted(state):
    with pytest.raises(FormatError, match="no encrypted tensors") as caught:
        opened(state)
    assert "strongroom seal" in caught.value.hint


@pytest.mark.parametrize(
    "state", [{"w": torch.ones(3)}, {"weight": torch.ones(3, dtype=torch.int64)}, {}]
)
def test_nothing_to_encrypt(state):
    with pytest.raises(UsageError, match="no tensors to encrypt"):
        made(state)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {1: torch.ones(3)}])
def test_no_state_dict(content):
    with pytest.raises(FormatError, match="holds no state dict"):
        opened(content)


def test_objects_are_not_loaded():
    with pytest.raises(FormatError, match="not a state dict"):
        opened({"weight": reference(torch.ones(3)), "x": Fraction(1, 2)})


def test_broken_files():
    data = saved({"weight": reference(torch.rand(2000))})
    for damaged in (b"", b"PK", b"\x80\x02}q\0."):
        with pytest.raises(FormatError, match=r"not a file of torch\.save"):
            foreign.decrypted(codec(), damaged)
    for size in (4, 30, 100, 1000, len(data) // 2, len(data) - 30, len(data) - 1):
        with pytest.raises(StrongroomError) as caught:
            foreign.decrypted(codec(), data[:size])
        assert caught.value.exit_code in (3, 5)
    at = data.index(bytes_of(torch.tensor([1, 2000], dtype=torch.int32)))
    for position in (at + 120, at + 140, at + 4000):
        changed = bytearray(data)
        changed[position] ^= 0x10
        with pytest.raises(ForeignTampered):
            foreign.decrypted(codec(), bytes(changed))


def test_files_that_expand_too_far(monkeypatch):
    """What somebody else made of zeros: 1000 times as large in memory."""
    monkeypatch.setattr(source, "_EXPANSION_FLOOR", 1 << 20)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"weight": torch.zeros(1 << 19)}))) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(LimitExceeded, match="expands too far") as caught:
        foreign.decrypted(codec(), packed.getvalue())
    assert caught.value.hint


def test_an_error_of_the_reader_or_writer_is_passed_on():
    data = saved({"weight": reference(torch.rand(300_000))})

    class Broken(foreign.BytesSource):
        def read_into(self, offset, out):
            if len(out) > 100_000:
                raise StrongroomError("the disk is gone")
            super().read_into(offset, out)

    (file,) = codec().decrypt(Broken(data), "m.pth")
    with pytest.raises(StrongroomError, match="the disk is gone"):
        file.copy_to(lambda data: None)

    def full(data):
        raise StrongroomError("the disk is full")

    (file,) = codec().decrypt(foreign.memory_source(data), "m.pth")
    with pytest.raises(StrongroomError, match="the disk is full"):
        file.copy_to(full)


@pytest.mark.parametrize("form", [KEY, KEY.hex().encode(), KEY.hex().upper().encode()])
def test_forms_of_keys(form):
    for content in (form, form + b"\n"):
        assert parse_key(SecretBytes(content)) == key()


def test_a_key_that_ends_like_a_line():
    assert parse_key(SecretBytes(KEY[:-1] + b"\n")) == key(KEY[:-1] + b"\n")


@pytest.mark.parametrize(
    "wrong", [b"x", KEY[:-1], KEY * 2, KEY + b"x", b"g" * 32, KEY.hex().encode() + b"0"]
)
def test_not_a_key(wrong):
    with pytest.raises(InvalidKey, match="16 bytes") as caught:
        codec(wrong)
    assert len(wrong) < 4 or foreign.says_nothing(caught.value, wrong, KEY)


def test_options_that_cannot_be():
    for options in ({"model_id": "1"}, {"model_id": "0100000g"}, {"dtype": "bfloat16"}, {"ids": "1"}):
        with pytest.raises(UsageError):
            codec(**options)
    with pytest.raises(InvalidKey, match="needs a key"):
        SgxPytorchCodec(None)


def test_recognises():
    head = saved({})[:64]
    assert codec().recognises("m.pth", head)
    assert codec().recognises("a/M.PT", head)
    assert not codec().recognises("m.zip", head)
    assert not codec().recognises("m.pt", b"\x80\x02")
    assert codec().plain_path("a/m.pth") == codec().foreign_path("a/m.pth") == "a/m.pth"


LARGE = 256 << 20
PARTS = 16


def write_large(path):
    state = {
        f"{n}.weight": torch.full((LARGE // PARTS // 4,), float(n), dtype=torch.float32)
        for n in range(PARTS)
    }
    torch.save({name: encrypt_tensor(state.pop(name), key()) for name in list(state)}, path)


def read_large(path):
    from strongroom.model.storage import LocalSource

    size = 0

    def write(data):
        nonlocal size
        size += len(data)

    codec().decrypt(LocalSource(path), "m.pth")[0].copy_to(write)
    assert size > LARGE


def test_memory_is_that_of_the_model_and_one_tensor(tmp_path):
    place = tmp_path / "m.pth"
    write_large(place)
    peak = foreign.peak_memory("test_sgx_pytorch", "read_large", place)
    place.unlink()
    print(f"{peak >> 20} MiB for {LARGE >> 20} MiB")
    assert LARGE * 0.9 < peak < LARGE * (1 + 1 / PARTS) + (64 << 20)
