"""Forecast for a card that was never measured: one replica's stages, limits, and many replicas.

It is made of the card's data sheet, of assumed shares of it, of a model's sizes, and of the CPU's
measured part: bodies, prompts, starting operators, bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploy.capacity import costs
from deploy.capacity.costs import Machine, ModelSizes, max_answers_per_second
from deploy.capacity.simulation import ROUTINGS, FleetSettings, simulate
from deploy.capacity.stage_times import Quantiles, StageTimes
from deploy.capacity.traffic import Traffic, requests, summary

CLIP_MIXES = {
    "30 s": (30.0,),
    "12 lengths": tuple(2.5 * i for i in range(1, 13)),  # 2.5 to 30 s
    "any length": tuple(round(0.01 * i, 2) for i in range(100, 3001)),  # 1 to 30 s
}
_ANSWER_TOKENS = (32, 96)
_SECONDS = 60.0  # simulated
_QUEUE = 64
_WORKERS = 4  # cores of a replica beside the one of its engine
_MAX_ROWS = 64
_MEL_FRAMES_A_SECOND = 100
_AUDIO_TOKENS_A_SECOND = 25.0


@dataclass(frozen=True, slots=True)
class DataSheet:
    """The rates and the memory that a card's maker states."""

    name: str
    operations_a_second: float
    bytes_a_second: float
    memory_bytes: float


H100 = DataSheet("H100 SXM", 989e12, 3.35e12, 80e9)  # dense bfloat16


@dataclass(frozen=True, slots=True)
class AssumedShares:
    """Shares of the data sheet that are taken to be reached; none was measured."""

    operations: float = 0.5
    bandwidth: float = 0.6
    memory: float = 0.9  # the rest is for activations, graphs and fragments


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """The CPU's part, whatever the card: measured on one CPU, taken to be the same elsewhere."""

    open: Mapping[float, Sequence[float]]  # quantiles, by seconds of the clip
    decode: Mapping[float, Sequence[float]]
    prompt: Mapping[float, Sequence[float]]
    layer_seconds: float  # to start the operators of one layer
    row_seconds: float  # between two steps, for every answer that is written


@dataclass(frozen=True, slots=True, eq=False)
class CardReplica:
    """A model on a card, as the simulation takes it."""

    sizes: ModelSizes
    machine: Machine
    host: Host
    text_tokens: tuple[int, int]  # before the audio, after it
    memory_bytes: float  # for keys, values and silence

    def prefix(self, clip: float) -> int:
        """Tokens up to the end of a clip of so many seconds."""
        return self.text_tokens[0] + round(_AUDIO_TOKENS_A_SECOND * clip)

    def length(self, clip: float) -> int:
        """Tokens of a prompt."""
        return self.prefix(clip) + self.text_tokens[1]

    def entering(self, clip: float, twin: str) -> float:
        """Seconds from the queue to the first token."""
        sizes, prefix, length = self.sizes, self.prefix(clip), self.length(clip)
        positions = sizes.positions_of(round(_MEL_FRAMES_A_SECOND * clip))
        passes = [costs.prefill(sizes, length, positions)]
        if twin:
            passes.append(costs.question(sizes, length, prefix))
        if twin in ("miss", "cold"):
            passes.append(costs.silent_prefix(sizes, prefix))
        if twin == "cold":
            passes.append(costs.encoder(sizes, positions))
        return sum(self.machine.seconds(work) for work in passes)

    def round(self, rows: int, kv_length: int) -> float:
        """Seconds of a step, which is a CUDA graph, and of the work for each of its rows."""
        step = self.machine.seconds(costs.step(self.sizes, rows, kv_length), graph=True)
        return step + rows * self.host.row_seconds

    def rows(self, tokens: int) -> int:
        """Rows of so many tokens that fit into memory."""
        return int(self.memory_bytes / self.sizes.row_bytes(tokens))

    def stage_times(self, kv_length: int, max_rows: int) -> StageTimes:
        """Times for the simulation; every step reads `kv_length` keys."""
        clips = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0)

        def entering(twin: str) -> Quantiles:
            return Quantiles({clip: [self.entering(clip, twin)] for clip in clips})

        return StageTimes(
            open=Quantiles(self.host.open),
            decode=Quantiles(self.host.decode),
            prompt=Quantiles(self.host.prompt),
            bare=entering(""),
            hit=entering("hit"),
            miss=entering("miss"),
            cold=entering("cold"),
            round=Quantiles({n: [self.round(n, kv_length)] for n in range(1, max_rows + 1)}),
            entry_bytes=lambda clip: self.sizes.entry_bytes(self.prefix(clip)),
            feature_bytes=lambda clip: self.sizes.feature_bytes(
                round(_AUDIO_TOKENS_A_SECOND * clip)
            ),
        )


def h100_machine(layer_seconds: float, shares: AssumedShares) -> Machine:
    """An H100 that reaches the assumed shares; operators start while it works."""
    return Machine(
        H100.operations_a_second * shares.operations,
        H100.bytes_a_second * shares.bandwidth,
        layer_seconds,
        overlapped=True,
    )


def h100_replica(
    sizes: ModelSizes, host: Host, text_tokens: tuple[int, int], shares: AssumedShares
) -> CardReplica:
    """The model on an H100; memory beside the weights is for keys, values and silence."""
    machine = h100_machine(host.layer_seconds, shares)
    memory = H100.memory_bytes * shares.memory - sizes.weight_bytes
    return CardReplica(sizes, machine, host, text_tokens, memory)


# ---- one card and many


def forecast(
    sizes: ModelSizes, host: Host, text_tokens: tuple[int, int], report: Callable[[str], None]
) -> dict[str, Any]:
    """The whole forecast, as it goes to the JSON file."""
    card = h100_replica(sizes, host, text_tokens, AssumedShares())
    tokens = float(np.mean(_ANSWER_TOKENS))
    shares = {
        "low": AssumedShares(0.35, 0.45),
        "assumed": AssumedShares(),
        "high": AssumedShares(0.65, 0.8),
    }
    mixed = Traffic(0.0, CLIP_MIXES["12 lengths"], _ANSWER_TOKENS, 0.5)
    fleet = _card_fleet(32, 4_000_000_000)
    rate = 0.7 * one_card(card, fleet, mixed, 0.7)["max_a_second"]
    return {
        "one_card": list(_one_card_table(card, report)),
        "limits": limits(card, tokens),
        "shares": {
            name: _max_answers(h100_replica(sizes, host, text_tokens, each), "", _MAX_ROWS, tokens)
            for name, each in shares.items()
        },
        "fleet_rate": rate,
        "fleets": fleets(card, fleet, replace(mixed, requests_a_second=rate), (1, 8, 64), report),
    }


def one_card(
    card: CardReplica, fleet: FleetSettings, traffic: Traffic, load: float
) -> dict[str, Any]:
    """One replica under a kind of traffic: its limit, and its answers at a `load` of that."""
    times = card.stage_times(_kv_length(card, traffic), fleet.rows)
    flood = requests(replace(traffic, requests_a_second=60.0), _SECONDS, 1)
    limit = summary(simulate(flood, times, fleet).outcomes, _SECONDS)
    rate = load * limit["answered_a_second"]
    sent = requests(replace(traffic, requests_a_second=rate), _SECONDS, 2)
    run = simulate(sent, times, fleet)
    return {
        "max_a_second": limit["answered_a_second"],
        "hit_share_at_max": limit["hit_share"],
        "mean_rows": float(f"{run.mean_rows:.3g}"),
        "busy_share": float(f"{run.replicas[0].busy_seconds / _SECONDS:.3g}"),
        **summary(run.outcomes, _SECONDS),
    }


def _one_card_table(card: CardReplica, report: Callable[[str], None]) -> Sequence[dict[str, Any]]:
    """One card with each mix of clips, bare and steered, with few and many rows, at 0.8 load."""
    lines = []
    for mix, clips in CLIP_MIXES.items():
        for steered, cache_bytes in ((0.0, 1e9), (1.0, 1e9), (1.0, 8e9)):
            many = min(_rows(card, cache_bytes), _MAX_ROWS)
            for rows in (16, many) if cache_bytes == 1e9 else (many,):
                report(f"one card: {mix}, steered {steered:g}, {rows} rows")
                traffic = Traffic(0.0, clips, _ANSWER_TOKENS, steered)
                line = {"mix": mix, "steered": steered, "rows": rows, "cache_bytes": cache_bytes}
                fleet = _card_fleet(rows, int(cache_bytes))
                lines.append({**line, **one_card(card, fleet, traffic, 0.8)})
    return lines


def fleets(
    card: CardReplica,
    fleet: FleetSettings,
    traffic: Traffic,
    counts: Sequence[int],
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Many replicas at the same load each, by routing and arrivals."""
    times = card.stage_times(_kv_length(card, traffic), fleet.rows)
    lines = []
    for count in counts:
        for burst in (1.0, 4.0):
            rate = count * traffic.requests_a_second
            sent = requests(replace(traffic, requests_a_second=rate, burst=burst), _SECONDS, 3)
            for routing in ROUTINGS[: 1 if count == 1 else 3]:
                report(f"{count} replicas, {routing}, burst {burst:g}")
                run = simulate(sent, times, replace(fleet, replicas=count, routing=routing))
                line = {"replicas": count, "routing": routing, "burst": burst}
                lines.append({**line, **summary(run.outcomes, _SECONDS)})
    return lines


def limits(card: CardReplica, tokens: float) -> dict[str, float]:
    """Limit of each part by itself: requests a second with clips of 30 s, bare and steered."""
    kv_length = card.length(30.0) + round(tokens / 2)
    rows = min(_rows(card, 1e9), _MAX_ROWS)
    cpu = (card.host.open, card.host.decode, card.host.prompt)
    preprocessing = sum(Quantiles(stage).at(30.0, 0.5) for stage in cpu)
    by_twin = {"bare": "", "hit": "hit", "cold": "cold"}
    return {
        "rows": rows,
        "rows_fit": _rows(card, 1e9),
        **{f"entering_{name}_seconds": card.entering(30.0, by_twin[name]) for name in by_twin},
        **{f"round_{n}_seconds": card.round(n, kv_length) for n in (1, 16)},
        "round_rows_seconds": card.round(rows, kv_length),
        **{f"{name}_16": _max_answers(card, by_twin[name], 16, tokens) for name in by_twin},
        **{f"{name}_rows": _max_answers(card, by_twin[name], rows, tokens) for name in by_twin},
        "preprocessing_one_core": 1 / preprocessing,
    }


def _card_fleet(rows: int, cache_bytes: int) -> FleetSettings:
    return FleetSettings(1, rows, _QUEUE, 30.0, cache_bytes, _WORKERS, prompts_by_workers=True)


def _max_answers(card: CardReplica, twin: str, rows: int, tokens: float) -> float:
    """Answers a second about clips of 30 s."""
    kv_length = card.length(30.0) + round(tokens / 2)
    round_seconds = card.round(rows, kv_length)
    return max_answers_per_second(rows, tokens, card.entering(30.0, twin), round_seconds)


def _rows(card: CardReplica, cache_bytes: float) -> int:
    """Rows of 1024 tokens beside a silence cache."""
    return replace(card, memory_bytes=card.memory_bytes - cache_bytes).rows(1024)


def _kv_length(card: CardReplica, traffic: Traffic) -> int:
    """Keys that a step reads: up to the longest row, which is of the longest clip."""
    return card.length(max(traffic.clip_seconds)) + traffic.answer_tokens[1] // 2
