"""A real Prometheus scrapes two real servers of the embedded model, one of which is deaf."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from steering.synthetic.data import write_items

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
ITEMS = 200  # over drift's MIN_SCORES
CONTRACT = [
    "allears_requests_total",
    "allears_request_seconds_bucket",
    "allears_time_to_first_token_seconds_bucket",
    "allears_queue_depth",
    "allears_batch_rows",
    "allears_tokens_total",
    "allears_audio_seconds_total",
    "allears_listening_score_bucket",
    "allears_steering_strength_bucket",
    "allears_steered_total",
    "allears_not_listening_total",
    "allears_silence_cache_total",
    "allears_silence_cache_bytes",
    "allears_errors_total",
    "allears_model_info",
]
OURS = [
    "allears_listening_drift_psi",
    "allears_device_memory_bytes",
    "allears_queue_limit_requests",
]
pytestmark = [pytest.mark.system, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Two servers, and the Prometheus that scrapes them."""

    well: str
    deaf: str
    prometheus: str
    log: Path  # of Prometheus

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}).json()
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series

    def firing(self) -> set[tuple[str, str]]:
        """Name and instance of the alerts about listening that fire."""
        alerts = httpx.get(f"{self.prometheus}/api/v1/alerts").json()["data"]["alerts"]
        firing = [alert["labels"] for alert in alerts if alert["state"] == "firing"]
        named = {(labels["alertname"], labels["instance"]) for labels in firing}
        return {(name, instance) for name, instance in named if "Listening" in name}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def process(command: Sequence[str], log: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ALLEARS_")}
    with log.open("wb") as output:
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def wait(until: Callable[[], object], log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if until():
                return
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s; the log ends: {log.read_text()[-3000:]}")


def configuration(folder: Path, servers: Iterable[str]) -> Path:
    """The shipped rules without their patience, and the servers as targets, every second."""
    rules = re.sub(r"^( +for:) \w+$", r"\1 0s", RULES.read_text(), flags=re.M)
    (folder / "rules.yaml").write_text(rules)
    hosts = [url.removeprefix("http://") for url in servers]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "allears", "static_configs": [{"targets": hosts}]}],
    }
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Generator[Deployment, None, None]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing; Debian: apt install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    ports = [free_port() for _ in range(3)]
    well, deaf, prometheus = (f"http://127.0.0.1:{port}" for port in ports)
    modules = {"well": "server.cli", "deaf": "tests.deploy.deaf_server"}
    with ExitStack() as stack:
        for (name, module), port in zip(modules.items(), ports, strict=False):
            serve = [sys.executable, "-m", module, "serve", "--port", str(port)]
            started = stack.enter_context(process([*serve, "--max-batch-rows", "2"], folder / name))
        config = configuration(folder, (well, deaf))
        data = f"--storage.tsdb.path={folder / 'data'}"
        listen = f"--web.listen-address=127.0.0.1:{ports[2]}"
        watch = [program, f"--config.file={config}", data, listen]
        stack.enter_context(process(watch, folder / "log"))
        for name, url in (("well", well), ("deaf", deaf)):
            wait(lambda url=url: httpx.get(f"{url}/readyz").is_success, folder / name)  # type: ignore[misc]
        started.send_signal(signal.SIGUSR1)  # the last one goes deaf
        deployment = Deployment(well, deaf, prometheus, folder / "log")
        wait(lambda: len(deployment.query("allears_queue_depth")) == 2, folder / "log")
        items = write_items(folder / "items", split="calibration", count=ITEMS, seed=8)
        with ThreadPoolExecutor(2) as both:
            list(both.map(load, (well, deaf), (items, items)))
        scraped = f"allears_listening_score_count >= {ITEMS}"
        wait(lambda: len(deployment.query(scraped)) == 2, folder / "log")
        yield deployment


def load(url: str, items: Path) -> None:
    """Every item once, every other to be steered; and a request that is wrong."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for index, item in enumerate(json.loads(items.read_text())):
            steer = str(index % 2 == 0)
            form = {"question": item["question"], "choices": item["choices"], "steer": steer}
            sound = {"audio": (items.parent / item["audio_id"]).read_bytes()}
            http.post("/v1/audio-chat", data=form, files=sound).raise_for_status()
        assert http.post("/v1/audio-chat", json={"question": 1}).status_code == 422


def test_all_metrics_of_the_contract_are_scraped(deployment: Deployment) -> None:
    assert [series["value"][1] for series in deployment.query('up{job="allears"}')] == ["1", "1"]
    missing = [name for name in CONTRACT + OURS if len(deployment.query(f"count({name})")) == 0]
    assert not missing
    (requests,) = deployment.query(
        f'sum(allears_requests_total{{route="/v1/audio-chat", status="200",'
        f' instance="{deployment.well.removeprefix("http://")}"}})'
    )
    assert float(requests["value"][1]) == ITEMS


def test_only_the_deaf_server_raises_the_alarm(deployment: Deployment) -> None:
    deaf = deployment.deaf.removeprefix("http://")
    expected = {("AllEarsNotListening", deaf), ("AllEarsListeningDrift", deaf)}
    with suppress(AssertionError):
        wait(lambda: deployment.firing() >= expected, deployment.log, seconds=30)
    names = ("allears:not_listening_fraction:10m", "allears_listening_drift_psi")
    seen = [(x["metric"]["instance"], x["value"][1]) for n in names for x in deployment.query(n)]
    print(seen)
    assert deployment.firing() == expected, seen
