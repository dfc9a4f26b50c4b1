from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from steering.calibration.activations import all_heads
from steering.calibration.effects import token_effects
from steering.calibration.effects.token_effects import answer_effects
from steering.generation import UNSTEERED, Sampling, generate
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import silent_twin
from steering.silence_cache import Ladder, SilenceCache
from tests.steering.examples import full_pass, prompt

SHORT = Sampling(max_tokens=5)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_effects, "ANSWER", SHORT)


def exact_silences() -> SilenceCache:
    return SilenceCache(100_000_000, Ladder(0))


def test_effect_and_mass_are_those_of_two_passes_of_transformers(
    model: AudioModel, oracle: Any
) -> None:
    asked = prompt(model, 0.7)
    answer = answer_effects(model, asked, all_heads(model), exact_silences())
    ids = list(generate(model, prefill(model, asked), UNSTEERED, SHORT))
    assert answer.token_ids == ids[: len(answer.token_ids)] and len(answer.effect) > 2
    heard, silent = (
        full_pass(oracle, each, answer.token_ids) for each in (asked, silent_twin(model, asked))
    )
    first = len(asked.tokens) - 1
    places = slice(first, first + len(answer.effect))
    p, q = (each.logits[places].double().log_softmax(-1) for each in (heard, silent))
    bits = (p.exp() * (p - q)).sum(-1) / np.log(2)
    torch.testing.assert_close(answer.effect.double(), bits, atol=1e-5, rtol=1e-3)
    assert float(bits.max()) > 1e-4, "else nothing is compared"
    attention = heard.attention[:, :, places][..., : first + 1][..., asked.audio_mask].sum(-1)
    torch.testing.assert_close(answer.mass, attention.flatten(0, 1).T, atol=1e-5, rtol=1e-4)
    differences = heard.residuals[:, first] - silent.residuals[:, first]
    torch.testing.assert_close(answer.differences, differences, atol=1e-4, rtol=1e-3)


def test_an_end_token_is_no_place_but_where_it_comes_first(
    grouped: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompt(grouped, 0.7)
    whole = answer_effects(grouped, asked, [(0, 1)], exact_silences())
    for end in (0, 2):
        token = whole.token_ids[end]
        assert token not in whole.token_ids[:end]
        monkeypatch.setattr(grouped.network.generation_config, "eos_token_id", [token])
        ended = answer_effects(grouped, asked, [(0, 1)], exact_silences())
        assert ended.token_ids == whole.token_ids[:end]
        assert len(ended.effect) == len(ended.mass) == max(1, end)
        torch.testing.assert_close(ended.effect, whole.effect[: max(1, end)])
