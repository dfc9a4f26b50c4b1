from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from steering.calibration import strength_intervals
from steering.calibration.activations import Activations
from steering.calibration.search import STRENGTHS, Search
from steering.calibration.strength_intervals import gains, winning_strengths
from steering.errors import ModelError
from steering.model.audio_model import AudioModel
from steering.readout import Intervention, logits, pool
from tests.steering.calibration.test_calibrate import items

ITEMS = 120


@pytest.fixture
def shaped(untrained: AudioModel) -> Iterator[AudioModel]:
    """An untrained model whose final norm has a gain of its own for every channel."""
    weight = untrained.decoder.norm.weight
    before = weight.data.clone()
    weight.data = torch.rand(len(weight), generator=torch.Generator().manual_seed(5)) + 0.2
    yield untrained
    weight.data = before


def activations(model: AudioModel) -> Activations:
    """Noise of all lengths; one to three tokens are right, one of them at some strength."""
    rng = np.random.default_rng(3)
    final = rng.standard_normal((ITEMS, model.hidden_size)) * rng.uniform(0.5, 20, (ITEMS, 1))
    differences = rng.standard_normal((ITEMS, model.num_layers, model.hidden_size))
    differences *= rng.uniform(0.1, 30, (ITEMS, 1, 1))
    flat = np.zeros((ITEMS, model.num_layers * model.num_heads), np.float32)
    planted = Activations(
        mass=flat,
        silent_mass=flat,
        differences=differences.astype(np.float32),
        final=final.astype(np.float32),
        deciding=final.astype(np.float32),
        right_tokens=np.full((ITEMS, 3), -1),
        right=np.ones(ITEMS, bool),
        form=np.zeros(ITEMS, np.int64),
        top_probability=np.ones(ITEMS, np.float32),
    )
    strength = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 2.0], ITEMS).astype(np.float32))
    direction = pool(torch.from_numpy(planted.differences[:, 4:]), Intervention((4,)))
    with torch.inference_mode():
        token_logits = logits(
            model, torch.from_numpy(planted.final), direction, strength, Intervention((4,))
        )
    right_tokens = np.full((ITEMS, 3), -1)
    right_tokens[:, 0] = token_logits.argmax(-1).numpy()
    for n, share in ((1, 2), (2, 3)):  # other tokens are right as well, for some of the items
        likely = token_logits.topk(20).indices.numpy()[::share]
        right_tokens[::share, n] = likely[np.arange(len(likely)), rng.integers(1, 20, len(likely))]
    return replace(planted, right_tokens=right_tokens)


@pytest.mark.parametrize("place", ["before_norm", "after_norm"])
@pytest.mark.parametrize("scale", ["norm", "raw"])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("keep_norm", [False, True])
def test_what_is_right_at_every_strength_is_what_the_readout_says(
    shaped: AudioModel, place: str, scale: str, pooling: str, keep_norm: bool
) -> None:
    intervention = Intervention(
        (4, 5, 6, 7),
        pool=pooling,  # type: ignore[arg-type]
        scale=scale,  # type: ignore[arg-type]
        place=place,  # type: ignore[arg-type]
        keep_norm=keep_norm,
    )
    planted = activations(shaped)
    correct = Search(shaped, planted, items()).correct_at(intervention)
    final = torch.from_numpy(planted.final)
    direction = pool(torch.from_numpy(planted.differences[:, 4:]), intervention)
    tokens = []
    with torch.inference_mode():
        for strength in STRENGTHS:
            strengths = torch.full((ITEMS,), float(strength))
            tokens.append(
                logits(shaped, final, direction, strengths, intervention).argmax(-1).numpy()
            )
    expected = (np.stack(tokens)[..., None] == planted.right_tokens).any(-1)
    assert 0.1 < expected.mean() < 0.9, "else the test says nothing"
    assert (correct != expected).mean() < 1e-3, "but for ties at an end"


def test_the_vocabulary_in_blocks_is_the_vocabulary(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = activations(untrained)
    states, directions = (
        torch.from_numpy(planted.final),
        torch.from_numpy(planted.differences[:, 7]),
    )
    tokens = torch.from_numpy(planted.right_tokens)
    whole = winning_strengths(untrained, states, directions, tokens)
    monkeypatch.setattr(strength_intervals, "_BLOCK_TOKENS", 100)
    monkeypatch.setattr(strength_intervals, "_BLOCK_ITEMS", 7)
    for end, end_in_blocks in zip(
        whole, winning_strengths(untrained, states, directions, tokens), strict=True
    ):
        near = [
            ends.clamp(max=10) for ends in (end, end_in_blocks)
        ]  # far off, lines are nearly parallel
        torch.testing.assert_close(*near, rtol=1e-4, atol=1e-5)


def test_a_direction_of_nothing_changes_nothing(untrained: AudioModel) -> None:
    states = torch.from_numpy(activations(untrained).final)
    with torch.inference_mode():
        best = untrained.network.lm_head(states).argmax(-1)
    nothing = torch.zeros_like(states)
    least, largest = winning_strengths(untrained, states, nothing, best[:, None])
    assert (least == 0).all() and largest.isinf().all()
    least, largest = winning_strengths(untrained, states, nothing, (best[:, None] + 1) % 700)
    assert (largest < least).all(), "never"


def test_a_readout_that_is_not_straight_is_refused(untrained: AudioModel) -> None:
    assert gains(untrained).shape == (untrained.hidden_size,)
    with pytest.raises(ModelError, match="bias"):
        biased = nn.Linear(untrained.hidden_size, 7)
        gains(replace(untrained, family=replace(untrained.family, readout=lambda _: biased)))
