"""A discrete-event simulation of replicas, in the order of server/engine/engine.py, without torch.

A replica has workers, which read bodies and decode audio; a queue with a limit and a longest wait;
and one engine, which admits some questions, then makes one decode step for all rows, and so on.
Prompts are made in the engine, or, as on a card, by the workers. The silence cache is the server's
own class, holding tensors without memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from deploy.capacity.stage_times import Quantiles, StageTimes
from deploy.capacity.traffic import RequestOutcome, TimedRequest
from steering.errors import AllEarsError
from steering.silence_cache import Ladder, SilenceCache, SilenceKey

try:
    import simpy
except ImportError as error:
    raise AllEarsError(
        "the simulation needs simpy, of the development extra: pip install 'allears[dev]'"
    ) from error

Routing = Literal["random", "least_loaded", "by_length"]
ROUTINGS: tuple[Routing, ...] = ("random", "least_loaded", "by_length")
_WINDOW_FRAMES = 3000  # mel frames of 30 s
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Settings of the replicas, and the routing of requests among them."""

    replicas: int = 1
    rows: int = 16
    queue_limit: int = 64
    queue_timeout_seconds: float = 30.0
    silence_cache_bytes: int = 1_000_000_000
    silence_steps: int = 0  # of a ladder, as in steering/silence_cache.py; 0: every length
    workers: int = 1  # cores of a replica beside the one of its engine
    prompts_by_workers: bool = False  # as on a card
    enter_between_steps: int = 4  # questions: short ones, of as many tokens as the engine lets in
    routing: Routing = "random"


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """One request on its way; times are seconds of the simulation."""

    sent: TimedRequest
    status: int = 0  # as in HTTP; 0 while it is under way
    queued_at: float = math.inf
    first_token_at: float = math.inf
    done_at: float = math.inf
    twin: str = ""  # hit, miss, cold; empty for none
    tokens_left: int = 0


Queued = tuple[SimulatedRequest, simpy.Event]  # a request, and what ends its wait


@dataclass(slots=True, eq=False)
class SimulatedReplica:
    """One server process."""

    env: simpy.Environment
    times: StageTimes
    fleet: FleetSettings
    draws: np.random.Generator
    workers: simpy.Resource = field(init=False)
    silence_cache: SilenceCache = field(init=False)
    wake_up: simpy.Event = field(init=False)
    unprepared: deque[Queued] = field(default_factory=deque)  # without a prompt
    ready: deque[Queued] = field(default_factory=deque)
    running: list[SimulatedRequest] = field(default_factory=list)
    load: int = 0  # requests in this replica
    waiting: int = 0  # those of them that have not begun
    work_seconds: float = 0.0  # of the engine
    busy_seconds: float = 0.0  # the same, slowed down
    rounds: int = 0
    row_rounds: int = 0

    def __post_init__(self) -> None:
        self.workers = simpy.Resource(self.env, capacity=self.fleet.workers)
        ladder = Ladder(self.fleet.silence_steps)
        self.silence_cache = SilenceCache(self.fleet.silence_cache_bytes, ladder)
        self.wake_up = self.env.event()
        self.env.process(self._engine())

    def answer(self, request: SimulatedRequest) -> Process:
        """One request: refused, or workers, queue, engine."""
        if self.waiting >= self.fleet.queue_limit:
            request.status = 429
            return
        self.load += 1
        yield from self._in_worker(self.times.open, request)
        yield from self._in_worker(self.times.decode, request)
        if self.waiting >= self.fleet.queue_limit:
            request.status = 429
            self.load -= 1
            return
        self.waiting += 1  # from here on, as the engine counts
        request.queued_at = self.env.now
        if self.fleet.prompts_by_workers:
            yield from self._in_worker(self.times.prompt, request)
        begun = self.env.event()
        (self.ready if self.fleet.prompts_by_workers else self.unprepared).append((request, begun))
        if not self.wake_up.triggered:
            self.wake_up.succeed()
        yield begun | self.env.timeout(self.fleet.queue_timeout_seconds)
        self.waiting -= 1
        if not begun.triggered:
            request.status = 503
            self.load -= 1

    def _in_worker(self, stage: Quantiles, request: SimulatedRequest) -> Process:
        with self.workers.request() as turn:
            yield turn
            seconds = stage.at(request.sent.clip_seconds, self.draws.random())
            yield self.env.timeout(seconds * self.times.slowdown(self.env.now))

    def _engine(self) -> Process:
        """The torch thread, as the server's engine loop: admit some questions, then one step."""
        while True:
            for _ in range(self.fleet.enter_between_steps):
                yield from self._prepare()
                entering = yield from self._next()
                if entering is None:
                    break
                request, begun = entering
                begun.succeed()
                yield self._work(self._entering(request))
                request.first_token_at = self.env.now
                self.running.append(request)
                self._next_tokens([request])
            if self.running:
                self.rounds += 1
                self.row_rounds += len(self.running)
                yield self._work(self.times.round.at(len(self.running), self.draws.random()))
                self._next_tokens(self.running)

    def _prepare(self) -> Process:
        """Make the prompt of the next request, unless its client has given up."""
        if not self.unprepared:
            return
        request, _ = self.unprepared[0]
        if not request.status:
            clip = request.sent.clip_seconds
            yield self._work(self.times.prompt.at(clip, self.draws.random()))
        self.ready.append(self.unprepared.popleft())

    def _next(self) -> Generator[simpy.Event, Any, Queued | None]:
        """The next question, if a row is free; waits while there is nothing to do."""
        while True:
            while self.ready and self.ready[0][0].status:
                self.ready.popleft()
            if self.ready and len(self.running) < self.fleet.rows:
                return self.ready.popleft()
            if self.running or self.unprepared:
                return None
            self.wake_up = self.env.event()
            yield self.wake_up

    def _work(self, seconds: float) -> simpy.Event:
        self.work_seconds += seconds
        slowed = seconds * self.times.slowdown(self.env.now)
        self.busy_seconds += slowed
        return self.env.timeout(slowed)

    def _next_tokens(self, requests: Sequence[SimulatedRequest]) -> None:
        """One more token for each; a finished request leaves."""
        for request in requests:
            request.tokens_left -= 1
            if not request.tokens_left:
                request.status, request.done_at = 200, self.env.now
                self.load -= 1
        self.running = [request for request in self.running if request.tokens_left]

    def _entering(self, request: SimulatedRequest) -> float:
        """Seconds from the queue to the first token; reads the silence cache, and fills it."""
        request.tokens_left = request.sent.answer_tokens
        if not request.sent.steered:
            return self.times.bare.at(request.sent.clip_seconds, self.draws.random())
        request.twin = self._twin(request.sent)
        kinds = {"hit": self.times.hit, "miss": self.times.miss, "cold": self.times.cold}
        return kinds[request.twin].at(request.sent.clip_seconds, self.draws.random())

    def _twin(self, sent: TimedRequest) -> str:
        """Look the silent twin up in the cache, and store it, as `contrast_with_silence` does."""
        kept, frames = self.silence_cache, round(100 * sent.clip_seconds)
        rung = kept.ladder.rung(frames, max(frames, _WINDOW_FRAMES))
        key = SilenceKey(sent.system_prompt.to_bytes(4, "big"), (rung,))
        if kept.get(key) is not None:
            return "hit"
        known = kept.features(rung) is not None
        if not known:
            kept.put_features(rung, _blank(self.times.feature_bytes(rung / 100)))
        kept.put(key, [(_blank(self.times.entry_bytes(rung / 100)), _blank(0))])
        return "miss" if known else "cold"


def _blank(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")


@dataclass(frozen=True, slots=True, eq=False)
class SimulationRun:
    """The simulated requests, and the replicas that they went through."""

    requests: tuple[SimulatedRequest, ...]
    replicas: tuple[SimulatedReplica, ...]

    @property
    def outcomes(self) -> list[RequestOutcome]:
        """Outcomes as a real server reports them, which tells no cold twin from a miss."""
        return [
            RequestOutcome(
                request.sent.at,
                request.status,
                request.done_at - request.sent.at,
                request.first_token_at - request.queued_at,
                request.twin if request.twin in ("", "hit") else "miss",
            )
            for request in self.requests
        ]

    @property
    def mean_rows(self) -> float:
        """Mean number of rows of a round."""
        rounds = sum(replica.rounds for replica in self.replicas)
        return sum(replica.row_rounds for replica in self.replicas) / max(rounds, 1)


def simulate(
    sent: Sequence[TimedRequest], times: StageTimes, fleet: FleetSettings, seed: int = 0
) -> SimulationRun:
    """All requests, through a fleet that starts empty; the same arguments give the same."""
    env = simpy.Environment()
    draws = np.random.default_rng(seed)
    replicas = tuple(SimulatedReplica(env, times, fleet, draws) for _ in range(fleet.replicas))
    requests = tuple(SimulatedRequest(each) for each in sent)

    def arrive() -> Process:
        for request in requests:
            yield env.timeout(max(request.sent.at - env.now, 0.0))
            env.process(_route(replicas, request, fleet.routing, draws).answer(request))

    env.process(arrive())
    env.run()
    return SimulationRun(requests, replicas)


def _route(
    replicas: Sequence[SimulatedReplica],
    request: SimulatedRequest,
    routing: Routing,
    draws: np.random.Generator,
) -> SimulatedReplica:
    """The replica that a request goes to."""
    if routing == "by_length":  # clips of one length meet in one place, unless that has a queue
        first = round(100 * request.sent.clip_seconds) * 2654435761 % len(replicas)
        home = replicas[first]
        if home.load <= 1.25 * sum(replica.load for replica in replicas) / len(replicas) + 1:
            return home
    if routing != "random":
        fewest = min(replica.load for replica in replicas)
        replicas = [replica for replica in replicas if replica.load == fewest]
    return replicas[int(draws.integers(len(replicas)))]
