"""The manifests for Gramine, rendered as ``gramine-manifest`` does it: known options, and nothing that lets in."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from manifests import DEPLOY, ROOT, option, stages
from test_commands import parse

from strongroom.serving.config_files import read_models

GRAMINE = DEPLOY / "gramine"
SERVE = GRAMINE / "serve.manifest.template"
APPLICATION = GRAMINE / "application.manifest.template"
DEFINED = {
    SERVE: {},
    APPLICATION: {"entrypoint": "/usr/bin/app", "key_server": "keys.example:4433"},
}
RELEASES = ("1.7", "1.8", "1.9")

# Of Gramine's documentation of manifests, what all of 1.7 to 1.9 know; ``loader.entrypoint`` has become a table
# in 1.8, which took both, and 1.9 takes the table alone.
KNOWN: dict[str, type | tuple[type, ...]] = {
    "fs.root.type": str,
    "fs.root.uri": str,
    "fs.start_dir": str,
    "libos.check_invalid_pointers": bool,
    "libos.entrypoint": str,
    "loader.argv": list,
    "loader.argv_src_file": str,
    "loader.env_src_file": str,
    "loader.gid": int,
    "loader.log_file": str,
    "loader.log_level": str,
    "loader.uid": int,
    "sgx.allowed_files": list,
    "sgx.debug": bool,
    "sgx.edmm_enable": bool,
    "sgx.enable_stats": bool,
    "sgx.enclave_size": str,
    "sgx.file_check_policy": str,
    "sgx.isvprodid": int,
    "sgx.isvsvn": int,
    "sgx.max_threads": int,
    "sgx.preheat_enclave": bool,
    "sgx.remote_attestation": str,
    "sgx.trusted_files": list,
    "sgx.use_exinfo": bool,
    "sys.brk.max_size": str,
    "sys.disallow_subprocesses": bool,
    "sys.enable_extra_runtime_domain_names_conf": bool,
    "sys.enable_sigterm_injection": bool,
    "sys.stack.size": str,
}
MOUNTS = {
    "chroot": {"path", "uri"},
    "encrypted": {"path", "uri", "key_name"},
    "tmpfs": {"path"},
}


class Paths:
    """``gramine`` in a template."""

    libos = PurePosixPath("/usr/lib/x86_64-linux-gnu/gramine/libsysdb.so")

    @staticmethod
    def runtimedir(libc="glibc"):
        return PurePosixPath("/usr/lib/x86_64-linux-gnu/gramine/runtime") / libc


def render(path, **defined) -> dict[str, Any]:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.globals["gramine"] = Paths()
    text = environment.from_string(path.read_text()).render(DEFINED[path] | defined)
    return tomllib.loads(text)


def options(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from options(value, f"{before}{name}.")
        else:
            yield before + name, value


def faults(document: dict[str, Any], release: str) -> list[str]:
    """What a release of Gramine does not know, or has another kind of value for."""
    entrypoint = "loader.entrypoint" if release == "1.7" else "loader.entrypoint.uri"
    known = KNOWN | {entrypoint: str}
    found = []
    for name, value in options(document):
        if name == "fs.mounts":
            for mount in value:
                kind = mount.get("type", "chroot")
                if set(mount) - {"type"} != MOUNTS.get(kind, set()):
                    found.append(f"{name} {mount}")
        elif re.fullmatch(r"loader\.env\.[A-Z][A-Z0-9_]*", name):
            if not isinstance(value, str):
                found.append(name)
        elif type(value) is not known.get(name) or (
            isinstance(value, list) and not all(isinstance(one, str) for one in value)
        ):
            found.append(name)
    return found + [
        name for name in (entrypoint, "libos.entrypoint") if name not in dict(options(document))
    ]


both = pytest.mark.parametrize("path", DEFINED, ids=lambda path: path.name)


@both
@pytest.mark.parametrize("release", RELEASES)
def test_all_options_are_known(path, release):
    assert faults(render(path, gramine_version=release), release) == []


def test_an_option_that_is_not_known_is_found():
    document = render(SERVE)
    assert faults(document, "1.7") == ["loader.entrypoint.uri", "loader.entrypoint"]
    document["sgx"]["thread_num"] = 4
    document["sgx"]["debug"] = "false"
    document["fs"]["mounts"].append({"path": "/x", "uri": "file:/x", "typ": "tmpfs"})
    assert sorted(faults(document, "1.9")) == [
        "fs.mounts {'path': '/x', 'uri': 'file:/x', 'typ': 'tmpfs'}",
        "sgx.debug",
        "sgx.thread_num",
    ]


@both
def test_enclaves_are_for_production(path):
    document = render(path)
    assert document["sgx"]["debug"] is False
    assert document["sgx"]["remote_attestation"] == "dcap"
    assert document["loader"]["log_level"] == "error"
    assert not [name for name, _ in options(document) if "insecure" in name]
    assert "file_check_policy" not in document["sgx"]  # strict, by default
    # Without a number of its own, a policy by signer would take all that he signs.
    assert document["sgx"]["isvprodid"] > 0
    # The host's files are there by mounts alone.
    assert document["fs"]["root"] == {"type": "tmpfs"}


@both
def test_whatever_is_mounted_is_measured_encrypted_or_sealed(path):
    document = render(path)
    trusted = set(document["sgx"]["trusted_files"])
    allowed = document["sgx"].get("allowed_files", [])
    assert allowed == (["file:/models/"] if path == SERVE else [])
    for mount in document["fs"]["mounts"]:
        assert mount["path"].startswith("/")
        uri = mount.get("uri", "")
        if mount.get("type") in ("encrypted", "tmpfs"):
            assert not any(uri.startswith(one.rstrip("/")) for one in trusted if uri)
        else:
            assert uri in trusted | set(allowed) or f"{uri}/" in trusted | set(allowed), mount
    paths = [mount["path"] for mount in document["fs"]["mounts"]]
    assert len(paths) == len(set(paths))
    # Where plaintext may be put is the enclave's, and no directory in which the host could see it.
    for memory in ("/tmp", "/dev/shm") if path == SERVE else ("/tmp",):
        assert {"type": "tmpfs", "path": memory} in document["fs"]["mounts"]
        assert not any(f"file:{memory}/".startswith(one) for one in allowed)


def test_the_command_of_the_enclave():
    document = render(SERVE)
    python, *words = document["loader"]["argv"]
    assert python == document["libos"]["entrypoint"]
    assert words[:3] == ["-I", "-B", "-m"]
    parse(words[3:])
    # Certificates that decide who comes in, and which models there are, are measured.
    for name in ("--config", "--client-ca"):
        assert option(words, name).startswith("/etc/strongroom/")
    assert option(words, "--tls-key").endswith(".sealed")
    assert document["loader"]["env"]["STRONGROOM_KEYSERVER"].startswith("/etc/strongroom/")
    models = read_models(GRAMINE / "config" / "models.yaml")
    assert [one.path for one in models] == ["/models/resnet50"]


def test_values_that_can_be_given():
    document = render(SERVE, enclave_size="8G", edmm="true", isvsvn="7", arch_libdir="/lib64")
    assert (document["sgx"]["enclave_size"], document["sgx"]["isvsvn"]) == ("8G", 7)
    assert document["sgx"]["edmm_enable"] is True
    assert "file:/lib64/" in document["sgx"]["trusted_files"]


def test_the_application_mounts_what_an_export_says(tmp_path, monkeypatch, capsys):
    import strongroom
    from strongroom.cli.process import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.bin").write_bytes(bytes(10_000))
    (tmp_path / "key.txt").write_text("A" * 43)
    strongroom.seal("plain", "m.sealed", key="key.txt")
    command = [
        "export",
        "m.sealed",
        "--to",
        "gramine",
        "--target-key",
        "model:",
        "-k",
        "key.txt",
        "-o",
        "e",
    ]
    assert (
        run([*command, "-O", "path=/srv/models", "-O", "mount=/models", "-O", "key_name=models"]) == 0
    )
    (mount,) = tomllib.loads(capsys.readouterr().out)["fs"]["mounts"]
    document = render(APPLICATION, mount="/models", host_path="/srv/models")
    assert mount in document["fs"]["mounts"]
    assert document["loader"]["env"]["SECRET_PROVISION_SET_KEY"] == mount["key_name"]


# The image


def test_the_image():
    found = stages(GRAMINE / "Dockerfile")
    assert set(found) == {"gramine", "signed", "signature", "serve-sgx"}
    text = (GRAMINE / "Dockerfile").read_text()
    # The key that signs comes from outside, into one step, and stays in none.
    assert text.count("enclave-key,required=true") == 1
    assert not re.search(r"^(COPY|ADD) .*key\.pem", text, re.M)
    assert "gramine-sgx-gen-private-key" not in text
    last = dict(found["serve-sgx"])
    assert last["USER"] == "65533:65532"
    assert last["ENTRYPOINT"] == '["gramine-sgx", "serve"]'
    assert last["CMD"] == "[]"  # that of the image below would be arguments
    # What it starts from is what deploy/Dockerfile makes.
    assert "serve" in stages(DEPLOY / "Dockerfile")
    ignored = (GRAMINE / "Dockerfile.dockerignore").read_text().splitlines()
    for name, rest in found["gramine"] + found["signed"]:
        if name == "COPY":
            source = rest.split()[0]
            assert (GRAMINE / source).exists()
            assert f"!{source}" in ignored
    left_out = (GRAMINE / ".gitignore").read_text().split()
    assert "/enclave-key.pem" in left_out


def test_the_page_names_what_is_there():
    page = (ROOT / "docs" / "how-to" / "serve-in-gramine.md").read_text()
    for path in (SERVE, APPLICATION, GRAMINE / "Dockerfile"):
        assert path.name in page
    for name in re.findall(r"deploy/gramine/([\w./-]+)", page):
        assert (GRAMINE / name).exists() or f"/{name}" in (
            GRAMINE / ".gitignore"
        ).read_text().split(), name
    assert yaml.safe_load((GRAMINE / "config" / "models.yaml").read_text())
