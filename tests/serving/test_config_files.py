"""What a server is to serve: models.yaml, TensorFlow Serving's file, the command line."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import NotFound, UsageError
from strongroom.serving.config import Batching, ClientRule, Limits, ModelConfig, VersionPolicy
from strongroom.serving.config_files import (
    model_of_argument,
    models_of_message,
    read_model_config_file,
    read_models,
)
from strongroom.serving.messages import message
from strongroom.serving.tensors import TensorSpec

WHOLE = """
models:
  - name: resnet50
    path: /models/resnet50
    key: https://keys.example/keys/resnet50
    backend: onnx
    file: model.onnx
    inputs: [{name: x, dtype: float32, shape: [-1, 3, 224, 224]}]
    outputs: [{name: y, dtype: float32, shape: null}]
    options: {providers: [CPUExecutionProvider], deep: {a: [1]}}
    threads: 2
    versions: {specific: [3, 5]}
    labels: {stable: 3}
    batching: {max_batch: 8, delay: 0.002}
    limits: {concurrency: 1, queue: 16, timeout: 5}
    warm_up: 3
    clients: [{subject: "CN=camera-1", requests_per_second: 10}, {name: edge.example}]
  - {name: mlp, path: mlp.sealed, versions: all}
"""


@pytest.fixture
def file(tmp_path):
    def write(content, name="models.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_everything_of_a_model(file):
    first, second = read_models(file(WHOLE))
    assert first == ModelConfig(
        "resnet50",
        "/models/resnet50",
        key="https://keys.example/keys/resnet50",
        backend="onnx",
        file="model.onnx",
        inputs=(TensorSpec("x", "float32", (-1, 3, 224, 224)),),
        outputs=(TensorSpec("y", "float32", None),),
        options={"providers": ["CPUExecutionProvider"], "deep": {"a": [1]}},
        threads=2,
        versions=VersionPolicy(specific=(3, 5)),
        labels={"stable": 3},
        batching=Batching(8, 0.002),
        limits=Limits(1, 16, 5.0),
        warm_up=3,
        clients=(
            ClientRule(subject="CN=camera-1", requests_per_second=10.0),
            ClientRule(name="edge.example"),
        ),
    )
    assert second == ModelConfig("mlp", "mlp.sealed", versions=VersionPolicy(all=True))


def of_one(member):
    return f"models: [{{name: m, path: p, {member}}}]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "The file must have members"),
        ("[]", "The file must have members"),
        ("{}", "models is missing"),
        ("models: {}", "models must be a list"),
        ("models: [1]", "models[0] must have members"),
        ("modls: []", "modls is not known"),
        ("models: [{name: m}]", "models[0] lacks a member"),
        ("models: [{name: 1, path: p}]", "models[0].name must be text"),
        ("models: [{name: 'a b', path: p}]", "models[0]: 'a b' is no name"),
        ("models: [{name: m, path: p}, {name: m, path: q}]", "two models m"),
        ("models: [{name: m, path: p, name: q}]", "has the member name twice"),
        ("models: [{name: m, path: p, [1]: q}]", "a member whose name is no text"),
        (of_one("batch: 1"), "models[0].batch is not known"),
        (of_one("batching: {dely: 1}"), "models[0].batching.dely is not known"),
        (of_one("batching: {delay: 11}"), "models[0].batching: Batching takes"),
        (of_one("batching: {delay: .nan}"), "models[0].batching.delay must be a number"),
        (of_one("batching: {max_batch: true}"), "models[0].batching.max_batch must be a whole number"),
        (of_one("limits: {concurrency: 0}"), "models[0].limits.concurrency must be a whole number"),
        (of_one("versions: {latest: 0}"), "models[0].versions.latest must be"),
        (of_one("versions: {specific: []}"), "models[0].versions.specific names no versions"),
        (of_one("versions: {latest: 1, specific: [1]}"), "models[0].versions must be all"),
        (of_one("versions: some"), "models[0].versions must be all"),
        (of_one("backend: onxx"), "models[0].backend is no backend"),
        (of_one("labels: {stable: x}"), "models[0].labels.stable must be a whole number"),
        (of_one("labels: {1: 1}"), "a name in models[0].labels must be text"),
        (
            of_one("inputs: [{name: x, dtype: float128, shape: []}]"),
            "models[0].inputs[0].dtype must be",
        ),
        (of_one("inputs: [{name: x, dtype: int8, shape: [-2]}]"), "models[0].inputs[0].shape[0] must"),
        (of_one("inputs: [{name: x, dtype: int8}]"), "models[0].inputs[0] lacks a member"),
        (of_one("clients: [{}]"), "models[0].clients[0]: A rule for clients names one"),
        (of_one('path: "a\\0b"').replace("path: p, ", ""), "models[0].path must be text"),
        ("models: &a [*a]", "alias"),
        ("models: !!python/object/apply:os.system ['true']", "not YAML"),
        ("models: [", "not YAML"),
        ("a: 1\n\tb: 2", "not YAML"),
        ("[" * 100_000, "not YAML"),
        ("a: 2001-99-99", "not YAML"),
    ],
    ids=range(36),
)
def test_a_file_that_is_not_valid_says_where(file, text, says):
    path = file(text)
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        read_models(path)
    assert str(path) in caught.value.message


def test_a_file_that_cannot_be_read(file, tmp_path):
    with pytest.raises(NotFound):
        read_models(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="larger than 1048576 bytes"):
        read_models(file("#" * (1 << 20) + "\n"))
    with pytest.raises(UsageError, match="no text in UTF-8"):
        read_models(file(b"models: [\xff]"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_content_makes_anything_but_a_usage_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    for read in (read_models, read_model_config_file):
        with suppress(UsageError):
            assert isinstance(read(path), list)


TFS = """
model_config_list {
  config { name: 'first' base_path: '/models/first' model_platform: 'tensorflow'
           model_version_policy { specific { versions: 42 versions: 43 } }
           version_labels { key: 'stable' value: 42 }
           version_labels { key: 'canary' value: 43 } }
  config { name: "second" base_path: "/models/second" model_version_policy { latest { num_versions: 2 } } }
  config { name: "third" base_path: "/models/third" model_version_policy: { all: {} } }
  config { name: "fourth" base_path: "/models/fourth" }
}
"""


def test_a_file_of_tensorflow_serving(file):
    assert read_model_config_file(file(TFS, "models.config")) == [
        ModelConfig(
            "first",
            "/models/first",
            versions=VersionPolicy(specific=(42, 43)),
            labels={"stable": 42, "canary": 43},
        ),
        ModelConfig("second", "/models/second", versions=VersionPolicy(latest=2)),
        ModelConfig("third", "/models/third", versions=VersionPolicy(all=True)),
        ModelConfig("fourth", "/models/fourth"),
    ]


def test_the_messages_are_those_of_tensorflow_serving(file):
    """What its own client library writes is read, byte by byte."""
    theirs = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    sent = text_format.Parse(TFS, theirs.ModelServerConfig())
    ours = message("tensorflow.serving.ModelServerConfig").FromString(sent.SerializeToString())
    assert models_of_message(ours) == read_model_config_file(file(TFS, "models.config"))
    assert ours.SerializeToString(deterministic=True) == sent.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Only a model_config_list"),
        ("model_config_list { config { name: 'm' } }", "config[0].base_path is missing"),
        ("model_config_list { config { name: 'a b' base_path: 'p' } }", "'a b' is no name"),
        ("model_config_list { config { nam: 'm' } }", "text format: line 1, column"),
        ("model_config_list {", "text format: line 1, column"),
        (
            "model_config_list { config { name: 'm' base_path: 'p' model_platform: 'caffe' } }",
            "'caffe'",
        ),
        (
            "model_config_list { config { name: 'm' base_path: 'p' logging_config {} } }",
            "config[0].logging_config",
        ),
        (
            "model_config_list { config { name: 'm' base_path: 'p' model_version_policy {specific {}} } }",
            "names no versions",
        ),
        (
            "model_config_list { config { name: 'm' base_path: 'p' } config { name: 'm' base_path: 'p' } }",
            "two models m",
        ),
        ("custom_model_config { type_url: 'a/b' }", "Only a model_config_list"),
    ],
    ids=range(10),
)
def test_a_file_of_tensorflow_serving_that_is_not_valid(file, text, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        read_model_config_file(file(text, "models.config"))


def test_a_reload_keeps_what_its_message_cannot_say():
    known = ModelConfig("m", "old", key="env:KEY", batching=Batching(4), labels={"stable": 1})
    config = message("tensorflow.serving.ModelServerConfig")()
    config.model_config_list.config.add(name="m", base_path="new")
    config.model_config_list.config.add(name="n", base_path="other")
    assert models_of_message(config, {"m": known}) == [
        ModelConfig("m", "new", key="env:KEY", batching=Batching(4)),
        ModelConfig("n", "other"),
    ]


def test_a_model_of_the_command_line():
    assert model_of_argument("resnet50=./a=b.sealed") == ModelConfig("resnet50", "./a=b.sealed")
    for wrong in ("resnet50", "resnet50=", "=path", "a b=path"):
        with pytest.raises(UsageError):
            model_of_argument(wrong)
