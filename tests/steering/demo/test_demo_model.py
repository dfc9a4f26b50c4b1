"""The embedded model as it is shipped, with its profile, on items that nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen2AudioForConditionalGeneration

from steering.calibration.activations import build_item_prompt, greedy_answer, load_item_clip
from steering.generation import UNSTEERED, SteeringPlan
from steering.heads import audio_mass, listening_score
from steering.items import Item, is_right, read
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO_WEIGHTS
from steering.model.loading import load
from steering.prefill import prefill
from steering.profile import Profile, find
from steering.prompt import silent_mels
from steering.readout import pool
from steering.silence import contrast_with_silence
from steering.silence_cache import Ladder, SilenceCache
from steering.synthetic.data import write_items
from tests.steering.examples import full_pass, generated

ITEMS = 150
SEED = 20_261


@pytest.fixture(scope="module")
def demo() -> AudioModel:
    return load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def profile(demo: AudioModel) -> Profile:
    shipped = find(None, demo)
    assert shipped is not None
    return shipped


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[Item, ...]:
    """Fresh items of the test split: its voices were in no training clip."""
    folder: Path = tmp_path_factory.mktemp("items")
    return read(write_items(folder, split="test", count=ITEMS, seed=SEED), folder).items


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What serving does with each item."""

    bare: NDArray[np.bool_]  # (I,) right
    adaptive: NDArray[np.bool_]
    scores: NDArray[np.float64]  # of the clip
    dropped: NDArray[np.float64]  # of the same prompt, where the audio never reached the model
    silence: NDArray[np.float64]  # of the silent twin, as the contrast reads it
    wordings: NDArray[np.str_]


@pytest.fixture(scope="module")
def served(demo: AudioModel, profile: Profile, items: tuple[Item, ...]) -> Served:
    prefixes = SilenceCache(50_000_000, Ladder(0))
    rows = []
    for item in items:
        prompt = build_item_prompt(demo, item, load_item_clip(demo, item))
        heard = prefill(demo, prompt, heads=profile.heads, layers=profile.layers)
        at = listening_score(heard.attention.numpy())
        contrast = contrast_with_silence(
            demo,
            prompt,
            heard,
            heads=profile.heads,
            layers=profile.layers,
            silence_cache=prefixes,
        )
        direction = pool(contrast.differences, profile.intervention)
        right = []
        for strength in (0.0, profile.gate.strength(at)):
            plan = (
                SteeringPlan(direction, strength, profile.intervention) if strength else UNSTEERED
            )
            right.append(is_right(greedy_answer(demo, heard, plan), item.answer, item.choices))
        lost = replace(prompt, log_mels=silent_mels(demo, prompt.heard_seconds))
        floor = listening_score(prefill(demo, lost, heads=profile.heads).attention.numpy())
        twin = listening_score(contrast.silence_attention.numpy())
        rows.append((*right, at, floor, twin))
    bare, adaptive, scores, dropped, silence = map(np.array, zip(*rows, strict=True))
    wordings = np.array([item.wording for item in items])
    return Served(bare, adaptive, scores, dropped, silence, wordings)


def test_unswayed_it_knows_what_it_hears(served: Served) -> None:
    assert served.bare[served.wordings == "neutral"].mean() >= 0.85


def test_the_text_sways_it(served: Served) -> None:
    neutral, conflict = (served.bare[served.wordings == w].mean() for w in ("neutral", "conflict"))
    assert conflict < neutral - 0.2


def test_adaptive_steering_brings_the_sound_back(served: Served) -> None:
    conflict = served.wordings == "conflict"
    gain = served.adaptive[conflict].mean() - served.bare[conflict].mean()
    assert gain > 0.15
    others = ~conflict
    loss = served.bare[others].mean() - served.adaptive[others].mean()
    assert loss < 0.05, "and costs little where nothing was wrong"


def test_a_dropped_audio_scores_at_the_floor(served: Served, profile: Profile) -> None:
    percentiles = np.array([profile.percentile(score) for score in served.dropped])
    assert (percentiles < 0.10).mean() > 0.85
    assert percentiles.max() < 0.25
    verdicts = [profile.verdicts.of(score) for score in served.dropped]
    assert np.mean([verdict == "not_listening" for verdict in verdicts]) > 0.9
    assert "listening" not in verdicts


def test_the_contrast_reads_the_same_floor(served: Served) -> None:
    np.testing.assert_allclose(served.silence, served.dropped, atol=1e-5)


def test_scores_lie_where_calibration_saw_them(served: Served, profile: Profile) -> None:
    percentiles = np.array([profile.percentile(score) for score in served.scores])
    assert percentiles.mean() == pytest.approx(0.5, abs=0.12)
    assert ((percentiles > 0) & (percentiles < 1)).mean() > 0.95


def test_served_heads_equal_eager_attentions(
    demo: AudioModel, profile: Profile, items: tuple[Item, ...]
) -> None:
    eager: Any = Qwen2AudioForConditionalGeneration.from_pretrained(
        DEMO_WEIGHTS, dtype=torch.float32, attn_implementation="eager"
    )
    for item in items[:8]:
        prompt = build_item_prompt(demo, item, load_item_clip(demo, item))
        mass = audio_mass(prefill(demo, prompt, heads=profile.heads).attention.numpy())
        attention = full_pass(eager.eval(), prompt).attention
        expected = [
            float(attention[layer, head, -1, prompt.audio_mask].sum())
            for layer, head in profile.heads
        ]
        np.testing.assert_allclose(mass, expected, atol=1e-4)


def test_its_bare_answers_are_those_of_transformers(
    demo: AudioModel, items: tuple[Item, ...]
) -> None:
    plain: Any = Qwen2AudioForConditionalGeneration.from_pretrained(
        DEMO_WEIGHTS, dtype=torch.float32, attn_implementation="sdpa"
    )
    for item in items[:8]:
        prompt = build_item_prompt(demo, item, load_item_clip(demo, item))
        ids = generated(plain.eval(), prompt, 32)
        expected = demo.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert greedy_answer(demo, prefill(demo, prompt)) == expected
