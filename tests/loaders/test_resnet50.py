"""A ResNet-50 of 100 MB with random weights, through every format of PyTorch and through ONNX.

The answers of the sealed model are those of the plain one, bit for bit.
"""

import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from strongroom.loaders import onnx as onnx_loader
from strongroom.loaders import safetensors as safetensors_loader
from strongroom.loaders import torch as loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # Of the network, when it is traced: torch looks at each attribute, and it compares channels.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class ResNet50(torch.nn.Module):
    """Pictures to logits; what exporters take is a module that returns a tensor."""

    def __init__(self):
        super().__init__()
        self.net = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))

    def forward(self, pixels):
        return self.net(pixels).logits


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(50)
    made = ResNet50().eval().requires_grad_(False)
    # Running means and variances as after training, so that no layer is the identity.
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    size = sum(t.numel() * t.element_size() for t in made.state_dict().values())
    assert 100e6 < size < 105e6
    return made


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def answer(network, pixels):
    found = network(pixels)
    assert found.isfinite().all()
    assert found.std() > 0.01
    return found


@pytest.fixture
def sealed(seal, tmp_path):
    """Seal what a function writes, and remove the plain file."""

    def do(name, write):
        write(tmp_path / name)
        return seal(tmp_path / name)

    return do


def test_state_dict(network, pixels, answer, sealed, key):
    place = sealed("m.pt", lambda path: torch.save(network.state_dict(), path))
    with torch.device("meta"):
        mine = ResNet50().eval()
    mine.load_state_dict(loader.load(place, key=key), assign=True)
    with torch.no_grad():
        assert torch.equal(mine(pixels), answer)


def test_load_into(network, pixels, answer, tmp_path, key):
    loader.seal_state_dict(network.state_dict(), tmp_path / "m", key=key, model_id="resnet-50")
    with torch.device("meta"):
        mine = ResNet50().eval()
    loader.load_into(mine, tmp_path / "m", key={"resnet-50": key}, assign=True)
    with torch.no_grad():
        assert torch.equal(mine(pixels), answer)


def test_whole_module(network, pixels, answer, sealed, key):
    place = sealed("m.pt", lambda path: torch.save(network, path))
    mine = loader.load(place, key=key, weights_only=False)
    assert torch.equal(mine(pixels), answer)


def test_torchscript(network, pixels, answer, sealed, key):
    traced = torch.jit.trace(network, pixels, check_trace=False)
    place = sealed("m.pt", lambda path: torch.jit.save(traced, path))
    assert torch.equal(loader.jit_load(place, key=key)(pixels), answer)


def test_safetensors(network, pixels, answer, sealed, key, tmp_path):
    state = network.state_dict()
    place = sealed("m.safetensors", lambda path: save_file(state, path))
    mine = safetensors_loader.load_file(place, key=key)
    theirs = load_file(tmp_path / "m.safetensors")
    assert mine.keys() == theirs.keys() == state.keys()
    with torch.device("meta"):
        again = ResNet50().eval()
    again.load_state_dict(mine, assign=True)
    with torch.no_grad():
        assert torch.equal(again(pixels), answer)


@pytest.fixture(scope="module")
def program(network, pixels):
    return torch.export.export(network, (pixels,))


def test_exported_program(program, pixels, sealed, key):
    place = sealed("m.pt2", lambda path: torch.export.save(program, path))
    mine = loader.export_load(place, key=key)
    assert torch.equal(mine.module()(pixels), program.module()(pixels))


@pytest.fixture(scope="module")
def exported(program):
    pytest.importorskip("onnxscript", reason="torch.onnx exports with onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own
        return torch.onnx.export(program, (), dynamo=True, verbose=False)


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_onnx(exported, pixels, answer, tmp_path, seal, key, external):
    import onnxruntime

    folder = tmp_path / "onnx"
    folder.mkdir()
    exported.save(folder / "m.onnx", external_data=external)
    assert (len(list(folder.iterdir())) > 1) == external
    cpu = {"providers": ["CPUExecutionProvider"]}
    theirs = onnxruntime.InferenceSession(folder / "m.onnx", **cpu)
    mine = onnx_loader.session(seal(folder), key=key, path="m.onnx", **cpu)
    given = {theirs.get_inputs()[0].name: pixels.numpy()}
    outputs = [torch.from_numpy(one.run(None, given)[0]) for one in (mine, theirs)]
    assert torch.equal(*outputs)
    torch.testing.assert_close(outputs[0], answer, rtol=1e-3, atol=1e-3)
