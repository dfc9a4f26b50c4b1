"""What the cost model and the simulation say of machines that were never measured here.

A forecast is made of a card's data sheet, of shares of it that are stated, of a model's sizes, and
of what a CPU does in any case and was measured: bodies, prompts, starting operators, bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.capacity.card import Host, Replica, Shares, replica
from deploy.capacity.costs import Shape
from deploy.capacity.simulation import ROUTINGS, SimulatedReplicas, simulate
from deploy.capacity.traffic import Traffic, figures, requests

ONE_LENGTH = (30.0,)
TWELVE_LENGTHS = tuple(2.5 * i for i in range(1, 13))
ANY_LENGTH = tuple(round(0.01 * i, 2) for i in range(100, 3001))
MIXES = {
    "30 s": ONE_LENGTH,
    "2.5, 5 ... 30 s": TWELVE_LENGTHS,
    "any from 1 to 30 s": ANY_LENGTH,
}
_FRONT_WORKERS = 4  # cores of a replica beside the one of its engine
_SECONDS = 60.0  # simulated
_QUEUE = 64


def most_a_second(rows: int, tokens: float, entering: float, round_seconds: float) -> float:
    """Answers a second of an engine that always has questions and free rows go at once.

    Each answer takes the engine `entering` for itself and a row for `tokens` - 1 rounds; a round
    is shared by all rows, and while a question enters all rows wait.
    """
    return rows / ((tokens - 1) * round_seconds + rows * entering)


def one_card(
    card: Replica, fleet: SimulatedReplicas, traffic: Traffic, load: float
) -> dict[str, Any]:
    """What one replica does of a kind of traffic: at most, and at a share of that."""
    reach = _reach(card, traffic)
    stages = card.stages(reach, fleet.rows)
    most = figures(
        simulate(
            requests(replace(traffic, requests_a_second=60.0), _SECONDS, 1), stages, fleet
        ).outcomes,
        _SECONDS,
    )
    rate = load * most["answered_a_second"]
    course = simulate(
        requests(replace(traffic, requests_a_second=rate), _SECONDS, 2), stages, fleet
    )
    return {
        "most_a_second": most["answered_a_second"],
        "hit_share_at_most": most["hit_share"],
        "mean_rows": float(f"{course.mean_rows:.3g}"),
        "busy_share": float(f"{course.replicas[0].busy_seconds / _SECONDS:.3g}"),
        **figures(course.outcomes, _SECONDS),
    }


def fleets(
    card: Replica,
    fleet: SimulatedReplicas,
    traffic: Traffic,
    sizes: Sequence[int],
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Many replicas at the same load each, by how requests are spread and how they come."""
    stages = card.stages(_reach(card, traffic), fleet.rows)
    found = []
    for count in sizes:
        for burst in (1.0, 4.0):
            whole = replace(
                traffic, requests_a_second=count * traffic.requests_a_second, burst=burst
            )
            asked = requests(whole, _SECONDS, 3)
            for routing in ROUTINGS[: 1 if count == 1 else 3]:
                note(f"{count} replicas, {routing}, burst {burst:g}")
                course = simulate(asked, stages, replace(fleet, replicas=count, routing=routing))
                row = {"replicas": count, "routing": routing, "burst": burst}
                found.append({**row, **figures(course.outcomes, _SECONDS)})
    return found


def forecast(
    shape: Shape, host: Host, text: tuple[int, int], note: Callable[[str], None]
) -> dict[str, Any]:
    """All of it, as it goes to the JSON file."""
    card = replica(shape, host, text, Shares())
    tokens = (32, 96)
    singles = []
    for name, lengths in MIXES.items():
        for steered, cache in ((0.0, 1e9), (1.0, 1e9), (1.0, 8e9)):
            rows = min(_rows(card, cache), 64)
            for count in (16, rows) if cache == 1e9 else (rows,):
                note(f"one card: {name}, steered {steered:g}, {count} rows")
                traffic = Traffic(0.0, lengths, tokens, steered)
                fleet = _card_fleet(count, int(cache))
                row = {"mix": name, "steered": steered, "rows": count, "cache_bytes": cache}
                singles.append({**row, **one_card(card, fleet, traffic, 0.8)})
    shares = {}
    for label, each in (
        ("low", Shares(0.35, 0.45)),
        ("stated", Shares()),
        ("high", Shares(0.65, 0.8)),
    ):
        other = replica(shape, host, text, each)
        shares[label] = _most(other, 30.0, "", 64, float(np.mean(tokens)))
    usual = Traffic(0.0, TWELVE_LENGTHS, tokens, 0.5)
    fleet = _card_fleet(32, 4_000_000_000)
    one = one_card(card, fleet, usual, 0.7)
    rate = 0.7 * one["most_a_second"]
    return {
        "one": singles,
        "limits": limits(card, float(np.mean(tokens))),
        "shares": shares,
        "fleet_rate": rate,
        "fleets": fleets(card, fleet, replace(usual, requests_a_second=rate), (1, 8, 64), note),
    }


def limits(card: Replica, tokens: float) -> dict[str, float]:
    """Where each part by itself ends: requests a second with clips of 30 s, bare and steered."""
    reach = card.length(30.0) + round(tokens / 2)
    rows = min(_rows(card, 1e9), 64)
    host = card.host
    front = sum(float(np.median(each[30.0])) for each in (host.open, host.decode, host.prepare))
    return {
        "rows": rows,
        "rows_fit": _rows(card, 1e9),
        "entering_seconds": card.entering(30.0, ""),
        "entering_hit_seconds": card.entering(30.0, "hit"),
        "entering_cold_seconds": card.entering(30.0, "cold"),
        "round_1_seconds": card.round(1, reach),
        "round_16_seconds": card.round(16, reach),
        "round_rows_seconds": card.round(rows, reach),
        "prefill_alone": 1 / card.entering(30.0, ""),
        "decode_alone_16": 16 / ((tokens - 1) * card.round(16, reach)),
        "decode_alone_rows": rows / ((tokens - 1) * card.round(rows, reach)),
        "bare_16": _most(card, 30.0, "", 16, tokens),
        "bare_rows": _most(card, 30.0, "", rows, tokens),
        "hit_16": _most(card, 30.0, "hit", 16, tokens),
        "hit_rows": _most(card, 30.0, "hit", rows, tokens),
        "cold_16": _most(card, 30.0, "cold", 16, tokens),
        "cold_rows": _most(card, 30.0, "cold", rows, tokens),
        "front_one_core": 1 / front,
    }


def _card_fleet(rows: int, cache_bytes: int) -> SimulatedReplicas:
    return SimulatedReplicas(
        1, rows, _QUEUE, 30.0, cache_bytes, _FRONT_WORKERS, prepares_beside=True
    )


def _most(card: Replica, seconds: float, twin: str, rows: int, tokens: float) -> float:
    reach = card.length(seconds) + round(tokens / 2)
    return most_a_second(rows, tokens, card.entering(seconds, twin), card.round(rows, reach))


def _rows(card: Replica, cache_bytes: float) -> int:
    """Rows of 1024 tokens beside a silence cache."""
    return replace(card, memory_bytes=card.memory_bytes - cache_bytes).rows(1024)


def _reach(card: Replica, traffic: Traffic) -> int:
    """Keys that a step reads: up to the longest row, which is of the longest clip."""
    return card.length(max(traffic.clip_seconds)) + traffic.answer_tokens[1] // 2
