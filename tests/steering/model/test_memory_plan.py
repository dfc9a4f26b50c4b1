"""The memory plan, against networks that are really there and against the real sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from steering.errors import ModelError
from steering.kv_slots import KVSlots
from steering.model import memory_plan
from steering.model.families import family_of
from steering.model.loading import load
from steering.silence_cache import Ladder
from tests.steering import tiny

# The real checkpoints' sizes, written into transformers' own configs.
REAL: dict[str, tuple[dict[str, Any], float, int, int]] = {
    "Qwen2AudioConfig": (
        {
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 156032,
            }
        },
        8.40e9,
        524_288,
        1488,
    ),
    "Qwen2_5OmniConfig": (
        {"thinker_config": {"text_config": {"tie_word_embeddings": False}}},
        8.26e9,
        57_344,
        1488,
    ),
    "Qwen3OmniMoeConfig": (
        {
            "thinker_config": {
                "text_config": {
                    "hidden_size": 2048,
                    "num_hidden_layers": 48,
                    "num_attention_heads": 32,
                    "head_dim": 128,
                    "vocab_size": 152064,
                },
                "audio_config": {"output_dim": 2048},
            }
        },
        31.2e9,
        98_304,
        774,
    ),
}


def real_config(name: str) -> Any:
    return getattr(transformers, name)(**REAL[name][0])


@pytest.mark.parametrize("name", REAL)
def test_the_plan_of_a_real_size(name: str) -> None:
    config = real_config(name)
    _, parameters, kv_bytes, tokens = REAL[name]
    plan = memory_plan.plan(family_of(config.model_type), config)
    assert plan.parameters == pytest.approx(parameters, rel=0.003)
    assert plan.weight_bytes["bfloat16"] == 2 * plan.parameters
    assert plan.weight_bytes["float32"] == 4 * plan.parameters
    assert plan.weight_bytes["4bit"] < plan.weight_bytes["8bit"] < plan.weight_bytes["bfloat16"]
    assert plan.kv_bytes_a_token["bfloat16"] == kv_bytes
    assert Ladder().tokens(plan.audio_tokens, 3000) == tokens


@pytest.mark.parametrize("name", tiny.WHOLE)
def test_the_plan_is_what_a_loaded_model_takes(name: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.WHOLE[name], tmp_path / name)
    model = load(str(folder), device="cpu")
    config = AutoConfig.from_pretrained(folder)
    plan = memory_plan.plan(model.family, config)
    weights = list(model.network.parameters())
    assert plan.parameters == sum(p.numel() for p in weights)
    assert plan.weight_bytes["float32"] == sum(p.nbytes for p in weights)
    assert plan.row_bytes("float32", 100) == KVSlots.bytes_of(model, 1, 100)


def test_too_little_memory_is_said_with_the_figures(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(ModelError, match=r"0\.0 GB and 0\.0 GB are free.*quantize"):
        load(str(checkpoint), device="cpu")
    with pytest.raises(ModelError, match=r"need 16\.8 GB and 14\.2 GB are free: less"):
        memory_plan.require(16_800_000_000, 14_200_000_000, "weights", "less")


def test_free_memory_is_that_of_the_machine() -> None:
    assert 1e8 < memory_plan.free_bytes(torch.device("cpu")) < 1e14
