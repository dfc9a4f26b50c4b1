"""The cost of the live score: a decode step that scores its tokens beside one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.bench import figures
from server.bench.arms import Bench
from steering.generation import UNSTEERED, Sampling
from steering.kv_slots import KVSlots, Row
from steering.prefill import PrefillResult, prefill
from steering.prompt import build_prompt

ROWS = (1, 4)
_LIMIT = 1.02  # of the mid-size model


def live_score_ratios(bench: Bench, model: str | None, steps: int) -> list[dict[str, Any]]:
    """Score on / off, a decode step of each number of rows: steps in turn, over the same prompt."""
    subject = bench.subject
    prompt = build_prompt(subject.model, subject.messages(0))
    heard = prefill(subject.model, prompt, heads=subject.profile.heads)
    limit = _LIMIT if model == "mid" else None
    ratios = []
    for rows in ROWS:
        on, off = (_stepper(bench, heard, rows, steps, scored=scored) for scored in (True, False))
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for i in range(steps):
            for scored in (True, False) if i % 2 else (False, True):
                seconds[scored].append((on if scored else off)())
        quotients = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
        label = f"live score on / off, a step of {rows} row{'s' * (rows > 1)}"
        figure = figures.ratio(label, quotients, "<=", limit)
        ratios.append({**figure, "of_the_fastest": min(seconds[True]) / min(seconds[False])})
    return ratios


def _stepper(
    bench: Bench, heard: PrefillResult, rows: int, steps: int, *, scored: bool
) -> Callable[[], float]:
    """Makes one step of rows behind a prompt, and says how long it took; one is made already."""
    subject = bench.subject
    heads = subject.profile.heads if scored else ()
    slots = KVSlots(subject.model, rows, heard.length + steps + 2, None, heads)
    for _ in range(rows):
        slots.admit(Row(UNSTEERED, Sampling(), token=1, score=heard.score), heard)

    def step() -> float:
        start = bench.now()
        slots.step()
        return bench.now() - start

    step()
    return step
