import gc
import json
import os
import tempfile

import diffusers
import numpy
import pytest
import torch
from diffusers_pipeline import picture, stable_diffusion
from safetensors.torch import load_file, save_file

import strongroom
from strongroom.errors import (
    NoMatchingRecipient,
    NotFound,
    PayloadTampered,
    UsageError,
)
from strongroom.loaders import diffusers as loader
from strongroom.loaders import sharded

pytestmark = [
    # Of the libraries, about their own.
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(folder).save_pretrained(folder / "plain")
    return folder / "plain"


@pytest.fixture(scope="module")
def sealed(plain):
    strongroom.seal(plain, plain.parent / "sealed", key=bytes(range(32)))
    return plain.parent / "sealed"


@pytest.fixture(scope="module")
def expected(plain):
    return picture(theirs(plain))


@pytest.fixture(autouse=True)
def nothing_stays_behind(monkeypatch):
    made = []
    real = tempfile.mkdtemp

    def mkdtemp(*args, **kwargs):
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    yield
    assert not [path for path in made if os.path.exists(path)]


def theirs(place, **options):
    return diffusers.DiffusionPipeline.from_pretrained(place, low_cpu_mem_usage=False, **options)


def assert_same(one, two):
    """Two modules."""
    assert type(one) is type(two)
    assert one.training is two.training
    for mine, yours in (
        (one.state_dict(), two.state_dict()),
        (dict(one.named_buffers()), dict(two.named_buffers())),
    ):
        assert list(mine) == list(yours)
        for name in mine:
            assert mine[name].dtype == yours[name].dtype
            assert mine[name].device == yours[name].device
            assert torch.equal(mine[name], yours[name]), name
    for mine, yours in zip(one.parameters(), two.parameters(), strict=True):
        assert mine.requires_grad == yours.requires_grad


def test_pictures_are_those_of_the_plain_pipeline(plain, sealed, key, expected):
    mine = loader.from_pretrained(sealed, key=key)
    assert numpy.array_equal(picture(mine), expected)
    assert expected.std() > 0.05
    one, two = mine, theirs(plain)
    assert type(one) is type(two)
    for name in ("unet", "vae", "text_encoder"):
        assert_same(one.components[name], two.components[name])
    assert one.scheduler.config == two.scheduler.config
    assert one.tokenizer("a seal").input_ids == two.tokenizer("a seal").input_ids
    configs = [{k: v for k, v in p.config.items() if k != "_name_or_path"} for p in (one, two)]
    assert configs[0] == configs[1]


def test_weights_are_not_copied(sealed, key, monkeypatch):
    loaded = set()
    real = sharded._file

    def recorded(model, path):
        state = real(model, path)
        loaded.update(tensor.data_ptr() for tensor in state.values())
        return state

    monkeypatch.setattr(sharded, "_file", recorded)
    pipeline = loader.from_pretrained(sealed, key=key)
    for name in ("unet", "vae", "text_encoder"):
        addresses = {p.data_ptr() for p in pipeline.components[name].parameters()}
        assert addresses <= loaded


def test_components_of_the_caller(plain, sealed, key, expected, monkeypatch):
    read = []
    real = sharded._file
    monkeypatch.setattr(sharded, "_file", lambda model, path: read.append(path) or real(model, path))
    unet = theirs(plain).unet
    scheduler = diffusers.EulerDiscreteScheduler()
    mine = loader.from_pretrained(sealed, key=key, unet=unet, scheduler=scheduler, vae=None)
    assert mine.unet is unet
    assert mine.scheduler is scheduler
    assert mine.vae is None
    assert [path.partition("/")[0] for path in read] == ["text_encoder"]


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")
def test_dtype(plain, sealed, key, name):
    mine = loader.from_pretrained(sealed, key=key, **{name: torch.bfloat16})
    yours = theirs(plain, dtype=torch.bfloat16)
    for component in ("unet", "vae", "text_encoder"):
        assert_same(mine.components[component], yours.components[component])
    assert torch.get_default_dtype() == torch.float32
    several = {"unet": torch.bfloat16, "default": torch.float64}
    mixed = loader.from_pretrained(sealed, key=key, torch_dtype=several)
    yours = theirs(plain, dtype=several)
    for component in ("unet", "vae", "text_encoder"):
        assert_same(mixed.components[component], yours.components[component])


def test_weights_of_another_dtype_than_is_asked_for(tmp_path, seal, key):
    """Half precision on the disk becomes single precision, as in diffusers."""
    stable_diffusion(tmp_path, dtype=torch.float16).save_pretrained(tmp_path / "half")
    mine = loader.from_pretrained(seal(tmp_path / "half"), key=key)
    yours = theirs(tmp_path / "half")
    for component in ("unet", "vae"):
        assert_same(mine.components[component], yours.components[component])


@pytest.mark.parametrize("form", ["shards", "bin"])
def test_forms(plain, tmp_path, seal, key, form, expected):
    folder = tmp_path / form
    options = {"shards": {"max_shard_size": "400KB"}, "bin": {"safe_serialization": False}}[form]
    theirs(plain).save_pretrained(folder, **options)
    files = os.listdir(folder / "unet")
    assert ("diffusion_pytorch_model.bin" in files) == (form == "bin")
    assert any("-of-" in name for name in files) == (form == "shards")
    assert numpy.array_equal(picture(loader.from_pretrained(seal(folder), key=key)), expected)


def test_variant(plain, tmp_path, seal, key, expected):
    pipeline = theirs(plain)
    folder = tmp_path / "variants"
    pipeline.save_pretrained(folder, variant="fp16")
    mine = loader.from_pretrained(seal(folder), key=key, variant="fp16")
    assert numpy.array_equal(picture(mine), expected)
    # Components without it are loaded without it.
    pipeline.unet.save_pretrained(folder / "unet")
    for name in os.listdir(folder / "unet"):
        if "fp16" in name:
            os.unlink(folder / "unet" / name)
    strongroom.seal(folder, tmp_path / "mixed", key=key)
    mine = loader.from_pretrained(tmp_path / "mixed", key=key, variant="fp16")
    assert numpy.array_equal(picture(mine), expected)
    with pytest.raises(NotFound, match="variant 'ema'"):
        loader.from_pretrained(tmp_path / "mixed", key=key, variant="ema")


def test_safetensors_or_not(plain, tmp_path, seal, key):
    folder = tmp_path / "both"
    pipeline = theirs(plain)
    pipeline.save_pretrained(folder)
    zeros = {name: torch.zeros_like(t) for name, t in pipeline.unet.state_dict().items()}
    torch.save(zeros, folder / "unet/diffusion_pytorch_model.bin")
    place = seal(folder)
    for choice, zero in ((None, False), (True, False), (False, True)):
        unet = loader.from_pretrained(
            place,
            key=key,
            auto_class="UNet2DConditionModel",
            subfolder="unet",
            use_safetensors=choice,
        )
        assert (not any(p.any() for p in unet.parameters())) is zero


@pytest.mark.parametrize(
    "auto_class",
    [
        diffusers.StableDiffusionImg2ImgPipeline,
        "StableDiffusionPipeline",
        diffusers.AutoPipelineForText2Image,
    ],
    ids=str,
)
def test_class_of_pipeline(plain, sealed, key, auto_class):
    mine = loader.from_pretrained(sealed, key=key, auto_class=auto_class)
    if isinstance(auto_class, str):
        auto_class = getattr(diffusers, auto_class)
    yours = auto_class.from_pretrained(plain, low_cpu_mem_usage=False)
    assert type(mine) is type(yours)
    assert_same(mine.unet, yours.unet)


def test_one_component(plain, sealed, key):
    mine = loader.from_pretrained(sealed, key=key, auto_class="AutoencoderKL", subfolder="vae")
    assert_same(mine, theirs(plain).vae)
    scheduler = loader.from_pretrained(
        sealed, key=key, auto_class=diffusers.DDIMScheduler, subfolder="scheduler"
    )
    assert scheduler.config == theirs(plain).scheduler.config
    with pytest.raises(NotFound, match=r"no model_index\.json"):
        loader.from_pretrained(sealed, key=key, subfolder="vae")
    with pytest.raises(UsageError, match="no class Nonesuch"):
        loader.from_pretrained(sealed, key=key, auto_class="Nonesuch")


def ddpm():
    torch.manual_seed(12)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=10))


def transformer():
    """With buffers that are computed and not saved: positions of patches."""
    torch.manual_seed(13)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        patch_size=2,
    )
    assert set(dict(model.named_buffers())) - set(model.state_dict())
    return model


def test_unconditional_pipeline(tmp_path, seal, key):
    pipeline = ddpm()
    pipeline.save_pretrained(tmp_path / "ddpm")
    mine = loader.from_pretrained(seal(tmp_path / "ddpm"), key=key)
    images = []
    for one in (pipeline, mine):
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(one(generator=generator, num_inference_steps=3, output_type="np").images)
    assert numpy.array_equal(*images)


def test_buffers_that_are_not_saved(tmp_path, seal, key):
    model = transformer()
    model.save_pretrained(tmp_path / "dit")
    mine = loader.from_pretrained(
        seal(tmp_path / "dit"), key=key, auto_class=diffusers.DiTTransformer2DModel
    )
    assert_same(mine, model.eval())


@pytest.mark.parametrize("name", loader._REFUSED)
def test_refused_arguments(sealed, key, name):
    with pytest.raises(UsageError, match=name):
        loader.from_pretrained(sealed, key=key, **{name: "x"})


def test_weights_that_do_not_fit(plain, tmp_path, key):
    folder = tmp_path / "changed"
    theirs(plain).save_pretrained(folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    name = "conv_in.weight"
    save_file({k: v for k, v in state.items() if k != name}, weights)
    strongroom.seal(folder, tmp_path / "a", key=key)
    with pytest.raises(UsageError, match="unet lacks 1 of the weights") as error:
        loader.from_pretrained(tmp_path / "a", key=key)
    assert name in error.value.hint
    save_file(state | {name: state[name][:3].clone()}, weights)
    strongroom.seal(folder, tmp_path / "b", key=key)
    with pytest.raises(UsageError, match=r"conv_in\.weight has the shape"):
        loader.from_pretrained(tmp_path / "b", key=key)
    weights.unlink()
    strongroom.seal(folder, tmp_path / "c", key=key)
    with pytest.raises(NotFound, match="no weights in unet"):
        loader.from_pretrained(tmp_path / "c", key=key)


def test_unknown_class(plain, tmp_path, seal, key):
    folder = tmp_path / "changed"
    theirs(plain).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNetOfTomorrow"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="has no class UNetOfTomorrow"):
        loader.from_pretrained(seal(folder), key=key)


def test_key_and_tampering(plain, sealed, tmp_path, seal, key):
    with pytest.raises(NoMatchingRecipient):
        loader.from_pretrained(sealed, key=bytes(32))
    place = seal(plain)
    weights = place / "unet/diffusion_pytorch_model.safetensors.sealed"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.from_pretrained(place, key=key)


def test_an_open_model_stays_open(sealed, key, expected):
    with strongroom.open(sealed, key=key) as model:
        pipeline = loader.from_pretrained(model)
        assert model.read("model_index.json")
    gc.collect()
    assert numpy.array_equal(picture(pipeline), expected)
