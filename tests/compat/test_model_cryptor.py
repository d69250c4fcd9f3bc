"""In place of model_cryptor: keys, both formats, targets, and errors where it warned."""

import base64
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from foreign import says_nothing

import strongroom
from left_over import no_file_left_open
from strongroom.compat import model_cryptor
from strongroom.compat.model_cryptor import CryptorFactory, ModelCryptor, ModelType
from strongroom.errors import (
    AlreadyExists,
    ForeignTampered,
    InvalidKey,
    NoMatchingRecipient,
    NotFound,
    NotSealed,
    PayloadTampered,
    StrongroomError,
    UsageError,
)
from strongroom.keys.hpke import HpkeIdentity

PLAIN = b"\x08\x07 a model of ONNX" + bytes(range(256)) * 20


@pytest.fixture
def cryptor():
    return CryptorFactory.instance(ModelType.MODEL_ONNX)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a model and a key."""
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(PLAIN)
    CryptorFactory.instance(ModelType.MODEL_ONNX).generate_crypt_key()
    return tmp_path


def key_of(place):
    return (place / "license.pem").read_bytes()


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def test_nine_types():
    assert len(ModelType) == 9
    for kind in ModelType:
        cryptor = CryptorFactory.instance(kind)
        assert isinstance(cryptor, ModelCryptor)
        assert type(cryptor).__name__ == kind.value
        assert CryptorFactory.instance(kind) is cryptor
        assert type(cryptor).__doc__ != ModelCryptor.__doc__


@pytest.mark.parametrize("wrong", ["MODEL_TORCH", None, 3])
def test_not_a_type(wrong):
    with pytest.raises(UsageError, match="ModelType is needed") as caught:
        CryptorFactory.instance(wrong)
    assert "ModelType.MODEL_PADDLE2TRT" in caught.value.hint


def test_threads_get_what_they_ask_for():
    wrong = []

    def ask(kind):
        given = {type(CryptorFactory.instance(kind)).__name__ for _ in range(3000)}
        wrong.extend(given - {kind.value})

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ModelType]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Keys


@pytest.mark.parametrize("target", [None, ".", "keys", Path("keys"), "keys/other.pem"])
def test_generate_crypt_key(tmp_path, monkeypatch, cryptor, target):
    monkeypatch.chdir(tmp_path)
    Path("keys").mkdir()
    key = cryptor.generate_crypt_key() if target is None else cryptor.generate_crypt_key(target)
    path = Path(target or ".")
    path = path / "license.pem" if path.is_dir() else path
    assert path.read_bytes() == key
    assert len(key) == 44
    Fernet(key)  # model_cryptor can use it
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cryptor.read_crypt_key(path) == (True, key)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / path]


def test_a_key_is_never_replaced(place, cryptor):
    before = key_of(place)
    for target in (None, "license.pem", place):
        with pytest.raises(AlreadyExists) as caught:
            cryptor.generate_crypt_key(target)
        assert "needs it" in caught.value.hint
    with pytest.raises(AlreadyExists, match="is a key"):
        cryptor.encrypt("m.onnx", before, "license.pem")
    assert key_of(place) == before
    assert listing(place) == ["license.pem", "m.onnx"]


def test_generate_crypt_key_where_nothing_is(tmp_path, cryptor):
    with pytest.raises(NotFound):
        cryptor.generate_crypt_key(tmp_path / "missing/license.pem")


def test_read_crypt_key_takes_a_newline_and_nothing_else(tmp_path, cryptor):
    key = Fernet.generate_key()
    path = tmp_path / "license.pem"
    path.write_bytes(key + b"\n")
    assert cryptor.read_crypt_key(str(path)) == (True, key)
    for content in (b"-----BEGIN", key[:-1] + b"?", key * 2):
        path.write_bytes(content)
        with pytest.raises(InvalidKey, match="not a key file") as caught:
            cryptor.read_crypt_key(path)
        assert says_nothing(caught.value, key, content)
    path.write_bytes(b"")
    with pytest.raises(InvalidKey):
        cryptor.read_crypt_key(path)
    with pytest.raises(NotFound):
        cryptor.read_crypt_key(tmp_path / "missing")
    with pytest.raises(UsageError):
        cryptor.read_crypt_key(tmp_path)


# Encrypting and decrypting


@pytest.mark.parametrize("key", ["license.pem", Path("license.pem"), "bytes", "raw"])
@pytest.mark.parametrize("kind", [ModelType.MODEL_ONNX, ModelType.MODEL_TENSORRT])
def test_both_ways_byte_for_byte(place, kind, key):
    if key == "bytes":
        key = key_of(place)
    elif key == "raw":
        key = base64.urlsafe_b64decode(key_of(place))
    cryptor = CryptorFactory.instance(kind)
    assert cryptor.encrypt(model="m.onnx", crypt_key=key, crypted_model="m.onnx.crt") is None
    assert PLAIN[:30] not in Path("m.onnx.crt").read_bytes()
    model = cryptor.decrypt(model="m.onnx.crt", crypt_key=key, map_location="cpu")
    assert type(model) is bytes
    assert model == PLAIN
    assert cryptor.decrypt(Path("m.onnx.crt"), key) == PLAIN
    assert listing(place) == ["license.pem", "m.onnx", "m.onnx.crt"]


def test_what_is_written_is_a_sealed_file(place, cryptor):
    cryptor.encrypt("m.onnx", "license.pem", "m.onnx.crt")
    with strongroom.open("m.onnx.crt", key="license.pem") as model:
        assert model.read("m.onnx") == PLAIN


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_files_of_model_cryptor(place, cryptor, newline):
    Path("old.crt").write_bytes(Fernet(key_of(place)).encrypt(PLAIN) + newline)
    assert cryptor.decrypt("old.crt", "license.pem") == PLAIN
    assert cryptor.decrypt(place / "old.crt", key_of(place)) == PLAIN
    assert listing(place) == ["license.pem", "m.onnx", "old.crt"]


def test_a_file_of_model_cryptor_with_any_name(place, cryptor):
    Path("model").write_bytes(Fernet(key_of(place)).encrypt(PLAIN))
    assert cryptor.decrypt("model", "license.pem") == PLAIN


def test_directory_as_target(place, cryptor):
    Path("out").mkdir()
    for target in ("out", Path("out"), "out/"):
        cryptor.encrypt("m.onnx", "license.pem", target)
        assert listing("out") == ["m.onnx.crt"]
    assert cryptor.decrypt("out/m.onnx.crt", "license.pem") == PLAIN


def test_a_second_run_replaces_the_first(place, cryptor):
    Path("m.crt").write_bytes(Fernet(key_of(place)).encrypt(b"older"))
    for data in (PLAIN, b"newer"):
        Path("m.onnx").write_bytes(data)
        cryptor.encrypt("m.onnx", "license.pem", "m.crt")
        assert cryptor.decrypt("m.crt", "license.pem") == data


def test_directories(place, cryptor):
    Path("model").mkdir()
    Path("model/m.onnx").write_bytes(PLAIN)
    Path("model/m.onnx.data").write_bytes(b"weights")
    for _ in range(2):  # the second time it is there already, and is replaced
        cryptor.encrypt("model/", "license.pem", "model.crt")
        with strongroom.open("model.crt", key="license.pem") as model:
            assert sorted(model.files) == ["m.onnx", "m.onnx.data"]
    assert cryptor.decrypt("model.crt", "license.pem", path="m.onnx") == PLAIN
    with pytest.raises(UsageError, match="bytes are of one") as caught:
        cryptor.decrypt("model.crt", "license.pem")
    assert "strongroom.loaders.onnx.session" in caught.value.hint
    Path("out").mkdir()
    for _ in range(2):
        cryptor.encrypt("model", "license.pem", "out")
        assert [name for name in listing("out") if "/" not in name] == ["model.crt"]


def test_targets_that_are_refused(place, cryptor):
    Path("model").mkdir()
    Path("model/w").write_bytes(b"weights")
    cryptor.encrypt("model", "license.pem", "sealed")
    Path("out/model.crt").mkdir(parents=True)
    Path("out/model.crt/mine").write_bytes(b"mine")
    Path("file").write_bytes(b"mine")
    before = listing(place)
    for source, target, error in (
        ("m.onnx", "sealed", UsageError),  # a sealed directory by a file
        ("model", "file", UsageError),  # and the other way round
        ("model", "out", AlreadyExists),  # what is in it would be lost
        ("model", "model", UsageError),
        ("m.onnx", "m.onnx", UsageError),
        ("m.onnx", "missing/m.crt", NotFound),
        ("m.onnx", "/dev/null", UsageError),
    ):
        with pytest.raises(error):
            cryptor.encrypt(source, "license.pem", target)
        assert listing(place) == before
    assert Path("m.onnx").read_bytes() == PLAIN
    assert Path("file").read_bytes() == Path("out/model.crt/mine").read_bytes() == b"mine"


def test_a_failure_leaves_what_was_there(place, cryptor, monkeypatch):
    cryptor.encrypt("m.onnx", "license.pem", "m.crt")
    before = Path("m.crt").read_bytes()

    def fail(self):
        raise StrongroomError("the disk is full")

    monkeypatch.setattr("strongroom.model.output.FileOutput.commit", fail)
    with pytest.raises(StrongroomError, match="full"):
        cryptor.encrypt("m.onnx", "license.pem", "m.crt")
    with pytest.raises(StrongroomError, match="full"):
        cryptor.encrypt("m.onnx", "license.pem", "n.crt")
    assert Path("m.crt").read_bytes() == before
    assert listing(place) == ["license.pem", "m.crt", "m.onnx"]


# Errors, where model_cryptor warned and returned None


def test_missing_models(place, cryptor):
    with pytest.raises(NotFound, match=r"missing\.onnx"):
        cryptor.encrypt("missing.onnx", "license.pem", "m.crt")
    with pytest.raises(NotFound, match=r"missing\.crt"):
        cryptor.decrypt("missing.crt", "license.pem")
    with pytest.raises(FileNotFoundError):
        cryptor.decrypt("missing.crt", "license.pem")
    with pytest.raises(NotFound) as caught:  # Paddle calls two files m
        cryptor.encrypt("m", "license.pem", "m.crt")
    assert "There is m.onnx" in caught.value.hint
    assert not Path("m.crt").exists()


@pytest.mark.parametrize("key", [b"", b"too short", "missing.pem", "m.onnx", b"\xff" * 44])
def test_keys_that_are_none(place, cryptor, key):
    cryptor.encrypt("m.onnx", "license.pem", "m.crt")
    Path("old.crt").write_bytes(Fernet(key_of(place)).encrypt(PLAIN))
    before = listing(place)
    with pytest.raises(StrongroomError):
        cryptor.encrypt("m.onnx", key, "n.crt")
    for name in ("m.crt", "old.crt"):
        with pytest.raises(StrongroomError):
            cryptor.decrypt(name, key)
    assert listing(place) == before


def test_a_key_as_text_where_a_path_belongs(place, cryptor):
    key = key_of(place)
    with pytest.raises(UsageError, match="path") as caught:
        cryptor.encrypt("m.onnx", key.decode(), "m.crt")
    assert says_nothing(caught.value, key)


def test_wrong_key(place, cryptor):
    cryptor.encrypt("m.onnx", "license.pem", "m.crt")
    Path("old.crt").write_bytes(Fernet(key_of(place)).encrypt(PLAIN))
    other = Fernet.generate_key()
    with pytest.raises(NoMatchingRecipient):
        cryptor.decrypt("m.crt", other)
    with pytest.raises(ForeignTampered, match="another key, or it has been changed") as caught:
        cryptor.decrypt("old.crt", other)
    assert says_nothing(caught.value, other, key_of(place), PLAIN[:16])


def test_damage(place, cryptor):
    cryptor.encrypt("m.onnx", "license.pem", "m.crt")
    old = Fernet(key_of(place)).encrypt(PLAIN)
    for name, data, error in (
        ("m.crt", Path("m.crt").read_bytes(), PayloadTampered),
        ("old.crt", old, ForeignTampered),
    ):
        for position in (-10, len(data) - 600):
            changed = bytearray(data)
            changed[position] = ord("A") if changed[position] != ord("A") else ord("B")
            Path(name).write_bytes(changed)
            with pytest.raises(error):
                cryptor.decrypt(name, "license.pem")
        Path(name).write_bytes(data[:-64])
        with pytest.raises(StrongroomError):
            cryptor.decrypt(name, "license.pem")


@pytest.mark.parametrize("data", [b"", PLAIN, b"-----BEGIN CERTIFICATE-----\n"])
def test_not_encrypted(place, cryptor, data):
    Path("plain.crt").write_bytes(data)
    with pytest.raises(NotSealed, match="not encrypted"):
        cryptor.decrypt("plain.crt", "license.pem")
    Path("folder").mkdir()
    with pytest.raises(NotSealed):
        cryptor.decrypt("folder", "license.pem")


@pytest.mark.parametrize(
    "kind", [ModelType.MODEL_TENSORFLOW, ModelType.MODEL_TF2TRT, ModelType.MODEL_PADDLE]
)
def test_models_of_another_framework(place, kind):
    cryptor = CryptorFactory.instance(kind)
    Path("m.onnx").write_bytes(b"\x08\x07\x12\x04test")
    cryptor.encrypt("m.onnx", "license.pem", "m.crt")
    with pytest.raises(UsageError, match=r"for the loader onnx, and not one of (TensorFlow|Paddle)"):
        cryptor.decrypt("m.crt", "license.pem")


def test_other_keys_of_strongroom(place, cryptor):
    identity = HpkeIdentity.generate()
    cryptor.encrypt("m.onnx", identity.recipient, "m.crt")
    assert cryptor.decrypt("m.crt", identity) == PLAIN
    Path("old.crt").write_bytes(Fernet(key_of(place)).encrypt(PLAIN))
    with pytest.raises(InvalidKey, match="symmetric"):
        cryptor.decrypt("old.crt", identity)


def test_nothing_of_fernet_files_reaches_a_disk(place, cryptor, monkeypatch):
    """A file of model_cryptor is decrypted into memory that no other process can name."""
    Path("old.crt").write_bytes(Fernet(key_of(place)).encrypt(PLAIN))
    made = []
    real = os.open

    def watched(path, flags, *arguments, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            made.append(path)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", watched)
    with no_file_left_open():
        assert cryptor.decrypt("old.crt", "license.pem") == PLAIN
    assert not made


def test_the_names_of_the_package():
    assert set(model_cryptor.__all__) == {"CryptorFactory", "ModelCryptor", "ModelType"}
