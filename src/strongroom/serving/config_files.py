"""Which models to serve: ``models.yaml``, TensorFlow Serving's own file, and the command line.

``models.yaml`` has one member, ``models``, a list; its members are those of :class:`.config.ModelConfig`::

    models:
      - name: resnet50
        path: /models/resnet50        # a sealed model, or a directory of versions
        key: https://keys.example/keys/resnet50
        versions: {latest: 2}         # or all, or {specific: [3, 5]}
        labels: {stable: 3}
        batching: {max_batch: 32, delay: 0.002}
        limits: {concurrency: 2, queue: 256, timeout: 60}
        clients: [{subject: "CN=camera-1"}]

Paths are relative to the working directory of the server, as in TensorFlow Serving's file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import yaml
from google.protobuf import text_format  # type: ignore[import-untyped]

from strongroom.errors import StrongroomError, UsageError, os_errors
from strongroom.serving.backends.registry import BACKENDS
from strongroom.serving.config import Batching, Cache, ClientRule, Limits, ModelConfig, VersionPolicy
from strongroom.serving.messages import message
from strongroom.serving.tensors import DTYPES, TensorSpec

__all__ = [
    "model_of_argument",
    "models_of_document",
    "models_of_message",
    "read_model_config_file",
    "read_models",
]

MAX_FILE: Final = 1 << 20
MAX_MODELS: Final = 10_000
_LARGEST: Final = 2**63 - 1

Read = Callable[[str, Any], Any]
"""From where a value is and the value to what it means; raises UsageError that names the place."""


def model_of_argument(argument: str) -> ModelConfig:
    """``name=path`` of the command line.

    Raises:
        UsageError: it is something else.
    """
    name, equals, path = argument.partition("=")
    if not equals or not path:
        raise UsageError(
            f"{argument!r} does not say which model to serve.",
            hint="Give name=path: resnet50=./resnet50.sealed",
        )
    return ModelConfig(name, path)


def read_models(path: str | os.PathLike[str]) -> list[ModelConfig]:
    """The models of a ``models.yaml``.

    Raises:
        NotFound, StorageError: it cannot be read.
        UsageError: it is not valid; the message names the member, such as ``models[0].batching.delay``.
    """
    try:
        return _parse_models(_read(path))
    except UsageError as error:
        error.within(os.fspath(path))
        raise


def read_model_config_file(path: str | os.PathLike[str]) -> list[ModelConfig]:
    """The models of a ``--model_config_file`` of TensorFlow Serving: a ModelServerConfig in text format.

    Raises:
        NotFound, StorageError: it cannot be read.
        UsageError: it is not one, or asks for what is not served.
    """
    config = message("tensorflow.serving.ModelServerConfig")()
    try:
        text_format.Parse(_read(path), config)
        return models_of_message(config)
    except text_format.ParseError as error:
        # Its words have the line in them: of a file that was named by mistake, perhaps a key.
        raise UsageError(
            f"{os.fspath(path)} is no ModelServerConfig in protobuf's text format: "
            f"line {error.GetLine()}, column {error.GetColumn()}."
        ) from None
    except UsageError as error:
        error.within(os.fspath(path))
        raise


def models_of_message(config: Any, known: Mapping[str, ModelConfig] | None = None) -> list[ModelConfig]:
    """The models of a ``tensorflow.serving.ModelServerConfig``.

    Args:
        config: the message.
        known: by name; those stay as they are in what the message cannot say: key, batching, limits,
            cache, clients.

    Raises:
        UsageError: it asks for what is not served.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise UsageError("Only a model_config_list is served.")
    return _distinct(
        [
            _of_message(f"model_config_list.config[{number}]", one, known or {})
            for number, one in enumerate(config.model_config_list.config)
        ]
    )


def _of_message(where: str, one: Any, known: Mapping[str, ModelConfig]) -> ModelConfig:
    if not one.base_path:
        raise UsageError(f"{where}.base_path is missing.")
    if one.HasField("logging_config"):
        raise UsageError(f"{where}.logging_config: requests are not logged with their contents.")
    if one.model_type not in (0, 1) or one.model_platform not in ("", "tensorflow"):
        raise UsageError(
            f"{where}: the platform {one.model_platform[:80] or 'OTHER'!r} is not known.",
            hint="Leave it out: the format of a model is found from its files.",
        )
    before = known.get(one.name) or _checked(where, lambda: ModelConfig(one.name, one.base_path))
    return replace(
        before,
        path=one.base_path,
        versions=_policy_of_message(f"{where}.model_version_policy", one.model_version_policy),
        labels=dict(one.version_labels),
    )


def _policy_of_message(where: str, policy: Any) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(all=True)
    if choice == "specific":
        if not policy.specific.versions or min(policy.specific.versions) < 0:
            raise UsageError(f"{where}.specific names no versions.")
        return VersionPolicy(specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions or 1)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without what makes files surprising: aliases, and a key that is there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _invalid("The file", "has an alias (*name), which is not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _invalid("The file", "has a member whose name is no text")
            if key.value in seen:
                raise _invalid("The file", f"has the member {key.value[:80]} twice in one place")
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _read(path: str | os.PathLike[str]) -> str:
    with os_errors(path), open(path, "rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise UsageError(f"{os.fspath(path)} is larger than {MAX_FILE} bytes.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{os.fspath(path)} is no text in UTF-8.") from None


def _parse_models(text: str) -> list[ModelConfig]:
    try:
        content = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"It is not YAML: {getattr(error, 'problem', None) or error}{place}."
        ) from None
    except (RecursionError, ValueError):
        raise UsageError("It is not YAML that can be read.") from None
    return models_of_document(content)


def models_of_document(content: Any) -> list[ModelConfig]:
    """The models of a ``models.yaml`` that has been read already.

    Raises:
        UsageError: it is not valid; the message names the member.
    """
    members = _members("The file", content, {"models": _list(_MODEL_CONFIG, MAX_MODELS)})
    if "models" not in members:
        raise UsageError("models is missing.")
    return _distinct(list(members["models"]))


def _distinct(models: list[ModelConfig]) -> list[ModelConfig]:
    names = [one.name for one in models]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"There are two models {twice}.")
    return models


def _invalid(where: str, problem: str, hint: str | None = None) -> UsageError:
    return UsageError(f"{where} {problem}.", hint=hint)


def _members(where: str, value: Any, known: Mapping[str, Read]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(where, "must have members")
    inside = "" if where == "The file" else f"{where}."
    for name in value:
        if name not in known:
            raise _invalid(f"{inside}{str(name)[:80]}", "is not known", "Known: " + ", ".join(known))
    return {name: known[name](f"{inside}{name}", one) for name, one in value.items()}


def _checked(where: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except StrongroomError as error:
        error.within(where)
        raise
    except TypeError:  # of a dataclass: a member without a default
        raise _invalid(where, "lacks a member that must be there") from None


def _record(kind: Callable[..., Any], known: Mapping[str, Read]) -> Read:
    return lambda where, value: _checked(where, lambda: kind(**_members(where, value, known)))


def _list(of: Read, most: int = 1000) -> Read:
    def read(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise _invalid(where, f"must be a list of at most {most}")
        return tuple(of(f"{where}[{number}]", one) for number, one in enumerate(value))

    return read


def _mapping(of: Read, most: int = 1000) -> Read:
    def read(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise _invalid(where, f"must have at most {most} members")
        return {_text(f"a name in {where}", name): of(f"{where}.{name}", value[name]) for name in value}

    return read


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 4096:
        raise _invalid(where, "must be text", "What looks like a number or a boolean needs quotes.")
    return value


def _integer(least: int, most: int) -> Read:
    def read(where: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _invalid(where, f"must be a whole number from {least} to {most}")
        return value

    return read


def _number(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e9:
        raise _invalid(where, "must be a number that is not negative")
    return float(value)


def _anything(where: str, value: Any) -> Any:
    return value


def _dtype(where: str, value: Any) -> str:
    if value not in DTYPES:
        raise _invalid(where, "must be a dtype", "One of " + ", ".join(DTYPES) + ".")
    return str(value)


def _backend(where: str, value: Any) -> str:
    if value not in BACKENDS:
        raise _invalid(where, "is no backend", "One of " + ", ".join(BACKENDS) + ".")
    return str(value)


def _shape(where: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    sizes: tuple[int, ...] = _list(_integer(-1, _LARGEST), most=64)(where, value)
    return sizes


def _versions(where: str, value: Any) -> VersionPolicy:
    if value == "all":
        return VersionPolicy(all=True)
    known = {"latest": _integer(1, 10_000), "specific": _list(_integer(0, _LARGEST))}
    if not isinstance(value, dict) or len(value) != 1:
        raise _invalid(where, "must be all, {latest: N} or {specific: [N, …]}")
    members = _members(where, value, known)
    if members.get("specific") == ():
        raise _invalid(f"{where}.specific", "names no versions")
    return VersionPolicy(**members)


_MANY: Final = 1_000_000
_SPECS: Final = _list(_record(TensorSpec, {"name": _text, "dtype": _dtype, "shape": _shape}))
_MODEL: Final[Mapping[str, Read]] = {
    **dict.fromkeys(("name", "path", "key"), _text),
    "backend": _backend,
    "file": _text,
    **dict.fromkeys(("inputs", "outputs"), _SPECS),
    "options": _mapping(_anything),
    "threads": _integer(0, 4096),
    "versions": _versions,
    "labels": _mapping(_integer(0, _LARGEST)),
    "batching": _record(Batching, {"max_batch": _integer(1, _MANY), "delay": _number}),
    "limits": _record(
        Limits,
        {"concurrency": _integer(1, 4096), "queue": _integer(0, _MANY), "timeout": _number},
    ),
    "cache": _record(Cache, {"bytes": _integer(1, 1 << 50), "seconds": _number}),
    "warm_up": _integer(0, 1000),
    "clients": _list(
        _record(
            ClientRule,
            {
                **dict.fromkeys(("subject", "name", "token_sha256"), _text),
                "requests_per_second": _number,
            },
        ),
        10_000,
    ),
}
_MODEL_CONFIG: Final = _record(ModelConfig, _MODEL)
