"""The engine on a card that shares nothing with the CPU: the CPU's answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.engine.engine import Engine
from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime
from steering.decision import SteeringRequest
from steering.generation import Sampling
from steering.model.loading import load
from steering.profile import find
from steering.prompt import Message
from tests.server.engine.test_engine import assert_same
from tests.steering.examples import clip
from tests.steering.stand_in_device import plugged_in

CUED = "The record states hammer. What is making this sound?"
STEERED = SteeringRequest(steer=True)


def questions() -> list[Question]:
    """Every kind of question."""
    one = (Message("user", (clip(1.0, seed=1), CUED)),)
    two = (Message("user", (clip(0.6, seed=2), clip(1.3, seed=3), "Which one is louder?")),)
    long = (Message("user", (clip(7.0, seed=4), CUED)),)
    short = Sampling(max_tokens=6, ignore_end=True)
    sampled = Sampling(max_tokens=6, temperature=0.7, seed=5)
    asked = [
        Question("bare", one, sampling=short),
        Question("steered", one, steering=STEERED, sampling=short, with_unsteered=True),
        Question("sampled", one, steering=STEERED, sampling=sampled),
        Question(
            "calibrated", one, steering=replace(STEERED, direction="calibrated", strength=0.5)
        ),
        Question("choices", one, choices=("wind", "dog", "siren"), steering=STEERED),
        Question("silence", one, steering=STEERED, with_silence=True, sampling=short),
        Question("clips", two, with_clips=True, steering=STEERED, sampling=short),
        Question("contrast", two, contrast_clip=1, steering=STEERED, sampling=short),
        Question("windows", long, long_audio="window", steering=STEERED, sampling=short),
        Question("chat", (Message("user", ("Hello.",)),), sampling=short),
        Question("listen", one, generate=False),
    ]
    return [*asked, *(replace(question, id=f"{question.id} again") for question in asked[:5])]


def answers(device: str) -> list[Answer]:
    """The answers of a fresh engine to all questions at once."""
    model = load("demo", device=device, dtype="float32")
    engine = Engine(
        Runtime.of(model, find(None, model), rows=4, tokens=256),
        queue_limit_requests=64,
        queue_timeout_seconds=600,
    )

    async def ask() -> list[Answer]:
        return await asyncio.gather(*(engine.answer(question) for question in questions()))

    try:
        return asyncio.run(ask())
    finally:
        engine.close()


@pytest.mark.slow
def test_answers_on_a_card_are_those_on_the_cpu() -> None:
    expected = answers("cpu")
    with plugged_in() as card:
        got = answers("cuda")
    assert_same(got, expected)
    assert sum(graph.replays for graph in card.graphs) > 10
