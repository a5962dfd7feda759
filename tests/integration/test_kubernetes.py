"""deploy/kubernetes: what kustomize makes of every overlay is what Kubernetes, and docsum, take."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from docsum.models import Lane
from docsum.settings import Settings, known_variables, load
from tests.support.manifests import ROOT

OVERLAYS = ("dev", "prod", "keda")
VERSIONS = ("1.30", "1.37")  # the oldest that is promised, the newest that is known here
SCHEMAS = {
    "ScaledObject": ROOT / "tests/data/schemas/scaled_object.json",
    "TriggerAuthentication": ROOT / "tests/data/schemas/trigger_authentication.json",
}
WORKERS = ("docsum-worker", "docsum-batch-worker")
Resource = dict[str, Any]


@cache
def built(overlay: str) -> list[Resource]:
    """What `kubectl apply -k` would send."""
    folder = ROOT / "deploy/kubernetes/overlays" / overlay
    if kustomize := shutil.which("kustomize"):
        command = [kustomize, "build", str(folder)]
    elif kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize", str(folder)]
    else:
        pytest.skip("Neither kubectl nor kustomize is here: install one of them to check deploy/kubernetes.")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> dict[str, Resource]:
    return {each["metadata"]["name"]: each for each in built(overlay) if each["kind"] in kinds}


def templates(overlay: str) -> dict[str, Resource]:
    """The pod template of everything that has one."""
    found = of_kind(overlay, "StatefulSet", "Deployment", "Job")
    return {name: each["spec"]["template"] for name, each in found.items()}


def containers(template: Resource) -> Iterator[Resource]:
    yield from template["spec"].get("initContainers", ())
    yield from template["spec"]["containers"]


def check(resource: Resource, version: str) -> None:
    """Raises where a field is missing, misspelt or of the wrong type."""
    if resource["kind"] in SCHEMAS:
        jsonschema.validate(resource, json.loads(SCHEMAS[resource["kind"]].read_text()))
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_one_that_kubernetes_takes(overlay: str, version: str) -> None:
    for resource in built(overlay):
        check(resource, version)


@pytest.mark.parametrize("kind", ["StatefulSet", "NetworkPolicy", "ScaledObject", "TriggerAuthentication"])
def test_a_misspelt_field_would_be_found(kind: str) -> None:
    spoilt = copy.deepcopy(next(each for each in built("keda") if each["kind"] == kind))
    spoilt["spec"]["replcias"] = 3
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(spoilt, VERSIONS[-1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_nobody_and_writes_nowhere_but_to_its_own_tmp(overlay: str) -> None:
    for name, template in templates(overlay).items():
        spec = template["spec"]
        assert spec["enableServiceLinks"] is False, name
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            written = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
            assert written == ["/tmp"]
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_of_every_container_are_understood(
    overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    maps = of_kind(overlay, "ConfigMap")
    for template in templates(overlay).values():
        for container in containers(template):
            told: dict[str, str] = {}
            for source in container["envFrom"]:
                if reference := source.get("configMapRef"):
                    told |= maps[reference["name"]]["data"]
            told |= {each["name"]: "text" for each in container.get("env", ())}
            assert told.keys() <= known_variables().keys()
            with monkeypatch.context() as patched:
                for name, text in told.items():
                    patched.setenv(name, text)
                settings = load()
            assert settings.explicit and settings.clickhouse.url


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_files_and_only_workers_have_the_key_of_the_model(overlay: str) -> None:
    for name, template in templates(overlay).items():
        (sources,) = (
            volume["projected"]["sources"]
            for volume in template["spec"]["volumes"]
            if volume["name"] == "secrets"
        )
        secrets = [each["secret"]["name"] for each in sources]
        assert len(secrets) == 1 + (name in WORKERS)
        assert any(secret.startswith("docsum-model") for secret in secrets) == (name in WORKERS)
        for container in containers(template):
            mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
            assert mounted["secrets"] == str(Settings().secrets_dir)
            assert not any("secretRef" in each for each in container["envFrom"])
    if overlay == "dev":
        names = {name for each in of_kind(overlay, "Secret").values() for name in each["data"]}
        assert names <= known_variables().keys()
    else:
        assert not of_kind(overlay, "Secret"), "secrets are referred to, and made elsewhere"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_keep_their_names_and_have_time_to_store_what_they_paid_for(overlay: str) -> None:
    worker = Settings().worker
    longest = (worker.drain_timeout + worker.shutdown_timeout).total_seconds()
    for name in WORKERS:
        workers = of_kind(overlay, "StatefulSet")[name]
        template = workers["spec"]["template"]
        assert template["spec"]["terminationGracePeriodSeconds"] == 180 > longest
        (container,) = containers(template)
        (identity,) = container["env"]
        assert identity["name"] == "DOCSUM_WORKER__INSTANCE_ID"
        assert identity["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert workers["spec"]["serviceName"] in of_kind(overlay, "Service")
        assert len(template["spec"]["topologySpreadConstraints"]) == 2
    batch = templates(overlay)["docsum-batch-worker"]
    assert next(containers(batch))["args"] == ["worker", "--lane", Lane.BATCH.value]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_for_what_there_is(overlay: str) -> None:
    for name, template in templates(overlay).items():
        if name == "docsum-setup":
            continue
        (container,) = containers(template)
        (port,) = container["ports"]
        assert port["containerPort"] == (8080 if name == "docsum-api" else 9090)
        for probe, path in (
            ("startupProbe", "/livez"),
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/livez" if name == "docsum-api" else "/readyz"),
        ):
            assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_that_they_are_for(overlay: str) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in templates(overlay).items()}

    def found(selector: Resource) -> set[str]:
        wanted = selector.get("matchLabels", selector).items()
        return {name for name, has in labels.items() if wanted <= has.items()}

    for name, each in of_kind(overlay, "StatefulSet", "Deployment").items():
        assert found(each["spec"]["selector"]) == {name}
        for constraint in each["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert found(constraint["labelSelector"]) == {name}
    for name, each in of_kind(overlay, "Service").items():
        assert found(each["spec"]["selector"]) == {name.removesuffix("-metrics")}
    for name, each in of_kind(overlay, "PodDisruptionBudget").items():
        assert found(each["spec"]["selector"]) == {name}
        assert each["spec"]["maxUnavailable"] == 1
    assert len(of_kind(overlay, "PodDisruptionBudget")) == 3
    policies = of_kind(overlay, "NetworkPolicy")
    assert found(policies["docsum"]["spec"]["podSelector"]) == labels.keys()
    assert found(policies["docsum-api"]["spec"]["podSelector"]) == {"docsum-api"}


def test_the_scaler_looks_at_live_and_backfill_alone_and_not_beyond_what_is_there() -> None:
    topology = Settings().topology()
    scaler = of_kind("keda", "ScaledObject")["docsum-worker"]["spec"]
    told = of_kind("keda", "ConfigMap")
    (settings,) = (each["data"] for each in told.values())
    triggers = [each["metadata"] for each in scaler["triggers"]]
    assert [each["topic"] for each in triggers] == [topology.documents, topology.backfill]
    assert {each["consumerGroup"] for each in triggers} == {Settings().kafka.group_id}
    assert {each["bootstrapServers"] for each in triggers} == {settings["DOCSUM_KAFKA__BOOTSTRAP_SERVERS"]}
    partitions, worker = int(settings["DOCSUM_TOPICS__PARTITIONS"]), Settings().worker
    assert scaler["minReplicaCount"] <= scaler["maxReplicaCount"] <= partitions
    # As many places in the topic as the workers have for calls: else the last ones would have nothing to do.
    assert partitions * worker.slots_per_partition >= scaler["maxReplicaCount"] * worker.max_in_flight
    assert "replicas" not in of_kind("keda", "StatefulSet")["docsum-worker"]["spec"]
    down = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]
    (authentication,) = of_kind("keda", "TriggerAuthentication")
    assert {each["authenticationRef"]["name"] for each in scaler["triggers"]} == {authentication}


@pytest.mark.parametrize("command", [("worker",), ("worker", "--lane", "batch"), ("api",)])
def test_a_setting_that_is_wrong_is_one_line_and_78(command: tuple[str, ...], tmp_path: Path) -> None:
    (settings,) = (each["data"] for each in of_kind("prod", "ConfigMap").values())
    wrong = settings | {
        "DOCSUM_KAFKA__SASL_MECHANISM": "SCRAM-SHA-1024",
        "DOCSUM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",  # nobody is asked: it is wrong before that
        "DOCSUM_CLICKHOUSE__URL": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "docsum", *command],
        env={"PATH": os.environ["PATH"], "DOCSUM_HOME": str(tmp_path), "ANTHROPIC_API_KEY": "a-key", **wrong},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 78, done.stderr
    (line,) = done.stderr.splitlines()
    assert "DOCSUM_KAFKA__SASL_MECHANISM" in line
