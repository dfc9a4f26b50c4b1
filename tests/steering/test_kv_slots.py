"""Answers written side by side: each is the answer it is alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steering import kv_slots
from steering.attention import taps
from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    generate,
    generate_scored,
    penalised,
)
from steering.kv_slots import KVSlots, Row, generate_batch, sample_first
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.readout import Intervention, steer
from tests.steering.examples import generated, keys_and_values, plan_for, prompt

NORM = Intervention(layers=(1,))
RAW = Intervention(layers=(1,), scale="raw", place="after_norm")
FIRST = Intervention(layers=(1,), tokens="first")
KEPT = Intervention(layers=(1,), keep_norm=True)
HEADS = ((1, 6), (0, 2), (1, 3), (2, 5))
HOWS = (NORM, RAW, FIRST, KEPT)
ANSWERS = (
    Sampling(max_tokens=9),
    Sampling(max_tokens=14, temperature=0.9, seed=5),
    Sampling(6, temperature=1.7, top_p=0.8, seed=6, top_k=90, min_p=0.01, repetition_penalty=1.1),
    Sampling(max_tokens=11, ignore_end=True, repetition_penalty=1.4),
)


@dataclass(slots=True, eq=False)
class Job:
    """One answer to write, and what was written of it."""

    heard: PrefillResult
    plan: SteeringPlan
    sampling: Sampling
    written: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    def alone(self, model: AudioModel) -> tuple[list[int], list[float | None]]:
        scored = list(generate_scored(model, self.heard, self.plan, self.sampling, HEADS))
        return [token for token, _ in scored], [score for _, score in scored]


def directed(
    model: AudioModel, heard: PrefillResult, seed: int, strength: float, intervention: Intervention
) -> SteeringPlan:
    """A plan along a direction of its own."""
    draw = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(seed))
    draw = draw.to(heard.final.device)
    return SteeringPlan(draw * heard.final.norm() / draw.norm(), strength, intervention)


def jobs_of(model: AudioModel, intervention: Intervention) -> list[Job]:
    """Bare and steered answers of every sampling about clips of different lengths; some of them
    are not scored.
    """
    jobs = []
    for i, sampling in enumerate(ANSWERS * 2):
        text = "Which sound is this?" + " What do you hear?" * (i % 3)
        heads = () if i % 5 == 3 else HEADS
        heard = prefill(model, prompt(model, 0.3 + 0.37 * i, text=text), heads=heads)
        strength = (0.0, 0.7, 0.0, 2.5, 1.3)[i % 5]
        plan = directed(model, heard, i, strength, intervention) if strength else UNSTEERED
        jobs.append(Job(heard, plan, sampling))
    return jobs


def write(slots: KVSlots, jobs: Sequence[Job], seed: int) -> int:
    """Write the answers, each of which joins at a random step; the most rows in a step."""
    rng = np.random.default_rng(seed)
    waiting, most = list(jobs), 0
    rows: dict[int, tuple[Row, Job]] = {}
    rng.shuffle(waiting)
    while waiting or rows:
        while waiting and slots.free_slots and rng.random() < 0.5:
            job = waiting.pop()
            row = Row(job.plan, job.sampling)
            sample_first(slots.model, job.heard, row)
            slots.admit(row, job.heard)
            rows[id(row)] = (row, job)
        for name, (row, job) in list(rows.items()):
            job.written.append(row.token)
            job.scores.append(row.score)
            over = job.sampling.is_end(row.token, slots.model)
            if over or len(job.written) == job.sampling.max_tokens:
                slots.release(row)
                del rows[name]
        assert [row.slot for row in slots.active] == list(range(len(slots.active)))
        if slots.active:
            most = max(most, len(slots.active))
            slots.step()
    return most


@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
@pytest.mark.parametrize("intervention", HOWS, ids=["norm", "raw", "first", "keep_norm"])
def test_rows_that_come_and_go_write_what_they_write_alone(
    model: AudioModel, intervention: Intervention, rounded: bool
) -> None:
    jobs = jobs_of(model, intervention)
    expected = [job.alone(model) for job in jobs]
    slots = KVSlots(model, 5, 200, intervention, HEADS, rounded=rounded)
    for seed in range(2):
        for job in jobs:
            job.written.clear()
            job.scores.clear()
        assert write(slots, jobs, seed) > 2
        for job, (tokens, scores) in zip(jobs, expected, strict=True):
            assert job.written == tokens
            assert job.scores == pytest.approx(scores, abs=1e-6)
    assert len({tuple(tokens) for tokens, _ in expected}) == len(jobs), "each says something else"
    assert [None in scores for _, scores in expected].count(True) == 1


@pytest.mark.parametrize("intervention", [NORM, FIRST], ids=["norm", "first"])
def test_an_answer_takes_over_the_row_of_another_to_its_prompt(
    model: AudioModel, intervention: Intervention
) -> None:
    """Steered, then bare, then steered again, beside a row that goes on."""
    heard, other = (prefill(model, prompt(model, seconds)) for seconds in (0.7, 1.1))
    steered = directed(model, heard, 1, 2.0, intervention)
    sampling = Sampling(max_tokens=6, ignore_end=True)
    long = Sampling(max_tokens=16, ignore_end=True)
    plans = (steered, UNSTEERED, steered)
    expected = [list(generate(model, heard, plan, sampling)) for plan in plans]
    beside = list(generate(model, other, UNSTEERED, long))
    slots = KVSlots(model, 2, 200, intervention)

    def begin(result: PrefillResult, plan: SteeringPlan) -> Row:
        row = Row(plan, sampling)
        sample_first(model, result, row)
        return row

    row, neighbour = begin(heard, plans[0]), begin(other, UNSTEERED)
    slots.admit(row, heard)
    slots.admit(neighbour, other)
    heard.free_cache()
    assert not heard.has_cache
    written, by_neighbour = list[list[int]](), [neighbour.token]
    for plan in plans:
        if written:
            before, row = row, begin(heard, plan)
            slots.hand_over(before, row, heard)
            assert before.slot == -1
        written.append([row.token])
        for _ in range(5):
            slots.step()
            written[-1].append(row.token)
            by_neighbour.append(neighbour.token)
    assert written == expected
    assert by_neighbour == beside


def test_bare_rows_beside_steered_ones_are_the_generate_of_transformers(
    model: AudioModel, oracle: Any
) -> None:
    clips = [prompt(model, seconds) for seconds in (0.4, 1.1, 2.6)]
    greedy = Sampling(max_tokens=10)
    jobs = [Job(prefill(model, asked), UNSTEERED, greedy) for asked in clips]
    heard = jobs[0].heard
    others = [Job(heard, directed(model, heard, i, 3.0, NORM), greedy) for i in range(2)]
    write(KVSlots(model, 4, 150, NORM, HEADS), [*jobs, *others], seed=3)
    assert [job.written for job in jobs] == [generated(oracle, asked, 10) for asked in clips]
    assert others[0].written != jobs[0].written


def test_an_answer_ends_at_its_end_token_unless_that_is_ignored(untrained: AudioModel) -> None:
    heard = prefill(untrained, prompt(untrained))
    free = list(generate(untrained, heard, UNSTEERED, Sampling(max_tokens=8)))
    config = untrained.network.generation_config
    before = config.eos_token_id
    config.eos_token_id = [before, free[3]]
    try:
        ended = free[: free.index(free[3]) + 1]
        slots = KVSlots(untrained, 2, 100, None)
        for sampling, expected in (
            (Sampling(max_tokens=8), ended),
            (Sampling(max_tokens=8, ignore_end=True), free),
        ):
            assert list(generate(untrained, heard, UNSTEERED, sampling)) == expected
            assert generate_batch(slots, [(heard, UNSTEERED)] * 2, sampling) == [expected] * 2
    finally:
        config.eos_token_id = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_recorded_steps_write_what_plain_ones_write() -> None:
    model = loading.load("demo", device="cuda", dtype="float32")
    written, scores = [], []
    for recorded in (False, True):
        jobs = jobs_of(model, NORM)
        slots = KVSlots(model, 5, 200, NORM, HEADS)
        assert slots.use_cuda_graphs
        slots.use_cuda_graphs = recorded
        write(slots, jobs, seed=1)
        slots.warm_up()
        written.append([job.written for job in jobs])
        scores.append([score for job in jobs for score in job.scores])
    assert written[0] == written[1]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_rows_that_are_not_scored_are_not_tapped(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    products = taps._products

    def counted(query: Tensor, keys: Tensor) -> Tensor:
        taken.append(len(query))
        return products(query, keys)

    monkeypatch.setattr(taps, "_products", counted)
    asked, greedy = prompt(untrained), Sampling(max_tokens=3, ignore_end=True)
    mute, tapped = prefill(untrained, asked), prefill(untrained, asked, heads=HEADS)
    for heads, heard in ((HEADS, mute), ((), tapped)):
        generate_batch(KVSlots(untrained, 2, 100, None, heads), [(heard, UNSTEERED)] * 2, greedy)
    list(generate_scored(untrained, mute, UNSTEERED, greedy, HEADS))
    list(generate(untrained, tapped, UNSTEERED, greedy))
    assert not taken
    together = [(heard, UNSTEERED) for heard in (mute, tapped)]
    generate_batch(KVSlots(untrained, 2, 100, None, HEADS), together, greedy)
    assert taken == [2] * 8, "four heads, in both steps"


# ---- sizes


def test_rounded_steps_have_room_and_come_in_few_sizes(untrained: AudioModel) -> None:
    slots = KVSlots(untrained, 12, 1900, NORM, rounded=True)
    sizes = set()
    for rows in range(1, 13):
        for reach in range(1, 1901):
            bucket, tokens = slots._bucketed(rows, reach)
            assert rows <= bucket <= min(2 * rows - 1, 12)
            assert reach <= tokens <= min(reach + max(63, reach / 3), 1900)
            sizes.add((bucket, tokens))
    assert len({rows for rows, _ in sizes}) == 5
    assert len({tokens for _, tokens in sizes}) <= 16


# ---- places


def test_the_last_row_moves_into_the_place_of_one_that_leaves(untrained: AudioModel) -> None:
    heards = [prefill(untrained, prompt(untrained, seconds)) for seconds in (0.5, 1.0, 1.5, 2.0)]
    slots = KVSlots(untrained, 4, 128, RAW)
    rows = []
    for i, heard in enumerate(heards):
        row = Row(directed(untrained, heard, i, 1.0 + i, RAW), Sampling(), token=i)
        slots.admit(row, heard)
        rows.append(row)
    assert slots.free_slots == 0
    slots.release(rows[1])
    assert slots.active == [rows[0], rows[3], rows[2]]
    assert [row.slot for row in rows] == [0, -1, 2, 1]
    for row, heard in ((rows[0], heards[0]), (rows[3], heards[3]), (rows[2], heards[2])):
        place, length = row.slot, heard.length
        assert int(slots.lengths[place]) == length
        assert float(slots.strengths[place]) == row.plan.strength
        assert row.plan.direction is not None
        assert torch.equal(slots.directions[place], row.plan.direction)
        for layer, (keys, values) in enumerate(keys_and_values(heard)):
            assert torch.equal(slots.store[layer, 0, place, :, :length], keys[0])
            assert torch.equal(slots.store[layer, 1, place, :, :length], values[0])
    slots.release(rows[2])  # the last itself
    assert slots.active == [rows[0], rows[3]]
    assert slots.free_slots == 2


def test_memory_is_what_was_planned(model: AudioModel) -> None:
    slots = KVSlots(model, 3, 70, None)
    assert KVSlots.bytes_of(model, 3, 70) == slots.store.nbytes


# ---- what steering adds


@contextmanager
def before_the_readout(model: AudioModel) -> Iterator[list[Tensor]]:
    """(B, D) states that the readout was given in each pass."""
    given: list[Tensor] = []
    readout = model.family.readout(model.network)
    hook = readout.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        yield given
    finally:
        hook.remove()


def seat_all(slots: KVSlots, heard: PrefillResult, plans: Sequence[SteeringPlan]) -> None:
    for plan in plans:
        slots.admit(Row(plan, Sampling(), token=9), heard)


def test_each_row_differs_from_bare_by_its_strength_times_its_direction(model: AudioModel) -> None:
    heard = prefill(model, prompt(model))
    plans = [directed(model, heard, i, strength, RAW) for i, strength in enumerate((0.5, 2.0, 1.0))]
    states = []
    for chosen in ([UNSTEERED] * 3, plans):
        slots = KVSlots(model, 3, 100, RAW)
        seat_all(slots, heard, chosen)
        with before_the_readout(model) as given:
            slots.step()
        states.append(given[0])
    added = torch.stack(
        [plan.strength * plan.direction for plan in plans if plan.direction is not None]
    )
    torch.testing.assert_close(states[1] - states[0], added, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("intervention", HOWS, ids=["norm", "raw", "first", "keep_norm"])
def test_strength_0_among_steered_rows_is_bit_identical_to_a_bare_batch(
    model: AudioModel, intervention: Intervention
) -> None:
    heard = prefill(model, prompt(model))
    steered = directed(model, heard, 1, 1.5, intervention)
    plans = [steered, replace(steered, strength=0.0), UNSTEERED, steered]
    logits = []
    for chosen in ([UNSTEERED] * 4, plans):
        slots = KVSlots(model, 4, 100, intervention)
        slots.directions.fill_(float("inf"))  # what a row that left may have been given
        seat_all(slots, heard, chosen)
        readout = model.family.readout(model.network)
        out: list[Tensor] = []
        hook = readout.register_forward_hook(lambda m, i, o, out=out: out.append(o))
        try:
            slots.step()
        finally:
            hook.remove()
        logits.append(out[0])
    assert torch.equal(logits[0][1:3], logits[1][1:3])
    if intervention.tokens == "every":
        assert not torch.equal(logits[0][0], logits[1][0])


def test_the_steps_use_steer_itself(model: AudioModel) -> None:
    heard = prefill(model, prompt(model))
    plans = [plan_for(model, heard, strength, NORM) for strength in (0.4, 1.4)]
    finals = []
    for chosen in ([UNSTEERED] * 2, plans):
        slots = KVSlots(model, 2, 100, NORM)
        seat_all(slots, heard, chosen)
        norms: list[Tensor] = []
        hook = model.decoder.norm.register_forward_pre_hook(lambda m, i, n=norms: n.append(i[0]))
        try:
            slots.step()
        finally:
            hook.remove()
        finals.append(norms[0])
    assert plans[0].direction is not None
    directions = plans[0].direction.expand(2, -1)
    expected = steer(finals[0], directions, torch.tensor([0.4, 1.4]), NORM)
    torch.testing.assert_close(finals[1], expected)


# ---- side by side


@pytest.mark.parametrize("sampling", ANSWERS, ids=["greedy", "seeded", "filtered", "penalty"])
def test_write_together_is_generate_for_each_plan(model: AudioModel, sampling: Sampling) -> None:
    heard = prefill(model, prompt(model, 0.8))
    plans = [UNSTEERED, *(directed(model, heard, i, 0.6 * (i + 1), NORM) for i in range(3))]
    expected = [list(generate(model, heard, plan, sampling)) for plan in plans]
    slots = KVSlots(model, 4, 120, NORM)
    for _ in range(2):
        assert generate_batch(slots, [(heard, plan) for plan in plans], sampling) == expected
        assert not slots.active


def test_rows_that_ask_for_no_penalty_pay_for_none(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counted(rows: Tensor, *more: Tensor) -> Tensor:
        passes.append(len(rows))
        return penalised(rows, *more)

    monkeypatch.setattr(kv_slots, "penalised", counted)
    heard = prefill(untrained, prompt(untrained))
    greedy = Sampling(max_tokens=4, ignore_end=True)
    generate_batch(KVSlots(untrained, 3, 100, None), [(heard, UNSTEERED)] * 3, greedy)
    assert not passes
    asking = replace(greedy, repetition_penalty=1.2)
    generate_batch(KVSlots(untrained, 3, 100, None), [(heard, UNSTEERED)] * 3, asking)
    assert passes == [3] * 3, "one for all rows of a step"
