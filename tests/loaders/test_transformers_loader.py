import json
import os
import tempfile

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import strongroom
from strongroom.errors import NotFound, UsageError
from strongroom.loaders import sharded
from strongroom.loaders import transformers as loader
from strongroom.model import memory_directory
from strongroom.model.storage import LocalSource

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers"
)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(8)
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.max_new_tokens = 7
    return model


def bert():
    config = transformers.BertConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=5,
    )
    torch.manual_seed(9)
    return transformers.BertForSequenceClassification(config)


def tied():
    config = transformers.GPT2Config(
        vocab_size=120, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(10)
    return transformers.GPT2LMHeadModel(config)


def save_bin(model, folder, shards):
    """As transformers 4 wrote it with safe_serialization=False."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = {
        name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(state)
    }
    for shard in set(names.values()):
        torch.save({n: t for n, t in state.items() if names[n] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )


FORMS = {
    "safetensors": lambda model, folder: model.save_pretrained(folder),
    "safetensors shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="50KB"),
    "bin": lambda model, folder: save_bin(model, folder, 1),
    "bin shards": lambda model, folder: save_bin(model, folder, 3),
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


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


def assert_same(mine, theirs):
    assert type(mine) is type(theirs)
    one, two = mine.state_dict(), theirs.state_dict()
    assert list(one) == list(two)
    for name in one:
        assert (one[name].dtype, one[name].device) == (two[name].dtype, two[name].device)
        assert torch.equal(one[name], two[name])
    buffers = dict(theirs.named_buffers())
    for name, buffer in mine.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert mine.training is theirs.training
    tokens = torch.tensor([[1, 5, 9, 40]])
    with torch.no_grad():
        assert torch.equal(mine(tokens).logits, theirs(tokens).logits)
    without = {"_name_or_path", "_commit_hash"}
    one, two = (
        {k: v for k, v in m.config.to_dict().items() if k not in without} for m in (mine, theirs)
    )
    assert one == two


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [llama, bert, tied])
def test_model(folder, seal, key, build, form):
    FORMS[form](build(), folder)
    if "shards" in form:
        assert len([f for f in os.listdir(folder) if "-of-" in f]) >= 3
    mine = loader.from_pretrained(seal(folder), key=key)
    theirs = type(build()).from_pretrained(folder)
    assert_same(mine, theirs)
    if mine.can_generate():
        assert mine.generation_config.to_dict() == theirs.generation_config.to_dict()
        tokens = torch.tensor([[1, 5, 9]])
        options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
        assert torch.equal(mine.generate(tokens, **options), theirs.generate(tokens, **options))


def test_weights_are_not_copied(folder, seal, key, monkeypatch):
    llama().save_pretrained(folder)
    loaded = {}
    real = sharded._file

    def weights(model, path):
        state = real(model, path)
        loaded.update({name: t.data_ptr() for name, t in state.items()})
        return state

    monkeypatch.setattr(sharded, "_file", weights)
    model = loader.from_pretrained(seal(folder), key=key)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == loaded


def test_generation_config(folder, seal, key):
    llama().save_pretrained(folder)
    sealed = seal(folder)
    assert loader.from_pretrained(sealed, key=key).generation_config.max_new_tokens == 7
    given = transformers.GenerationConfig(max_new_tokens=3)
    model = loader.from_pretrained(sealed, key=key, generation_config=given)
    assert model.generation_config.max_new_tokens == 3


@pytest.mark.parametrize(
    "auto_class",
    [
        transformers.AutoModelForCausalLM,
        transformers.AutoModel,
        transformers.LlamaForCausalLM,
        "AutoModelForCausalLM",
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_class(folder, seal, key, auto_class):
    llama().save_pretrained(folder)
    mine = loader.from_pretrained(seal(folder), key=key, auto_class=auto_class)
    if isinstance(auto_class, str):
        auto_class = getattr(transformers, auto_class)
    theirs = auto_class.from_pretrained(folder)
    assert type(mine) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor)


def test_arguments(folder, seal, key):
    llama().save_pretrained(folder)
    sealed = seal(folder)
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "use_cache": False}
    mine = loader.from_pretrained(sealed, key=key, **options)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, **options)
    assert_same(mine, theirs)
    assert mine.config._attn_implementation == theirs.config._attn_implementation == "eager"
    assert mine.config.use_cache is False
    _, info = loader.from_pretrained(sealed, key=key, output_loading_info=True)
    assert not info["missing_keys"]
    changed = transformers.LlamaConfig.from_pretrained(folder, rms_norm_eps=0.5)
    assert loader.from_pretrained(sealed, key=key, config=changed).config.rms_norm_eps == 0.5


def test_subfolder_and_variant(folder, seal, key):
    (folder / "text").mkdir()
    llama().save_pretrained(folder / "text", variant="fp16")
    bert().save_pretrained(folder)
    sealed = seal(folder)
    mine = loader.from_pretrained(sealed, key=key, subfolder="text", variant="fp16")
    assert_same(mine, transformers.LlamaForCausalLM.from_pretrained(folder / "text", variant="fp16"))
    assert type(loader.from_pretrained(sealed, key=key)).__name__ == "BertForSequenceClassification"
    with pytest.raises(NotFound, match="has no weights"):
        loader.from_pretrained(sealed, key=key, subfolder="text")


def test_variant_in_shards(folder, seal, key):
    llama().save_pretrained(folder, variant="fp16", max_shard_size="50KB")
    mine = loader.from_pretrained(seal(folder), key=key, variant="fp16")
    assert_same(mine, transformers.LlamaForCausalLM.from_pretrained(folder, variant="fp16"))


def test_use_safetensors(folder, seal, key):
    model = llama()
    model.save_pretrained(folder)
    save_bin(model, folder, 1)
    torch.save(
        {n: torch.zeros_like(t) for n, t in model.state_dict().items()}, folder / "pytorch_model.bin"
    )
    sealed = seal(folder)
    for choice, zero in ((None, False), (True, False), (False, True)):
        loaded = loader.from_pretrained(sealed, key=key, use_safetensors=choice)
        assert (not loaded.lm_head.weight.any()) is zero


@pytest.mark.parametrize("name", ["state_dict", "gguf_file", "offload_folder", "trust_remote_code"])
def test_refused_arguments(folder, seal, key, name):
    llama().save_pretrained(folder)
    with pytest.raises(UsageError, match=name):
        loader.from_pretrained(seal(folder), key=key, **{name: "x"})


def test_unclear_models(folder, seal, key):
    llama().save_pretrained(folder)
    with pytest.raises(UsageError, match="no class Nonesuch"):
        loader.from_pretrained(seal(folder), key=key, auto_class="Nonesuch")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    strongroom.seal(folder, folder.parent / "b", key=key)
    with pytest.raises(UsageError, match="names no class"):
        loader.from_pretrained(folder.parent / "b", key=key)
    (folder / "model.safetensors").unlink()
    strongroom.seal(folder, folder.parent / "c", key=key)
    with pytest.raises(NotFound, match="has no weights"):
        loader.from_pretrained(
            folder.parent / "c", key=key, auto_class=transformers.AutoModelForCausalLM
        )


def test_index_without_a_map(folder, seal, key):
    llama().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="no weight_map"):
        loader.from_pretrained(seal(folder), key=key)


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "seal", "the", "model", "door"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


@pytest.mark.parametrize(
    "auto_class", [transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast, "AutoTokenizer"]
)
def test_tokenizer(folder, seal, key, auto_class):
    bert().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    with strongroom.open(seal(folder), key=key) as model:
        mine = loader.from_pretrained(model, auto_class=auto_class)
        assert "model.safetensors" not in model._contents  # not even opened
    text = "seal the model"
    assert mine(text)["input_ids"] == tokenizer()(text)["input_ids"] == [1, 2, 3]


def test_config(folder, seal, key):
    llama().save_pretrained(folder)
    config = loader.from_pretrained(seal(folder), key=key, auto_class=transformers.AutoConfig)
    assert isinstance(config, transformers.LlamaConfig)
    assert config.hidden_size == 64


def test_private_directory(tmp_path, seal, key, monkeypatch):
    with memory_directory.memory_directory() as path:
        assert os.stat(path).st_mode & 0o777 == 0o700
        assert path.startswith("/dev/shm/")
        (tmp_path / "a").mkdir()
        (tmp_path / "a/b").write_text("x")
        with strongroom.open(seal(tmp_path / "a"), key=key) as model:
            memory_directory.place_files(model, ["b"], path)
        assert os.stat(f"{path}/b").st_mode & 0o777 == 0o600
    assert not os.path.exists(path)
    with (
        pytest.raises(strongroom.errors.StorageError, match="not a file system in memory"),
        memory_directory.memory_directory(parent="/proc"),
    ):
        pass
    with (
        pytest.raises(strongroom.errors.StorageError, match="no room"),
        memory_directory.memory_directory(1 << 60),
    ):
        pass


def test_each_shard_is_read_once(folder, seal, key, monkeypatch):
    """Of the payload every byte once; the last segment twice, since it authenticates the size."""
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    torch.manual_seed(8)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="14MB")
    tokenizer().save_pretrained(folder)
    shards = [path for path in folder.iterdir() if "-of-" in path.name]
    assert len(shards) >= 4
    sealed = seal(folder)
    seen = {}
    real = LocalSource.read_into

    def read_into(self, offset, out):
        seen.setdefault(os.path.basename(self.name), []).append((offset, len(out)))
        real(self, offset, out)

    monkeypatch.setattr(LocalSource, "read_into", read_into)
    mine = loader.from_pretrained(sealed, key=key)
    tokens = loader.from_pretrained(sealed, key=key, auto_class="AutoTokenizer")
    assert tokens("seal the model")["input_ids"] == [1, 2, 3]
    for name, tensor in model.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor)
    segment = 1 << 20
    for shard in shards:
        reads = seen[f"{shard.name}.sealed"]
        size = (sealed / f"{shard.name}.sealed").stat().st_size
        covered = sum(length for _, length in reads)
        assert size <= covered <= size + segment + 4096
        # No byte of the segments before the last is read twice.
        body = sorted(r for r in reads if r[0] >= 4096 and r[0] + r[1] < size)
        ends = [offset + length for offset, length in body]
        assert all(end <= offset for end, (offset, _) in zip(ends, body[1:], strict=False))
