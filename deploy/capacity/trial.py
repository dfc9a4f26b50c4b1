"""Trial of the simulation: a real server of the embedded model, given the same requests.

The server is `allears serve` in a process of its own; requests are sent when they are due, however
many are under way. A machine that others use is slower at one time than at another. The server's
own answers say by how much, for they have the seconds of their passes; the simulation is slowed
down as much at the same times. Linux tells how long the server's threads had work and no core.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from deploy.capacity.simulation import FleetSettings, simulate
from deploy.capacity.stage_measurement import request_body
from deploy.capacity.stage_times import (
    TRIAL_CLIPS,
    TRIAL_TOKENS,
    cpu_stage_times,
    engine_limit,
    mean_clip,
)
from deploy.capacity.traffic import RequestOutcome, TimedRequest, Traffic, requests, summary
from server.bench.models import BenchModel, bench_model
from steering import profile as profiles
from steering.model.checkpoint import DEMO, DEMO_WEIGHTS

TRIAL_LOADS = (0.5, 0.9, 1.4)  # of what the engine can answer at most
_TRAFFIC = Traffic(1.0, TRIAL_CLIPS, TRIAL_TOKENS, steered=0.5)
_FLEET = FleetSettings(1, 16, 16, 30.0, 3_000_000)  # room for three of the five silences
_PROBE_SECONDS = 10.0
_SLOWDOWN_SECONDS = 4.0  # a slowdown is the mean of so long

_ANSWER_TIMEOUT_SECONDS = 300.0
_START_TIMEOUT_SECONDS = 300.0
_NEVER_SAID = "<|audio_eos|>"  # a token that the model never says


def run_trials(
    model: Mapping[str, Any], seconds: float, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The same requests to a real server and through the simulation, at loads around its limit."""
    demo = bench_model(DEMO, torch.device("cpu"))
    folder = profiles.DEMO_PROFILE
    words = ["--queue-limit-requests", f"{_FLEET.queue_limit}"]
    words += ["--silence-cache-bytes", f"{_FLEET.silence_cache_bytes}"]
    trials: list[dict[str, Any]] = []
    probe, _ = run_server(demo, folder, requests(_TRAFFIC, _PROBE_SECONDS, 1), *words)
    slowdown = float(np.mean(slowdowns(model, probe)))
    for load in TRIAL_LOADS:
        rate = load * engine_limit(model) / slowdown
        report(f"a real server, {rate:.3g} requests a second for {seconds:g} s")
        sent = requests(replace(_TRAFFIC, requests_a_second=rate), seconds, 0)
        outcomes, contention = run_server(demo, folder, sent, *words)
        trials.append(_compare(model, sent, outcomes, contention, seconds))
        slowdown = trials[-1]["slowdown"]["mean"]
    return trials


def _compare(
    model: Mapping[str, Any],
    sent: Sequence[TimedRequest],
    outcomes: Sequence[RequestOutcome],
    contention: CpuContention,
    seconds: float,
) -> dict[str, Any]:
    """The figures of a real server, and of the simulation given the same requests."""
    measured = slowdowns(model, outcomes)
    mean = float(np.mean(measured))
    times = replace(
        cpu_stage_times(model, preprocessing=contention.other_slowdown / mean),
        slowdown=slowdown_over_time(model, outcomes),
    )
    run = simulate(sent, times, _FLEET)
    return {
        "requests": len(sent),
        "load": len(sent) / seconds * mean / engine_limit(model),
        "seconds": seconds,
        "contention": asdict(contention),
        "torch_slowdown": contention.torch_slowdown,
        "other_slowdown": contention.other_slowdown,
        "slowdown": {
            "mean": mean,
            **{f"p{q}": float(np.percentile(measured, q)) for q in (10, 50, 90)},
        },
        "simulated_torch_cpu": run.replicas[0].work_seconds,
        "real": summary(outcomes, seconds),
        "simulated": summary(run.outcomes, seconds),
    }


def simulated_curve(model: Mapping[str, Any]) -> list[dict[str, float]]:
    """The trial's traffic simulated at many loads, on a machine that nobody else uses."""
    times, limit = cpu_stage_times(model), engine_limit(model)
    seconds = 1200 / limit
    points = []
    for load in np.linspace(0.1, 2.2, 22):
        traffic = replace(_TRAFFIC, requests_a_second=float(load) * limit)
        run = simulate(requests(traffic, seconds, 4), times, _FLEET)
        points.append({"load": float(f"{load:.3g}"), **summary(run.outcomes, seconds)})
    return points


def slowdowns(model: Mapping[str, Any], outcomes: Sequence[RequestOutcome]) -> list[float]:
    """Wall seconds of each answer's passes, as the server reports them, over their CPU seconds.

    They are longer where others use the core, or other threads hold Python's lock.
    """
    twins = {"hit": ["twin hit"], "miss": ["twin miss"]}
    ratios = []
    for outcome in outcomes:
        if outcome.status == 200:
            passes = ["prefill", *twins.get(outcome.twin, [])]
            work = sum(mean_clip(model, stage) for stage in passes)
            ratios.append(float(f"{outcome.passes_seconds / work:.3g}"))
    return ratios


def slowdown_over_time(
    model: Mapping[str, Any], outcomes: Sequence[RequestOutcome]
) -> Callable[[float], float]:
    """The mean slowdown around a time, from the questions that entered then."""
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    times = np.array([outcome.at + outcome.first_token_seconds for outcome in answered])
    ratios = np.array(slowdowns(model, answered))
    bins = (times // _SLOWDOWN_SECONDS).astype(int)
    at = [(index + 0.5) * _SLOWDOWN_SECONDS for index in np.unique(bins)]
    means = [float(ratios[bins == index].mean()) for index in np.unique(bins)]
    return lambda now: float(np.interp(now, at, means))


# ---- the real server


@dataclass(frozen=True, slots=True)
class CpuContention:
    """Seconds of the server's threads on a core, and waiting for one."""

    torch_cpu: float
    torch_waited: float  # had work and no core
    other_cpu: float
    other_waited: float

    @property
    def torch_slowdown(self) -> float:
        """Wall seconds for a second of the torch thread's work; 1 on a quiet machine."""
        return (self.torch_cpu + self.torch_waited) / max(self.torch_cpu, 1e-9)

    @property
    def other_slowdown(self) -> float:
        """The same of the threads that parse, decode and prepare."""
        return (self.other_cpu + self.other_waited) / max(self.other_cpu, 1e-9)


def run_server(
    bench: BenchModel, profile: Path, sent: Sequence[TimedRequest], *options: str
) -> tuple[list[RequestOutcome], CpuContention]:
    """Outcomes of all requests, sent to a server that is started for them and stopped after.

    Its silence is as long as each clip, as in the simulation.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, exact = endless_checkpoint(Path(folder) / "model"), Path(folder) / "profile"
        profiles.save(replace(profiles.load(profile), silence="exact"), exact)
        words = ["--model", str(model), "--profile", str(exact), *options]
        with serving(words, Path(folder) / "log") as (process, url):
            before = _threads(process.pid)
            outcomes = asyncio.run(_send(bench, url, sent))
            return outcomes, _contention(before, _threads(process.pid))


def endless_checkpoint(folder: Path) -> Path:
    """The embedded model with another end token, so that answers are as long as they may be."""
    shutil.copytree(DEMO_WEIGHTS, folder)
    for name in ("tokenizer_config.json", "generation_config.json"):
        file = folder / name
        config = json.loads(file.read_text())
        if "eos_token" in config:
            config["eos_token"] = _NEVER_SAID
        else:
            config["eos_token_id"] = _token_id(folder)
        file.write_text(json.dumps(config))
    return folder


def _token_id(folder: Path) -> int:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(int(token["id"]) for token in added if token["content"] == _NEVER_SAID)


@contextmanager
def serving(words: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server that is ready, and its URL; one torch thread."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ALLEARS_")}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, env=environment | {"OMP_NUM_THREADS": "1"}, stderr=stderr
        )
    try:
        yield process, _ready_url(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        url = re.search(r"http://\S+:\d+", log.read_text())
        with suppress(httpx.TransportError):
            if url and httpx.get(f"{url[0]}/readyz").status_code == 200:
                return url[0]
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


async def _send(bench: BenchModel, url: str, sent: Sequence[TimedRequest]) -> list[RequestOutcome]:
    """All requests, each at its time."""
    clips = {each.clip_seconds: _audio(bench, each.clip_seconds) for each in sent}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(
        base_url=url, timeout=_ANSWER_TIMEOUT_SECONDS, limits=limits
    ) as client:
        start = time.perf_counter()

        async def send(request: TimedRequest) -> RequestOutcome:
            await asyncio.sleep(max(start + request.at - time.perf_counter(), 0.0))
            body = _body(bench, request, clips[request.clip_seconds])
            headers = {"content-type": "application/json"}
            response = await client.post("/v1/audio-chat", content=body, headers=headers)
            return _outcome(request, response, time.perf_counter() - start - request.at)

        return await asyncio.gather(*map(send, sent))


def _audio(bench: BenchModel, clip_seconds: float) -> str:
    return str(json.loads(request_body(bench, clip_seconds, 0))["audio"]["data"])


def _body(bench: BenchModel, request: TimedRequest, audio: str) -> bytes:
    system = {"role": "system", "content": f"Ear {request.system_prompt}."}
    parts = [
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
        {"type": "text", "text": bench.question},
    ]
    body: dict[str, Any] = {"messages": [system, {"role": "user", "content": parts}]}
    body |= {"max_tokens": request.answer_tokens, "steer": request.steered}
    return json.dumps(body).encode()


def _outcome(request: TimedRequest, response: httpx.Response, seconds: float) -> RequestOutcome:
    if response.status_code != 200:
        return RequestOutcome(request.at, response.status_code, seconds)
    answer = response.json()
    if answer["usage"]["completion_tokens"] != request.answer_tokens:
        raise RuntimeError(f"an answer of other length than {request.answer_tokens}: {answer}")
    timings = answer["timings"]
    passes = timings["prefill_seconds"] + timings["silence_seconds"]
    first = timings["queue_seconds"] + passes
    return RequestOutcome(request.at, 200, seconds, first, timings["silence_cache"] or "", passes)


def _threads(process: int) -> dict[str, tuple[float, float]]:
    """Seconds on a core, and waiting for one, of each thread of a server and its decode processes.

    Linux only.
    """
    threads: dict[str, tuple[float, float]] = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # it has ended
            ran, waited = (task / "schedstat").read_text().split()[:2]
            threads[task.name] = (int(ran) / 1e9, int(waited) / 1e9)
            for child in (task / "children").read_text().split():
                threads |= _threads(int(child))
    return threads


def _contention(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> CpuContention:
    """Between two measurements; the torch thread is the one that worked most."""
    none = (0.0, 0.0)
    gained = [
        (ran - before.get(name, none)[0], waited - before.get(name, none)[1])
        for name, (ran, waited) in after.items()
    ]
    (cpu, waited), *others = sorted(gained, reverse=True)
    return CpuContention(
        cpu, waited, sum(ran for ran, _ in others), sum(late for _, late in others)
    )
