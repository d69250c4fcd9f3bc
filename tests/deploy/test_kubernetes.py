"""What kubectl makes of deploy/kubernetes: valid, confined, and agreeing with itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from manifests import KUBERNETES, OVERLAYS, containers_of, files_of_kubernetes, kustomized, pod_of

from strongroom.keycache.config import read_config

VERSIONS = ("1.29", "1.34")
NO_SCHEMA = {"monitoring.coreos.com/v1"}
"""Of custom resources, which Kubernetes has no schema of."""

BY_HAND = {
    "ConfigMap": {"strongroom-profile"},
    "Secret": {
        "strongroom-keyserver",
        "strongroom-serve-tls",
        "strongroom-auditor",
    },
}
"""What the page has the operator make."""

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def of(overlay, kind):
    return [one for one in kustomized(overlay) if one["kind"] == kind]


def workloads(overlay):
    return [(one, pod_of(one)) for one in kustomized(overlay) if pod_of(one)]


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(overlay, version):
    validate = pytest.importorskip("kubernetes_validate").validate
    checked = 0
    for document in kustomized(overlay):
        if document["apiVersion"] not in NO_SCHEMA:
            validate(document, version, strict=True)
            checked += 1
    assert checked > 10


def test_what_is_wrong_is_found(overlay):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (document,) = of(overlay, "Deployment")
    wrong = {**document, "spec": {**document["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def parts_of(path):
    """A kustomization, and all that it is made of."""
    content = yaml.safe_load((path / "kustomization.yaml").read_text())
    yield content
    for one in [*content.get("resources", []), *content.get("components", [])]:
        if (path / one).is_dir():
            yield from parts_of(path / one)


def test_every_patch_has_a_target(overlay):
    """One that names its target by a selector, and finds none, is passed over by kubectl."""
    found = 0
    for content in parts_of(KUBERNETES / overlay):
        for patch in content.get("patches", []):
            if "target" in patch:
                name = re.compile(patch["target"]["name"])
                assert any(
                    name.fullmatch(one["metadata"]["name"])
                    for one in of(overlay, patch["target"]["kind"])
                )
                found += 1
    assert bool(found) is (overlay != "base")


def test_files_are_all_used(overlay):
    named = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        members = [*content.get("resources", []), *content.get("components", [])]
        members += [one["path"] for one in content.get("patches", []) if "path" in one]
        for one in content.get("configMapGenerator", []):
            members += one["files"]
        for one in members:
            target = (path.parent / one).resolve()
            assert target.exists(), (path, one)
            named.add(target / "kustomization.yaml" if target.is_dir() else target)
    everything = {one.resolve() for one in (*files_of_kubernetes(), *KUBERNETES.rglob("*.toml"))}
    tops = {(KUBERNETES / one / "kustomization.yaml").resolve() for one in OVERLAYS}
    assert everything == named | tops


def test_pods_are_confined(overlay):
    for document, pod in workloads(overlay):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for unwanted in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
            assert unwanted not in pod
        for one in containers_of(pod):
            own = one["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"]["drop"] == ["ALL"]
            assert own["capabilities"].get("add", []) == (
                ["CHOWN"] if one.get("command", [""])[0] == "chown" else []
            )
            assert "privileged" not in own
            assert one["resources"]["limits"]["memory"]
            assert one["resources"]["requests"]["cpu"]
            root = own.get("runAsUser", pod["securityContext"]["runAsUser"]) == 0
            assert root is not own.get("runAsNonRoot", pod["securityContext"]["runAsNonRoot"])
            # Root where the kernel asks for it, and for a moment where a directory is given away.
            assert (
                not root
                or one["name"] == "directory"
                or (document["kind"], one["name"])
                in {
                    ("DaemonSet", "keycache"),
                    ("Deployment", "keycache"),
                }
            )


def test_only_what_is_for_it_is_written(overlay):
    for _, pod in workloads(overlay):
        volumes = {one["name"]: one for one in pod["volumes"]}
        for one in containers_of(pod):
            for mount in one["volumeMounts"]:
                volume = volumes.get(mount["name"], {})
                if not mount.get("readOnly"):
                    assert not {"secret", "configMap", "projected", "persistentVolumeClaim"} & set(
                        volume
                    )
        for one in volumes.values():
            if "hostPath" in one:
                assert one["hostPath"]["path"] in {"/run/strongroom", "/sys/kernel/config"}
            if "emptyDir" in one:
                assert one["emptyDir"]["medium"] == "Memory"


def test_images_have_a_version(overlay):
    for _, pod in workloads(overlay):
        for one in containers_of(pod):
            assert re.fullmatch(
                r"strongroom-(keyserver|keycache|keycache-tpm|serve):\d+\.\d+\.\d+", one["image"]
            )


def test_selectors_find_their_pods(overlay):
    pods = {}
    for document, _ in workloads(overlay):
        labels = document["spec"]["template"]["metadata"]["labels"]
        chosen = document["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= labels.items()
        pods[document["metadata"]["namespace"]] = (labels, containers_of(pod_of(document)))
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for one in of(overlay, kind):
            labels, containers = pods[one["metadata"]["namespace"]]
            name = "podSelector" if kind == "NetworkPolicy" else "selector"
            chosen = one["spec"][name]
            assert (
                chosen.get("matchLabels", {} if kind == "NetworkPolicy" else chosen).items()
                <= labels.items()
            )
            names = {port["name"] for container in containers for port in container.get("ports", [])}
            if kind == "Service":
                assert {port["targetPort"] for port in one["spec"]["ports"]} <= names
            for rule in one["spec"].get("ingress", []):
                assert {port["port"] for port in rule["ports"]} <= names
    for one in of(overlay, "HorizontalPodAutoscaler"):
        (target,) = of(overlay, "Deployment")
        assert one["spec"]["scaleTargetRef"]["name"] == target["metadata"]["name"]
        # Whoever writes it down resets what the autoscaler has done.
        assert "replicas" not in target["spec"]


def test_every_namespace_denies_what_is_not_needed(overlay):
    for namespace in of(overlay, "Namespace"):
        name = namespace["metadata"]["name"]
        found = [
            one["spec"] for one in of(overlay, "NetworkPolicy") if one["metadata"]["namespace"] == name
        ]
        assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in found
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    (serve,) = [one for one in of(overlay, "NetworkPolicy") if one["metadata"]["name"] == "serve"]
    # With a key cache of the node, a model server reaches nobody.
    assert ("egress" in serve["spec"]) is ("confidential" in overlay)


def test_the_port_for_management_is_for_prometheus_alone(overlay):
    """Kubelets of the node are let in whatever policies say."""
    (policy,) = [one for one in of(overlay, "NetworkPolicy") if one["metadata"]["name"] == "serve"]
    who = [
        space["namespaceSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]
        for space in rule["from"]
        if any(port["port"] == "management" for port in rule["ports"])
    ]
    watched = bool(of(overlay, "ServiceMonitor"))
    assert who == [{"kubernetes.io/metadata.name": "monitoring"}] * watched


def test_whoever_asks_for_keys_may(overlay):
    (policy,) = [one for one in of(overlay, "NetworkPolicy") if one["metadata"]["name"] == "keyserver"]
    chosen = policy["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]
    spaces = {one["metadata"]["name"]: one["metadata"]["labels"] for one in of(overlay, "Namespace")}
    for document, pod in workloads(overlay):
        if any(one["name"] == "keycache" for one in containers_of(pod)):
            assert chosen.items() <= spaces[document["metadata"]["namespace"]].items()


def test_what_pods_name_is_there_or_made_by_hand(overlay):
    there = {
        kind: {one["metadata"]["name"] for one in of(overlay, kind)} for kind in ("ConfigMap", "Secret")
    }
    claims = {one["metadata"]["name"] for one in of(overlay, "PersistentVolumeClaim")}
    for _, pod in workloads(overlay):
        for volume in pod["volumes"]:
            sources = [volume, *volume.get("projected", {}).get("sources", [])]
            for one in sources:
                if "configMap" in one:
                    assert one["configMap"]["name"] in there["ConfigMap"] | BY_HAND["ConfigMap"]
                if "secret" in one:
                    assert one["secret"]["secretName"] in there["Secret"] | BY_HAND["Secret"]
                if "persistentVolumeClaim" in one:
                    assert one["persistentVolumeClaim"]["claimName"] in claims
        mounted = {mount["name"] for one in containers_of(pod) for mount in one["volumeMounts"]}
        assert {one["name"] for one in pod["volumes"]} <= mounted


def test_the_cache_allows_the_model_server(overlay, tmp_path):
    (serve,) = [pod for document, pod in workloads(overlay) if document["kind"] == "Deployment"]
    (config,) = [
        one for one in of(overlay, "ConfigMap") if one["metadata"]["name"].startswith("keycache-")
    ]
    path = tmp_path / "keycache.toml"
    path.write_text(config["data"]["keycache.toml"])
    found = read_config(path)
    assert found.allow.uids == {serve["securityContext"]["runAsUser"]}
    (cache,) = [
        (one, pod)
        for _, pod in workloads(overlay)
        for one in containers_of(pod)
        if one["name"] == "keycache"
    ]
    group = cache[0]["securityContext"].get("runAsGroup", cache[1]["securityContext"]["runAsGroup"])
    assert group == serve["securityContext"]["runAsGroup"]
    (container,) = serve["containers"]
    assert {"name": "STRONGROOM_KEYSERVER", "value": f"unix://{found.socket}"} in container["env"]
    mounts = {one["mountPath"] for one in cache[0]["volumeMounts"]}
    assert str(Path(found.socket).parent) in mounts


def test_the_directory_of_the_socket_belongs_to_the_cache(overlay):
    """Or the cache, which has no capabilities, could not write there, and clients would not believe it."""
    for _, pod in workloads(overlay):
        names = {one["name"]: one for one in containers_of(pod)}
        if "keycache" in names:
            own = names["keycache"]["securityContext"]
            user = own.get("runAsUser", pod["securityContext"]["runAsUser"])
            command = names["directory"]["command"]
            assert (
                command == ["chmod", "0755", "/run/strongroom"]
                if user == 0 and command[0] == "chmod"
                else (command == ["chown", f"{user}:65532", "/run/strongroom"])
            )


def test_probes_and_monitors_ask_at_ports_that_are_there(overlay):
    for _, pod in workloads(overlay):
        for one in pod["containers"]:
            names = {port["name"] for port in one.get("ports", [])}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = one[kind].get("httpGet")
                # Whoever asks the cache is a program; servers are asked over HTTP, whatever clients show.
                assert bool(probe) is (one["name"] != "keycache")
                if probe:
                    assert probe["port"] in names
                    assert probe["path"] == ("/readyz" if kind == "readinessProbe" else "/healthz")
                    assert (probe.get("scheme") == "HTTPS") is (probe["port"] == "https")
            if "management" in names:
                ports = {port["name"]: port["containerPort"] for port in one["ports"]}
                assert f"--management-port={ports['management']}" in one["args"]
                assert all(
                    one[kind]["httpGet"]["port"] == "management"
                    for kind in ("startupProbe", "livenessProbe", "readinessProbe")
                )
    for monitor in of(overlay, "ServiceMonitor"):
        (service,) = [
            one
            for one in of(overlay, "Service")
            if one["metadata"]["namespace"] == monitor["metadata"]["namespace"]
            and monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
        ]
        (endpoint,) = monitor["spec"]["endpoints"]
        (port,) = [one for one in service["spec"]["ports"] if one["name"] == endpoint["port"]]
        assert endpoint["path"] == "/metrics"
        assert (endpoint.get("scheme") == "https") is (port.get("appProtocol", "https") == "https")
