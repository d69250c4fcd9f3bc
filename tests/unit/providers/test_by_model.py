import pytest

import strongroom
from strongroom import SecretBytes, SymmetricKey
from strongroom.errors import HeaderTampered, NoKey, NoMatchingRecipient, UsageError
from strongroom.providers.by_model import KeyOfModel, key_of_model, model_id_of, model_id_text

ONE, TWO = bytes(range(32)), bytes(range(1, 33))


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch):
    monkeypatch.delenv("STRONGROOM_KEY", raising=False)
    monkeypatch.delenv("STRONGROOM_KEY_FILE", raising=False)


@pytest.fixture
def keys(tmp_path):
    """A directory with the key of one model."""
    folder = tmp_path / "keys"
    (folder / "acme").mkdir(parents=True)
    for name, raw in (("one", ONE), ("acme/two", TWO)):
        (folder / f"{name}.key").write_bytes(SymmetricKey(SecretBytes(raw)).encode())
    return folder


@pytest.fixture
def sealed(tmp_path):
    def make(model_id, key=ONE):
        (tmp_path / "m").write_bytes(b"weights")
        meta = {} if model_id is None else {"model_id": model_id}
        strongroom.seal(tmp_path / "m", tmp_path / "m.sealed", key=key, meta=meta, overwrite=True)
        return tmp_path / "m.sealed"

    return make


@pytest.mark.parametrize("given", ["resnet50", "a/b-1.2/c", "R", b"\x00\x01\x02\xff", bytearray(4)])
def test_ids(given):
    text = model_id_text(given)
    assert text == (given if isinstance(given, str) else bytes(given).hex())


@pytest.mark.parametrize(
    "given", ["", "..", "../x", "a/../b", "/a", "a/", ".a", "a b", "a\n", "é", "x" * 201, b"", 7, "a\0"]
)
def test_ids_that_are_none(given):
    with pytest.raises(UsageError, match="not usable"):
        model_id_text(given)


def test_id_of_a_model():
    assert model_id_of({}) is None
    assert model_id_of({"model_id": "x"}) == "x"
    for said in ("../x", 3, ["x"]):
        with pytest.raises(UsageError):
            model_id_of({"model_id": said})


def test_mapping():
    assert key_of_model({"one": ONE, "two": "file:x"}, "two") == "file:x"
    with pytest.raises(NoKey, match="'three'"):
        key_of_model({"one": ONE}, "three")
    with pytest.raises(NoKey, match="no id"):
        key_of_model({"one": ONE}, None)


def test_directory(keys):
    assert key_of_model(keys, "one") == str(keys / "one.key")
    assert key_of_model(str(keys), "acme/two") == str(keys / "acme/two.key")
    with pytest.raises(NoKey, match="'two'"):
        key_of_model(keys, "two")
    with pytest.raises(UsageError, match="not usable"):
        key_of_model(keys / "acme", "../one")


def test_template():
    assert key_of_model("/k/{model_id}/key", "one") == "/k/one/key"
    assert key_of_model("keyserver:https://k/{model_id}", "a/b") == "keyserver:https://k/a/b"
    with pytest.raises(UsageError):
        key_of_model("/k/{model_id}/key", "..")


@pytest.mark.parametrize("key", [ONE, "file:one.key", "/k/one.key", [ONE, TWO]], ids=str)
def test_one_key_for_all(key):
    assert key_of_model(key, "one") == key
    assert key_of_model(key, None) == key


def test_environment(keys):
    def found(**environ):
        return key_of_model(None, "one", environ)

    assert found() is None  # and what uses it asks the environment itself
    assert found(STRONGROOM_KEY_FILE=str(keys / "one.key")) is None
    assert found(STRONGROOM_KEY_FILE=str(keys)) == str(keys / "one.key")
    assert found(STRONGROOM_KEY_FILE="/k/{model_id}.key") == "/k/one.key"
    # Two at once are refused where the environment is read.
    assert found(STRONGROOM_KEY_FILE=str(keys), STRONGROOM_KEY="x") is None


@pytest.mark.parametrize("kind", ["mapping", "directory", "template", "environment"])
def test_opens_by_id(keys, sealed, monkeypatch, kind):
    monkeypatch.setenv("STRONGROOM_KEY_FILE", str(keys))
    given = {
        "mapping": {"one": ONE, "acme/two": TWO},
        "directory": keys,
        "template": f"{keys}/{{model_id}}.key",
        "environment": None,
    }[kind]
    for model_id, key in (("one", ONE), ("acme/two", TWO)):
        with strongroom.open(sealed(model_id, key), key=KeyOfModel(given)) as model:
            assert model.read() == b"weights"
            assert model.meta["model_id"] == model_id


def test_a_plugin_is_asked_with_the_id(sealed, monkeypatch):
    from importlib import metadata

    asked = []

    class EntryPoint:
        def load(self):
            return lambda uri: asked.append(uri) or SymmetricKey(SecretBytes(ONE))

    monkeypatch.setattr(metadata, "entry_points", lambda **_: [EntryPoint()])
    with strongroom.open(sealed("one"), key=KeyOfModel("keyserver://host/{model_id}")) as model:
        assert model.read() == b"weights"
    assert asked == ["keyserver://host/one"]


def test_the_wrong_key(keys, sealed):
    with pytest.raises(NoMatchingRecipient, match="does not open this model"):
        strongroom.open(sealed("one", TWO), key=KeyOfModel(keys))
    with pytest.raises(NoKey, match="no id"):
        strongroom.open(sealed(None), key=KeyOfModel(keys))
    with pytest.raises(NoKey, match="'three'"):
        strongroom.open(sealed("three"), key=KeyOfModel(keys))


def test_expected(keys, sealed):
    with strongroom.open(sealed("one"), key=KeyOfModel(ONE, expected="one")) as model:
        assert model.read() == b"weights"
    with pytest.raises(UsageError, match="'one', not 'acme/two'"):
        strongroom.open(sealed("one"), key=KeyOfModel(ONE, expected="acme/two"))
    with pytest.raises(UsageError, match=r"no id; 'one' was expected"):
        strongroom.open(sealed(None), key=KeyOfModel(ONE, expected="one"))


def test_an_id_that_was_changed_is_noticed(sealed):
    place = sealed("one")
    raw = place.read_bytes()
    assert raw.count(b'"model_id":"one"') == 1
    place.write_bytes(raw.replace(b'"model_id":"one"', b'"model_id":"two"'))
    with pytest.raises(HeaderTampered):
        strongroom.open(place, key=KeyOfModel({"one": TWO, "two": ONE}))


def test_says_no_key():
    assert repr(KeyOfModel({"one": ONE})) == "<KeyOfModel>"
