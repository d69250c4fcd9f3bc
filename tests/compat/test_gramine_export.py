"""Exports for Gramine: what the printed lines of a manifest mount is read as Gramine would read it.

Gramine's part is played by the reference of the format and by the rule of its LibOS: the path in a file
must be the URI of its mount, and what follows below the mount point, normalised as text.
"""

import json
import os
import posixpath
import subprocess
import sys
import tomllib
from pathlib import Path

import gramine_reference as reference
import pytest

import strongroom
from strongroom.cli.process import run
from strongroom.compat.gramine_manifest import manifest_lines
from strongroom.crypto.derive import gramine_wrap_key
from strongroom.crypto.secret import SecretBytes

KEY = bytes(range(16))
FILES = {
    "config.pbtxt": b'name: "resnet"\n',
    "1/model.onnx": bytes(range(251)) * 60,
    "1/model.onnx.data": os.urandom(400_000),
    "labels.txt": b"",
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    place = tmp_path_factory.mktemp("sealed")
    for path, content in FILES.items():
        file = place / "plain" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (place / "wrap_key").write_bytes(KEY)
    assert run(["keygen", "-o", str(place / "key.txt")]) == 0
    for source, target in (("plain", "m.sealed"), ("plain/1/model.onnx", "one.sealed")):
        strongroom.seal(place / source, place / target, key=place / "key.txt")
    return place


@pytest.fixture
def here(sealed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wrap_key", "key.txt", "m.sealed", "one.sealed"):
        (tmp_path / name).symlink_to(sealed / name)
    return tmp_path


@pytest.fixture
def export(here, capsys):
    """``strongroom export … --to gramine``; standard output and standard error."""

    def call(source, destination, *arguments, key="wrap_key"):
        capsys.readouterr()
        command = ["export", source, "--to", "gramine", "--target-key", key, "-o", destination]
        code = run([*command, "-k", "key.txt", *arguments])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out, said.err

    return call


def normal(path: str) -> str:
    """``get_norm_path``, for paths that do not go up beyond where they begin."""
    return posixpath.normpath(path)


def application_sees(manifest: str, keys: dict[str, bytes], host: Path = Path()) -> dict[str, bytes]:
    """All files of an application with this manifest, by their path inside, as Gramine opens them."""
    document = tomllib.loads(manifest)
    trusted = set(document.get("sgx", {}).get("trusted_files", []))
    found = {}
    for mount in document["fs"]["mounts"]:
        uri = mount["uri"].removeprefix("file:")
        assert mount["uri"] == "file:" + uri
        base = host / uri
        places = [base] if base.is_file() else sorted(one for one in base.rglob("*") if one.is_file())
        assert places, mount
        for place in places:
            below = "" if place == base else "/" + place.relative_to(base).as_posix()
            data = place.read_bytes()
            if mount.get("type") == "encrypted":
                path, data = reference.unseal(keys[mount["key_name"]], data)
                assert path.decode() == normal(uri + below)
            else:
                assert "type" not in mount
                assert f"file:{uri}{below}" in trusted
            found[mount["path"] + below] = data
    return found


def inside(root: str, files=FILES) -> dict[str, bytes]:
    return {f"{root}/{path}": content for path, content in files.items()}


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_directory(export, version):
    out, _ = export("m.sealed", "enc", "-O", "mount=/models/resnet", "-O", f"version={version}")
    assert application_sees(out, {"default": KEY}) == inside("/models/resnet")
    assert tomllib.loads(out)["fs"]["mounts"] == [
        {
            "path": "/models/resnet",
            "uri": "file:enc",
            "type": "encrypted",
            "key_name": "default",
        }
    ]
    assert {Path(one).read_bytes()[8] for one in map(str, Path("enc").rglob("*.*"))} == {int(version)}


def test_files_that_are_made_in_another_place_than_they_are_used(export, here):
    (here / "build").mkdir()
    out, _ = export(
        "m.sealed", "build/out", "-O", "path=/srv/models/resnet", "-O", "mount=/models/resnet"
    )
    (here / "host/srv/models").mkdir(parents=True)
    (here / "build/out").rename(here / "host/srv/models/resnet")
    document = tomllib.loads(out)
    assert document["fs"]["mounts"][0]["uri"] == "file:/srv/models/resnet"
    # As if the machine's root were here.
    for place in (here / "host/srv/models/resnet").rglob("*.*"):
        path, data = reference.unseal(KEY, place.read_bytes())
        below = place.relative_to(here / "host").as_posix()
        assert path.decode() == f"/{below}"
        assert data == FILES[below.removeprefix("srv/models/resnet/")]


def test_one_file(export):
    out, _ = export("one.sealed", "net.onnx", "-O", "mount=/models/net.onnx", "-O", "key_name=resnet")
    assert application_sees(out, {"resnet": KEY}) == {"/models/net.onnx": FILES["1/model.onnx"]}


def test_by_default_it_is_seen_where_it_lies(export):
    os.makedirs("enc/x")
    out, _ = export("m.sealed", "./enc//x/../files")
    assert application_sees(out, {"default": KEY}) == inside("/enc/files")


def test_what_is_in_clear_has_mounts_of_its_own(export):
    """In an encrypted mount Gramine takes every file for encrypted."""
    out, _ = export(
        "m.sealed", "enc", "-O", "mount=/models/resnet", "--plain", "*.pbtxt", "--plain", "labels.txt"
    )
    document = tomllib.loads(out)
    assert document["sgx"]["trusted_files"] == ["file:enc/config.pbtxt", "file:enc/labels.txt"]
    assert len(document["fs"]["mounts"]) == 4
    assert application_sees(out, {"default": KEY}) == inside("/models/resnet")


def test_under_a_key_of_the_model(export, here):
    """The application gets its key from a server that holds the model's: nobody writes it to a file."""
    out, _ = export("m.sealed", "enc", key="model:")
    with strongroom.open("m.sealed", key="key.txt") as model:
        bundle = model.bundle
        with model.gramine_wrap_key() as secret:
            wrap = bytes(secret.buffer)
    assert application_sees(out, {"default": wrap}) == inside("/enc")
    assert wrap != bytes(gramine_wrap_key(SecretBytes(bytes(32)), bundle).buffer)


def test_a_file_moved_below_the_mount_is_not_where_it_says(export, here):
    out, _ = export("m.sealed", "enc", "-O", "mount=/models/resnet")
    (here / "enc/1/model.onnx").rename(here / "enc/1/other.onnx")
    with pytest.raises(AssertionError):
        application_sees(out, {"default": KEY})


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "größe\t\x7f", "#[x]=1"])
def test_names_are_quoted_as_toml_wants_them(export, name):
    out, _ = export("m.sealed", name, "-O", f"mount=/{name}", "--plain", "labels.txt")
    assert application_sees(out, {"default": KEY}) == inside(f"/{name}")


def test_lines_are_toml_whatever_the_names():
    text = "".join(map(chr, range(1, 256)))
    document = tomllib.loads(manifest_lines(text, f"/{text}", "default", [text], [text]))
    assert document["sgx"]["trusted_files"] == [f"file:{text}/{text}"]
    assert document["fs"]["mounts"][0]["path"] == f"/{text}/{text}"


def test_where_the_lines_go(export, here, capsys):
    out, _ = export("m.sealed", "a", "--json", "-O", "mount=/m")
    said = json.loads(out)
    assert application_sees(said["configuration"], {"default": KEY}) == inside("/m")
    assert sorted(said["files"]) == sorted(FILES)
    assert export("m.sealed", "b", "--quiet") == ("", "")
    # Where standard output is the file itself.
    command = ["export", "one.sealed", "--to", "gramine", "--target-key", "wrap_key", "-O", "path=n"]
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", *command, "-o", "-", "-k", "key.txt"],
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert reference.unseal(KEY, done.stdout) == (b"n", FILES["1/model.onnx"])
    assert b"fs.mounts" in done.stderr


@pytest.mark.parametrize(
    "option",
    ["mount=models", "mount=/", "mount=", "key_name=_sgx_mrenclave", "key_name=a b", "key_name="],
)
def test_what_cannot_be_mounted_is_refused_before_anything_is_written(here, capsys, option):
    command = ["export", "m.sealed", "--to", "gramine", "--target-key", "wrap_key", "-o", "enc"]
    assert run([*command, "-k", "key.txt", "-O", option]) == 2
    assert not (here / "enc").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_python(here):
    files = strongroom.export_model(
        "m.sealed",
        "enc",
        format="gramine",
        target_key="wrap_key",
        options={"mount": "/models/resnet"},
        key="key.txt",
    )
    assert sorted(files) == sorted(FILES)
