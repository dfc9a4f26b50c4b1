"""Every family on a card that shares nothing with the CPU: the CPU's figures, and no mix."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from steering import listening, readout
from steering.attention import taps
from steering.calibration.calibrate import calibrate
from steering.clip_attribution import contrast_clip
from steering.generation import UNSTEERED, Sampling, SteeringPlan, generate, score_choices
from steering.kv_slots import KVSlots, generate_batch
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO_WEIGHTS
from steering.model.loading import load
from steering.model.passes import at_once
from steering.prefill import prefill
from steering.profile import DEMO_PROFILE, Profile
from steering.readout import Intervention, pool
from steering.silence import contrast_with_silence
from steering.silence_cache import SilenceCache
from steering.verification.self_test import self_test
from tests.steering import tiny
from tests.steering.examples import clip, prompt, write_items
from tests.steering.stand_in_device import CARD, StandInCard, plugged_in

HEADS = ((1, 3), (0, 2), (1, 0))
LAYERS = (1, 0)
HOW = Intervention(layers=LAYERS)
LONG = Sampling(max_tokens=10, ignore_end=True)


@pytest.fixture
def card() -> Iterator[StandInCard]:
    with plugged_in() as plugged:
        yield plugged


def figures(model: AudioModel) -> tuple[list[torch.Tensor], list[Any]]:
    """What the method makes of some prompts: tensors on the CPU, and answers side by side."""
    self_test(model)
    cache = SilenceCache(10**8)
    read: list[torch.Tensor] = []
    answers = []
    for number, seconds in enumerate([(0.4,), (1.7,), (0.4,), (1.0, 2.3)]):
        asked = prompt(model, *seconds)
        heard = prefill(model, asked, heads=HEADS, layers=LAYERS)
        twin = contrast_with_silence(
            model, asked, heard, heads=HEADS, layers=LAYERS, silence_cache=cache
        )
        read += [heard.attention, heard.final, twin.differences, twin.silence_attention]
        answers.append((heard, SteeringPlan(pool(twin.differences, HOW), 0.5 * number, HOW)))
    heard, plan = answers[-1]
    contrast = contrast_clip(model, asked, heard, 1, None, heads=HEADS, layers=LAYERS)
    read.append(at_once(contrast).differences)
    scores = score_choices(model, heard, plan, ["a", "the dog"])
    slots = KVSlots(model, 4, 256, HOW)
    written = [generate_batch(slots, answers[i:j], LONG) for i, j in ((0, 3), (3, 4), (0, 3))]
    alone = list(generate(model, heard, plan, LONG))
    return [tensor.float().cpu() for tensor in read], [written, alone, np.round(scores, 5).tolist()]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("qwen2_audio", "float32"), ("qwen2_5_omni", "bfloat16"), ("qwen3_omni_moe", "float32")],
)
def test_a_family_on_a_card_is_the_family_on_the_cpu(
    family: str,
    dtype: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taps, "is_one_token_on_cpu", lambda *_: False)  # a card's kernel for both
    checkpoint = tiny.save(tiny.WHOLE[family], tmp_path)
    expected, words = figures(load(str(checkpoint), device="cpu", dtype=dtype))
    with plugged_in() as card:
        model = load(str(checkpoint), device="cuda", dtype=dtype)
        assert model.device == CARD
        got, answered = figures(model)
    assert [torch.equal(a, b) for a, b in zip(got, expected, strict=True)] == [True] * len(got)
    assert answered == words
    assert len(card.graphs) > 1
    assert sum(graph.replays for graph in card.graphs) > 20
    assert "capturing" not in caplog.text  # every step was recorded


def test_a_planted_mix_is_caught(card: StandInCard, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("demo", device="cuda", dtype="float32")
    heard = prefill(model, prompt(model, 0.5), layers=(7,))
    plan = SteeringPlan(heard.states[0], 0.5, Intervention(layers=(7,)))
    score_choices(model, heard, plan, ["dog"])
    steer = readout.steer

    def mixed(final: Any, direction: Any, *rest: Any) -> Any:
        return steer(final, direction.to("cpu"), *rest)

    monkeypatch.setattr(readout, "steer", mixed)
    with pytest.raises(RuntimeError, match="same device"):
        score_choices(model, heard, plan, ["dog"])


def test_a_planted_wait_is_not_recorded(
    card: StandInCard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load("demo", device="cuda", dtype="float32")
    heard = prefill(model, prompt(model, 0.5), layers=(7,))
    plan = SteeringPlan(heard.states[0], 0.5, Intervention(layers=(7,)))
    slots = KVSlots(model, 2, 256, plan.intervention)
    expected = generate_batch(slots, [(heard, plan)], LONG)
    waiting = KVSlots(model, 2, 256, plan.intervention)
    steer = readout.steer
    monkeypatch.setattr(
        readout, "steer", lambda h, d, s, *rest: steer(h, d, s * bool(s.any()), *rest)
    )
    with caplog.at_level(logging.WARNING):
        assert generate_batch(waiting, [(heard, plan)], LONG) == expected
    assert "capturing" in caplog.text
    assert not waiting.use_cuda_graphs


def test_a_planted_new_address_is_stale(checkpoint: Path, card: StandInCard) -> None:
    model = load(str(checkpoint), device="cuda", dtype="float32")
    answers = [(prefill(model, prompt(model, seconds)), UNSTEERED) for seconds in (0.5, 1.5)]
    slots = KVSlots(model, 2, 256, None)
    first = generate_batch(slots, answers, LONG)
    assert generate_batch(slots, answers, LONG) == first
    slots.lengths = slots.lengths.clone()  # as an assignment in place of a copy would make it
    assert generate_batch(slots, answers, LONG) != first


def test_listening_in_a_model_of_transformers(card: StandInCard) -> None:
    processor = AutoProcessor.from_pretrained(DEMO_WEIGHTS)
    network = Qwen2AudioForConditionalGeneration.from_pretrained(DEMO_WEIGHTS).eval()
    sound = clip(0.8)
    text = f"{processor.audio_token}Which sound is this?"
    given = processor(text=text, audio=sound.samples, sampling_rate=16_000, return_tensors="pt")

    def heard(**inputs: Any) -> tuple[Any, ...]:
        with listening(network, processor, DEMO_PROFILE, steer=True, strength=0.7) as ears:
            out = network.generate(**inputs, max_new_tokens=5, do_sample=False)
        return (*out.tolist()[0], round(ears.score, 5), round(ears.silence_score or 0, 5))

    expected = heard(**given)
    network.to(CARD)
    assert heard(**{name: value.to(CARD) for name, value in given.items()}) == expected


@pytest.mark.slow
def test_a_calibration_on_a_card_is_the_one_on_the_cpu(tmp_path: Path) -> None:
    data = write_items(tmp_path, 40)

    def calibrated(device: str) -> Profile:
        model = load("demo", device=device, dtype="float32")
        return calibrate(model, data, tmp_path, tmp_path / device)

    expected = calibrated("cpu")
    with plugged_in():
        got = calibrated("cuda")
    assert (got.heads, got.gate, got.intervention) == (
        (expected.heads, expected.gate, expected.intervention)
    )
    assert got.held_out == expected.held_out
    assert torch.equal(got.direction, expected.direction)
