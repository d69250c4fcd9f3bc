"""Whatever deploy/ has somebody run exists, with the options that it gives, and reads what lies there."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from manifests import (
    COMPOSE,
    DEPLOY,
    KUBERNETES,
    ROOT,
    SYSTEMD,
    command_lines,
    compose,
    option,
    stages,
    unit,
)

from strongroom.cli.app import app
from strongroom.keycache.config import read_config
from strongroom.keyserver.config import load_config
from strongroom.keyserver.init import Wanted, initialise
from strongroom.keyserver.routes.health import router
from strongroom.keyserver.settings import Listen as KeyServerListen
from strongroom.serving.config_files import read_models
from strongroom.serving.settings import Listen

COMMANDS = command_lines()
OURS = [(where, words) for where, words in COMMANDS if words[0] == "strongroom"]
OTHERS = {"pg_isready", "chown", "chmod", "probe"}
"""Of PostgreSQL's image, of coreutils in every Debian, and deploy/probe.py."""


def parse(words):
    import typer

    command, title = typer.main.get_command(app), words[0]
    words = words[1:]
    while hasattr(command, "commands"):
        title, command, words = f"{title} {words[0]}", command.commands[words[0]], words[1:]
    return command.make_context(title, list(words))


@pytest.mark.parametrize(("where", "words"), OURS, ids=[where for where, _ in OURS])
def test_command_lines_parse(where, words):
    parse(words)


def test_command_lines_are_found_and_wrong_ones_refused():
    assert len(COMMANDS) > 30
    assert {words[0] for _, words in COMMANDS} == {"strongroom", *OTHERS}
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["strongroom", "keycache", "run", "--sockets", "x"])


def test_probes_ask_for_what_is_there():
    asked = set()
    sockets = set()
    for _, words in COMMANDS:
        if words[0] == "probe" and words[1].startswith("unix://"):
            sockets.add(words[1].removeprefix("unix://"))
        elif words[0] == "probe":
            port, path = re.fullmatch(r"https?://127.0.0.1:(\d+)(/\w+)", words[1]).groups()
            asked.add((int(port), path))
    paths = {route.path for route in router.routes}
    managed = {option(words, "--management-port") for _, words in OURS if words[1] == "serve"}
    for port, path in asked:
        assert path in {"/healthz", "/readyz"} & paths
        assert port == KeyServerListen().port or str(port) in managed
    assert len(asked) == 2
    assert sockets == {"/run/strongroom/keys.sock"}


def test_environment_variables_are_documented_ones():
    page = (ROOT / "docs" / "reference" / "environment-variables.md").read_text()
    documented = set(re.findall(r"^\| `(STRONGROOM_\w+)` \|", page, re.M))
    used = set()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "kserve" not in path.parts:
            used |= set(re.findall(r"\bSTRONGROOM_[A-Z_]+\b", path.read_text()))
    assert used
    assert used <= documented


# Configurations


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.rglob("keycache.toml")), ids=lambda path: str(path.relative_to(DEPLOY))
)
def test_configurations_of_the_cache_are_read(path, monkeypatch):
    users = {"strongroom-serve": 991}
    monkeypatch.setattr(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=users[name]))
    found = read_config(path)
    assert found.socket == "/run/strongroom/keys.sock"
    assert os.path.basename(found.server) == "keyserver.json"
    assert found.allow.uids in ({65533}, {991})


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.rglob("models.yaml")), ids=lambda path: str(path.relative_to(DEPLOY))
)
def test_models_are_read(path):
    (model,) = read_models(path)
    assert model.batching is not None


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """What init makes for a database of its own, where the pages need none."""
    place = tmp_path_factory.mktemp("init") / "keys"
    return initialise(
        place, Wanted("https://keyserver:8443", kek_key_file=place.parent / "root.kek")
    ).config.parent


def test_the_secret_of_kubernetes_has_all_that_the_configuration_names(keys, tmp_path):
    manifest = yaml.safe_load((KUBERNETES / "base" / "keyserver" / "stateful-set.yaml").read_text())
    volumes = {one["name"]: one for one in manifest["spec"]["template"]["spec"]["volumes"]}
    # As the page has it made, where the database is another one than here.
    page = (ROOT / "docs" / "how-to" / "deploy-kubernetes.md").read_text()
    (edit,) = re.findall(r"^sed -i .* keys/keyserver.toml$", page, re.M)
    subprocess.run(["bash", "-c", edit], cwd=keys.parent, check=True)
    text = (keys / "keyserver.toml").read_text()
    text = re.sub("^url = .*", 'url_file = "database.url"', text, flags=re.M)
    sources = {
        "keyserver.toml": text,
        "database.url": "postgresql://strongroom@db/strongroom",
        "root.kek": "",
        "server.pem": "",
        "server.key": "",
    }
    for item in volumes["server"]["secret"]["items"]:
        target = tmp_path / item["path"]
        target.parent.mkdir(exist_ok=True)
        target.write_text(sources.pop(item["key"]))
    assert not sources
    config = load_config(tmp_path / "keyserver.toml")
    for path in (
        config.tls.certificate,
        config.tls.key,
        config.database.url_file,
        Path(config.kek.source[5:]),
    ):
        assert path.is_file(), path
    mounts = manifest["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    writable = [one["mountPath"] for one in mounts if not one.get("readOnly")]
    assert str(config.audit.anchor.parent) in writable


def test_compose_makes_the_key_server_that_it_runs():
    services = compose()["services"]
    made, ran = services["init"]["command"], services["keyserver"]["command"]
    assert option(ran, "-c") == f"{made[2]}/keyserver.toml"
    secrets = {f"/run/secrets/{one}" for one in services["init"]["secrets"]}
    assert option(made, "--passphrase-file") in secrets
    assert option(made, "--database").partition("passfile=")[2] in secrets
    # A name by which the others reach it.
    assert option(made, "--url") == f"https://keyserver:{KeyServerListen().port}"


def test_ports_are_those_of_the_servers():
    listen, port = Listen(), KeyServerListen().port
    exposed = {
        name: rest
        for stage in stages(DEPLOY / "Dockerfile").items()
        for name, rest in [(stage[0], next((rest for name, rest in stage[1] if name == "EXPOSE"), ""))]
    }
    assert exposed["keyserver"] == str(port)
    assert exposed["serve"] == f"{listen.grpc_port} {listen.rest_port}"
    services = compose()["services"]
    assert services["keyserver"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert services["serve"]["ports"] == [
        f"127.0.0.1:{one}:{one}" for one in (listen.grpc_port, listen.rest_port)
    ]
    for where, words in OURS:
        if words[1] == "serve":
            for name, right in (("--rest-port", listen.rest_port), ("--grpc-port", listen.grpc_port)):
                assert option(words, name) in (None, str(right)), where


# The image, as far as it goes without one


def test_what_the_image_copies_is_there_and_not_ignored(tmp_path):
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = set()
    for lines in stages(DEPLOY / "Dockerfile").values():
        for name, rest in lines:
            if name == "COPY" and not rest.startswith("--from="):
                copied |= set(rest.split()[:-1])
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    for one in copied:
        assert (ROOT / one).exists(), one


def test_users_agree():
    """The model server is who the cache allows, in the group to which the socket belongs."""
    found = stages(DEPLOY / "Dockerfile")
    users = {name: dict(found[name])["USER"] for name in ("keyserver", "keycache", "serve")}
    assert users == {"keyserver": "65532:65532", "keycache": "65532:65532", "serve": "65533:65532"}
    services = compose()["services"]
    assert services["serve"]["user"] == users["serve"]
    assert services["keycache"]["user"] == services["keyserver"]["user"] == users["keycache"]
    assert read_config(COMPOSE / "config" / "keycache.toml").allow.uids == {65533}
    units = {path.stem: dict(unit(path)) for path in SYSTEMD.glob("*.service")}
    assert units["strongroom-keycache"]["Group"] == units["strongroom-serve@"]["Group"]
    assert f'"{units["strongroom-serve@"]["User"]}"' in (SYSTEMD / "keycache.toml").read_text()
