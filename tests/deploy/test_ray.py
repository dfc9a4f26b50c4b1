"""deploy/ray: its part for Ray Serve is valid, and its pods follow Kubernetes' schemas.

KubeRay's own schema is in no package: of the RayService around them only names are looked at.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from server.settings import Settings, read_settings, variable

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
KNOWN = {variable(name) for name in Settings.model_fields}
PODS = ["head", "worker"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, when imported


@pytest.fixture
def service() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    return service


@pytest.fixture
def application(service: dict[str, Any]) -> dict[str, Any]:
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return dict(application)


def template(service: dict[str, Any], which: str) -> dict[str, Any]:
    cluster = service["spec"]["rayClusterConfig"]
    (worker,) = cluster["workerGroupSpecs"]
    group = cluster["headGroupSpec"] if which == "head" else worker
    return dict(group["template"])


def environment(service: dict[str, Any], which: str) -> dict[str, str | None]:
    """Variables of a pod; None for those from a secret."""
    (container,) = template(service, which)["spec"]["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def test_ray_serve_reads_its_part(service: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    from server.replicas.ray_serve import APP

    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    read = ServeDeploySchema.model_validate(config)
    assert read.applications[0].name == APP
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    assert config["applications"][0].keys() <= type(read.applications[0]).model_fields.keys()
    config["proxy_location"] = "Nowhere"
    with pytest.raises(ValidationError, match="proxy_location"):
        ServeDeploySchema.model_validate(config)


def test_what_is_imported_is_there(application: dict[str, Any]) -> None:
    from server.replicas.ray_serve import build

    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    assert application["route_prefix"] == "/"


def test_every_setting_is_one_with_an_allowed_value(
    service: dict[str, Any], application: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"ALLEARS_LISTENING_LOG_URL": "postgresql://u:p@host/records"}
    for which in PODS:
        variables = environment(service, which)
        named = {name for name in variables if name.startswith("ALLEARS_")}
        assert named and named <= KNOWN
        for name in named:
            monkeypatch.setenv(name, variables[name] or secrets.get(name, "key"))
    assert application["args"].keys() <= Settings.model_fields.keys()
    settings = read_settings(dict.fromkeys(KNOWN, ""), application["args"])
    assert (settings.replicas, settings.max_replicas) == (1, 8)


def test_there_is_a_gpu_for_every_replica(
    service: dict[str, Any], application: dict[str, Any]
) -> None:
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    each = container["resources"]["limits"]["nvidia.com/gpu"]
    assert group["maxReplicas"] * each == application["args"]["max_replicas"]
    assert group["minReplicas"] * each == application["args"]["replicas"]


@pytest.mark.parametrize("which", PODS)
def test_the_pods_follow_the_schemas_of_kubernetes(service: dict[str, Any], which: str) -> None:
    pod_template = template(service, which)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        **pod_template,
        "metadata": {"name": which, "labels": {}},
    }
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    assert pod_template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod_template["spec"]["enableServiceLinks"] is False
    assert pod_template["spec"]["terminationGracePeriodSeconds"] > 30 + 5
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & environment(service, which).keys()


def test_kuberay_finds_what_it_asks_of_the_head(service: dict[str, Any]) -> None:
    """It knows ports by name, and its own calls carry a token only by `authOptions`."""
    (container,) = template(service, "head")["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert ports.pop("serve") == config["http_options"]["port"]
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001}, "Ray's own defaults"
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_only_the_port_of_http_is_open_to_others(service: dict[str, Any]) -> None:
    policy = yaml.safe_load((FOLDER / "network.yaml").read_text())
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for which in PODS:
        assert template(service, which)["metadata"]["labels"] == selected
    clients, ray = policy["spec"]["ingress"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert [port["port"] for port in clients["ports"]] == [config["http_options"]["port"]]
    assert all("podSelector" in peer for peer in ray["from"])


@pytest.mark.system
def test_the_dockerfile_is_clean_under_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_versions_of_ray_are_the_same(service: dict[str, Any]) -> None:
    image = (FOLDER / "Dockerfile").read_text()
    assert re.findall(r"rayproject/ray:([\d.]+)-", image) == [
        service["spec"]["rayClusterConfig"]["rayVersion"]
    ]


def test_the_volume_is_the_one_of_the_pods(service: dict[str, Any]) -> None:
    claim = yaml.safe_load((FOLDER / "models.yaml").read_text())
    for which in PODS:
        (volume,) = template(service, which)["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
