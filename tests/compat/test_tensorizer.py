"""tensorizer's encrypted files, written by its own package, become safetensors files."""

import builtins
import importlib
import io
import struct
import sys
import types

import foreign
import pytest
import safetensors.torch
import torch
from tensorizer import DecryptionParams, EncryptionParams, TensorDeserializer, TensorSerializer

from strongroom.compat import tensorizer as module
from strongroom.compat.tensorizer import TensorizerCodec
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    ForeignTampered,
    FormatError,
    InvalidKey,
    LimitExceeded,
    StrongroomError,
    UsageError,
)

KEY = bytes(range(50, 82))
PASSPHRASE = "correct horse battery staple"


class File(io.BytesIO):
    """What the serializer closes, and is read afterwards."""

    def close(self):
        pass


def made(state, encryption=None, plain=False):
    """A file of tensorizer."""
    file = File()
    encryption = None if plain else encryption or EncryptionParams(key=KEY)
    serializer = TensorSerializer(file, encryption=encryption)
    serializer.write_state_dict(state)
    serializer.close()
    return file.getvalue()


def weak(passphrase=PASSPHRASE):
    """A passphrase that is stretched as little as libsodium allows, for the tests' sake."""
    return EncryptionParams.from_string(
        passphrase, opslimit=EncryptionParams.OpsLimit.MIN, memlimit=EncryptionParams.MemLimit.MIN
    )


def codec(key=KEY, **options):
    return TensorizerCodec(SecretBytes(key), options)


def opened(data, key=KEY, path="m.tensors", **options):
    ((path, plain),) = foreign.decrypted(codec(key, **options), data, path).items()
    assert path == "m.safetensors"
    return safetensors.torch.load(plain)


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        assert torch.equal(
            one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)
        )


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


def mixed():
    """A tensor of every dtype, of odd sizes, with names in no order."""
    torch.manual_seed(3)
    state = {}
    for number, dtype in enumerate(DTYPES):
        state[f"{7 * number % 5}.{dtype}"] = (torch.rand(number + 1, 3) * 9).to(dtype)
    return state | {"scalar": torch.tensor(3.5), "größe": torch.ones(1, dtype=torch.uint8)}


def test_every_dtype():
    state = mixed()
    data = foreign.decrypted(codec(), made(state), "m.tensors")["m.safetensors"]
    same(safetensors.torch.load(data), state)
    length = int.from_bytes(data[:8], "little")
    header = __import__("json").loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, tensor in header.items():  # each is aligned, as readers expect
        assert (8 + length + tensor["data_offsets"][0]) % state[name].element_size() == 0


def test_a_module(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20)).eval()
    file = File()
    serializer = TensorSerializer(file, encryption=EncryptionParams(key=KEY))
    serializer.write_module(net)
    serializer.close()
    other = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20)).eval()
    other.load_state_dict(opened(file.getvalue()))
    assert torch.equal(net(torch.ones(2, 30)), other(torch.ones(2, 30)))


def test_tensors_of_several_chunks():
    state = {"large": torch.randn(3 << 20), "small": torch.randn(5)}
    same(opened(made(state)), state)


def test_groups(monkeypatch):
    state = {f"{n}": torch.randn(n * 100 + 1) for n in range(20)} | {"b": torch.ones(9).bool()}
    data = made(state)
    monkeypatch.setattr(module, "_GROUP", 3000)
    same(opened(data), state)


def test_nested_names():
    data = made({"model": {"layers": [torch.ones(2), torch.zeros(3)]}, "step": torch.tensor(1)})
    assert set(opened(data)) == {"model.layers.0", "model.layers.1", "step"}
    with pytest.raises(FormatError, match="two tensors"):
        opened(made({"a": {"b": torch.ones(2)}, "a.b": torch.ones(3)}))


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_passphrase(newline):
    state = {"w": torch.randn(4)}
    data = made(state, weak())
    same(opened(data, PASSPHRASE.encode() + newline, passphrase="true"), state)
    same(opened(data, weak_key(data) + newline), state)
    with pytest.raises(ForeignTampered, match="another key") as caught:
        opened(data, b"another passphrase", passphrase="true")
    assert foreign.says_nothing(caught.value, b"another passphrase", PASSPHRASE.encode())


def weak_key(data):
    """The key that the passphrase is stretched to, by the salt in the file."""
    seen = []
    real = TensorDeserializer._derive_encryption_key

    class Spy(TensorDeserializer):
        def _derive_encryption_key(self, info):
            seen.append(real(self, info))
            return seen[-1]

    params = DecryptionParams.from_string(PASSPHRASE)
    with Spy(io.BytesIO(data), device="cpu", num_readers=1, encryption=params):
        return seen[0]


@pytest.mark.parametrize(
    ("passes", "memory"), [(1, (1 << 30) + 1), (1, 1 << 62), (17, 1 << 30), (1 << 62, 8192)]
)
def test_a_file_that_asks_for_too_much_stretching(passes, memory):
    """Whoever writes the file says how much; nothing of it is authentic before it has been done."""
    limits = struct.pack("<QQ", EncryptionParams.OpsLimit.MIN, EncryptionParams.MemLimit.MIN)
    data = made({"w": torch.ones(3), "v": torch.ones(4)}, weak())
    assert data.count(limits) == 2
    changed = data.replace(limits, struct.pack("<QQ", passes, memory))
    with pytest.raises(LimitExceeded, match="too much time or memory") as caught:
        opened(changed, PASSPHRASE.encode(), passphrase="true")
    assert foreign.says_nothing(caught.value, PASSPHRASE.encode())


def test_what_a_file_asks_for_counts_together(monkeypatch):
    """Every tensor can have a salt of its own."""
    monkeypatch.setattr(module, "_MAX_WORK", 2 * 8192)
    stretching = module._Stretching(types.SimpleNamespace(key=lambda method: method.salt), "m")
    one, two, three = (
        types.SimpleNamespace(opslimit=1, memlimit=8192, salt=bytes([number]) * 16)
        for number in range(3)
    )
    for method in (one, two, one, two):
        assert stretching.key(method) == method.salt
    with pytest.raises(LimitExceeded):
        stretching.key(three)


def test_a_key_for_a_passphrase_and_the_other_way():
    with pytest.raises(ForeignTampered, match="another key") as caught:
        opened(made({"w": torch.ones(3)}), passphrase="true")
    assert "passphrase" in caught.value.hint
    with pytest.raises(ForeignTampered, match="another key"):
        opened(made({"w": torch.ones(3)}, weak()), KEY)


def test_wrong_key():
    secret = b"the weights of a model!!"
    data = made({"w": torch.frombuffer(bytearray(secret), dtype=torch.float32)})
    with pytest.raises(ForeignTampered, match="another key, or it has been changed") as caught:
        opened(data, KEY[::-1])
    assert caught.value.exit_code == 5
    assert foreign.says_nothing(caught.value, secret, KEY, KEY[::-1])


def test_not_encrypted():
    with pytest.raises(FormatError, match="not encrypted"):
        opened(made({"w": torch.ones(3)}, plain=True))


@pytest.mark.parametrize("data", [b"", b"|TZ", b"PK\3\4" + bytes(100), bytes(1000)])
def test_something_else(data):
    with pytest.raises(FormatError, match="not a file of tensorizer"):
        opened(data)


SIZE = struct.pack("<Q", 160)
STATE = {"a": torch.arange(40.0), "b": torch.arange(7, dtype=torch.uint8), "c": torch.ones(2, 3).half()}


def test_every_byte():
    data = made(STATE)
    size = (
        data.rstrip(b"\0").rindex(bytes(1000)) + 1000
    )  # the reserved space behind the index ends here
    index = len(data[:200_000].rstrip(b"\0"))
    accepted = []
    for position in [*range(0, index, 2), *range(size - 8, len(data))]:
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            result = opened(bytes(changed))
        except StrongroomError as error:
            assert error.exit_code in (3, 5), position
        else:
            accepted.append(position)
            same(result, STATE)
    # The same came out: what nobody looks at, such as the size of all and the reserved space.
    assert len(accepted) < 100, accepted


def test_truncations_and_what_follows():
    data = made(STATE)
    for size in [*range(0, 400, 7), *range(len(data) - 700, len(data) - 8, 9), len(data) - 9]:
        with pytest.raises(StrongroomError) as caught:
            opened(data[:size])
        assert caught.value.exit_code in (3, 5)
    same(opened(data[:-8]), STATE)  # the mark of the end is not needed
    for junk in (b"\0", b"x", data[-100:]):
        with pytest.raises(ForeignTampered, match="does not end"):
            opened(data + junk)


def test_a_tensor_less_in_the_index():
    data = bytearray(made(STATE))
    count = data.index(struct.pack("<Q", 3), 40)
    data[count] = 2
    with pytest.raises(ForeignTampered, match="does not end"):
        opened(bytes(data))


def test_a_tensor_emptied():
    """Without data a tensor would load as zeros, and no key would be asked for."""
    data = made({"a": torch.ones(5), "b": torch.ones(40)})
    index, header = data.index(SIZE), data.rindex(SIZE)
    assert index < 1000 and header > 200_000
    zeroed = data[:header] + bytes(8) + data[header + 8 :]
    for changed in (zeroed, zeroed[:index] + bytes(8) + zeroed[index + 8 :]):
        with pytest.raises(ForeignTampered, match="b does not have 160 bytes"):
            opened(changed)
    # tensorizer itself takes it, hashes and all.
    params = DecryptionParams.from_key(KEY)
    with TensorDeserializer(
        io.BytesIO(zeroed), device="cpu", verify_hash=True, encryption=params
    ) as theirs:
        assert not theirs["b"].any()


def test_a_header_that_is_said_to_be_large():
    data = bytearray(made(STATE))
    end = data.rindex(SIZE) + 8
    (offset,) = struct.unpack("<Q", data[data.index(SIZE) - 16 : data.index(SIZE) - 8])
    length = struct.unpack("<Q", data[offset : offset + 8])[0]
    assert offset + length == end
    data[offset + 4] = 1
    with pytest.raises(ForeignTampered, match="a does not have 160 bytes"):
        opened(bytes(data))


def test_dtypes_that_safetensors_does_not_have():
    with pytest.raises(FormatError, match="w has a dtype"):
        opened(made({"w": torch.ones(2, dtype=torch.complex128)}))


@pytest.mark.parametrize("key", [b"x", KEY[:-1], KEY + b"x", KEY.hex().encode()])
def test_not_a_key(key):
    with pytest.raises(InvalidKey, match="32 raw bytes") as caught:
        codec(key)
    assert "passphrase=true" in caught.value.hint
    assert len(key) < 4 or foreign.says_nothing(caught.value, key)


def test_options():
    with pytest.raises(InvalidKey):
        codec(b"\n", passphrase="true")
    with pytest.raises(UsageError, match="true or false"):
        codec(passphrase="yes")
    with pytest.raises(UsageError, match="no option"):
        codec(salt="x")
    with pytest.raises(UsageError, match="imported, not written"):
        foreign.encrypted(codec(), b"data")
    assert not TensorizerCodec.writes


def test_names():
    assert codec().recognises("anything", b"|TZR|\3\0\0\0")
    assert not codec().recognises("m.tensors", b"")
    for path in ("a/m.tensors", "a/m.tensorizer", "a/m"):
        assert codec().plain_path(path) == "a/m.safetensors"
    assert codec().plain_path("m.v1") == "m.v1.safetensors"


def test_an_error_of_the_reader_is_passed_on():
    class Broken(foreign.BytesSource):
        def read_into(self, offset, out):
            if offset > 100_000:
                raise StrongroomError("the disk is gone")
            super().read_into(offset, out)

    (file,) = codec().decrypt(Broken(made(STATE)), "m.tensors")
    with pytest.raises(StrongroomError, match="the disk is gone"):
        file.copy_to(lambda data: None)


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name.partition(".")[0] == "tensorizer":
            raise ModuleNotFoundError("No module named 'tensorizer'", name="tensorizer")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "strongroom.compat.tensorizer")
    with pytest.raises(UsageError, match="not installed") as caught:
        importlib.import_module("strongroom.compat.tensorizer")
    assert caught.value.hint == "pip install tensorizer"


LARGE = 256 << 20


def write_large(path):
    serializer = TensorSerializer(str(path), encryption=EncryptionParams(key=KEY))
    serializer.write_state_dict({f"{n}": torch.full((LARGE // 64,), float(n)) for n in range(16)})
    serializer.close()


def read_large(path):
    from strongroom.model.storage import LocalSource

    size = 0

    def write(data):
        nonlocal size
        size += len(data)

    module._GROUP = 32 << 20
    codec().decrypt(LocalSource(path), "m.tensors")[0].copy_to(write)
    assert size > LARGE


def test_memory_is_that_of_a_group(tmp_path):
    place = tmp_path / "m.tensors"
    foreign.peak_memory("test_tensorizer", "write_large", place)
    peak = foreign.peak_memory("test_tensorizer", "read_large", place)
    place.unlink()
    print(f"{peak >> 20} MiB for {LARGE >> 20} MiB")
    assert 16 << 20 < peak < LARGE * 3 // 4
