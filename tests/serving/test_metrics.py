"""The numbers: histograms of runs, batches and queues, bounded in number; and who hears of which model."""

from __future__ import annotations

import hashlib
import json
import threading

import grpc
import pytest
from front_process import PREDICT
from prometheus_client.parser import text_string_to_metric_families

from strongroom.serving.counts import Counts
from strongroom.serving.messages import message
from strongroom.serving.metrics import Metrics
from strongroom.serving.states import State, VersionStatus

V2 = "/inference.GRPCInferenceService/"
TOKEN = {"authorization": "Bearer sesame"}
OURS = {"token_sha256": hashlib.sha256(b"sesame").hexdigest()}
THEIRS = {"token_sha256": hashlib.sha256(b"abracadabra").hexdigest()}


def numbers(text: str) -> dict[str, float]:
    """``name{label=value,…}`` → value, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
            found[f"{one.name.removeprefix('strongroom_serving_')}{{{labels}}}"] = one.value
    return found


def test_counts_are_prometheus_buckets():
    counts = Counts((1.0, 2.0, 4.0))
    for value in (1, 1, 2, 3, 9):
        counts.add(value)
    before = counts.copy()
    counts.add(100)
    assert before.buckets() == [("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 5)]
    assert (before.number, before.total) == (5, 16)
    assert counts.buckets()[-1] == ("+Inf", 6)


def test_runs_batches_and_queues(start, tmp_path):
    (tmp_path / "slow").write_text("0.1")
    (tmp_path / "quick").write_text("0")
    path = str(tmp_path / "slow")
    server = start(
        models=[
            {
                "name": "together",
                "path": path,
                "batching": {"max_batch": 8},
                "limits": {"concurrency": 1},
            },
            {"name": "alone", "path": str(tmp_path / "quick")},
        ]
    )
    server.until(lambda: server.text().count('"AVAILABLE"') == 2)

    def ask(model):
        assert server.ask("POST", f"/v1/models/{model}:predict", PREDICT)[0] == 200

    ask("alone")
    ask("alone")
    # While the first runs, the others come together.
    threads = [threading.Thread(target=ask, args=("together",)) for _ in range(7)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = numbers(server.ask("GET", "/metrics")[2].decode())
    alone, together = ("model=alone,version=1", "model=together,version=1")
    assert found[f"batch_size_count{{{alone}}}"] == found[f"batch_size_sum{{{alone}}}"] == 2
    assert found[f"batch_size_bucket{{le=1.0,{alone}}}"] == 2
    assert found[f"batch_size_sum{{{together}}}"] == 7
    runs = found[f"batch_size_count{{{together}}}"]
    assert runs < 7
    assert found[f"run_seconds_count{{{together}}}"] == runs
    assert found[f"run_seconds_sum{{{together}}}"] >= 0.1 * runs
    assert found[f"run_seconds_bucket{{le=0.064,{together}}}"] == 0
    # Whoever came second waited for the first.
    assert found[f"queue_seconds_count{{{together}}}"] == 7
    assert found[f"queue_seconds_sum{{{together}}}"] > 0.05
    assert found[f"queue_seconds_count{{{alone}}}"] == 2
    assert found[f"queue_length{{{together}}}"] == 0
    assert found[f"version_state{{{alone}}}"] == 30
    labels = "api=tfs,model=together,transport=rest,version=1"
    assert found[f"request_seconds_count{{{labels}}}"] == 7
    stats = json.loads(server.ask("GET", "/v2/models/together/stats")[2])["model_stats"][0]
    assert stats["inference_count"] == 7
    assert stats["execution_count"] == runs
    assert stats["inference_stats"]["queue"]["count"] == 7


def test_what_callers_make_up_makes_no_series(start):
    server = start()
    with grpc.insecure_channel(f"localhost:{server.grpc}") as channel:
        call = channel.unary_unary(
            V2 + "ModelInfer",
            request_serializer=message("inference.ModelInferRequest").SerializeToString,
            response_deserializer=message("inference.ModelInferResponse").FromString,
        )
        before = None
        for number in range(20):
            for path in (
                f"/v1/models/made-up-{number}:predict",
                f"/v1/models/m/versions/{1000 + number}:predict",
                f"/v2/models/m/versions/{1000 + number}/infer",
                f"/v2/models/m/made-up-{number}",
                f"/v2/made-up-{number}",
            ):
                assert server.ask("POST", path, b"{}")[0] in (400, 404, 405)
            for name, version in ((f"made-up-{number}", ""), ("m", str(1000 + number))):
                request = message("inference.ModelInferRequest")(model_name=name, model_version=version)
                with pytest.raises(grpc.RpcError):
                    call(request, timeout=60)
            found = numbers(server.ask("GET", "/metrics")[2].decode())
            before = before or set(found)
        assert set(found) == before
    assert not [name for name in found if "made-up" in name or "10" in name.partition("version=")[2]]


def test_versions_that_have_ended_are_forgotten():
    metrics = Metrics()
    for version in range(1, 101):
        metrics.told("m", VersionStatus(version, State.AVAILABLE))
        metrics.request(("m", version), "v2", "grpc", 0, 0.01)
        metrics.told("m", VersionStatus(version, State.END))
    metrics.request(("m", 100), "v2", "grpc", 0, 0.01)
    text = metrics.text().decode()
    versions = {name.partition("version=")[2] for name in numbers(text) if "version=" in name}
    assert versions == {f"{version}}}" for version in range(85, 101)}
    # One that comes back begins anew.
    metrics.told("m", VersionStatus(3, State.AVAILABLE))
    metrics.request(("m", 3), "v2", "grpc", 0, 0.01)
    of = "api=v2,code=OK,model=m,transport=grpc,version=3"
    assert numbers(metrics.text().decode())[f"requests_total{{{of}}}"] == 1


def test_a_client_hears_of_the_models_that_it_may_use(start, tmp_path):
    (tmp_path / "m").write_text("0")
    path = str(tmp_path / "m")
    server = start(
        models=[
            {"name": "open", "path": path},
            {"name": "ours", "path": path, "clients": [OURS]},
            {"name": "theirs", "path": path, "clients": [THEIRS]},
        ]
    )
    server.until(lambda: server.text().count('"AVAILABLE"') == 3)

    def rest(headers):
        status, _, index = server.ask("POST", "/v2/repository/index", b"{}", headers)
        assert status == 200
        status, _, stats = server.ask("GET", "/v2/models/stats", headers=headers)
        assert status == 200
        return [one["name"] for one in json.loads(index)], [
            one["name"] for one in json.loads(stats)["model_stats"]
        ]

    def rpc(headers):
        found = []
        with grpc.insecure_channel(f"localhost:{server.grpc}") as channel:
            for name, field in (("RepositoryIndex", "models"), ("ModelStatistics", "model_stats")):
                call = channel.unary_unary(
                    V2 + name,
                    request_serializer=message(f"inference.{name}Request").SerializeToString,
                    response_deserializer=message(f"inference.{name}Response").FromString,
                )
                answer = call(
                    message(f"inference.{name}Request")(), metadata=list(headers.items()), timeout=60
                )
                found.append([one.name for one in getattr(answer, field)])
        return tuple(found)

    for ask in (rest, rpc):
        assert ask({}) == (["open"], ["open"])
        assert ask(TOKEN) == (["open", "ours"], ["open", "ours"])
        assert ask({"authorization": "Bearer nonsense"}) == (["open"], ["open"])
    assert server.ask("GET", "/v2/models/theirs/stats", headers=TOKEN)[0] == 403
