"""State dicts sealed from memory, and loaded with a key that is found by the model's id."""

import gc
import os
import subprocess
import sys

import pytest
import test_no_plaintext_on_disk as tracing
import torch
import transformers
from marking import MARK

import strongroom
from strongroom import SecretBytes, SymmetricKey
from strongroom.errors import (
    AlreadyExists,
    NoKey,
    NoMatchingRecipient,
    PayloadTampered,
    UsageError,
)
from strongroom.loaders import torch as loader


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 32)
        self.norm = torch.nn.BatchNorm1d(32)
        self.second = torch.nn.Linear(32, 4, bias=False)

    def forward(self, x):
        return self.second(self.norm(torch.relu(self.first(x))))


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch):
    monkeypatch.delenv("STRONGROOM_KEY", raising=False)
    monkeypatch.delenv("STRONGROOM_KEY_FILE", raising=False)


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def keys(tmp_path, key):
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "net.key").write_bytes(SymmetricKey(SecretBytes(key)).encode())
    return folder


def assert_same(one, two):
    assert list(one) == list(two)
    for name in one:
        assert torch.equal(one[name], two[name])


def test_three_lines(tmp_path, keys, monkeypatch, net):
    monkeypatch.setenv("STRONGROOM_KEY_FILE", str(keys))
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(net.state_dict(), place, model_id="net")
    again = Net().eval()
    result = loader.load_into(again, place)
    assert not result.missing_keys
    assert not result.unexpected_keys
    x = torch.randn(5, 16)
    assert torch.equal(again(x), net(x))


def test_what_is_sealed_is_what_torch_save_writes(tmp_path, key, net):
    place = tmp_path / "net.pt.sealed"
    loader.seal_state_dict(
        net.state_dict(), place, key=key, model_id=b"\0\1\2\3", name="Net", version="2", meta={"a": 1}
    )
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with strongroom.open(place, key=key) as model:
        assert list(model.files) == ["net.pt"]
        assert {"model_id": "00010203", "name": "Net", "version": "2", "a": 1}.items() <= dict(
            model.meta
        ).items()
        mine = loader.load(model)
    theirs = torch.load(tmp_path / "net.pt")
    assert type(mine) is type(theirs)
    assert mine._metadata == theirs._metadata
    assert_same(mine, theirs)
    assert strongroom.inspect(place).header.meta["model_id"] == "00010203"


def test_a_real_network(tmp_path, key):
    torch.manual_seed(4)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 32, 64], depths=[1, 2, 1, 1], num_labels=7
    )
    one, two = (transformers.ResNetForImageClassification(config).eval() for _ in range(2))
    loader.seal_state_dict(one.state_dict(), tmp_path / "r.sealed", key=key, model_id="r")
    loader.load_into(two, tmp_path / "r.sealed", key={"r": key}, model_id="r")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(one(x).logits, two(x).logits)


def test_in_place_or_assigned(tmp_path, key, net):
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(net.state_dict(), place, key=key)
    kept = Net()
    before = {name: p.data_ptr() for name, p in kept.named_parameters()}
    loader.load_into(kept, place, key=key)
    assert {name: p.data_ptr() for name, p in kept.named_parameters()} == before
    with torch.device("meta"):
        empty = Net()
    loader.load_into(empty, place, key=key, assign=True)
    assert_same(empty.state_dict(), net.state_dict())
    addresses = [p.data_ptr() for p in empty.parameters()]
    # Views of the one block that the file was decrypted into.
    assert max(addresses) - min(addresses) < place.stat().st_size
    assert all(p.requires_grad for p in empty.parameters())


def test_strict(tmp_path, key, net):
    state = net.state_dict()
    del state["first.bias"]
    state["other"] = torch.zeros(1)
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(state, place, key=key)
    with pytest.raises(RuntimeError, match=r"first\.bias"):
        loader.load_into(Net(), place, key=key)
    result = loader.load_into(Net(), place, key=key, strict=False)
    assert result.missing_keys == ["first.bias"]
    assert result.unexpected_keys == ["other"]


def test_another_model_than_expected(tmp_path, key, net):
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(net.state_dict(), place, key=key, model_id="net")
    with pytest.raises(UsageError, match="'net', not 'other'"):
        loader.load_into(Net(), place, key=key, model_id="other")
    with strongroom.open(place, key=key) as model:
        loader.load_into(Net(), model, model_id="net")
        with pytest.raises(UsageError, match="'net', not 'other'"):
            loader.load_into(Net(), model, model_id="other")
        with pytest.raises(UsageError, match="takes no key"):
            loader.load_into(Net(), model, key=key)
    loader.seal_state_dict(net.state_dict(), place, key=key, overwrite=True)
    with pytest.raises(UsageError, match="has no id"):
        loader.load_into(Net(), place, key=key, model_id="net")


def test_no_key(tmp_path, key, keys, net):
    place = tmp_path / "net.sealed"
    with pytest.raises(NoKey, match="'other'"):
        loader.seal_state_dict(net.state_dict(), place, key=keys, model_id="other")
    with pytest.raises(NoKey, match="no id"):
        loader.seal_state_dict(net.state_dict(), place, key=keys)
    with pytest.raises(NoKey, match="No key was given"):
        loader.seal_state_dict(net.state_dict(), place, model_id="net")
    with pytest.raises(UsageError, match="not usable"):
        loader.seal_state_dict(net.state_dict(), place, key=key, model_id="../net")
    assert not place.exists()
    loader.seal_state_dict(net.state_dict(), place, key=bytes(32), model_id="net")
    before = Net().state_dict()
    module = Net()
    module.load_state_dict(before)
    with pytest.raises(NoMatchingRecipient):
        loader.load_into(module, place, key=keys)
    assert_same(module.state_dict(), before)


def test_for_a_public_key(tmp_path, net):
    identity = strongroom.HpkeIdentity.generate()
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(net.state_dict(), place, recipients=identity.recipient, model_id="net")
    again = Net()
    loader.load_into(again, place, key={"net": identity})
    assert_same(again.state_dict(), net.state_dict())


def test_overwrite(tmp_path, key, net):
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(net.state_dict(), place, key=key)
    content = place.read_bytes()
    with pytest.raises(AlreadyExists):
        loader.seal_state_dict(net.state_dict(), place, key=key)

    class Unpicklable:
        def __reduce__(self):
            raise ValueError("not this one")

    state = {"weight": torch.zeros(1 << 20), "bad": Unpicklable()}
    with pytest.raises(ValueError, match="not this one"):
        loader.seal_state_dict(state, place, key=key, overwrite=True)
    assert place.read_bytes() == content
    assert os.listdir(tmp_path) == ["net.sealed"]


def test_tampered(tmp_path, key, net):
    place = tmp_path / "net.sealed"
    loader.seal_state_dict(net.state_dict(), place, key=key)
    raw = bytearray(place.read_bytes())
    raw[-3000] ^= 1
    place.write_bytes(raw)
    module = Net()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(PayloadTampered):
        loader.load_into(module, place, key=key)
    assert_same(module.state_dict(), before)


SEAL = """
import sys, torch
from marking import marked
from strongroom.loaders import torch as loader
state = {str(i): torch.from_numpy(marked(512, i)) for i in range(4)}
loader.seal_state_dict(state, sys.argv[1], model_id="m")
"""


@pytest.mark.skipif(tracing.PROBLEM is not None, reason=str(tracing.PROBLEM))
def test_sealing_writes_no_plaintext(tmp_path, key):
    log = tmp_path / "trace"
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-qq", "-s", "4096", "-e", "signal=none"),
            *("-e", f"trace={tracing.CALLS}", "-o", log),
            *(sys.executable, "-W", "ignore", "-c", SEAL, tmp_path / "m.sealed"),
        ],
        env=os.environ
        | {
            "STRONGROOM_KEY": tracing.ENVIRONMENT_KEY,
            "PYTHONPATH": os.path.dirname(__file__),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    trace = tracing.parse(log.read_text(errors="replace"))
    assert trace.written  # the sealed file
    assert trace.marked == []
    assert trace.shared_maps == []
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "m.sealed"}
    assert MARK not in (tmp_path / "m.sealed").read_bytes()
    assert loader.load(tmp_path / "m.sealed", key=key)["0"].numpy().tobytes().count(MARK) > 1000


def memory(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def growth(do):
    """By how much the resident memory rises at most."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest value begins anew, proc(5)
    before = memory("VmRSS")
    do()
    return memory("VmHWM") - before


def test_memory(tmp_path, key):
    size = 192 << 20
    wide = torch.nn.Linear(1 << 12, size >> 14, bias=False)
    wide.weight.data.normal_()
    place = tmp_path / "wide.sealed"
    options = {"key": key, "overwrite": True}
    loader.seal_state_dict(torch.nn.Linear(8, 8).state_dict(), place, **options)
    assert growth(lambda: loader.seal_state_dict(wide.state_dict(), place, **options)) < 48 << 20
    assert growth(lambda: loader.load_into(wide, place, key=key)) < 1.2 * size
    with torch.device("meta"):
        empty = torch.nn.Linear(1 << 12, size >> 14, bias=False)
    assert growth(lambda: loader.load_into(empty, place, key=key, assign=True)) < 1.2 * size
    assert torch.equal(empty.weight, wide.weight)
