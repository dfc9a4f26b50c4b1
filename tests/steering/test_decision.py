"""The decision: every refusal with its reason, strength from the gate, direction from the pool."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from steering.clip_attribution import equal_stretches
from steering.decision import (
    SteeringRequest,
    decide,
    divergence_bits,
    effect_bits,
    measure,
    needs_effect,
    refusal,
    stretch_effects,
    wants_silence,
)
from steering.errors import RequestError
from steering.generation import UNSTEERED
from steering.heads import audio_mass, listening_score
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.profile import Profile
from steering.prompt import build_question, silent_twin
from steering.readout import Intervention, pool, relative_norm
from steering.strength import Gate
from tests.steering.examples import clip

SCORE = 0.25
STEER = SteeringRequest(steer=True)


@pytest.fixture
def refused(tiny_profile: Profile) -> Profile:
    return replace(tiny_profile, gate=Gate(0.0, 0.3, 0.1), fixed_strength=0.0)


def final(profile: Profile) -> torch.Tensor:
    return torch.randn(profile.direction.shape, generator=torch.Generator().manual_seed(2))


def differences(profile: Profile) -> torch.Tensor:
    shape = (len(profile.layers), *profile.direction.shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_a_refused_profile_is_the_first_reason(refused: Profile) -> None:
    own = replace(refused, refusal="the gain was 0.2 points outside the fold")
    assert refusal(own) == "the gain was 0.2 points outside the fold: strength 0"
    assert refusal(refused) == ("calibration found no gain from steering this model: strength 0")
    for request in (SteeringRequest(), STEER, SteeringRequest(True, 0.5)):
        decision = decide(own, request, SCORE, final(own), None)
        assert decision.plan is UNSTEERED
        assert not decision.steering.applied
        assert decision.steering.reason == refusal(own)
        assert not wants_silence(own, request)


def test_what_nobody_steers_says_so(tiny_profile: Profile) -> None:
    assert refusal(tiny_profile) is None
    decision = decide(tiny_profile, SteeringRequest(), SCORE, final(tiny_profile), None)
    assert decision.plan is UNSTEERED
    assert decision.steering.reason == "steer is false"
    zero = decide(tiny_profile, SteeringRequest(True, 0.0), SCORE, final(tiny_profile), None)
    assert zero.plan is UNSTEERED
    assert (zero.steering.reason, zero.steering.direction) == ("strength is 0", "request")


def test_a_strength_over_the_profiles_is_refused(tiny_profile: Profile) -> None:
    with pytest.raises(RequestError, match="max_strength 1;") as refused:
        decide(tiny_profile, SteeringRequest(True, 1.5), SCORE, final(tiny_profile), None)
    assert refused.value.param == "steering.strength"


@pytest.mark.parametrize("scale", ["raw", "norm"])
def test_the_score_gives_the_strength_and_the_layers_the_direction(
    tiny_profile: Profile, scale: str
) -> None:
    intervention = Intervention(layers=(2, 7), scale=scale)  # type: ignore[arg-type]
    profile = replace(tiny_profile, intervention=intervention)
    states, layers = final(profile), differences(profile)
    assert wants_silence(profile, STEER)
    decision = decide(profile, STEER, SCORE, states, layers)
    strength = profile.gate.strength(SCORE)
    assert decision.plan.strength == decision.steering.strength == strength > 0
    assert decision.plan.intervention == intervention
    assert decision.plan.direction is not None
    assert torch.equal(decision.plan.direction, pool(layers, intervention))
    size = relative_norm(states, decision.plan.direction, strength, intervention)
    assert decision.steering.relative_norm == size
    assert (decision.steering.direction, decision.steering.reason) == ("request", None)


def test_the_calibrated_direction_needs_no_silence(tiny_profile: Profile) -> None:
    request = SteeringRequest(True, 0.5, "calibrated")
    assert not wants_silence(tiny_profile, request)
    decision = decide(tiny_profile, request, SCORE, final(tiny_profile), None)
    assert decision.plan.direction is not None
    assert torch.equal(decision.plan.direction, tiny_profile.direction)
    assert decision.plan.strength == 0.5


def test_a_gate_of_the_effect_needs_a_twin_for_adaptive_strength_alone(
    tiny_profile: Profile, refused: Profile
) -> None:
    gate = Gate(1.0, 0.0, 0.5, "effect")
    profile = replace(tiny_profile, gate=gate)
    calibrated = SteeringRequest(True, None, "calibrated")
    for request in (STEER, calibrated):
        assert needs_effect(profile, request) and wants_silence(profile, request)
        assert not needs_effect(tiny_profile, request)
        states, layers = final(profile), differences(profile)
        strengths = [
            decide(profile, request, SCORE, states, layers, bits).steering.strength
            for bits in (0.0, 0.9, 5.0)
        ]
        assert strengths == [gate.strength(bits) for bits in (0.0, 0.9, 5.0)]
        assert strengths[1] == pytest.approx(0.5)
    for request in (SteeringRequest(), SteeringRequest(True, 0.5)):
        assert not needs_effect(profile, request)
    assert not wants_silence(profile, SteeringRequest(True, 0.5, "calibrated"))
    assert not needs_effect(replace(refused, gate=replace(gate, max_strength=0.0)), STEER)


def test_attention_becomes_the_measurements(tiny_model: AudioModel, tiny_profile: Profile) -> None:
    prompt = build_question(tiny_model, [clip(0.5), clip(1.0)], "What is this?")
    count = int(prompt.audio_mask.sum())
    attention = torch.rand(3, count, generator=torch.Generator().manual_seed(4)) / count
    listening = measure(tiny_model, tiny_profile, prompt, attention, attention / 2)
    score = listening_score(attention.numpy())
    assert listening.score == score
    assert listening.silence_score == pytest.approx(score / 2)
    assert listening.percentile == tiny_profile.percentile(score)
    assert listening.verdict == tiny_profile.verdicts.of(score)
    assert listening.threshold == tiny_profile.verdicts.listening
    assert listening.timeline.sum() == pytest.approx(score, abs=1e-6)
    assert [(layer, head) for layer, head, _ in listening.heads] == list(tiny_profile.heads)
    masses = np.array([mass for *_, mass in listening.heads], np.float32)
    assert (masses == audio_mass(attention.numpy())).all()
    assert sum(heard_clip.score for heard_clip in listening.clips) == pytest.approx(score, abs=1e-6)
    assert measure(tiny_model, tiny_profile, prompt, attention, None).silence_score is None


def test_without_a_profile_nothing_is_measured(tiny_model: AudioModel) -> None:
    prompt = build_question(tiny_model, [clip(0.5)], "What is this?")
    listening = measure(tiny_model, None, prompt, torch.zeros(0, 13), None)
    assert (listening.score, listening.verdict, listening.clips) == (None, "unknown", ())


def test_the_divergence_is_counted_in_bits_and_never_infinite() -> None:
    even, sure, never = [0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.25, 0.25]
    rows = torch.tensor([sure, even, even, sure, never]).log()  # with -inf
    others = torch.tensor([even, sure, even, sure, sure]).log()
    bits = divergence_bits(rows, others)
    assert bits[0] == pytest.approx(2.0)
    assert 70 < bits[1] < 80, "three quarters of all that was ruled out"
    assert bits[2:4].tolist() == [0.0, 0.0]
    assert 90 < bits[4] < 100
    close = torch.randn(64, 50_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert (divergence_bits(close, close + 1e-7) >= 0).all(), "rounding alone is no effect"


def test_a_readout_in_few_bits_has_an_effect_too(untrained: AudioModel) -> None:
    """Weights of bfloat16, and of whole numbers: logits that tie, some of them -inf."""
    model = replace(untrained, network=deepcopy(untrained.network))
    asked = build_question(model, [clip()], "What?")
    heard = prefill(model, asked)
    silent = prefill(model, silent_twin(model, asked))
    exact = effect_bits(model, heard, silent)
    readout = model.family.readout(model.network)
    with torch.no_grad():
        readout.weight.copy_(readout.weight.bfloat16())
        assert effect_bits(model, heard, silent) == pytest.approx(exact, rel=0.05)
        readout.weight.copy_((8 * readout.weight).round() / 8)
    rule_out = readout.register_forward_hook(
        lambda module, args, rows: torch.where(
            torch.arange(rows.shape[-1]) % 3 == 0, -torch.inf, rows
        )
    )
    try:
        assert 0 < effect_bits(model, heard, silent) < 100
        for choices in ((), ("a dog", "rain")):
            assert 0 <= effect_bits(model, heard, silent, choices) < 100
            assert effect_bits(model, heard, heard, choices) == 0
    finally:
        rule_out.remove()


def test_the_effect_of_a_stretch_is_a_pass_without_it(model: AudioModel) -> None:
    clips = [clip(0.8), clip(1.0, seed=1)]
    asked = build_question(model, clips, "Which sound is this?")
    heard = prefill(model, asked)
    stretches = [*equal_stretches(asked, 1, 3), (0.0, 1.0), (0.5, 0.5)]
    bits = stretch_effects(model, asked, heard, 1, stretches)
    assert stretches[1] == pytest.approx((1 / 3, 2 / 3))
    for (start, end), effect in zip(stretches, bits, strict=True):
        samples = clips[1].samples.copy()
        samples[round(start * 16_000) : round(end * 16_000)] = 0
        twin = build_question(
            model, [clips[0], replace(clips[1], samples=samples)], "Which sound is this?"
        )
        assert effect == pytest.approx(effect_bits(model, heard, prefill(model, twin)), abs=1e-5)
    assert bits[-1] == pytest.approx(0, abs=1e-5) and bits[:4].min() > 1e-4
