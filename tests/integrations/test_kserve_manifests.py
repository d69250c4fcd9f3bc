"""The manifests for KServe, against the types of its SDK and the programs that they start."""

import re
import warnings
from pathlib import Path

import pytest
import typer
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("kserve", reason="KServe has an environment of its own: make test-integrations")
    import kserve
    from kserve import model_server
    from kserve.protocol.rest.server import RESTServer
    from kubernetes import client as kubernetes

    from strongroom.cli.app import app
    from strongroom.integrations import kserve_storage
    from strongroom.integrations.kserve import __main__ as program

DEPLOY = Path(__file__).parents[2] / "deploy" / "kserve"
FILES = sorted(DEPLOY.glob("*.yaml"))
KINDS = {
    "ServingRuntime": "V1alpha1ServingRuntime",
    "ClusterStorageContainer": "V1alpha1ClusterStorageContainer",
    "InferenceService": "V1beta1InferenceService",
}
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
WORKLOADS = {"initContainer", "localModelDownloadJob"}


def documents():
    for path in FILES:
        for document in yaml.safe_load_all(path.read_text()):
            yield pytest.param(document, id=f"{path.stem}-{document['kind']}")


def check(where, kind, value):
    """Build a value of a type of the SDK, as a cluster would read it: every member known, none missing."""
    for pattern, of in ((r"[lL]ist\[(.*)\]", list), (r"[dD]ict[\[(]str, (.*)[\])]", dict)):
        found = re.fullmatch(pattern, kind)
        if found:
            assert isinstance(value, of), f"{where} is no {of.__name__}"
            pairs = enumerate(value) if of is list else value.items()
            made = [check(f"{where}.{name}", found[1], one) for name, one in pairs]
            return made if of is list else dict(zip(value, made, strict=True))
    if kind in ("str", "int", "bool", "float"):
        assert type(value).__name__ == kind, f"{where} is no {kind}"
        return value
    if kind == "object":
        assert isinstance(value, (int, str)) or where.endswith("metadata"), where
        return value
    if kind in ("ResourceQuantity", "resource.Quantity"):
        assert QUANTITY.fullmatch(str(value)), where
        return value
    model = getattr(kserve.models, kind, None) or getattr(kserve, kind, None)
    model = model or getattr(kubernetes, kind)
    assert isinstance(value, dict), f"{where} is no {kind}"
    members = {}
    by_name = {name: member for member, name in model.attribute_map.items()}
    for name, one in value.items():
        assert name in by_name, f"{where} has no member {name}"
        member = by_name[name]
        members[member] = check(f"{where}.{name}", model.openapi_types[member], one)
    return model(**members)  # refuses what lacks a member


@pytest.mark.parametrize("document", list(documents()))
def test_types(document):
    made = check(document["kind"], KINDS[document["kind"]], document)
    group, version = document["apiVersion"].split("/")
    assert group == "serving.kserve.io"
    assert KINDS[document["kind"]].lower().startswith(version)
    assert made.kind == document["kind"]


def test_every_kind_is_there():
    kinds = sorted(one.values[0]["kind"] for one in documents())
    assert kinds == sorted([*KINDS, "ServingRuntime"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one["spec"].update(container=[]), "no member container"),
        (lambda one: one["spec"]["containers"][0].pop("name"), r"(?s)name.*(required|None)"),
        (lambda one: one["spec"]["containers"][0]["ports"][0].update(containerPort="80"), "no int"),
        (lambda one: one["spec"].update(protocolVersions="v1"), "no list"),
    ],
)
def test_mistakes_are_found(change, said):
    document = load("ServingRuntime")
    change(document)
    with pytest.raises((AssertionError, ValueError), match=said):
        check("ServingRuntime", KINDS["ServingRuntime"], document)


def load(kind, name="strongroom"):
    (found,) = (
        one.values[0]
        for one in documents()
        if one.values[0]["kind"] == kind and one.values[0]["metadata"]["name"] == name
    )
    return found


RUNTIMES = ["strongroom", "strongroom-sdk"]


def container_of(runtime):
    (found,) = load("ServingRuntime", runtime)["spec"]["containers"]
    return found


def test_the_command_of_the_model_server():
    container = container_of("strongroom")
    assert container["command"] == ["strongroom"]
    verb, *arguments = (one.replace("{{.Name}}", "resnet50") for one in container["args"])
    command = typer.main.get_command(app).commands[verb]
    found = command.make_context(verb, arguments).params
    assert found["models"] == ["resnet50=/mnt/models"]
    assert found["key"] == "unix:///run/strongroom/keys.sock"
    assert found["rest_port"] == container["ports"][0]["containerPort"] == 8080
    annotations = load("ServingRuntime", "strongroom")["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == str(found["management_port"]) == "8082"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["path"] in ("/healthz", "/readyz"), asked["port"]) == (True, 8082)


def test_the_command_of_the_sdk():
    container = container_of("strongroom-sdk")
    assert container["command"] == ["python", "-m", "strongroom.integrations.kserve"]
    arguments = [one.replace("{{.Name}}", "resnet50") for one in container["args"]]
    args = program._parser().parse_args(arguments)
    assert (args.model_name, args.model_dir) == ("resnet50", "/mnt/models")
    assert args.key == "unix:///run/strongroom/keys.sock"
    assert args.http_port == container["ports"][0]["containerPort"] == 8080


def test_probes_ask_for_paths_of_the_sdk():
    container = container_of("strongroom-sdk")
    app = model_server.FastAPI()
    server = RESTServer.__new__(RESTServer)
    server.dataplane = model_server.DataPlane(model_server.ModelRepository())
    server.model_repository_extension = None
    server._register_endpoints(app)
    known = set(app.openapi()["paths"])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"].replace("{{.Name}}", "{model_name}") in known
        assert asked["port"] == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_socket_is_that_of_the_node(runtime):
    container = container_of(runtime)
    volumes = {one["name"]: one for one in load("ServingRuntime", runtime)["spec"]["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["keys"]["hostPath"]["path"] == mounts["keys"] == "/run/strongroom"


def test_what_the_storage_container_brings():
    spec = load("ClusterStorageContainer")["spec"]
    assert spec["container"]["command"] == ["python", "-m", kserve_storage.__name__]
    prefixes = [one["prefix"] for one in spec["supportedUriFormats"]]
    assert all(one.startswith(kserve_storage.PREFIX) for one in prefixes)
    assert spec["workloadType"] in WORKLOADS
    uri = load("InferenceService", "resnet50")["spec"]["predictor"]["model"]["storageUri"]
    assert any(uri.startswith(one) for one in prefixes)


def test_the_service_finds_its_runtime():
    model = load("InferenceService", "resnet50")["spec"]["predictor"]["model"]
    runtime = load("ServingRuntime")
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {
        one["name"] for one in runtime["spec"]["supportedModelFormats"]
    }
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_what_a_container_may():
    storage = load("ClusterStorageContainer")["spec"]["container"]
    for one in (*map(container_of, RUNTIMES), storage):
        context = one["securityContext"]
        assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context["allowPrivilegeEscalation"]
        assert set(one["resources"]["limits"]) >= {"memory"}
