"""Ray Serve on a Ray of two processors, with keys from the cache of its node (make test-integrations)."""

import base64
import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray.serve", reason="Ray has an environment of its own: make test-integrations")

import psutil
import ray
import yaml
from caches import Cache, eventually
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from release_stub import StubServer
from sealed_models import MARK, X, seal

from ports import held_port
from strongroom.errors import UsageError
from strongroom.integrations import ray as ours
from strongroom.serving.config import ModelConfig
from strongroom.serving.status import Code, RequestError

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, and those of what it brings

TOKEN = "a-token-of-a-client"
SMALL = {"num_cpus": 0.1}


class Node:
    """One Ray with Serve, a key server and the cache that asks it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "run").mkdir(mode=0o755)
        self.stub = StubServer(place / "stub")
        self.cache = Cache(place / "run" / "keys.sock", self.stub.profile_file).start()
        self.port = held_port()

    def start(self):
        ray.init(
            num_cpus=2,
            object_store_memory=80 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self.place / "ray"),
        )
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})
        return self

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def replicas(self, name="SealedModels"):
        """Processes of the replicas that run."""
        found = []
        for one in psutil.Process().children(recursive=True):
            try:
                if f":{name}" in " ".join(one.cmdline()):
                    found.append(one)
            except psutil.Error:
                continue
        return found

    def stop(self):
        try:
            serve.shutdown()
            ray.shutdown()
        finally:  # where Ray has not started, too
            self.cache.stop()
            self.stub.stop()


@pytest.fixture(scope="module")
def node():
    # Sockets have paths of 107 bytes at most.
    place = Path(tempfile.mkdtemp(prefix="ray-"))
    patch = pytest.MonkeyPatch()
    for name, value in {
        "HOME": str(place),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parent),
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Else ten seconds, for each.
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    }.items():
        patch.setenv(name, value)
    made = Node(place)
    try:
        yield made.start()
    finally:
        made.stop()
        patch.undo()
        shutil.rmtree(place)


def deploy(*applications):
    """As ``serve run`` and ``serve deploy`` do with a configuration file."""
    config = ServeDeploySchema.model_validate({"applications": list(applications)})
    _get_global_client().deploy_apps(config, _blocking=True)


@pytest.fixture(scope="module")
def handle(node):
    """Two replicas of two models, out of a configuration file."""
    models = node.place / "models"
    seal(node.stub, models / "resnet" / "1" / "m.sealed", "resnet")
    seal(node.stub, models / "ruled" / "m.sealed", "ruled", factor=3)
    args = {
        "key": node.cache.uri,
        "poll": 0.2,
        "max_request_bytes": 1 << 20,
        "models": [
            {"name": "resnet", "path": str(models / "resnet")},
            {
                "name": "ruled",
                "path": str(models / "ruled" / "m.sealed"),
                "clients": [{"token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}],
            },
        ],
    }
    deploy(
        {
            "name": "models",
            "route_prefix": "/models",
            "import_path": "strongroom.integrations.ray:build",
            "args": args,
            "deployments": [
                {
                    "name": "SealedModels",
                    "num_replicas": 2,
                    "health_check_period_s": 1,  # of ten, so long is who is killed not missed
                    "ray_actor_options": SMALL,
                },
            ],
        }
    )
    return serve.get_app_handle("models")


def test_tensorflow_serving_api(node, handle):
    body = json.dumps({"instances": X.tolist()})
    status, _, found = node.ask("POST", "/models/v1/models/resnet:predict", body)
    assert (status, json.loads(found)) == (200, {"predictions": (2 * X).tolist()})
    status, _, found = node.ask("GET", "/models/v1/models/resnet")
    assert json.loads(found)["model_version_status"][0]["state"] == "AVAILABLE"


def test_open_inference_protocol(node, handle):
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 16], "data": X.ravel().tolist()}
    body = json.dumps({"id": "7", "inputs": [tensor]})
    status, _, found = node.ask("POST", "/models/v2/models/resnet/infer", body)
    answer = json.loads(found)
    assert (status, answer["id"], answer["outputs"][0]["data"]) == (200, "7", (2 * X).ravel().tolist())
    for path in ("/models/v2/models/resnet/ready", "/models/v2/health/ready", "/models/readyz"):
        assert node.ask("GET", path)[0] == 200


def test_binary_tensors_of_a_size_that_is_sent_in_pieces(node, handle):
    x = np.arange(16 << 10, dtype=np.float32).reshape(-1, 16)
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape}
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    text = json.dumps(request).encode()
    length = {"Inference-Header-Content-Length": str(len(text))}
    status, headers, found = node.ask(
        "POST", "/models/v2/models/resnet/infer", text + x.tobytes(), length
    )
    assert status == 200
    data = found[int(headers["inference-header-content-length"]) :]
    assert np.array_equal(np.frombuffer(data, np.float32), 2 * x.ravel())


def test_what_clients_do_wrong(node, handle):
    for method, path, body, status in (
        ("POST", "/models/v1/models/resnet:predict", "{", 400),
        ("POST", "/models/v1/models/resnet:predict", json.dumps({"instances": [[1, 2]]}), 400),
        ("POST", "/models/v2/models/other/infer", json.dumps({"inputs": []}), 404),
        ("POST", "/models/v2/models/resnet/infer", b" " * (2 << 20), 413),
        ("POST", "/models/v2/repository/models/resnet/unload", None, 403),
        ("GET", "/models/metrics", None, 404),
    ):
        found, _, text = node.ask(method, path, body)
        assert (found, list(json.loads(text))) == (status, ["error"]), path


def test_rules_for_clients(node, handle):
    body, path = json.dumps({"instances": X.tolist()}), "/models/v1/models/ruled:predict"
    assert node.ask("POST", path, body)[0] == 401
    assert node.ask("POST", path, body, {"Authorization": "Bearer other"})[0] == 403
    status, _, found = node.ask("POST", path, body, {"Authorization": f"Bearer {TOKEN}"})
    assert (status, json.loads(found)["predictions"]) == (200, (3 * X).tolist())


def test_a_handle(handle):
    answer = handle.predict.remote({"x": X}, model="resnet").result()
    assert np.array_equal(answer["y"], 2 * X)
    large = np.ones((64 << 10, 16), np.float32)  # by the object store
    answer = handle.predict.remote({"x": large}, model="resnet", outputs=["y"]).result()
    assert np.array_equal(answer["y"], 2 * large)
    found = handle.describe.remote("resnet").result()
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    states = handle.status.remote().result()
    assert {name: [one["state"] for one in found] for name, found in states.items()} == {
        "resnet": ["AVAILABLE"],
        "ruled": ["AVAILABLE"],
    }


@pytest.mark.parametrize(
    ("inputs", "more", "code"),
    [
        ({"y": X}, {"model": "resnet"}, Code.INVALID_ARGUMENT),
        ({"x": X.astype(np.float64)}, {"model": "resnet"}, Code.INVALID_ARGUMENT),
        ({"x": [[1.0], [1.0, 2.0]]}, {"model": "resnet"}, Code.INVALID_ARGUMENT),
        ({"x": [object()]}, {"model": "resnet"}, Code.INVALID_ARGUMENT),
        ({"x": X}, {"model": "other"}, Code.NOT_FOUND),
        ({"x": X}, {"model": "resnet", "version": 9}, Code.NOT_FOUND),
    ],
)
def test_what_a_handle_refuses(handle, inputs, more, code):
    with pytest.raises(RequestError) as caught:
        handle.predict.remote(inputs, **more).result()
    assert caught.value.cause.code is code


def test_a_handle_names_the_model_where_there_are_several(handle):
    with pytest.raises(UsageError, match="resnet, ruled"):
        handle.predict.remote({"x": X}).result()


def test_replicas_leave_no_core_dumps(node, handle):
    replicas = node.replicas()
    assert len(replicas) == 2
    assert {one.rlimit(psutil.RLIMIT_CORE)[0] for one in replicas} == {0}


def test_the_cache_of_the_node_is_asked_and_the_server_once(node, handle):
    served = {one["name"]: one["served"] for one in node.cache.status()["leases"]}
    assert served.keys() == {"resnet", "ruled"}
    assert min(served.values()) >= 2
    assert node.stub.count("/v1/release") == 2


def test_a_killed_replica_is_replaced_without_the_key_server(node, handle):
    before = {one.pid for one in node.replicas()}
    assert len(before) == 2
    node.stub.stop()
    try:
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len({one.pid for one in node.replicas()} - before) == 2, 120)

        def answers():
            try:
                return handle.predict.remote({"x": X}, model="resnet").result(timeout_s=60)
            except (ray.exceptions.RayError, TimeoutError):
                return None

        eventually(answers, 120)
        eventually(lambda: node.ask("GET", "/models/v2/models/resnet/ready")[0] == 200, 120)
        eventually(lambda: min(one["served"] for one in node.cache.status()["leases"]) >= 4, 120)
        assert {one.pid for one in node.replicas()}.isdisjoint(before)
    finally:
        node.stub.start()


def test_a_new_version_comes_to_every_replica(node, handle):
    seal(node.stub, node.place / "models" / "resnet" / "2" / "m.sealed", "resnet", factor=5)

    def newest():
        answers = [handle.predict.remote({"x": X}, model="resnet") for _ in range(8)]
        return all(np.array_equal(one.result()["y"], 5 * X) for one in answers)

    eventually(newest, 60)


def test_a_refused_key_is_what_the_deployment_says(node, handle):
    place = seal(node.stub, node.place / "models" / "refused" / "m.sealed", "refused")
    node.stub.refuse["refused"] = "policy"
    app = ours.application(
        f"refused={place}", key=node.cache.uri, max_constructor_retry_count=1, ray_actor_options=SMALL
    )
    with pytest.raises(RuntimeError):
        serve.run(app, name="refused", route_prefix="/refused")
    (status,) = serve.status().applications["refused"].deployments.values()
    assert status.status == "DEPLOY_FAILED"
    assert "Version 1 of refused cannot be loaded" in status.message
    serve.delete("refused")


def test_autoscaling(node, handle):
    place = seal(node.stub, node.place / "models" / "slow" / "m.sealed", "slow")
    slow = ModelConfig("slow", str(place), backend="python", options={"class": "slow_model:Slow"})
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0.5,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1.0,
    }
    app = ours.application(
        slow, key=node.cache.uri, name="Slow", autoscaling_config=scaling, ray_actor_options=SMALL
    )
    found = serve.run(app, name="slow", route_prefix="/slow")

    def two():
        answers = [found.predict.remote({"x": X}) for _ in range(8)]
        assert all(np.array_equal(one.result()["y"], X) for one in answers)
        return len(node.replicas("Slow")) == 2

    eventually(two, 120)
    serve.delete("slow")


def test_no_key_and_no_plaintext_lies_where_ray_keeps_things(node, handle):
    keys = [dek for versions in node.stub.keys.values() for _, dek in versions]
    assert len(keys) >= 4
    secrets = [MARK]
    for key in keys:
        secrets += [key, key.hex().encode(), base64.b64encode(key)[:40]]
        secrets.append(base64.urlsafe_b64encode(key)[:40])
    looked = 0
    for path in _kept(node):
        try:
            content = path.read_bytes()
        except OSError:  # sockets, and what goes meanwhile
            continue
        looked += len(content)
        assert not [one for one in secrets if one in content], path
    assert looked > 80 << 20


def _kept(node):
    """Logs and other files of Ray, and the memory of its object store, which is a file without a name."""
    yield from (
        one for one in (node.place / "ray").rglob("*") if one.is_file() and not one.is_symlink()
    )
    (raylet,) = [one for one in psutil.Process().children(recursive=True) if _name(one) == "raylet"]
    for one in Path(f"/proc/{raylet.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            if "plasma" in os.readlink(one):
                yield one


def _name(process):
    with contextlib.suppress(psutil.Error):  # workers come and go
        return process.name()
    return None


def test_the_configuration_file_of_the_page_is_one():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve-on-ray.md"
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.M | re.S)
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (found,) = config.applications
    assert found.import_path == f"{ours.build.__module__}:{ours.build.__name__}"
    assert isinstance(ours.build(found.args), serve.Application)


@pytest.mark.parametrize("key", [b"0" * 32, "A" * 43, "hpke-x25519-secret:AAAA"])
def test_a_key_itself_is_refused_where_the_deployment_is_made(key):
    with pytest.raises(UsageError) as caught:
        ours.application("m=/m.sealed", key=key)
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"models": [{"name": "m", "path": "/m"}, {"name": "m", "path": "/n"}]},
        {"models": [{"name": "m", "path": "/m"}], "keys": "unix:///run/keys.sock"},
        {"models": [{"name": "m", "path": "/m", "keys": "x"}]},
    ],
)
def test_arguments_that_mean_nothing(args):
    with pytest.raises(UsageError):
        ours.build(args)
