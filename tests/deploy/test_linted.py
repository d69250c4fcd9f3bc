"""What the linters of others say: hadolint, yamllint, the schema of Compose, systemd-analyze."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import COMPOSE, DEPLOY, SYSTEMD, compose, compose_overrides, unit

EXPOSURE = 20
MOUNTING = 40
"""Tenths that systemd-analyze may find a service exposed, of a hundred; and one whose mounts others shall see."""


def tool(name):
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed")
    return path


def lint(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "gramine/Dockerfile"])
def test_the_dockerfiles(name):
    lint(tool("hadolint"), "--failure-threshold", "info", DEPLOY / name)


def test_yaml():
    lint(tool("yamllint"), "--strict", "--config-file", DEPLOY / ".yamllint.yaml", DEPLOY)


# Compose


def schema():
    found = importlib.util.find_spec("check_jsonschema")
    if found is None:
        pytest.skip("check_jsonschema, which has the schema of Compose, is not installed")
    return Path(found.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"


@pytest.mark.parametrize(
    "path", [COMPOSE / "compose.yaml", *compose_overrides()], ids=lambda path: path.name
)
def test_compose_files_are_valid(path):
    import jsonschema

    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(schema().read_text()))


def test_services_of_compose_are_confined():
    document = compose()
    for name, one in document["services"].items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one["user"])
        assert {"mem_limit", "cpus", "pids_limit"} <= set(one)
        assert "privileged" not in one
        assert "cap_add" not in one
        assert "healthcheck" in one or name == "init"
        for port in one.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for text in one.get("environment", {}).values():
            assert "://" not in text or text.startswith("unix://")
        if name != "postgres":
            assert one["ulimits"]["core"] == 0
    # Whoever serves models reaches neither keys nor database but by the socket.
    networks = {name: set(one["networks"]) for name, one in document["services"].items()}
    assert not networks["serve"] & (networks["keyserver"] | networks["keycache"])
    assert not networks["keycache"] & networks["postgres"]


def test_what_services_of_compose_name_is_there():
    document = compose()
    services = document["services"]
    for one in services.values():
        assert set(one.get("secrets", [])) <= set(document["secrets"])
        assert set(one["networks"]) <= set(document["networks"])
        assert set(one.get("depends_on", {})) <= set(services)
        for waited in one.get("depends_on", {}):
            assert "healthcheck" in services[waited]
        for volume in one.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                ignored = (COMPOSE / ".gitignore").read_text().splitlines()
                assert (
                    (COMPOSE / source).exists() or source[1:] in ignored or f"{source[1:]}/" in ignored
                ), source
            else:
                assert source in document["volumes"]
        build = one.get("build")
        if build is not None:
            assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()
            assert re.search(rf" AS {build['target']}$", (DEPLOY / "Dockerfile").read_text(), re.M)
    for secret in document["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    for path in compose_overrides():
        for name in yaml.safe_load(path.read_text())["services"]:
            assert name in services


# systemd


@pytest.fixture
def units(tmp_path):
    """The units with a program that is there; systemd-analyze looks for it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    found = []
    for path in sorted(SYSTEMD.glob("*.service")):
        text = path.read_text().replace("/opt/strongroom/bin/strongroom", sys.executable)
        target = tmp_path / path.name.replace("@", "@name")
        target.write_text(text)
        found.append(target)
    assert len(found) == 4
    return found


def test_units_are_what_systemd_knows(units):
    # A setting that is not known is a warning, and ignored: it says so.
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "strongroom" in line]
    assert (done.returncode, said) == (0, [])


def test_units_are_hardly_exposed(units):
    for path in units:
        threshold = MOUNTING if "mount" in path.name else EXPOSURE
        lint(
            "systemd-analyze",
            "security",
            "--no-pager",
            "--offline=true",
            f"--threshold={threshold}",
            path,
        )


def test_what_is_wrong_in_a_unit_is_found(units):
    path = units[0]
    path.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    assert "ProtectSystm" in done.stderr


@pytest.mark.parametrize("name", ["attester-tpm.conf", "attester-tsm.conf"])
def test_drop_ins_are_what_systemd_knows(units, tmp_path, name):
    (path,) = [one for one in units if "keycache" in one.name]
    # As its first line says where it goes.
    place = re.match(
        r"# /etc/systemd/system/(\S+\.service\.d/\S+\.conf): ", (SYSTEMD / name).read_text()
    )[1]
    target = tmp_path / place
    target.parent.mkdir()

    def said(text):
        target.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", path],
            env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
            capture_output=True,
            text=True,
            check=False,
        )
        return [line for line in done.stderr.splitlines() if "strongroom" in line]

    text = (SYSTEMD / name).read_text()
    assert said(text) == []
    assert said(text + "PrivateDevises=no\n")


def test_drop_ins_change_settings_that_are_there():
    settings = dict(unit(SYSTEMD / "strongroom-keycache.service"))
    for path in SYSTEMD.glob("attester-*.conf"):
        assert set(dict(unit(path))) - set(settings) <= {
            "SupplementaryGroups",
            "DevicePolicy",
            "DeviceAllow",
            "ReadWritePaths",
        }
