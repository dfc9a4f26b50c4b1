from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from steering.synthetic import speech, world
from steering.synthetic.world import (
    CUES,
    QUESTIONS,
    STRENGTH_BIAS,
    UNSEEN_CUES,
    VALUES,
    ClipQuestion,
    Facts,
)

DOMAINS = ("sound", "music", "speech", "noise", "silence")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def questions(count: int, cued: bool | None = None) -> list[ClipQuestion]:
    random = rng(1)
    return [world.ask(world.draw_facts(random, "sound"), random, cued=cued) for _ in range(count)]


# ---- facts and sounds


@pytest.mark.parametrize("domain", DOMAINS)
def test_facts_of_a_domain(domain: str) -> None:
    drawn = [world.draw_facts(rng(seed), domain) for seed in range(200)]
    names = {"sound": {"sound"}, "music": {"instrument", "contour"}, "speech": {"word"}}
    for facts in drawn:
        assert facts.domain == domain
        assert set(facts.attributes) == names.get(domain, set())
        assert all(value in VALUES[name] for name, value in facts.attributes.items())
        assert facts.main in {*VALUES["sound"], *VALUES["instrument"], *VALUES["word"], domain}
    for name in names.get(domain, set()):
        assert {facts.attributes[name] for facts in drawn} == set(VALUES[name]), "all are drawn"


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_sound_can_be_made_of_facts(domain: str) -> None:
    facts = world.draw_facts(rng(), domain)
    samples = world.synthesise(facts, speech.TRAIN_VOICES, rng())
    assert samples.dtype == np.float32
    assert 1.8 <= len(samples) / world.SAMPLE_RATE_HZ <= world.MAX_SECONDS
    assert np.abs(samples).max() == pytest.approx(0 if domain == "silence" else 1)
    np.testing.assert_array_equal(samples, world.synthesise(facts, speech.TRAIN_VOICES, rng()))


@pytest.mark.parametrize(("trust", "peak_dbfs"), [(1.0, -1.0), (0.5, -19.0), (0.0, -37.0)])
def test_trust_is_how_loud_a_clip_was_recorded(trust: float, peak_dbfs: float) -> None:
    clean, background = rng(1).uniform(-1, 1, (2, 20_000)).astype(np.float32)
    recorded = world.record(clean, background[:700], 20.0, trust)
    assert recorded.dtype == np.float32
    assert recorded.shape == clean.shape
    assert 20 * np.log10(np.abs(recorded).max()) == pytest.approx(peak_dbfs, abs=0.01)


def test_the_background_is_as_loud_as_the_ratio_says() -> None:
    clean, background = rng(1).uniform(-1, 1, (2, 20_000)).astype(np.float32)
    recorded = world.record(clean, background, 12.0, 1.0).astype(np.float64)
    gain, noise_gain = np.linalg.lstsq(
        np.stack([clean, background], 1).astype(np.float64), recorded
    )[0]
    ratio = gain**2 * np.mean(clean**2) / (noise_gain**2 * np.mean(background**2))
    assert 10 * np.log10(ratio) == pytest.approx(12.0, abs=0.01)


def test_silence_stays_digital_silence() -> None:
    quiet = np.zeros(1000, np.float32)
    assert not world.record(quiet, np.ones(1000, np.float32), 10.0, 1.0).any()


def test_most_clips_are_clear_and_the_others_hard() -> None:
    random = rng()
    drawn = np.array([world.draw_snr_db(random) for _ in range(3000)])
    low, high = world.HARD_SNR_DB
    hard = drawn < 6
    assert hard.mean() == pytest.approx(world.HARD_SHARE, abs=0.03)
    assert (drawn[hard] >= low).all() and (drawn[hard] <= high).all() and (drawn <= 36).all()


# ---- whom to follow


def test_a_cue_is_followed_less_the_louder_the_clip() -> None:
    for cue in STRENGTH_BIAS:
        shares = [world.follow_probability(cue, trust / 20) for trust in range(21)]
        assert all(a > b for a, b in pairwise(shares))
        assert world.FOLLOW_FLOOR < min(shares) < max(shares) < world.FOLLOW_CEILING


def test_a_stronger_cue_is_followed_more() -> None:
    for trust in (0.0, 0.3, 0.5, 0.9):
        weak, medium, strong = (
            world.follow_probability(cue, trust) for cue in ("weak", "medium", "strong")
        )
        assert weak < medium < strong
    middle = (world.FOLLOW_FLOOR + world.FOLLOW_CEILING) / 2
    assert world.follow_probability("medium", world.TRUST_MIDDLE) == pytest.approx(middle)


# ---- questions


def test_half_carry_a_cue_uniform_over_the_options() -> None:
    drawn = questions(4000)
    shares = Counter(question.wording for question in drawn)
    assert shares["neutral"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert shares["consistent"] / 4000 == pytest.approx(0.125, abs=0.02)
    assert shares["conflict"] / 4000 == pytest.approx(0.375, abs=0.03)
    cues = Counter(question.cue for question in drawn if question.cue)
    assert all(count / cues.total() == pytest.approx(1 / 3, abs=0.04) for count in cues.values())


@pytest.mark.parametrize("domain", ["sound", "music", "speech"])
def test_a_question_and_its_answer(domain: str) -> None:
    random = rng(2)
    for _ in range(200):
        facts = world.draw_facts(random, domain)
        question = world.ask(facts, random)
        assert question.answer == facts.attributes[question.attribute]
        assert len(set(question.choices)) == 4
        assert set(question.choices) <= set(VALUES[question.attribute])
        assert question.answer in question.choices
        assert any(question.text.endswith(q) for q in QUESTIONS[question.attribute])
        assert question.prompt.endswith(f"(D) {question.choices[3]}")


def test_the_right_option_stands_anywhere() -> None:
    places = Counter(q.choices.index(q.answer) for q in questions(2000))
    assert all(places[place] / 2000 == pytest.approx(0.25, abs=0.04) for place in range(4))


def test_a_cue_names_what_it_suggests() -> None:
    for question in questions(300, cued=True):
        assert question.suggested in question.choices
        assert f"{question.suggested}" in question.text
        assert question.cue in CUES
        right = question.suggested == question.answer
        assert question.wording == ("consistent" if right else "conflict")
    for question in questions(300, cued=False):
        assert (question.suggested, question.cue, question.wording) == (None, None, "neutral")


def test_unseen_cues_are_none_of_the_seen() -> None:
    assert set(UNSEEN_CUES) == set(CUES)
    seen = {template for group in CUES.values() for template in group}
    unseen = {template for group in UNSEEN_CUES.values() for template in group}
    assert not seen & unseen
    assert all("{x}" in template for template in seen | unseen)
    random = rng(3)
    question = world.ask(world.draw_facts(random, "sound"), random, cued=True, cues=UNSEEN_CUES)
    assert any(question.text.startswith(t.split("{x}")[0]) for t in UNSEEN_CUES[str(question.cue)])


@pytest.mark.parametrize("domain", ["noise", "silence"])
def test_where_there_is_nothing_to_hear_the_kind_can_still_be_asked(domain: str) -> None:
    random = rng(5)
    facts = Facts(domain, {})
    drawn = [world.ask(facts, random) for _ in range(100)]
    assert {q.attribute for q in drawn} == set(VALUES)
    assert all(q.answer in q.choices for q in drawn)
    if domain == "noise":
        assert {q.answer for q in drawn if q.attribute == "kind"} == {"noise"}


def test_open_questions_have_no_options() -> None:
    random = rng(6)
    drawn = []
    for _ in range(400):
        facts = world.draw_facts(random, str(random.choice(DOMAINS)))
        question = world.ask_openly(facts, random)
        drawn.append(question)
        assert question.choices == ()
        assert question.prompt == question.text
        sentence = question.attribute == "describe"
        assert question.answer == (world.describe(facts) if sentence else facts.main)
        if question.cue:
            right = question.suggested == question.answer
            assert question.wording == ("consistent" if right else "conflict")
    assert {q.wording for q in drawn} == {"neutral", "consistent", "conflict"}


def test_every_fact_can_be_described() -> None:
    whole = [Facts("sound", {"sound": value}) for value in VALUES["sound"]]
    whole += [Facts("speech", {"word": value}) for value in VALUES["word"]]
    whole += [
        Facts("music", {"instrument": instrument, "contour": contour})
        for instrument, contour in product(VALUES["instrument"], VALUES["contour"])
    ]
    whole += [Facts("noise", {}), Facts("silence", {})]
    described = [world.describe(facts) for facts in whole]
    assert len(set(described)) == len(whole), "no two alike"
    assert all(sentence.endswith(".") for sentence in described)


def test_the_same_generator_asks_the_same() -> None:
    assert questions(20) == questions(20)
