"""deploy/kubernetes: what kustomize makes of it follows Kubernetes' schemas and our settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.prometheus.operator_rules import OPERATOR_RULES, RULES, operator_rules
from server.settings import Settings, read_settings, variable

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KNOWN = {variable(name) for name in Settings.model_fields}
FOREIGN = {"HF_TOKEN"}  # read by the hub's own library
pytestmark = pytest.mark.system


def kustomized(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is missing; .ci/run shows where to get one")
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert not made.stderr, made.stderr  # kustomize warns of what it will drop
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture(scope="module", params=["gpu", "cpu"])
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return kustomized(FOLDER / request.param)


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = of_kind(manifests, "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def environment(manifests: list[dict[str, Any]]) -> dict[str, str | None]:
    """Variables of the server; None for those from a secret."""
    (container,) = pod(manifests)["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def test_the_schemas_of_kubernetes_hold(manifests: list[dict[str, Any]]) -> None:
    newest = kubernetes_validate.latest_version()
    own = [each for each in manifests if "monitoring.coreos.com" not in each["apiVersion"]]
    assert len(own) >= 5
    for manifest in own:
        kubernetes_validate.validate(manifest, newest, strict=True)
    own[0]["spec"]["colour"] = "blue"
    with pytest.raises(kubernetes_validate.ValidationError, match="colour"):
        kubernetes_validate.validate(own[0], newest, strict=True)


def test_the_schemas_of_the_prometheus_operator_hold(manifests: list[dict[str, Any]]) -> None:
    from cloudcoil.models.prometheus_operator import v1

    for kind in ("ServiceMonitor", "PrometheusRule"):
        for manifest in of_kind(manifests, kind):
            read = getattr(v1, kind).model_validate(manifest)
            assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == manifest


def test_the_operators_rules_are_made_from_those_of_prometheus() -> None:
    assert OPERATOR_RULES.read_text() == operator_rules(RULES.read_text()), "run make rules"


def test_the_operator_gets_the_rules_that_are_tested(manifests: list[dict[str, Any]]) -> None:
    tested = yaml.safe_load(RULES.read_text())
    for rules in of_kind(manifests, "PrometheusRule"):
        assert rules["spec"] == tested
    (monitoring,) = yaml.safe_load_all(OPERATOR_RULES.read_text())
    assert monitoring["spec"] == tested


def test_every_variable_is_a_setting_with_an_allowed_value(
    manifests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment(manifests)
    assert variables.keys() - FOREIGN <= KNOWN
    secret = {"ALLEARS_API_KEYS": "key", "ALLEARS_LISTENING_LOG_URL": "postgresql://a:b@c/d"}
    values = {name: value or secret[name] for name, value in variables.items() if name in KNOWN}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert read_settings(values, {}).host == "0.0.0.0"


def test_secrets_are_references(manifests: list[dict[str, Any]]) -> None:
    assert not of_kind(manifests, "Secret")
    assert environment(manifests)["ALLEARS_API_KEYS"] is None
    assert environment(manifests)["ALLEARS_LISTENING_LOG_URL"] is None


def test_a_pod_is_locked_down(manifests: list[dict[str, Any]]) -> None:
    spec = pod(manifests)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]


def test_the_pod_is_the_image_s_user() -> None:
    dockerfile = (FOLDER.parents[1] / "docker" / "Dockerfile").read_text()
    deployment = yaml.safe_load((FOLDER / "base" / "deployment.yaml").read_text())
    (user,) = re.findall(r"^USER (\d+):", dockerfile, re.M)
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user)


def test_running_requests_may_end(manifests: list[dict[str, Any]]) -> None:
    spec = pod(manifests)
    (container,) = spec["containers"]
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(environment(manifests)["ALLEARS_DRAIN_SECONDS"] or 0)
    assert spec["terminationGracePeriodSeconds"] > wait + drain


def test_probes_ask_what_is_there(manifests: list[dict[str, Any]]) -> None:
    (container,) = pod(manifests)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness")}
    assert probes["liveness"]["path"] == "/livez"
    assert probes["readiness"]["path"] == "/readyz"
    assert {probe["port"] for probe in probes.values()} <= ports.keys()
    assert environment(manifests)["ALLEARS_PORT"] == str(ports["http"])


def test_everything_selects_the_pods(manifests: list[dict[str, Any]]) -> None:
    (deployment,) = of_kind(manifests, "Deployment")
    (service,) = of_kind(manifests, "Service")
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ]
    for policy in of_kind(manifests, "NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
    for monitor in of_kind(manifests, "ServiceMonitor"):
        matched = monitor["spec"]["selector"]["matchLabels"].items()
        assert matched <= service["metadata"]["labels"].items()
    assert all(selector and selector.items() <= labels for selector in selectors)


def test_the_autoscaler_goes_by_a_metric_of_ours(manifests: list[dict[str, Any]]) -> None:
    (scaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "allears_queue_depth"
    (deployment,) = of_kind(manifests, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]


def test_the_line_for_a_database_lets_the_log_reach_it(tmp_path: Path) -> None:
    """As uncommented: kustomize leaves the database's name alone."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "kubernetes"))
    file = folder / "base" / "network.yaml"
    before, title, after = file.read_text().partition("runs in this cluster:\n")
    file.write_text(before + title + re.sub(r"^    # ", "    ", after, flags=re.MULTILINE))
    (policy,) = of_kind(kustomized(folder / "cpu"), "NetworkPolicy")
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    (database,) = (rule for rule in policy["spec"]["egress"] if rule["ports"][0]["port"] == 5432)
    (peer,) = database["to"]
    assert "postgresql" in str(peer) and "allears" not in str(peer)
