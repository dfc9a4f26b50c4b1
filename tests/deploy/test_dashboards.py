"""Alert rules and dashboard: promtool's own tests, and every metric they name is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "listening.json"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
WINDOWS = {"$__rate_interval": "5m", "$instance": ".*"}


def promtool(*words: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is missing; Debian: apt install prometheus")
    done = subprocess.run([program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every expression of the dashboard, its variables filled in."""
    filled = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in WINDOWS.items():
        filled = [expression.replace(name, value) for expression in filled]
    return filled


def metrics_of(expression: str) -> set[str]:
    """Names of ours in an expression; those of recording rules have colons."""
    return set(re.findall(r"\ballears[a-z0-9_:]+", expression))


@pytest.fixture(scope="module")
def exported(running_url: str) -> set[str]:
    """The names of all series that a server has from the start, or as soon as it counts."""
    import httpx

    page = httpx.get(f"{running_url}/metrics").text
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M):
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + ending for ending in endings}
    return names


@pytest.mark.system
def test_every_alert_fires_where_it_must_and_only_there() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(ROOT / "tests/deploy/rules_test.yaml"))


def test_every_alert_is_tried() -> None:
    tried = (ROOT / "tests/deploy/rules_test.yaml").read_text()
    names = [rule["alert"] for rule in rules() if "alert" in rule]
    assert len(names) >= 6
    assert not [name for name in names if name not in tried]


@pytest.mark.system
def test_the_configuration_of_prometheus_is_valid(tmp_path: Path) -> None:
    config = (PROMETHEUS / "prometheus.yaml").read_text()
    (tmp_path / "rules.yaml").write_text((PROMETHEUS / "rules.yaml").read_text())
    key = tmp_path / "key"
    key.write_text((PROMETHEUS / "no-key").read_text())
    (tmp_path / "prometheus.yaml").write_text(config.replace("/run/secrets/metrics_key", str(key)))
    promtool("check", "config", str(tmp_path / "prometheus.yaml"))


@pytest.mark.system
def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    records = [{"record": f"panel:{i}", "expr": e} for i, e in enumerate(expressions())]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": records}]}))
    assert f"{len(records)} rules found" in promtool("check", "rules", str(file))


def test_every_metric_of_rules_and_dashboard_is_there(exported: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    all_expressions = [*expressions(), *(rule["expr"] for rule in rules())]
    named = set().union(*map(metrics_of, all_expressions))
    assert "allears_listening_drift_psi" in named
    assert named <= exported | recorded


def test_the_dashboard_fits_its_provisioning() -> None:
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())
    (prometheus,) = source["datasources"]
    dashboard = json.loads(DASHBOARD.read_text())
    (variable,) = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    assert variable["current"]["value"] == prometheus["uid"]
    assert variable["query"] == prometheus["type"]
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows[0] == "Is it listening?"
    assert {"Steering", "Latency", "Load", "Silence cache", "Errors"} <= set(rows)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_panels_lie_beside_one_another() -> None:
    places: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + k) for i in range(at["w"]) for k in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & places, panel["title"]
        places |= own
