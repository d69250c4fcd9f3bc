import os
import pickle

import llama_cpp
import numpy
import pytest
from loading_cases_llama_cpp import write_gguf, write_lora

import strongroom
from strongroom.errors import FormatError, NoMatchingRecipient, NotFound, PayloadTampered, UsageError
from strongroom.loaders import llama_cpp as loader
from strongroom.model import memory_directory

TOKENS = [1, 70, 12, 300, 261]
OPTIONS = {"n_ctx": 64, "n_batch": 64, "logits_all": True, "n_threads": 1, "verbose": False}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def plain(folder):
    return write_gguf(folder / "tiny.gguf")


def logits(model):
    model.reset()
    model.eval(TOKENS)
    scores = model.scores[: len(TOKENS)].copy()
    assert numpy.isfinite(scores).all()
    assert scores.std() > 0.1
    return scores


def descriptors():
    return sum(
        os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:")
        for number in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{number}")
    )


@pytest.fixture(autouse=True)
def nothing_stays_behind(monkeypatch):
    """Directories and files in memory that this process makes are gone after the test."""
    before = descriptors()
    made = []
    real = memory_directory.tempfile.mkdtemp

    def mkdtemp(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(memory_directory.tempfile, "mkdtemp", mkdtemp)
    yield made
    assert not any(map(os.path.exists, made))
    assert descriptors() <= before


@pytest.mark.parametrize("use_mmap", [None, True, False])
def test_whole(plain, seal, key, use_mmap):
    mine = loader.llama(seal(plain), key=key, use_mmap=use_mmap, **OPTIONS)
    theirs = llama_cpp.Llama(str(plain), **OPTIONS)
    assert type(mine) is llama_cpp.Llama
    assert numpy.array_equal(logits(mine), logits(theirs))
    assert mine.metadata == theirs.metadata
    prompt = "a few words"
    assert mine.tokenize(prompt.encode()) == theirs.tokenize(prompt.encode())
    one, two = (
        model.create_completion(prompt, max_tokens=12, temperature=0)["choices"][0]
        for model in (mine, theirs)
    )
    assert one == two


def test_the_name_that_it_tells(plain, seal, key, folder):
    sealed = seal(plain)
    mine = loader.llama(sealed, key=key, **OPTIONS)
    answer = mine.create_completion([1, 9], max_tokens=1, temperature=0)
    assert answer["model"] == str(sealed)
    # As a pickle would find nothing at the number of the memory file, or something else.
    with pytest.raises(ValueError, match="Failed to load"):
        pickle.loads(pickle.dumps(mine))
    inside = loader.llama(seal(folder), key=key, **OPTIONS)
    assert inside.model_path == f"{folder}.sealed/tiny.gguf"


def test_nothing_is_printed(plain, seal, key, capfd):
    options = {name: value for name, value in OPTIONS.items() if name != "verbose"}
    sealed = seal(plain)
    loader.llama(sealed, key=key, **options)
    assert "general.architecture" not in "".join(capfd.readouterr())
    loader.llama(sealed, key=key, verbose=True)
    assert "general.architecture" in capfd.readouterr().err


@pytest.mark.parametrize("use_mmap", [None, False])
def test_split(folder, seal, key, use_mmap):
    (folder / "q4").mkdir()
    write_gguf(folder / "q4" / "big.gguf", layers=3, tensors_in_a_piece=10)
    names = sorted(os.listdir(folder / "q4"))
    assert names == [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    (folder / "readme.md").write_text("x")
    sealed = seal(folder)
    mine = loader.llama(sealed, key=key, use_mmap=use_mmap, **OPTIONS)
    theirs = llama_cpp.Llama(str(folder / "q4" / names[0]), **OPTIONS)
    assert numpy.array_equal(logits(mine), logits(theirs))
    assert mine.model_path.endswith(f"model.sealed/q4/{names[0]}")
    with pytest.raises(UsageError, match="piece 2 of 3") as error:
        loader.llama(sealed, key=key, path=f"q4/{names[1]}")
    assert names[0] in error.value.hint


def test_pieces_are_missing(folder, seal, key):
    write_gguf(folder / "big.gguf", layers=3, tensors_in_a_piece=10)
    (folder / "big-00003-of-00003.gguf").unlink()
    with pytest.raises(NotFound, match=r"lacks 1 of the 3 pieces .* big-00003-of-00003\.gguf"):
        loader.llama(seal(folder), key=key)
    with pytest.raises(NotFound, match="lacks 2 of the 3 pieces"):
        loader.llama(seal(folder / "big-00001-of-00003.gguf"), key=key)


def test_several_models(plain, folder, seal, key):
    write_gguf(folder / "other.gguf", layers=1)
    sealed = seal(folder)
    with pytest.raises(UsageError, match="2 GGUF files"):
        loader.llama(sealed, key=key)
    with strongroom.open(sealed, key=key) as model:
        mine = loader.llama(model, path="tiny.gguf", **OPTIONS)
        with pytest.raises(NotFound, match=r"none\.gguf"):
            loader.llama(model, path="none.gguf")
    assert numpy.array_equal(logits(mine), logits(llama_cpp.Llama(str(plain), **OPTIONS)))


def test_a_projector_is_not_the_model(plain, folder, seal, key):
    (folder / "mmproj-tiny-f16.gguf").write_bytes(b"GGUF")
    mine = loader.llama(seal(folder), key=key, **OPTIONS)
    assert mine.model_path.endswith("/tiny.gguf")


def test_lora(plain, folder, seal, key, tmp_path):
    (folder / "adapters").mkdir()
    lora = write_lora(folder / "adapters" / "mine.gguf")
    sealed = seal(folder)
    options = OPTIONS | {"lora_scale": 0.5}
    expected = logits(llama_cpp.Llama(str(plain), lora_path=str(lora), **options))
    without = logits(llama_cpp.Llama(str(plain), **OPTIONS))
    assert not numpy.array_equal(expected, without)
    inside = loader.llama(sealed, key=key, lora_path="adapters/mine.gguf", **options)
    assert numpy.array_equal(logits(inside), expected)
    assert inside.lora_path == "adapters/mine.gguf"
    in_clear = loader.llama(sealed, key=key, path="tiny.gguf", lora_path=lora, **options)
    assert numpy.array_equal(logits(in_clear), expected)
    with pytest.raises(NotFound, match=r"none\.gguf is neither in .* nor a file in clear"):
        loader.llama(sealed, key=key, path="tiny.gguf", lora_path="none.gguf")


def test_mapped_or_copied(folder, seal, key, monkeypatch):
    """A mapping under weights that are repacked would be a second copy for nothing."""
    chosen = []

    class Stop(Exception):
        pass

    def made(place, *, use_mmap, **kwargs):
        chosen.append(use_mmap)
        raise Stop

    monkeypatch.setattr(llama_cpp, "Llama", made)
    cases = [
        (None, {}, True),
        (0, {}, True),
        (1, {}, True),
        (7, {}, True),
        (2, {}, False),
        (15, {}, False),
        (15, {"use_mmap": True}, True),
        (1, {"use_mmap": False}, False),
        (1, {"n_gpu_layers": -1}, False),
        (1, {"n_gpu_layers": 0}, True),
    ]
    for i, (file_type, options, _) in enumerate(cases):
        sealed = seal(write_gguf(folder / f"{i}.gguf", layers=1, file_type=file_type))
        with pytest.raises(Stop):
            loader.llama(sealed, key=key, **options)
    assert chosen == [expected for _, _, expected in cases]


def test_repacked_weights(folder, seal, key, tmp_path):
    """The names of the types that are copied are those of the library, and a model of one works."""
    for number, name in loader._REPACKED.items():
        assert getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}") == number
    source = write_gguf(tmp_path / "whole.gguf", width=256)
    place = folder / "q4.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(place), parameters) == 0
    sealed = seal(place)
    with strongroom.open(sealed, key=key) as model:
        assert loader._file_type(model, "q4.gguf") == llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    mine = loader.llama(sealed, key=key, **OPTIONS)
    assert numpy.array_equal(logits(mine), logits(llama_cpp.Llama(str(place), **OPTIONS)))


def test_not_a_model(plain, tmp_path, seal, key):
    for name, content in (("a.gguf", b""), ("b.gguf", b"GGU"), ("c.gguf", b"text of some kind")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=f"{name} is not a GGUF file"):
            loader.llama(seal(tmp_path / name), key=key)
    whole = plain.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"llama\.cpp cannot load cut\.gguf") as error:
        loader.llama(seal(tmp_path / "cut.gguf"), key=key)
    assert "verbose=True" in error.value.hint
    with pytest.raises(ValueError, match="Unknown value type"):
        loader.llama(seal(plain), key=key, kv_overrides={"a": object()})


def test_tampered_and_wrong_key(plain, seal, key):
    sealed = seal(plain)
    with pytest.raises(NoMatchingRecipient):
        loader.llama(sealed, key=bytes(32))
    raw = bytearray(sealed.read_bytes())
    raw[len(raw) // 2] ^= 1
    sealed.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.llama(sealed, key=key)
