"""In place of model_cryptor: PyTorch files, whole modules and what hides in pickles."""

import io
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from cryptography.fernet import Fernet

from strongroom.compat.model_cryptor import CryptorFactory, ModelType
from strongroom.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

KEY = Fernet.generate_key()


class Block(torch.nn.Module):
    """A residual block, with what modules of real networks have: a list, a dict, a buffer, a flag."""

    def __init__(self, channels=8):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.BatchNorm2d(channels)]
        )
        self.sizes = {"channels": channels, "shape": torch.Size([3, 4])}
        self.register_buffer("scale", torch.rand(1), persistent=False)

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return torch.nn.functional.relu(x + y * self.scale)


def network():
    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        Block(),
        Block(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 10),
    ).eval()


def as_model_cryptor_wrote(path, target):
    """The steps of its encrypt: load, save again to memory, Fernet over all of it."""
    model = torch.load(path, map_location="cpu", weights_only=False)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    Path(target).write_bytes(Fernet(KEY).encrypt(buffer.getvalue()))


@pytest.fixture
def cryptor():
    return CryptorFactory.instance(ModelType.MODEL_TORCH)


@pytest.fixture(params=["sealed", "model_cryptor"])
def encrypt(request, cryptor, tmp_path):
    """An object, saved and encrypted in either way."""

    def do(thing):
        torch.save(thing, tmp_path / "m.pth")
        target = tmp_path / "m.pth.crt"
        if request.param == "sealed":
            cryptor.encrypt(model=tmp_path / "m.pth", crypt_key=KEY, crypted_model=target)
        else:
            as_model_cryptor_wrote(tmp_path / "m.pth", target)
        return target

    return do


def test_state_dict(cryptor, encrypt):
    expected = network().state_dict()
    found = cryptor.decrypt(encrypt(expected), crypt_key=KEY, map_location="cpu")
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("options", [{}, {"weights_only": None}, {"weights_only": False}])
def test_whole_module(cryptor, encrypt, options):
    model = network()
    found = cryptor.decrypt(encrypt(model), crypt_key=KEY, map_location="cpu", **options)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(found(x), model(x))
    assert not found.training


def test_weights_only_is_torchs_own(cryptor, encrypt):
    with pytest.raises(pickle.UnpicklingError, match=r"torch\.nn\.modules|Unsupported global"):
        cryptor.decrypt(encrypt(network()), crypt_key=KEY, weights_only=True)


def test_what_is_allowed_for_a_module_is_not_afterwards(cryptor, encrypt):
    target = encrypt(network())
    before = set(torch.serialization.get_safe_globals())
    cryptor.decrypt(target, crypt_key=KEY)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        cryptor.decrypt(target, crypt_key=KEY, weights_only=True)


class Payload:
    def __reduce__(self):
        return os.system, ("touch pickle-was-run",)


class Settings:
    """Of the caller, and no module."""


@pytest.mark.parametrize("inside", [Payload(), Settings(), os.path.join, torch.nn.functional.relu])
def test_other_pickles_need_the_callers_word(cryptor, tmp_path, monkeypatch, inside):
    monkeypatch.chdir(tmp_path)
    model = network()
    model.extra = inside
    torch.save(model, "m.pth")
    # Nothing is unpickled to encrypt.
    cryptor.encrypt("m.pth", KEY, "m.pth.crt")
    assert not Path("pickle-was-run").exists()
    with pytest.raises(UsageError, match="more than weights and torch modules") as caught:
        cryptor.decrypt("m.pth.crt", KEY)
    assert "weights_only=False" in caught.value.hint
    assert not Path("pickle-was-run").exists()
    cryptor.decrypt("m.pth.crt", KEY, weights_only=False)
    assert Path("pickle-was-run").exists() == isinstance(inside, Payload)


def test_the_error_names_what_it_refused(cryptor, tmp_path):
    torch.save([Payload(), Settings(), network()], tmp_path / "m.pth")
    cryptor.encrypt(tmp_path / "m.pth", KEY, tmp_path / "m.crt")
    with pytest.raises(UsageError, match=r"posix\.system") as caught:
        cryptor.decrypt(tmp_path / "m.crt", KEY)
    assert f"{__name__}.Settings" in str(caught.value)
    assert "Conv2d" not in str(caught.value)


def test_a_class_that_is_not_there(cryptor, tmp_path, monkeypatch):
    module = types.ModuleType("gone_tomorrow")
    exec("import torch\nclass Net(torch.nn.Linear): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "gone_tomorrow", module)
    module.Net.__module__ = "gone_tomorrow"
    torch.save(module.Net(2, 2), tmp_path / "m.pth")
    cryptor.encrypt(tmp_path / "m.pth", KEY, tmp_path / "m.crt")
    assert isinstance(cryptor.decrypt(tmp_path / "m.crt", KEY), module.Net)
    monkeypatch.delitem(sys.modules, "gone_tomorrow")
    with pytest.raises(UsageError, match=r"gone_tomorrow\.Net"):
        cryptor.decrypt(tmp_path / "m.crt", KEY)


def test_not_a_torch_file(cryptor, tmp_path):
    (tmp_path / "m.pth").write_bytes(b"no pickle at all")
    cryptor.encrypt(tmp_path / "m.pth", KEY, tmp_path / "m.crt")
    with pytest.raises(pickle.UnpicklingError):
        cryptor.decrypt(tmp_path / "m.crt", KEY)


def test_the_format_before_torch_1_6(cryptor, tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    cryptor.encrypt(tmp_path / "m.pth", KEY, tmp_path / "m.crt")
    assert cryptor.decrypt(tmp_path / "m.crt", KEY)["w"].sum() == 3
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    cryptor.encrypt(tmp_path / "m.pth", KEY, tmp_path / "m.crt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        cryptor.decrypt(tmp_path / "m.crt", KEY)
    assert cryptor.decrypt(tmp_path / "m.crt", KEY, weights_only=False).in_features == 2


def test_map_location(cryptor, encrypt):
    target = encrypt({"w": torch.ones(3)})
    assert cryptor.decrypt(target, KEY, map_location="meta")["w"].device.type == "meta"
    assert cryptor.decrypt(target, KEY, map_location=torch.device("cpu"))["w"].sum() == 3


def test_torchscript_of_model_cryptor(tmp_path):
    script = torch.jit.trace(network(), torch.rand(1, 3, 8, 8))
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    (tmp_path / "m.pt.crt").write_bytes(Fernet(KEY).encrypt(buffer.getvalue()))
    cryptor = CryptorFactory.instance(ModelType.MODEL_TORCHSCRIPT)
    found = cryptor.decrypt(tmp_path / "m.pt.crt", crypt_key=KEY, map_location="cpu")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(found(x), script(x))
