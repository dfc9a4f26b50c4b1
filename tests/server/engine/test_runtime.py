"""Silences that a runtime makes before and between its questions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from server.engine.engine import Engine
from server.engine.messages import Question
from server.engine.runtime import Runtime, longest_frames, prepare_silence
from steering.decision import SteeringRequest
from steering.generation import Sampling
from steering.prompt import Message
from steering.silence_cache import Ladder
from tests.steering.examples import clip

STEERED = SteeringRequest(steer=True, strength=0.5)


def question(seconds: float, *before: str) -> Question:
    message = Message("user", (*before, clip(seconds), "What is this?"))
    return Question("q", (message,), steering=STEERED, sampling=Sampling(max_tokens=1))


@pytest.fixture
def small(tiny_model: Any, tiny_profile: Any) -> Runtime:
    return Runtime.of(tiny_model, tiny_profile, rows=2, tokens=400)


def outcomes(runtime: Runtime, *questions: Question) -> list[str | None]:
    """Whether each question's silence was kept, with a pause behind each."""

    async def ask() -> list[str | None]:
        found: list[str | None] = []
        for one in questions:
            answer = await engine.answer(one)
            found.append(answer.timings.silence_cache)
            while runtime.silence_cache.ahead:
                await asyncio.sleep(0.01)
        return found

    engine = Engine(runtime, queue_limit_requests=5, queue_timeout_seconds=60)
    try:
        return asyncio.run(ask())
    finally:
        engine.close()


def test_silences_of_all_lengths_are_there_before_the_first_question(small: Runtime) -> None:
    stages: list[str] = []
    prepare_silence(small, stages.append)
    assert len(stages) == len(small.silence_cache) > 5
    lengths = (small.model.max_clip_seconds, 0.2, 1.0, 2.9, 0.51)
    assert outcomes(small, *map(question, lengths)) == ["hit"] * 5
    small.make_room()
    assert outcomes(small, *map(question, lengths)) == ["miss"] + ["hit"] * 4, "made anew"


def test_new_words_miss_once_and_what_they_may_need_is_made_while_idle(small: Runtime) -> None:
    lengths = (1.0, 0.2, 2.9, small.model.max_clip_seconds)
    asked = [question(seconds, "Listen to this.") for seconds in lengths]
    assert outcomes(small, *asked) == ["miss", "hit", "hit", "hit"]


def test_a_profile_of_exact_silence_is_served_with_it(small: Runtime) -> None:
    assert small.profile is not None
    exact = replace(small.profile, silence="exact")
    runtime = Runtime.of(small.model, exact, rows=2, tokens=400)
    prepare_silence(runtime, lambda stage: None)
    assert (len(runtime.silence_cache), runtime.silence_cache.ladder) == (0, Ladder(0))
    found = outcomes(runtime, question(1.0), question(0.9), question(1.0))
    assert found == ["miss", "miss", "hit"]


def test_a_bare_model_makes_none(small: Runtime) -> None:
    prepare_silence(replace(small, profile=None), lambda stage: None)
    assert small.profile is not None
    bare = replace(small.profile.gate, max_strength=0.0)
    refused = replace(small.profile, gate=bare, fixed_strength=0.0, refusal="no gain")
    prepare_silence(replace(small, profile=refused), lambda stage: None)
    assert not len(small.silence_cache)


def test_the_longest_clip_is_one_that_the_model_and_a_row_take(small: Runtime) -> None:
    model = small.model
    assert longest_frames(model, 10_000) == model.window_frames
    assert longest_frames(model, 50) == pytest.approx(200, abs=1)  # of 40 ms
