from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from steering.calibration.activations import build_item_prompt, load_item_clip, record
from steering.calibration.effects.first_effects import first_effects
from steering.decision import effect_bits
from steering.evaluation.first_tokens import FirstTokens, divergence, one_token
from steering.generation import Sampling, SteeringPlan, generate, score_choices
from steering.items import Item, read
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.prompt import Prompt
from steering.readout import Intervention, logits, pool
from steering.silence import SilenceContrast, contrast_with_silence
from steering.silence_cache import SilenceCache
from tests.steering.evaluation.judging import item
from tests.steering.examples import write_items

HOW = Intervention(layers=(0, 2))


@pytest.fixture
def items(tmp_path: Path) -> tuple[Item, ...]:
    return read(write_items(tmp_path, 6), tmp_path).items


def contrasted(model: AudioModel, prompt: Prompt) -> tuple[PrefillResult, SilenceContrast]:
    """A prompt's pass, and its contrast with the silence that evaluation records."""
    heard = prefill(model, prompt, layers=HOW.layers)
    cache = SilenceCache(1 << 30)
    return heard, contrast_with_silence(
        model, prompt, heard, heads=(), layers=HOW.layers, silence_cache=cache, to_readout=True
    )


def answered(model: AudioModel, item: Item, strength: float, mode: str) -> int:
    """The first token of an answer that is really given."""
    prompt = build_item_prompt(model, item, load_item_clip(model, item))
    heard, contrast = contrasted(model, prompt)
    plan = SteeringPlan(pool(contrast.differences, HOW), strength, HOW)
    if mode == "generate":
        return next(generate(model, heard, plan, Sampling(max_tokens=1)))
    best = int(np.argmax(score_choices(model, heard, plan, item.choices)))
    token: int = model.processor.tokenizer(item.choices[best])["input_ids"][0]
    return token


@pytest.mark.parametrize("mode", ["generate", "choices"])
def test_a_first_token_is_that_of_the_answer_given(
    grouped: AudioModel, items: tuple[Item, ...], mode: str
) -> None:
    strengths = np.array([0.0, 0.5, 1.5, 3.0, 0.2, 8.0])
    given = [answered(grouped, item, s, mode) for item, s in zip(items, strengths, strict=True)]
    known = one_token(grouped, items, mode)
    assert known.rows.tolist() == list(range(6))
    recorded = record(grouped, items)
    recorded = replace(recorded, deciding=recorded.final)  # the first token decides

    def tokens(wanted: list[int]) -> FirstTokens:
        right = np.array([[-1, token] for token in wanted])
        wanted_of = replace(known, wanted=np.array(wanted))
        return FirstTokens(grouped, replace(recorded, right_tokens=right), wanted_of)

    assert tokens(given).right(HOW, strengths).all()
    options = known.options or [[token + 1] for token in given]
    wrong = [
        next(o for o in others if o != token) for token, others in zip(given, options, strict=True)
    ]
    assert not tokens(wrong).right(HOW, strengths).any()


def test_options_of_several_tokens_are_judged_where_answers_are_written(
    grouped: AudioModel, items: tuple[Item, ...]
) -> None:
    recorded = record(grouped, items)
    known = one_token(grouped, items, "generate")
    bare = FirstTokens(grouped, recorded, known).right(HOW, np.zeros(len(items)))
    np.testing.assert_array_equal(bare, recorded.right)


def test_items_with_longer_answers_are_left_out(grouped: AudioModel) -> None:
    long = replace(item("long"), choices=("dog", "dog bell", "cow"), answer="dog bell")
    longer = replace(item("other"), choices=("dog", "bell cow", "cow"))
    shared = replace(item("shared"), choices=("dog", "dog bell", "cow"))
    short = replace(item("a"), choices=("dog", "cow", "bell"))
    items = [short, long, longer, shared]
    assert one_token(grouped, items, "generate").rows.tolist() == [0, 1, 2, 3]
    assert one_token(grouped, items, "choices").rows.tolist() == [0]


def test_no_item_at_all_is_no_answer(grouped: AudioModel, items: tuple[Item, ...]) -> None:
    known = one_token(grouped, [], "generate")
    tokens = FirstTokens(grouped, record(grouped, items), known)
    assert tokens.right(HOW, np.zeros(0)).shape == (0,)


def test_divergence_and_effect_are_those_of_two_passes(
    grouped: AudioModel, items: tuple[Item, ...]
) -> None:
    recorded = record(grouped, items)
    divergences, bits = divergence(grouped, recorded), first_effects(grouped, recorded)
    for i, own_item in enumerate(items):
        prompt = build_item_prompt(grouped, own_item, load_item_clip(grouped, own_item))
        heard, contrast = contrasted(grouped, prompt)
        silent = contrast.silent
        assert silent is not None
        p, q = (
            logits(grouped, each.final[None])[0].softmax(-1).double().numpy()
            for each in (heard, silent)
        )
        assert bits[i] == pytest.approx(entropy(p, q, base=2), rel=1e-3)
        assert bits[i] == pytest.approx(effect_bits(grouped, heard, silent), rel=1e-3)
        assert divergences[i] == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-3)
    assert (divergences > 0).all()
