"""What deploy/ says, read: images, Compose, Kubernetes, systemd; and the command lines in all of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"
OVERLAYS = ("base", *sorted(f"overlays/{one.name}" for one in (KUBERNETES / "overlays").iterdir()))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile: name and the rest, with its continuations."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    return [
        (name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def stages(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Of a Dockerfile: the instructions of each stage, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions(path):
        if name == "FROM":
            current = found.setdefault(rest.split(" AS ")[1], [])
        elif found:
            current.append((name, rest))
    return found


def compose() -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def compose_overrides() -> list[Path]:
    return sorted(COMPOSE.glob("compose.*.yaml"))


@cache
def kustomized(name: str) -> list[dict[str, Any]]:
    """The objects of an overlay, as kubectl builds them. Nobody changes them: all tests share them."""
    kubectl = shutil.which("kubectl") or shutil.which("kustomize")
    if kubectl is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    verb = "kustomize" if kubectl.endswith("kubectl") else "build"
    done = subprocess.run(
        [kubectl, verb, KUBERNETES / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def files_of_kubernetes() -> list[Path]:
    return sorted(KUBERNETES.rglob("*.yaml"))


def pod_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The pod of a workload."""
    return document["spec"]["template"]["spec"] if "template" in document.get("spec", {}) else None


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def unit(path: Path) -> list[tuple[str, str]]:
    """The settings of a unit, in order: systemd allows one name many times."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and line[0] not in "#;["]  # type: ignore[misc]


def _of_dockerfile() -> Iterator[tuple[str, list[str]]]:
    for stage, lines in stages(DEPLOY / "Dockerfile").items():
        for name, rest in lines:
            found = re.search(r"\[.*\]", rest)
            if name == "CMD" and found:
                yield f"Dockerfile {stage}: CMD", ["strongroom", *json.loads(found[0])]
            elif name == "HEALTHCHECK" and found:
                yield f"Dockerfile {stage}: HEALTHCHECK", json.loads(found[0])


def _of_compose() -> Iterator[tuple[str, list[str]]]:
    for path in (COMPOSE / "compose.yaml", *compose_overrides()):
        for name, service in yaml.safe_load(path.read_text())["services"].items():
            if "command" in service:
                yield f"{path.name} {name}: command", ["strongroom", *service["command"]]
            test = service.get("healthcheck", {}).get("test")
            if test is not None:
                assert test[0] == "CMD"
                yield f"{path.name} {name}: healthcheck", test[1:]


def _of_kubernetes() -> Iterator[tuple[str, list[str]]]:
    for path in files_of_kubernetes():
        text = path.read_text()
        # The patches that stand in a kustomization are text in it.
        inner = re.findall(r"patch: \|-\n((?:      .*\n|\n)+)", text)
        for part in [text, *inner]:
            for document in yaml.safe_load_all(part):
                pod = pod_of(document) if isinstance(document, dict) else None
                for one in containers_of(pod) if pod else []:
                    where = f"{path.relative_to(KUBERNETES)} {one['name']}"
                    if "args" in one:
                        yield f"{where}: args", ["strongroom", *one["args"]]
                    if "command" in one:
                        yield f"{where}: command", one["command"]
                    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                        command = (one.get(probe, {}).get("exec") or {}).get("command")
                        if command is not None:
                            yield f"{where}: {probe}", command


def _of_systemd() -> Iterator[tuple[str, list[str]]]:
    for path in sorted(SYSTEMD.glob("*.service")):
        settings = unit(path)
        variables = {"OPTIONS": ""}
        for name, value in settings:
            if name == "Environment":
                variables |= dict(one.split("=", 1) for one in shlex.split(value))
        for name, value in settings:
            if name == "ExecStart":
                program, *arguments = shlex.split(Template(value).substitute(variables))
                assert program == "/opt/strongroom/bin/strongroom"
                yield f"{path.name}: ExecStart", ["strongroom", *arguments]


def command_lines() -> list[tuple[str, list[str]]]:
    """Every command line in deploy/, with where it stands."""
    return [*_of_dockerfile(), *_of_compose(), *_of_kubernetes(), *_of_systemd()]


def option(words: list[str], *names: str) -> str | None:
    """The value of an option in a command line."""
    for index, word in enumerate(words):
        for name in names:
            if word == name:
                return words[index + 1]
            if word.startswith(name + "="):
                return word.partition("=")[2]
    return None
