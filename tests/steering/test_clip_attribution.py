from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from steering.clip_attribution import clip_scores, contrast_clip, with_influence, without_clip
from steering.generation import UNSTEERED, score_choices
from steering.heads import listening_score, timeline
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes, at_once
from steering.prefill import PrefillResult, prefill
from steering.prompt import build_question, silent_twin
from tests.steering.examples import QUESTION, clip, prompt

HEADS = ((1, 3), (0, 6))
LAYERS = (1, 0)


def test_scores_of_the_clips_sum_to_the_whole(model: AudioModel) -> None:
    asked = prompt(model, 1.0, 0.4, 2.0)
    attention = prefill(model, asked, heads=HEADS).attention.numpy()
    clips = clip_scores(model, asked, timeline(attention))
    assert [len(clip_score.timeline) for clip_score in clips] == [25, 10, 50]
    assert sum(clip_score.score for clip_score in clips) == pytest.approx(
        listening_score(attention), abs=1e-5
    )
    assert (
        np.concatenate([clip_score.timeline for clip_score in clips]).tolist()
        == timeline(attention).tolist()
    )


def test_one_silent_clip_leaves_the_others_as_they_are(model: AudioModel) -> None:
    asked = prompt(model, 1.0, 0.4, 2.0)
    twin = without_clip(model, asked, 1)
    assert torch.equal(twin.tokens, asked.tokens)
    assert torch.equal(twin.log_mels[[0, 2]], asked.log_mels[[0, 2]])
    assert torch.equal(twin.log_mels[1], silent_twin(model, asked).log_mels[1])
    one_by_one = without_clip(model, without_clip(model, twin, 0), 2)
    assert torch.equal(one_by_one.log_mels, silent_twin(model, asked).log_mels)


def test_the_contrast_of_a_clip_is_two_plain_passes(model: AudioModel) -> None:
    asked = prompt(model, 1.0, 0.7)
    heard = prefill(model, asked, layers=LAYERS)
    contrast = at_once(contrast_clip(model, asked, heard, 1, None, heads=HEADS, layers=LAYERS))
    clips = [clip(1.0, seed=0), clip(0.7, seed=1).silent()]
    other = prefill(model, build_question(model, clips, QUESTION), heads=HEADS, layers=LAYERS)
    torch.testing.assert_close(
        contrast.differences, heard.states - other.states, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(contrast.silence_attention, other.attention, atol=2e-6, rtol=0)
    assert contrast.silent is not None
    torch.testing.assert_close(contrast.silent.final, other.final, atol=1e-5, rtol=1e-5)


def test_a_silent_clip_has_no_influence_and_ranks_last(untrained: AudioModel) -> None:
    asked = build_question(untrained, [clip(1.0), clip(1.0).silent(), clip(2.0, seed=5)], QUESTION)
    choices = ("dog", "cow")

    def likelihood(heard: PrefillResult) -> float:
        return float(np.log(score_choices(untrained, heard, UNSTEERED, choices)[0]))

    def in_passes(heard: PrefillResult) -> Passes[float]:
        yield 0
        return likelihood(heard)

    heard = prefill(untrained, asked, heads=HEADS)
    clips = clip_scores(untrained, asked, timeline(heard.attention.numpy()))
    ranked_clips = at_once(with_influence(untrained, asked, heard, clips, in_passes, None))
    assert ranked_clips[1].influence == pytest.approx(0, abs=1e-6)
    assert sorted(ranked_clip.rank or 0 for ranked_clip in ranked_clips) == [1, 2, 3]
    expected = likelihood(heard) - likelihood(prefill(untrained, without_clip(untrained, asked, 2)))
    assert ranked_clips[2].influence == pytest.approx(expected, abs=1e-6)
    assert replace(ranked_clips[0], influence=None, rank=None).score == clips[0].score
