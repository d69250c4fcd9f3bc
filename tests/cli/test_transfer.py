"""``strongroom import`` and ``strongroom export``: what the codecs give, as a user meets it."""

import json
import os

import pytest
from cryptography.fernet import Fernet

import strongroom
from strongroom.compat import transfer
from strongroom.compat.registry import CODECS, codec
from strongroom.keys import SymmetricKey
from strongroom.model.seal import SealJob

AES = b"My123sjsrjsd2345"
PLAIN = os.urandom(300_000)


@pytest.fixture
def license(here):
    key = Fernet.generate_key()
    (here / "license.pem").write_bytes(key)
    (here / "m.onnx.crt").write_bytes(Fernet(key).encrypt(PLAIN))
    return key


@pytest.fixture
def laiye(here, cli, key):
    """A SavedModel as Laiye's server has it: the graph encrypted, the weights in clear."""
    (here / "aes.key").write_bytes(AES)
    model = here / "plain"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"\x08\x01" + PLAIN)
    (model / "variables" / "variables.index").write_bytes(b"index")
    assert cli("seal", model, "-o", "plain.sealed", "-k", key).code == 0
    exporting = ("export", "plain.sealed", "-o", "1", "--to", "laiye", "--target-key", "aes.key")
    assert cli(*exporting, "--insecure-legacy", "--plain", "variables/*", "-k", key).code == 0
    return here / "1"


IMPORT = ("import", "m.onnx.crt", "--from", "model-cryptor", "--source-key", "license.pem")


class TestImport:
    def test_a_file(self, cli, key, license):
        result = cli(*IMPORT, "-o", "m.sealed", "-k", key, "--name", "resnet", "--meta", "a=b")
        assert result.code == 0
        assert "1 file decrypted" in result.err
        assert codec("model-cryptor").unprotected in result.err
        with strongroom.open("m.sealed", key=key) as model:
            assert list(model.files) == ["m.onnx"]
            assert model.read() == PLAIN
            assert model.meta["imported"] == {"format": "model-cryptor", "source": "m.onnx.crt"}
            assert (model.meta["name"], model.meta["a"]) == ("resnet", "b")

    def test_json(self, cli, key, license):
        result = cli(*IMPORT, "-o", "m.sealed", "-k", key, "--json")
        said = json.loads(result.out)
        assert said["format"] == "model-cryptor"
        assert said["decrypted"] == ["m.onnx"]
        assert said["plain"] == []
        assert said["size"] == len(PLAIN)

    def test_quiet(self, cli, key, license):
        result = cli(*IMPORT, "-o", "m.sealed", "-k", key, "-q")
        assert (result.code, result.out, result.err) == (0, "", "")

    def test_the_key_in_the_environment(self, cli, key, license, monkeypatch):
        monkeypatch.setenv("OLD", license.decode())
        assert cli(*IMPORT[:-1], "env:OLD", "-o", "m.sealed", "-k", key).code == 0
        monkeypatch.delenv("OLD")
        result = cli(*IMPORT[:-1], "env:OLD", "-o", "n.sealed", "-k", key)
        assert result.code == 4
        assert "OLD is empty" in result.error()

    def test_a_wrong_key_leaves_nothing(self, cli, key, license, here):
        (here / "license.pem").write_bytes(Fernet.generate_key())
        before = sorted(here.iterdir())
        result = cli(*IMPORT, "-o", "m.sealed", "-k", key)
        assert result.code == 5
        assert "m.onnx.crt" in result.error()
        assert sorted(here.iterdir()) == before

    def test_what_is_there_stays_without_force(self, cli, key, license, here):
        (here / "m.sealed").write_bytes(b"mine")
        assert cli(*IMPORT, "-o", "m.sealed", "-k", key).code == 2
        assert (here / "m.sealed").read_bytes() == b"mine"
        assert cli(*IMPORT, "-o", "m.sealed", "-k", key, "--force").code == 0
        assert cli("verify", "m.sealed", "-k", key).code == 0

    def test_to_standard_output(self, cli, key, license, here):
        import subprocess

        from .conftest import PROGRAM

        done = subprocess.run(
            [PROGRAM, *IMPORT, "-o", "-", "-k", key], capture_output=True, cwd=here, check=True
        )
        (here / "piped.sealed").write_bytes(done.stdout)
        with strongroom.open("piped.sealed", key=key) as model:
            assert model.read() == PLAIN

    @pytest.mark.parametrize(
        ("change", "code", "words"),
        [
            (("--from", "nothing"), 2, "no format"),
            (("--source-key", "nowhere.pem"), 2, "no such file"),
            (("-O", "what=ever"), 2, "no option what"),
            (("-O", "what"), 2, "NAME=VALUE"),
        ],
    )
    def test_usage(self, cli, key, license, change, code, words):
        arguments = [*IMPORT, "-o", "m.sealed", "-k", key]
        if change[0] in arguments:
            arguments[arguments.index(change[0]) + 1] = change[1]
        else:
            arguments += change
        result = cli(*arguments)
        assert result.code == code
        assert words in result.error().lower() or words in result.error()

    def test_no_key(self, cli, key, license):
        result = cli("import", "m.onnx.crt", "--from", "model-cryptor", "-o", "m.sealed", "-k", key)
        assert result.code == 4
        assert "--source-key" in result.hint()

    def test_a_directory_with_files_in_clear(self, cli, key, laiye, here):
        importing = ("import", "1", "--from", "laiye", "--source-key", "aes.key")
        result = cli(*importing, "-o", "back.sealed", "-k", key)
        assert result.code == 0
        assert "variables/variables.index" in result.err
        with strongroom.open("back.sealed", key=key) as model:
            assert model.read("saved_model.pb") == b"\x08\x01" + PLAIN
            assert model.files["variables/variables.index"].sealed

    def test_a_file_that_is_not_encrypted_must_be_named(self, cli, key, license, here):
        (here / "d").mkdir()
        os.rename("m.onnx.crt", here / "d" / "m.onnx.crt")
        (here / "d" / "labels.txt").write_text("cat")
        importing = ("import", "d", *IMPORT[2:], "-o", "d.sealed", "-k", key)
        result = cli(*importing)
        assert result.code in (2, 3)
        assert "labels.txt" in result.error()
        assert cli(*importing, "--plain", "*.txt").code == 0
        with strongroom.open("d.sealed", key=key) as model:
            assert sorted(model.files) == ["labels.txt", "m.onnx"]

    def test_two_files_of_one_name(self, cli, key, license, here):
        (here / "d").mkdir()
        os.rename("m.onnx.crt", here / "d" / "m.onnx.crt")
        (here / "d" / "m.onnx").write_bytes(b"other")
        result = cli("import", "d", *IMPORT[2:], "-o", "d.sealed", "-k", key, "--plain", "m.onnx")
        assert result.code == 2
        assert "Two files" in result.error()

    def test_the_destination_in_the_source(self, cli, key, license, here):
        (here / "d").mkdir()
        os.rename("m.onnx.crt", here / "d" / "m.onnx.crt")
        result = cli("import", "d", *IMPORT[2:], "-o", "d/s", "-k", key)
        assert result.code == 2


class TestExport:
    def test_there_and_back(self, cli, key, here):
        Fernet_key = Fernet.generate_key()
        (here / "license.pem").write_bytes(Fernet_key)
        (here / "m.onnx").write_bytes(PLAIN)
        assert cli("seal", "m.onnx", "-o", "m.sealed", "-k", key).code == 0
        exporting = ("export", "m.sealed", "--to", "model-cryptor", "--target-key", "license.pem")
        result = cli(*exporting, "-o", "m.onnx.crt", "-k", key)
        assert result.code == 0, result.err
        assert Fernet(Fernet_key).decrypt((here / "m.onnx.crt").read_bytes()) == PLAIN
        said = json.loads(cli(*exporting, "-o", "n.crt", "-k", key, "--json").out)
        assert said["files"] == ["n.crt"]

    def test_legacy_needs_a_word(self, cli, key, laiye, here):
        exporting = ("export", "plain.sealed", "--to", "laiye", "--target-key", "aes.key", "-k", key)
        result = cli(*exporting, "-o", "2", "--plain", "variables/*")
        assert result.code == 2
        assert "--insecure-legacy" in result.hint()
        assert not (here / "2").exists()

    def test_nothing_goes_in_clear_unless_named(self, cli, key, laiye, here):
        exporting = ("export", "plain.sealed", "--to", "laiye", "--target-key", "aes.key", "-k", key)
        result = cli(*exporting, "-o", "2", "--insecure-legacy")
        assert result.code == 2
        assert "variables/variables.index" in result.error()
        assert not (here / "2").exists()
        assert (laiye / "variables" / "variables.index").read_bytes() == b"index"
        assert (laiye / "saved_model.pb").read_bytes()[:2] != b"\x08\x01"

    def test_a_format_that_is_read_only(self, cli, key, laiye):
        result = cli("export", "plain.sealed", "--to", "onnx-byte", "-o", "2", "-k", key)
        assert result.code == 2
        assert "not written" in result.error()

    def test_a_failure_leaves_nothing(self, cli, key, laiye, here):
        raw = bytearray((here / "plain.sealed" / "saved_model.pb.sealed").read_bytes())
        raw[-5] ^= 1
        raw[200_000] ^= 1
        (here / "plain.sealed" / "saved_model.pb.sealed").write_bytes(raw)
        before = sorted(here.iterdir())
        exporting = ("export", "plain.sealed", "--to", "laiye", "--target-key", "aes.key", "-k", key)
        result = cli(*exporting, "-o", "2", "--insecure-legacy", "--plain", "variables/*")
        assert result.code == 5
        assert sorted(here.iterdir()) == before

    def test_a_key_derived_from_that_of_the_model(self, cli, key, here):
        (here / "net.onnx").write_bytes(PLAIN)
        assert cli("seal", "net.onnx", "-o", "net.sealed", "-k", key).code == 0
        exporting = ("export", "net.sealed", "--to", "gramine", "--target-key", "model:", "-k", key)
        assert cli(*exporting, "-o", "enc", "-O", "path=models/net.onnx").code == 0
        with strongroom.open("net.sealed", key=key) as model, model.gramine_wrap_key() as secret:
            (here / "wrap_key").write_bytes(secret.buffer)
        with pytest.raises(ValueError, match="closed"):
            model.gramine_wrap_key()
        importing = ("import", "enc", "--from", "gramine", "--source-key", "wrap_key", "-k", key)
        assert cli(*importing, "-O", "path=models/net.onnx", "-o", "again.sealed").code == 0
        with strongroom.open("again.sealed", key=key) as model:
            assert model.read() == PLAIN

    def test_a_system_that_derives_none(self, cli, key, here):
        (here / "m.onnx").write_bytes(PLAIN)
        assert cli("seal", "m.onnx", "-o", "m.sealed", "-k", key).code == 0
        exporting = ("export", "m.sealed", "--to", "model-cryptor", "--target-key", "model:")
        result = cli(*exporting, "-o", "m.crt", "-k", key)
        assert result.code == 2
        assert "No key of model-cryptor is derived" in result.error()
        assert not (here / "m.crt").exists()


class TestPython:
    def test_there_and_back(self, here):
        key, old = bytes(32), Fernet.generate_key()
        (here / "m.pt").write_bytes(PLAIN)
        strongroom.seal("m.pt", "m.sealed", key=key)
        written = strongroom.export_model(
            "m.sealed", "m.pt.crt", format="model-cryptor", target_key=old, key=key
        )
        assert written == ["m.pt.crt"]
        strongroom.import_model(
            "m.pt.crt", "back.sealed", format="model-cryptor", source_key=old, key=key, version="2"
        )
        with strongroom.open("back.sealed", key=key) as model:
            assert model.read("m.pt") == PLAIN
            assert model.meta["version"] == "2"

    def test_a_source_that_becomes_another_model(self, here, monkeypatch):
        old = Fernet.generate_key()
        (here / "m.pt.crt").write_bytes(Fernet(old).encrypt(PLAIN))
        plan = transfer.plan_import("m.pt.crt", "model-cryptor", old)
        kind = codec("model-cryptor")
        monkeypatch.setattr(kind, "decrypt", lambda self, source, path: [])
        job = SealJob([SymmetricKey.generate()], {})
        with pytest.raises(strongroom.errors.SourceChanged, match=r"m\.pt\.crt changed"):
            plan.seal("m.sealed", job)
        assert not (here / "m.sealed").exists()

    def test_keys(self, here):
        secret = transfer.read_foreign_key(b"abc")
        assert secret is not None
        assert bytes(secret.buffer) == b"abc"
        assert transfer.read_foreign_key(secret) == secret
        assert transfer.read_foreign_key(None) is None
        (here / "empty").touch()
        with pytest.raises(strongroom.errors.InvalidKey, match="empty"):
            transfer.read_foreign_key(here / "empty")
        (here / "large").write_bytes(bytes((1 << 20) + 1))
        with pytest.raises(strongroom.errors.InvalidKey, match="too large"):
            transfer.read_foreign_key(here / "large")


def test_every_codec_says_what_it_is():
    for name in CODECS:
        kind = codec(name)
        assert kind.name == name
        assert kind.title
        assert kind.unprotected.endswith(".")
        assert kind.__doc__
