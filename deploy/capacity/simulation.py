"""A discrete-event simulation of replicas, in the order of server/engine/engine.py, without torch.

A replica has a front, where bodies are read and audio is decoded; a queue with a limit and a
longest wait; and one engine, which lets some questions in, then makes one decode step for all rows,
and so on. Prompts are made in the engine, or, as on a card, in the front. Its silence cache is the
real one, holding tensors without memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from deploy.capacity.seconds import Seconds, Stages
from deploy.capacity.traffic import Outcome, SimulatedRequest
from steering.errors import AllEarsError
from steering.silence import SilenceCache

try:
    import simpy
except ImportError as error:
    raise AllEarsError(
        "the simulation needs simpy, of the development extra: pip install 'allears[dev]'"
    ) from error

Routing = Literal["random", "least_loaded", "by_length"]
ROUTINGS: tuple[Routing, ...] = ("random", "least_loaded", "by_length")
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class SimulatedReplicas:
    """Replicas and their settings, and who sends a request where."""

    replicas: int = 1
    rows: int = 16
    queue_limit: int = 64
    queue_timeout_seconds: float = 30.0
    silence_cache_bytes: int = 1_000_000_000
    front_workers: int = 1  # cores of a replica that its engine does not have
    prepares_beside: bool = False  # prompts are made in the front, as on a card
    enter_between_steps: int = 4  # questions at most, as in server/engine/engine.py
    routing: Routing = "random"


@dataclass(slots=True, eq=False)
class SimulatedVisit:
    """One request on its way; times are seconds of the simulation."""

    asked: SimulatedRequest
    status: int = 0  # as in HTTP; 0 while it is under way
    entered_at: float = math.inf  # at the engine's door
    first_token_at: float = math.inf
    done_at: float = math.inf
    twin: str = ""  # hit, words, cold; empty for none
    left: int = 0  # tokens


@dataclass(slots=True, eq=False)
class Replica:
    """One server process."""

    env: simpy.Environment
    stages: Stages
    fleet: SimulatedReplicas
    draws: np.random.Generator
    front: simpy.Resource = field(init=False)
    prefixes: SilenceCache = field(init=False)
    news: simpy.Event = field(init=False)
    came: deque[tuple[SimulatedVisit, simpy.Event]] = field(
        default_factory=deque
    )  # have no prompt yet
    queue: deque[tuple[SimulatedVisit, simpy.Event]] = field(default_factory=deque)  # have theirs
    rows: list[SimulatedVisit] = field(default_factory=list)
    load: int = 0  # requests that are here
    waiting: int = 0  # those of them that have not begun
    work_seconds: float = 0.0  # of the engine
    busy_seconds: float = 0.0  # the same, stretched
    rounds: int = 0
    row_rounds: int = 0

    def __post_init__(self) -> None:
        self.front = simpy.Resource(self.env, capacity=self.fleet.front_workers)
        self.prefixes = SilenceCache(self.fleet.silence_cache_bytes)
        self.news = self.env.event()
        self.env.process(self._engine())

    def visit(self, visit: SimulatedVisit) -> Process:
        """One request's way: turned away, or front, queue, engine."""
        if self.waiting >= self.fleet.queue_limit:
            visit.status = 429
            return
        self.load += 1
        yield from self._in_front(self.stages.open, visit)
        yield from self._in_front(self.stages.decode, visit)
        if self.waiting >= self.fleet.queue_limit:
            visit.status = 429
            self.load -= 1
            return
        self.waiting += 1  # from here on, as the engine counts
        visit.entered_at = self.env.now
        if self.fleet.prepares_beside:
            yield from self._in_front(self.stages.prepare, visit)
        begun = self.env.event()
        (self.queue if self.fleet.prepares_beside else self.came).append((visit, begun))
        if not self.news.triggered:
            self.news.succeed()
        yield begun | self.env.timeout(self.fleet.queue_timeout_seconds)
        self.waiting -= 1
        if not begun.triggered:
            visit.status = 503
            self.load -= 1

    def _in_front(self, stage: Seconds, visit: SimulatedVisit) -> Process:
        with self.front.request() as turn:
            yield turn
            seconds = stage.draw(visit.asked.clip_seconds, self.draws.random())
            yield self.env.timeout(seconds * self.stages.stretch(self.env.now))

    def _engine(self) -> Process:
        """The torch thread: as `Engine._work`, some questions in, then one step."""
        while True:
            for _ in range(self.fleet.enter_between_steps):
                yield from self._prepare()
                entering = yield from self._next()
                if entering is None:
                    break
                visit, begun = entering
                begun.succeed()
                yield self._work(self._entering(visit))
                visit.first_token_at = self.env.now
                self.rows.append(visit)
                self._next_tokens([visit])
            if self.rows:
                self.rounds += 1
                self.row_rounds += len(self.rows)
                yield self._work(self.stages.round.draw(len(self.rows), self.draws.random()))
                self._next_tokens(self.rows)

    def _prepare(self) -> Process:
        """Make the prompt of the next that came, unless nobody waits for it any more."""
        if not self.came:
            return
        visit, _ = self.came[0]
        if not visit.status:
            clip = visit.asked.clip_seconds
            yield self._work(self.stages.prepare.draw(clip, self.draws.random()))
        self.queue.append(self.came.popleft())

    def _next(self) -> Generator[simpy.Event, Any, tuple[SimulatedVisit, simpy.Event] | None]:
        """The next question, if there is a row for it; waits while there is nothing to do."""
        while True:
            while self.queue and self.queue[0][0].status:
                self.queue.popleft()
            if self.queue and len(self.rows) < self.fleet.rows:
                return self.queue.popleft()
            if self.rows or self.came:
                return None
            self.news = self.env.event()
            yield self.news

    def _work(self, seconds: float) -> simpy.Event:
        self.work_seconds += seconds
        stretched = seconds * self.stages.stretch(self.env.now)
        self.busy_seconds += stretched
        return self.env.timeout(stretched)

    def _next_tokens(self, visits: Sequence[SimulatedVisit]) -> None:
        """A token more for each; those that had their last one leave."""
        for visit in visits:
            visit.left -= 1
            if not visit.left:
                visit.status, visit.done_at = 200, self.env.now
                self.load -= 1
        self.rows = [visit for visit in self.rows if visit.left]

    def _entering(self, visit: SimulatedVisit) -> float:
        """Seconds from the queue to the first token; looks into the silence cache, and fills it."""
        visit.left = visit.asked.answer_tokens
        if not visit.asked.steered:
            return self.stages.bare.draw(visit.asked.clip_seconds, self.draws.random())
        visit.twin = self._twin(visit.asked)
        kinds = {"hit": self.stages.hit, "words": self.stages.words, "cold": self.stages.cold}
        return kinds[visit.twin].draw(visit.asked.clip_seconds, self.draws.random())

    def _twin(self, asked: SimulatedRequest) -> str:
        """What of the silent twin is at hand, as `steering.silence.contrast` finds and keeps it."""
        frames = round(100 * asked.clip_seconds)
        key = (asked.words.to_bytes(4, "big"), (frames,), 0)
        if self.prefixes.get(key) is not None:
            return "hit"
        known = self.prefixes.features(frames) is not None
        if not known:
            self.prefixes.put_features(
                frames, _blank(self.stages.feature_bytes(asked.clip_seconds))
            )
        pair = (_blank(self.stages.entry_bytes(asked.clip_seconds)), _blank(0))
        self.prefixes.put(key, [pair])
        return "words" if known else "cold"


def _blank(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")


@dataclass(frozen=True, slots=True, eq=False)
class SimulationRun:
    """What came of a list of requests."""

    visits: tuple[SimulatedVisit, ...]
    replicas: tuple[Replica, ...]

    @property
    def outcomes(self) -> list[Outcome]:
        """As of a real server, which does not say what of a miss was at hand."""
        return [
            Outcome(
                visit.asked.at,
                visit.status,
                visit.done_at - visit.asked.at,
                visit.first_token_at - visit.entered_at,
                visit.twin if visit.twin in ("", "hit") else "miss",
            )
            for visit in self.visits
        ]

    @property
    def mean_rows(self) -> float:
        """Answers written at once, while any was."""
        rounds = sum(one.rounds for one in self.replicas)
        return sum(one.row_rounds for one in self.replicas) / max(rounds, 1)


def simulate(
    asked: Sequence[SimulatedRequest], stages: Stages, fleet: SimulatedReplicas, seed: int = 0
) -> SimulationRun:
    """All requests, through a fleet that starts empty; the same arguments give the same."""
    env = simpy.Environment()
    draws = np.random.default_rng(seed)
    replicas = tuple(Replica(env, stages, fleet, draws) for _ in range(fleet.replicas))
    visits = tuple(SimulatedVisit(each) for each in asked)

    def arrive() -> Process:
        for visit in visits:
            yield env.timeout(max(visit.asked.at - env.now, 0.0))
            env.process(_chosen(replicas, visit, fleet.routing, draws).visit(visit))

    env.process(arrive())
    env.run()
    return SimulationRun(visits, replicas)


def _chosen(
    replicas: Sequence[Replica], visit: SimulatedVisit, routing: Routing, draws: np.random.Generator
) -> Replica:
    """Where a request goes."""
    if routing == "by_length":  # clips of one length meet in one place, unless that has a queue
        first = round(100 * visit.asked.clip_seconds) * 2654435761 % len(replicas)
        home = replicas[first]
        if home.load <= 1.25 * sum(one.load for one in replicas) / len(replicas) + 1:
            return home
    if routing != "random":
        fewest = min(one.load for one in replicas)
        replicas = [one for one in replicas if one.load == fewest]
    return replicas[int(draws.integers(len(replicas)))]
