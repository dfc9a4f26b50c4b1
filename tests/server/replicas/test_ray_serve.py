"""Two replicas of the tiny model behind one router, really run by Ray Serve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as Counted

from server.telemetry.merged_metrics import counts, text
from tests.server.conftest import Remote

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ROWS, QUEUE = 4, 8
# All but the playground's pages, which the router serves itself as any server does.
CONTRACT = [
    "tests/server",
    "--ignore",
    "tests/server/playground/test_playground.py",
    "tests/clients",
]
CONTRACT += ["--ignore", "tests/clients/test_install.py"]
INSIDE = (
    "tests/server/access/test_api_keys.py::test_the_table_of_paths_misses_no_route"  # of the app
)
RESTORED_SECONDS = 120.0  # for a replica to be made anew, on a machine that is busy


class Cluster:
    """A router's process and what it serves."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log, self.remote = process, url, log, Remote(url)

    def replicas(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in own if "ServeReplica:allears" in " ".join(child.cmdline())]

    def wait_for(self, ready: int) -> float:
        """Seconds until so many replicas are ready."""
        began = time.monotonic()
        while self.remote.metric("allears_replicas_ready") != ready:
            assert time.monotonic() - began < RESTORED_SECONDS, self.log.read_text()[-4000:]
            time.sleep(0.1)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def cluster(
    checkpoint_folder: Path,
    profile_folder: Path,
    serve_process: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    log = tmp_path_factory.mktemp("cluster") / "log"
    options = ["--replicas", "2", "--max-batch-rows", ROWS, "--queue-limit-requests", QUEUE]
    options += ["--max-context-tokens", 1024]
    words = [str(option) for option in options]
    with serve_process(checkpoint_folder, profile_folder, log, *words) as (process, url):
        served = Cluster(process, url, log)
        with closing(served.remote):
            served.wait_for(2)
            yield served


def test_what_speaks_only_http_holds_unchanged(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--url", cluster.url, *CONTRACT, "--deselect", INSIDE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 180, "the contract's tests are among those that ask a server"


def test_all_replicas_answer_and_one_page_counts_them(cluster: Cluster, audio: Any) -> None:
    before = cluster.remote.metric("allears_listening_score_count")
    body = {"audio": audio, "question": "?", "max_tokens": 2}
    asked = [cluster.remote.begin("POST", "/v1/audio-chat", json=body) for _ in range(8)]
    assert [answer.result(60).status_code for answer in asked] == [200] * 8
    assert cluster.remote.metric("allears_listening_score_count") == before + 8
    assert cluster.remote.metric("allears_queue_limit_requests") == 2 * QUEUE
    assert cluster.remote.metric("allears_replicas_wanted") == 2
    page = cluster.remote.get("/metrics").text
    assert page.count("# TYPE allears_listening_score histogram") == 1
    assert page.count("allears_model_info{") == 1


def test_pieces_come_as_they_are_made(cluster: Cluster, audio: Any) -> None:
    body = {"audio": audio, "question": "?", "max_tokens": 200, "stream": True}
    moments = []
    url = f"{cluster.url}/v1/audio-chat"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for _ in response.iter_raw():
            moments.append(time.monotonic())
    assert len(moments) > 5
    assert moments[0] < moments[-1] - 0.02


def test_who_hangs_up_frees_the_row(cluster: Cluster, audio: Any) -> None:
    heard = cluster.remote.metric("allears_listening_score_count")
    body = {"audio": audio, "question": "?", "max_tokens": 800, "stream": True}
    with httpx.stream("POST", f"{cluster.url}/v1/audio-chat", json=body, timeout=60) as response:
        pieces = response.iter_raw()
        next(pieces)
        assert cluster.remote.metric("allears_batch_rows") == 1
    cluster.remote.wait_until(lambda: cluster.remote.metric("allears_batch_rows") == 0)
    assert cluster.remote.metric("allears_listening_score_count") == heard, "it ran to its end"


def test_more_than_may_wait_is_429(cluster: Cluster, audio: Any) -> None:
    body = {"audio": audio, "question": "?", "max_tokens": 100}
    with ThreadPoolExecutor(80) as threads, httpx.Client(limits=httpx.Limits()) as client:

        def ask(_: int) -> httpx.Response:
            return client.post(f"{cluster.url}/v1/audio-chat", json=body, timeout=120)

        answers = list(threads.map(ask, range(80)))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses.keys() == {200, 429}
    assert statuses[200] > ROWS + QUEUE, "more than one replica has room for"
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0


def test_a_killed_replica_loses_what_it_held_and_comes_back(cluster: Cluster, audio: Any) -> None:
    body = {"audio": audio, "question": "?", "max_tokens": 400}
    counted = cluster.remote.metric("allears_listening_score_count")
    victim = cluster.replicas()[0]
    begun: list[Any] = []
    deadline = time.monotonic() + RESTORED_SECONDS
    while cluster.remote.metric("allears_batch_rows") <= ROWS:  # one that was full is asked late
        assert time.monotonic() < deadline, "the other replica is never asked"
        if sum(not request.done() for request in begun) <= ROWS + QUEUE:
            begun += [cluster.remote.begin("POST", "/v1/audio-chat", json=body) for _ in range(20)]
        time.sleep(0.2)
    victim.kill()  # while each has some that run and some that wait
    after = [cluster.remote.begin("POST", "/v1/audio-chat", json=body) for _ in range(4)]
    answers = [request.result(90) for request in (*begun, *after)]
    lost = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert 0 < len(lost) <= ROWS + QUEUE
    for answer in lost:
        assert answer.json()["error"]["code"] == "replica_lost"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-request-id"]
    assert cluster.wait_for(2) < RESTORED_SECONDS
    assert victim.pid not in [replica.pid for replica in cluster.replicas()]
    assert cluster.remote.chat(**body).status_code == 200
    assert cluster.remote.metric("allears_listening_score_count") > counted, "sums never fall"


def test_sigterm_lets_running_requests_end_and_leaves_nothing(cluster: Cluster, audio: Any) -> None:
    body = {"audio": audio, "question": "?", "max_tokens": 800}
    family = psutil.Process(cluster.process.pid).children(recursive=True)
    running = cluster.remote.begin("POST", "/v1/audio-chat", json=body)
    cluster.remote.wait_until(lambda: cluster.remote.metric("allears_batch_rows") == 1)
    cluster.process.send_signal(signal.SIGTERM)
    assert running.result(60).status_code == 200
    assert cluster.process.wait(60) == 0
    gone, alive = psutil.wait_procs(family, 30)
    assert not alive and len(gone) > 2
    lines = [line for line in cluster.log.read_text().splitlines() if line.startswith("{")]
    assert any(json.loads(line).get("error_code") == "replica_lost" for line in lines)
    assert "Traceback" not in cluster.log.read_text()
    assert "Started a local Ray" not in cluster.log.read_text()


def test_no_late_call_starts_a_ray_of_its_own() -> None:
    program = "import server.replicas.ray_serve as s, ray; r = s.ServeReplicas(None, s._stop)\n"
    program += "r.stop(); assert r.status().ready == 0\n"
    program += "try: ray.put(1)\nexcept Exception as error: print(type(error).__name__)\n"
    program += "assert not ray.is_initialized()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Error" in done.stdout


# ---- without Ray


def test_without_ray_the_way_to_get_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(name='ray')")
    command = [sys.executable, "-m", "server.cli", "serve", "--replicas", "2", "--port", "0"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT}/clients"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "pip install 'allears[ray]'" in done.stderr


def page(score: float, waiting: float, drift: float) -> list[Any]:
    own = CollectorRegistry()
    Counted("allears_scores", "s", ["kind"], registry=own).labels("a").inc(score)
    Gauge("allears_queue_depth", "q", registry=own).set(waiting)
    Gauge("allears_listening_drift_psi", "d", registry=own).set(drift)
    return list(own.collect())


def test_counts_add_up_and_the_worst_gauge_is_shown() -> None:
    gone = counts(page(4, 9, 0.9))
    shown = text([page(1, 2, 0.1), page(2, 3, float("nan")), gone]).decode().splitlines()
    assert 'allears_scores_total{kind="a"} 7.0' in shown
    assert "allears_queue_depth 5.0" in shown
    assert "allears_listening_drift_psi 0.1" in shown
