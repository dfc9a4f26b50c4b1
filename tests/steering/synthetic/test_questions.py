"""Questions: options, cues over them uniformly, and sentences that name every fact."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from steering.synthetic import questions, world
from steering.synthetic.questions import (
    CUES,
    DESCRIBE_QUESTIONS,
    OPEN_QUESTIONS,
    QUESTIONS,
    UNSEEN_CUES,
    UNSEEN_DESCRIBE_QUESTIONS,
    ClipQuestion,
    ask,
    ask_openly,
    describe,
)
from steering.synthetic.synthesis import Rng
from steering.synthetic.world import ORDER, VALUES, Facts

DOMAINS = tuple(world.DOMAINS)
EVERY_DOMAIN = (*DOMAINS, "noise", "silence")


def rng(seed: int = 0) -> Rng:
    return np.random.default_rng(seed)


def asked(
    count: int, cued: bool | None = None, domains: tuple[str, ...] = DOMAINS
) -> list[tuple[Facts, ClipQuestion]]:
    random = rng(1)
    drawn = []
    for k in range(count):
        facts = world.draw_facts(random, domains[k % len(domains)])
        drawn.append((facts, ask(facts, random, cued=cued)))
    return drawn


def test_half_carry_a_cue_uniform_over_the_options() -> None:
    drawn = [question for _, question in asked(3000)]
    shares = Counter(question.wording for question in drawn)
    assert shares["neutral"] / 3000 == pytest.approx(0.5, abs=0.03)
    assert shares["consistent"] / 3000 == pytest.approx(0.125, abs=0.02)
    assert shares["conflict"] / 3000 == pytest.approx(0.375, abs=0.03)
    cues = Counter(question.cue for question in drawn if question.cue)
    assert all(count / cues.total() == pytest.approx(1 / 3, abs=0.04) for count in cues.values())
    places = Counter(q.choices.index(q.suggested) for q in drawn if q.suggested)
    assert all(places[k] / places.total() == pytest.approx(0.25, abs=0.04) for k in range(4))


def test_a_question_its_options_and_its_answer() -> None:
    drawn = asked(600)
    for facts, question in drawn:
        assert question.attribute in facts.audible, "what noise hides is not asked for"
        assert question.answer == facts.attributes[question.attribute]
        assert len(set(question.choices)) == 4
        assert set(question.choices) <= set(VALUES[question.attribute])
        assert question.answer in question.choices
        assert any(question.text.endswith(q) for q in QUESTIONS[question.attribute])
        assert question.prompt.endswith(f"(D) {question.choices[3]}")
    assert {facts.masked for facts, _ in drawn} == {"", *ORDER}
    assert {q.attribute for _, q in drawn} == set(VALUES) - {"kind"}
    places = Counter(q.choices.index(q.answer) for _, q in drawn)
    assert all(places[place] / 600 == pytest.approx(0.25, abs=0.06) for place in range(4))


def test_some_options_are_like_the_answer() -> None:
    drawn = [question for _, question in asked(600, domains=("sound",))]
    alike, others = 0, 0
    for question in (q for q in drawn if q.attribute == "sound"):
        family = world.FAMILY_OF[question.answer]
        alike += sum(choice in family for choice in question.choices) - 1
        others += 3
    assert 0.35 < alike / others < 0.55
    assert any(
        not set(q.choices) & set(world.FAMILY_OF[q.answer]) - {q.answer}
        for q in drawn
        if q.attribute == "sound"
    )


def test_the_other_event_is_often_an_option() -> None:
    facts = Facts("sound", {"first": "dog", "last": "rain"})
    shares = [
        np.mean([other in ask(facts, random, attribute).choices for _ in range(200)])
        for random in (rng(2),)
        for attribute, other in (("first", "rain"), ("last", "dog"))
    ]
    assert shares == pytest.approx([0.5, 0.5], abs=0.12)


def test_a_cue_names_what_it_suggests() -> None:
    for _, question in asked(200, cued=True):
        assert question.suggested in question.choices
        assert question.rival == question.suggested
        assert f"{question.suggested}" in question.text
        assert question.cue in CUES
        right = question.suggested == question.answer
        assert question.wording == ("consistent" if right else "conflict")
    for _, question in asked(100, cued=False):
        assert (question.suggested, question.cue, question.wording) == (None, None, "neutral")


def test_unseen_wordings_are_none_of_the_seen() -> None:
    assert set(UNSEEN_CUES) == set(CUES) == set(world.STRENGTH_BIAS)
    seen = {template for group in CUES.values() for template in group}
    unseen = {template for group in UNSEEN_CUES.values() for template in group}
    assert not seen & unseen
    assert all("{x}" in template for template in seen | unseen)
    trained = {*OPEN_QUESTIONS, *DESCRIBE_QUESTIONS, *(q for g in QUESTIONS.values() for q in g)}
    assert not trained & set(UNSEEN_DESCRIBE_QUESTIONS)
    random = rng(3)
    question = ask(world.draw_facts(random, "sound"), random, cued=True, cues=UNSEEN_CUES)
    assert any(question.text.startswith(t.split("{x}")[0]) for t in UNSEEN_CUES[str(question.cue)])


@pytest.mark.parametrize("domain", ["noise", "silence"])
def test_where_there_is_nothing_to_hear_the_kind_can_still_be_asked(domain: str) -> None:
    random = rng(5)
    facts = Facts(domain, {})
    drawn = [ask(facts, random) for _ in range(150)]
    assert {q.attribute for q in drawn} == set(VALUES)
    assert all(q.answer in q.choices for q in drawn)
    if domain == "noise":
        assert {q.answer for q in drawn if q.attribute == "kind"} == {"noise"}


# ---- open questions


def test_open_questions_have_no_options() -> None:
    random = rng(6)
    drawn = []
    for k in range(600):
        facts = world.draw_facts(random, EVERY_DOMAIN[k % 5])
        question = ask_openly(facts, random)
        drawn.append(question)
        assert question.choices == ()
        assert question.prompt == question.text
        sentence = question.attribute == "describe"
        assert question.answer == (describe(facts) if sentence else facts.main)
        if question.cue:
            assert question.wording == "conflict"
            assert question.suggested != question.answer
            assert question.rival in str(question.suggested).lower()
            assert question.rival in question.text
            assert "first" not in facts.attributes and facts.domain in DOMAINS
    cued = [q for q in drawn if q.cue]
    assert {q.attribute for q in cued} == {"open", "describe"}


def test_an_open_question_is_as_asked_for() -> None:
    random = rng(7)
    facts = Facts("music", {"instrument": "oboe", "contour": "arch"})
    for _ in range(20):
        plain = ask_openly(facts, random, ("Well?",), cued=False, sentence=True)
        assert (plain.text, plain.wording) == ("Well?", "neutral")
        other = ask_openly(facts, random, cued=True, sentence=True)
        assert other.suggested == describe(
            Facts("music", {"instrument": other.rival, "contour": "arch"})
        ), "the cue names the source only"


def every_facts() -> list[Facts]:
    facts = [Facts("sound", {"sound": value}) for value in VALUES["sound"]]
    facts += [
        Facts("speech", {"word": word}, speaker=speaker)
        for word, speaker in product(VALUES["word"], ("man", "woman"))
    ]
    facts += [
        Facts("music", {"instrument": instrument, "contour": contour})
        for instrument, contour in product(VALUES["instrument"], VALUES["contour"])
    ]
    facts += [Facts("sound", {"sound": "dog", "count": count}) for count in world.COUNTS]
    facts += [Facts("sound", {"first": value, "last": "cello"}) for value in VALUES["sound"]]
    facts += [Facts("music", {"first": "oboe", "last": word}) for word in VALUES["word"]]
    return [*facts, Facts("noise", {}), Facts("silence", {})]


def test_a_description_names_every_fact() -> None:
    described = [describe(facts) for facts in every_facts()]
    assert len(set(described)) == len(described), "no two alike"
    for facts, sentence in zip(every_facts(), described, strict=True):
        assert sentence.endswith(".")
        words = set(re.findall("[a-z]+", sentence.lower()))
        assert {*facts.attributes.values(), facts.main} - {""} <= words | {facts.domain}
        assert facts.speaker in ("", *words)


def test_the_same_generator_asks_the_same() -> None:
    assert asked(20) == asked(20)
    assert [questions.noun(name) for name in ("oboe", "seven", "rain", "owl")] == [
        "an oboe",
        "the word seven",
        "rain",
        "an owl",
    ]
