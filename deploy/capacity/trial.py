"""A real server of the embedded model under a load that does not wait for answers.

The server is `allears serve` in a process of its own; requests are sent when they are due, however
many are under way. On a machine that others use, Linux tells how long the server's threads had
work and no core, which is what a dilation says: 1 on a quiet machine.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.capacity.stages import body
from deploy.capacity.traffic import Outcome, SimulatedRequest
from server.bench.models import BenchModel
from steering.model.checkpoint import DEMO_WEIGHTS

_ANSWER_SECONDS = 300.0  # the longest that is waited for one
_START_SECONDS = 300.0
_OTHER_END = "<|audio_eos|>"  # a token that the model never says


@dataclass(frozen=True, slots=True)
class CpuContention:
    """What the machine gave the server while it was asked: seconds of its threads."""

    torch_cpu: float
    torch_waited: float  # had work and no core
    other_cpu: float
    other_waited: float

    @property
    def torch_dilation(self) -> float:
        """Seconds by the wall that a second of the torch thread's work took."""
        return (self.torch_cpu + self.torch_waited) / max(self.torch_cpu, 1e-9)

    @property
    def other_dilation(self) -> float:
        """The same of the threads that parse, decode and prepare."""
        return (self.other_cpu + self.other_waited) / max(self.other_cpu, 1e-9)


def run(
    subject: BenchModel, profile: Path, asked: Sequence[SimulatedRequest], *options: str
) -> tuple[list[Outcome], CpuContention]:
    """What came of all requests, sent to a server that starts for them and is stopped after."""
    with tempfile.TemporaryDirectory() as folder:
        model = endless_checkpoint(Path(folder) / "model")
        words = ["--model", str(model), "--profile", str(profile), *options]
        with serving(words, Path(folder) / "log") as (process, url):
            before = _threads(process.pid)
            outcomes = asyncio.run(_send(subject, url, asked))
            return outcomes, _strain(before, _threads(process.pid))


def endless_checkpoint(folder: Path) -> Path:
    """The embedded model with another end token, so that answers are as long as they may be."""
    shutil.copytree(DEMO_WEIGHTS, folder)
    for name in ("tokenizer_config.json", "generation_config.json"):
        file = folder / name
        config = json.loads(file.read_text())
        if "eos_token" in config:
            config["eos_token"] = _OTHER_END
        else:
            config["eos_token_id"] = _token_id(folder)
        file.write_text(json.dumps(config))
    return folder


def _token_id(folder: Path) -> int:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(int(one["id"]) for one in added if one["content"] == _OTHER_END)


@contextmanager
def serving(words: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server that is ready, and its URL; one torch thread."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", *words]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ALLEARS_")}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=clean | {"OMP_NUM_THREADS": "1"}, stderr=stderr)
    try:
        yield process, _ready_url(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://\S+:\d+", log.read_text())
        with suppress(httpx.TransportError):
            if found and httpx.get(f"{found[0]}/readyz").status_code == 200:
                return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


async def _send(subject: BenchModel, url: str, asked: Sequence[SimulatedRequest]) -> list[Outcome]:
    """All requests, each at its time."""
    clips = {one.clip_seconds: _audio(subject, one.clip_seconds) for one in asked}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=_ANSWER_SECONDS, limits=limits) as client:
        start = time.perf_counter()

        async def one(each: SimulatedRequest) -> Outcome:
            await asyncio.sleep(max(start + each.at - time.perf_counter(), 0.0))
            sent = _body(subject, each, clips[each.clip_seconds])
            headers = {"content-type": "application/json"}
            response = await client.post("/v1/audio-chat", content=sent, headers=headers)
            return _outcome(each, response, time.perf_counter() - start - each.at)

        return await asyncio.gather(*(one(each) for each in asked))


def _audio(subject: BenchModel, clip_seconds: float) -> str:
    return str(json.loads(body(subject, clip_seconds, 0))["audio"]["data"])


def _body(subject: BenchModel, asked: SimulatedRequest, audio: str) -> bytes:
    words = [{"role": "system", "content": f"Ear {asked.words}."}]
    parts = [
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
        {"type": "text", "text": subject.question},
    ]
    wish: dict[str, Any] = {"messages": [*words, {"role": "user", "content": parts}]}
    wish |= {"max_tokens": asked.answer_tokens, "steer": asked.steered}
    return json.dumps(wish).encode()


def _outcome(asked: SimulatedRequest, response: httpx.Response, seconds: float) -> Outcome:
    if response.status_code != 200:
        return Outcome(asked.at, response.status_code, seconds)
    answer = response.json()
    if answer["usage"]["completion_tokens"] != asked.answer_tokens:
        raise RuntimeError(f"an answer of other length than {asked.answer_tokens}: {answer}")
    took = answer["timings"]
    passes = took["prefill_seconds"] + took["silence_seconds"]
    first = took["queue_seconds"] + passes
    return Outcome(asked.at, 200, seconds, first, took["silence_cache"] or "", passes)


def _threads(process: int) -> dict[str, tuple[float, float]]:
    """Seconds on a core and seconds waited for one, of each thread of a server and its decoders.

    Linux only.
    """
    found: dict[str, tuple[float, float]] = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # it has ended
            ran, waited = (task / "schedstat").read_text().split()[:2]
            found[task.name] = (int(ran) / 1e9, int(waited) / 1e9)
            for child in (task / "children").read_text().split():
                found |= _threads(int(child))
    return found


def _strain(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> CpuContention:
    """Between two looks; the torch thread is the one that did most."""
    none = (0.0, 0.0)
    gained = [
        (ran - before.get(name, none)[0], waited - before.get(name, none)[1])
        for name, (ran, waited) in after.items()
    ]
    (cpu, waited), *others = sorted(gained, reverse=True)
    return CpuContention(
        cpu, waited, sum(ran for ran, _ in others), sum(late for _, late in others)
    )
