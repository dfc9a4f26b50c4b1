"""Words of answers through the engine: as alone, given as generated, each pass in its turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime
from steering.decision import SteeringRequest
from steering.errors import RequestError
from steering.generation import Sampling
from steering.words import effects
from steering.words.word import tokenize
from tests.server.engine.test_engine import all_of, answered, question, running

TEXT = "It was a dog, barking"


@pytest.fixture(scope="module")
def few(tiny_model: Any, tiny_profile: Any) -> Runtime:
    """A runtime with few rows, so that questions wait for each other."""
    return Runtime.of(tiny_model, tiny_profile, rows=3, tokens=600)


def ask(runtime: Runtime, *questions: Question, at_once: bool = True) -> list[Answer]:
    """The answers, asked all at once or one after the other."""

    async def asking() -> list[Answer]:
        with running(runtime) as engine:
            if at_once:
                return [answered(outcome) for outcome in await all_of(engine, list(questions))]
            return [await engine.answer(each) for each in questions]

    return asyncio.run(asking())


def weighed(answer: Answer) -> list[Any]:
    """The words of an answer, with figures that batches may round otherwise."""
    return [
        (word.text, word.start, pytest.approx(word.effect_bits, abs=1e-3, rel=1e-3), score)
        for word in answer.listening.words
        for score in [None if word.score is None else pytest.approx(word.score, abs=1e-5)]
    ]


def test_words_of_mixed_questions_are_as_of_each_alone(
    few: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "CHUNK_TOKENS", 8)
    drawn = Sampling(12, temperature=0.8, seed=4, ignore_end=True)
    steered = SteeringRequest(steer=True, strength=0.5)
    more: list[dict[str, Any]] = [
        {"sampling": drawn, "with_unsteered": True, "steering": steered},
        {"choices": ("a dog", "a cow"), "with_silence": True},
        {"given_answer": TEXT, "generate": False, "sampling": Sampling(100)},
        {"sampling": replace(drawn, max_tokens=5), "stop": ("e",)},
        {"sampling": Sampling(1, ignore_end=True)},
        {"sampling": replace(drawn, seed=9), "with_clips": True},
    ]
    questions = [question(i, with_words=True, **each) for i, each in enumerate(more)]
    questions += [question(20, sampling=drawn)]
    together = ask(few, *questions)
    alone = ask(few, *questions, at_once=False)
    assert [weighed(answer) for answer in together] == [weighed(answer) for answer in alone]
    assert [bool(answer.listening.words) for answer in alone[:4]] == [True] * 4
    assert not alone[-1].listening.words, "none was asked for"
    for answer in alone:
        for word in answer.listening.words:
            assert answer.text[word.start : word.end] == word.text or answer.text == ""
            assert word.score is not None and 0 < word.score < 1
            assert word.effect_bits >= 0


def test_an_answer_given_is_weighed_as_the_same_one_generated(few: Runtime) -> None:
    """Where the text is tokenized as it was generated; else it is another answer."""
    sampling = Sampling(3, temperature=1.0, ignore_end=True)
    asked = [question(i, sampling=replace(sampling, seed=i), with_words=True) for i in range(12)]
    same = [
        (each, answer)
        for each, answer in zip(asked, ask(few, *asked), strict=True)
        if tokenize(few.model, answer.text).ids == answer.token_ids and answer.listening.words
    ]
    assert len(same) > 1, "some answers come back as the same tokens"
    given = [
        replace(each, given_answer=answer.text, generate=False, sampling=Sampling(9))
        for each, answer in same
    ]
    for (_, generated), again in zip(same, ask(few, *given), strict=True):
        assert weighed(again) == weighed(generated)
    bits = [word.effect_bits for _, answer in same for word in answer.listening.words]
    assert max(bits) > 0.01, "there is an effect to get right"


def test_words_add_up_to_the_effect_of_a_first_token(few: Runtime) -> None:
    (answer,) = ask(few, question(sampling=Sampling(1, ignore_end=True), with_words=True))
    (word,) = answer.listening.words
    assert word.effect_bits == pytest.approx(answer.listening.effect_bits, rel=1e-3)
    assert word.score == pytest.approx(answer.listening.score, abs=1e-6)


def test_nobody_waits_for_more_than_one_pass(few: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    divergences, step = effects._divergences, few.slots.step

    def one_pass(*given: Any) -> list[float]:
        happened.append("pass")
        return divergences(*given)

    def one_step() -> Any:
        happened.append("step" if few.slots.active else "no row")
        return step()

    monkeypatch.setattr(effects, "_divergences", one_pass)
    monkeypatch.setattr(few.slots, "step", one_step)
    given = {"given_answer": TEXT, "generate": False, "sampling": Sampling(100)}
    long = question(sampling=Sampling(400, ignore_end=True))
    runtime = replace(few, chunk_tokens=6)  # as many as a pass over an answer takes
    ask(runtime, long, *(question(i, with_words=True, **given) for i in (1, 2)))
    passes = [i for i, event in enumerate(happened) if event == "pass"]
    assert len(passes) > 6
    assert all(happened[i - 1] != "pass" for i in passes), happened


def test_what_can_not_be_weighed_is_refused(few: Runtime) -> None:
    async def refused(**fields: Any) -> str:
        with running(few) as engine, pytest.raises(RequestError) as error:
            await engine.answer(question(with_words=True, generate=False, **fields))
        return f"{error.value.param}: {error.value}"

    few_tokens = refused(given_answer=TEXT, sampling=Sampling(3))
    assert "at most 3 are weighed here" in asyncio.run(few_tokens)
    assert asyncio.run(refused(given_answer="a <|im_end|>", sampling=Sampling(99))).startswith(
        "answer: the text holds"
    )
    too_long = refused(given_answer="word " * 700, sampling=Sampling(5000))
    assert "for the answer a row of 600 holds" in asyncio.run(too_long)
