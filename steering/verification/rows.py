"""Checks of the answer's tokens: one after the other, beside others, recorded, scored, steered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steering.attention.taps import Taps
from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    crop_to_prompt,
    steered_logits,
)
from steering.kv_slots import KVSlots, Row
from steering.prefill import PrefillResult, next_state, prefill
from steering.prompt import Prompt, build_question
from steering.readout import Intervention
from steering.verification.findings import Finding, distance, logit_distance
from steering.verification.trial import TAP_FLOORS, Trial, attempt, noise

RAW = Intervention(layers=(0,), scale="raw")  # adds strength x direction, and nothing else
LIVE_SCORE = "live score"
_STRENGTH = 0.8
_OTHERS = (  # questions of the rows beside the trial's, and the seconds of their clips
    ("Which sound is this, and where does it come from?", 0.6),
    ("Say what it is.", 1.3),
)
ROWS = 1 + len(_OTHERS)


@torch.inference_mode()
def check_decode(trial: Trial) -> Finding:
    """Tokens run one by one behind the prompt, against one pass over all of them."""
    return attempt(
        "decode",
        trial.allowed(trial.rounding.logits),
        "token by token, against a full pass",
        lambda: logit_distance(_alone(trial, trial.prompt, UNSTEERED), trial.plain.logits[1:]),
    )


@torch.inference_mode()
def check_rows(trial: Trial, slots: KVSlots) -> Iterator[Finding]:
    """Rows that come and go side by side, against each alone; recorded steps against eager ones.
    Before, and recorded afterwards, a token's score, if these slots give any.

    The slots must be free, and are free again afterwards.
    """
    prompts = _prompts(trial, slots)
    if not prompts:
        return  # slots too short for any question: the first one will be refused
    plans = [_plan(trial, slots, i) for i in range(len(prompts))]
    eager: list[Tensor] = []
    if slots.scored is not None:
        with _eager_steps(slots):
            scored = _check_score(trial, slots, prompts[0])
        yield scored

    def rows() -> float:
        with _eager_steps(slots):
            eager.append(_together(trial, slots, prompts, plans))
        pairs = zip(prompts, plans, strict=True)
        alone = torch.cat([_alone(trial, prompt, plan) for prompt, plan in pairs])
        return logit_distance(eager[0], alone)

    allowed = trial.allowed(trial.rounding.logits)
    yield attempt("rows", allowed, f"{len(prompts)} side by side, against each alone", rows)
    if eager and (slots.use_cuda_graphs or slots.bucketing):
        yield attempt(
            "recorded step",
            allowed,
            "CUDA graphs" * slots.use_cuda_graphs or "steps of rounded sizes, not recorded",
            lambda: logit_distance(_together(trial, slots, prompts, plans), eager[0]),
        )
        if slots.scored is not None:
            yield _check_score(trial, slots, prompts[0])


def _check_score(trial: Trial, slots: KVSlots, prompt: Prompt) -> Finding:
    """The score of a step, against what whole taps read in the same pass alone."""
    model, token = trial.model, trial.answer[0]

    def measure() -> float:
        heard = prefill(model, prompt, heads=slots.heads)
        row = Row(UNSTEERED, Sampling(), token=token, score=heard.score)
        slots.admit(row, heard)
        try:
            slots.step()
        finally:
            slots.release(row)
        audio = torch.cat([prompt.audio_mask, prompt.audio_mask.new_zeros(1)])  # (T + 1,)
        taps = Taps.on(slots.heads, audio[None].to(model.device))
        next_state(model, heard, token, taps)
        expected = taps.rows(slots.heads).sum(-1).mean(-1, keepdim=True)  # (1, 1)
        return distance(torch.tensor([[row.score]]), expected)

    allowed = trial.allowed(0.0, TAP_FLOORS)
    return attempt(LIVE_SCORE, allowed, "of a step, against whole taps", measure)


@torch.inference_mode()
def check_steering(trial: Trial, slots: KVSlots) -> Finding:
    """Steered minus bare before the final norm, against strength x direction.

    At the first token, and in a step of slots made with RAW, which are free again afterwards.
    """
    model = trial.model

    def measure() -> float:
        heard = prefill(model, trial.prompt)
        plans = [UNSTEERED, _along(trial, heard, 1, RAW)]
        direction = plans[1].direction
        assert direction is not None
        rows = [Row(plan, Sampling(), token=trial.answer[0]) for plan in plans]
        added = []
        with _before_the_norm(trial) as states:
            for plan in plans:
                steered_logits(model, heard.final[None], plan, 0)
            added.append(states[1] - states[0])
            for row in rows:
                slots.admit(row, prefill(model, trial.prompt))
            with _eager_steps(slots):
                slots.step()
            added.append(states[2][1:2] - states[2][:1])
        for row in rows:
            slots.release(row)
        expected = (_STRENGTH * direction.float().cpu()).expand(len(added), -1)
        return distance(torch.cat(added), expected)

    return attempt(
        "steering",
        trial.allowed(0.0),
        "steered minus bare, against strength x direction",
        measure,
    )


def tokens_needed(trial: Trial) -> int:
    """Tokens that slots must have room for, for all prompts to fit."""
    longest = max(len(prompt.tokens) for prompt in _all_prompts(trial))
    return longest + len(trial.answer) + 1


def _all_prompts(trial: Trial) -> list[Prompt]:
    model = trial.model
    others = (
        build_question(model, [noise(model, seconds, seed=i + 1)], text)
        for i, (text, seconds) in enumerate(_OTHERS)
    )
    return [trial.prompt, *others]


def _prompts(trial: Trial, slots: KVSlots) -> list[Prompt]:
    """The prompts for which the slots have room."""
    room = slots.tokens - len(trial.answer) - 1
    fitting = [prompt for prompt in _all_prompts(trial) if len(prompt.tokens) <= room]
    return fitting[: slots.rows]


def _plan(trial: Trial, slots: KVSlots, row: int) -> SteeringPlan:
    """The plan of a row: every second one is steered, if these slots steer."""
    if slots.intervention is None or row % 2 == 0:
        return UNSTEERED
    return _along(trial, None, row, slots.intervention)


def _along(
    trial: Trial, heard: PrefillResult | None, seed: int, intervention: Intervention
) -> SteeringPlan:
    """A plan along a random direction, of the length of the final residual."""
    model = trial.model
    random = torch.Generator().manual_seed(seed)
    direction = torch.randn(model.hidden_size, generator=random)
    final = trial.plain.residuals[-1] if heard is None else heard.final.float().cpu()
    direction = direction * final.norm() / direction.norm()
    return SteeringPlan(direction.to(model.device), _STRENGTH, intervention)


def _alone(trial: Trial, prompt: Prompt, plan: SteeringPlan) -> Tensor:
    """(K, V) logits after each token of the answer, behind a prompt that nobody is beside."""
    model, rows = trial.model, []
    heard = prefill(model, prompt)
    crop_to_prompt(heard)
    for step, token in enumerate(trial.answer, 1):
        final = next_state(model, heard, token)[None]
        rows.append(steered_logits(model, final, plan, step).cpu())
    return torch.cat(rows)


def _together(
    trial: Trial, slots: KVSlots, prompts: Sequence[Prompt], plans: Sequence[SteeringPlan]
) -> Tensor:
    """(R x K, V) logits of rows that join one a step and leave after the K tokens of the answer."""
    count = len(trial.answer)
    rows = [Row(plan, Sampling()) for plan in plans]
    logits: list[list[Tensor]] = [[] for _ in rows]
    try:
        for step in range(len(rows) + count - 1):
            if step < len(rows):
                slots.admit(rows[step], prefill(trial.model, prompts[step]))
            active = list(slots.active)
            for row in active:
                row.token = trial.answer[len(logits[rows.index(row)])]
            out = slots.step().cpu()
            for row in active:
                logits[rows.index(row)].append(out[row.slot])
            done = [row for row in active if len(logits[rows.index(row)]) == count]
            for row in done:
                slots.release(row)
    finally:
        for row in list(slots.active):
            slots.release(row)
    return torch.stack([row for each in logits for row in each])


@contextmanager
def _eager_steps(slots: KVSlots) -> Iterator[None]:
    """Steps of exact sizes, not recorded, for a while."""
    before = slots.use_cuda_graphs, slots.bucketing
    slots.use_cuda_graphs = slots.bucketing = False
    try:
        yield
    finally:
        slots.use_cuda_graphs, slots.bucketing = before


@contextmanager
def _before_the_norm(trial: Trial) -> Iterator[list[Tensor]]:
    """(B, D) float32 states that the final norm was given, one entry a call."""
    states: list[Tensor] = []

    def keep(module: Any, inputs: Any) -> None:
        states.append(inputs[0].float().cpu())

    hook = trial.model.decoder.norm.register_forward_pre_hook(keep)
    try:
        yield states
    finally:
        hook.remove()
