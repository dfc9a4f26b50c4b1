"""compose.yaml and docker/: valid, safe by default, and only settings that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings, variable

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.yaml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
BIN = Path(sys.executable).parent
KNOWN = {variable(name) for name in Settings.model_fields}


def run(*words: str | Path) -> str:
    done = subprocess.run(list(words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


# ---- compose.yaml


def test_the_compose_file_follows_the_specification() -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_a_wrong_compose_file_does_not_follow_it(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true", "readonly: true"))
    with pytest.raises(AssertionError, match="readonly"):
        run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong)


def test_every_service_is_locked_down(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        for port in service["ports"]:
            assert "127.0.0.1:" in port, f"{name} is open to the network: {port}"


def test_the_gpu_is_the_default_and_the_cpu_is_a_profile(services: dict[str, Any]) -> None:
    (profile,) = re.findall(r"^COMPOSE_PROFILES=(\w+)$", (ROOT / ".env").read_text(), re.M)
    started = {
        n for n, service in services.items() if profile in service.get("profiles", [profile])
    }
    assert started == {"gpu", "prometheus", "grafana"}
    assert services["cpu"]["profiles"] == ["cpu"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "Qwen/Qwen2-Audio-7B-Instruct" in services["gpu"]["environment"]["ALLEARS_MODEL"]
    assert services["cpu"]["environment"]["ALLEARS_MODEL"] == "demo"


def test_the_drain_fits_into_the_grace_period(services: dict[str, Any]) -> None:
    for name in ("gpu", "cpu"):
        drain = services[name]["environment"]["ALLEARS_DRAIN_SECONDS"]
        (default,) = re.findall(r":-(\d+)\}", drain)
        assert int(default) < seconds(services[name]["stop_grace_period"])


def test_what_an_alert_advises_to_set_reaches_the_server(services: dict[str, Any]) -> None:
    advised = set(
        re.findall(r"ALLEARS_[A-Z_]+", (ROOT / "deploy/prometheus/rules.yaml").read_text())
    )
    assert len(advised) >= 4
    for name in ("gpu", "cpu"):
        assert advised <= services[name]["environment"].keys()


def test_what_the_compose_file_mounts_is_there(services: dict[str, Any]) -> None:
    mounts = [
        volume.split(":")[0] for service in services.values() for volume in service["volumes"]
    ]
    paths = [mount for mount in mounts if mount.startswith("./")]
    paths.append("./deploy/prometheus/no-key")
    assert not [path for path in paths if not (ROOT / path).exists()]
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    assert {mount for mount in mounts if not mount.startswith("./")} == volumes.keys()


@pytest.mark.parametrize("file", [COMPOSE, DOCKERFILE, ROOT / ".env"], ids=lambda f: str(f.name))
def test_every_variable_is_a_setting(file: Path) -> None:
    named = set(re.findall(r"\bALLEARS_[A-Z_]+", file.read_text()))
    assert named <= KNOWN
    assert named or file.name == ".env"


# ---- docker/


def test_the_dockerfile_is_clean_under_hadolint(tmp_path: Path) -> None:
    run(BIN / "hadolint", DOCKERFILE)
    dirty = tmp_path / "Dockerfile"
    dirty.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install x\n")
    with pytest.raises(AssertionError, match="DL3006"):
        run(BIN / "hadolint", dirty)


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.M)
    final = text[text.rindex("\nFROM ") :]
    user, group = re.findall(r"^USER (\d+):(\d+)$", final, re.M)[-1]
    assert int(user) > 1000
    assert int(group) > 1000
    assert "apt-get" not in final
    assert "HEALTHCHECK" in final


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    allowed = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.M)
    sources = {source for line in copied for source in line.split()}
    assert allowed[1] == "*"
    assert {line[1:] for line in allowed if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_lists_its_packages_where_its_label_says() -> None:
    build, final = DOCKERFILE.read_text().split("\nFROM python AS serve\n")
    (place,) = re.findall(r'allears\.sbom="([^"]+)"', final)
    assert f"--output-file {place} /opt/allears/bin/python" in build
    assert place.startswith("/opt/allears/")
    assert re.findall(r"^COPY --from=build (\S+)", final, re.M) == ["/opt/allears"]


def test_what_the_image_installs_is_hashed() -> None:
    """All but torch, whose build and index are chosen, and our own wheel."""
    installs = re.findall(r"bin/pip install (.*?)(?: \\)?$", DOCKERFILE.read_text(), re.M)
    hashed = [line for line in installs if "--require-hashes" in line]
    assert sorted(line.split()[-1] for line in hashed) == ["serve.txt", "tools.txt"]
    others = [line for line in installs if line not in hashed]
    assert [line.split()[-1] for line in others] == ['"${TORCH}"', "wheels/*.whl"]
