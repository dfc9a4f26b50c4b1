"""The memory plan, against networks that are really there and against the real sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from steering.errors import ModelError
from steering.kv_slots import KVSlots, captured_rows
from steering.model import memory_plan
from steering.model.audio_model import AudioModel
from steering.model.families import family_of
from steering.model.loading import load
from steering.model.memory_plan import ModelSizes, Wanted
from steering.model.merging import _filled_up, compiled_rows
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
def test_the_sizes_of_a_real_model(name: str) -> None:
    config = real_config(name)
    _, parameters, kv_bytes, tokens = REAL[name]
    plan = memory_plan.sizes(family_of(config.model_type), config)
    assert plan.parameters == pytest.approx(parameters, rel=0.003)
    assert plan.weight_bytes["bfloat16"] == 2 * plan.parameters
    assert plan.weight_bytes["float32"] == 4 * plan.parameters
    assert plan.weight_bytes["4bit"] < plan.weight_bytes["8bit"] < plan.weight_bytes["bfloat16"]
    assert plan.kv_bytes_a_token["bfloat16"] == kv_bytes
    assert Ladder().tokens(plan.audio_tokens, 3000) == tokens


@pytest.mark.parametrize("name", tiny.WHOLE)
def test_the_sizes_are_those_of_a_loaded_model(name: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.WHOLE[name], tmp_path / name)
    model = load(str(folder), device="cpu")
    config = AutoConfig.from_pretrained(folder)
    plan = memory_plan.sizes(model.family, config)
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
    with pytest.raises(
        ModelError,
        match=r"short of 2\.60 GB of memory: weights need 16\.8 GB and 14\.2 GB are free: less",
    ):
        memory_plan.require(16_800_000_000, 14_200_000_000, "weights", "less")


def test_free_memory_is_that_of_the_machine() -> None:
    assert 1e8 < memory_plan.free_bytes(torch.device("cpu")) < 1e14


# ---- the plan of a deployment


def qwen2_audio() -> ModelSizes:
    config = real_config("Qwen2AudioConfig")
    return memory_plan.sizes(family_of(config.model_type), config)


def wanted(rows: int, tokens: int, *, on_card: bool = True) -> Wanted:
    """Of bfloat16, with the silence cache of a deployment that sets nothing."""
    captured = captured_rows if on_card else lambda rows, tokens: 0
    return Wanted("bfloat16", rows, tokens, 1_000_000_000, captured)


def test_a_plan_counts_rows_prompts_silence_and_graphs() -> None:
    of = qwen2_audio()
    needed = memory_plan.plan(of, wanted(16, 2048))
    row = 2048 * 524_288
    assert needed.weights == of.weight_bytes["bfloat16"]
    assert needed.rows == 16 * (row + 4096 * 4)
    assert needed.prompts == 2 * row, "a prompt without a row yet, and its twin"
    assert needed.silence == 1_000_000_000
    assert needed.activations > 2048 * 3 * 11008 * 2, "the inside of a feed-forward part"
    assert needed.graphs == captured_rows(16, 2048) * 156_032 * 4
    assert needed.total == sum(needed.parts().values())
    on_cpu = memory_plan.plan(of, wanted(16, 2048, on_card=False))
    assert on_cpu.total == needed.total - needed.graphs


def test_kernels_are_counted_for_every_product_and_number_of_rows() -> None:
    of, without = qwen2_audio(), wanted(16, 2048, on_card=False)
    packed = memory_plan.plan(of, replace(without, compiled_rows=compiled_rows))
    passes, positions = (
        {_filled_up(rows) for rows in range(1, most + 1)}
        for most in (2 * 2048, 1500)  # the prompt and its question, half of 3000 mel frames
    )
    assert (of.products, of.encoder_products) == (4, 5)
    assert packed.kernels == (4 * len(passes) + 5 * len(positions)) * 630_000
    assert packed.total == memory_plan.plan(of, without).total + packed.kernels


def test_captured_steps_are_counted_as_they_are_captured(tiny_model: AudioModel) -> None:
    slots = KVSlots(tiny_model, 6, 700, None, rounded=True)
    sizes = {slots._bucketed(rows, tokens) for rows in range(1, 7) for tokens in range(1, 701)}
    assert captured_rows(6, 700) == sum(rows for rows, _ in sizes)


@pytest.mark.parametrize("free", [24_000_000_000, 36_000_000_000])
def test_what_would_fit_fits_and_no_more(free: int) -> None:
    of = qwen2_audio()
    with pytest.raises(ModelError) as caught:
        memory_plan.refuse_short(of, wanted(16, 2048), free, "cuda:0")
    said = str(caught.value)
    assert said.startswith("short of ")
    assert "free on cuda:0" in said
    found = re.findall(r"(\d+) rows of (\d+) tokens", said)
    fewer, shorter = [(int(rows), int(tokens)) for rows, tokens in found]
    for (rows, tokens), more in ((fewer, (1, 0)), (shorter, (0, 64))):
        memory_plan.refuse_short(of, wanted(rows, tokens), free, "cuda:0")
        with pytest.raises(ModelError):
            memory_plan.refuse_short(of, wanted(rows + more[0], tokens + more[1]), free, "cuda:0")


def test_where_no_row_fits_another_way_out_is_named() -> None:
    with pytest.raises(ModelError, match=r"not one row fits: .*4bit"):
        memory_plan.refuse_short(qwen2_audio(), wanted(16, 2048), 17_000_000_000, "cuda:0")


def test_a_container_has_no_more_than_its_limit(tmp_path: Path) -> None:
    assert memory_plan.free_in_container(tmp_path) > 1e15, "no group, no limit"
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 500\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_plan.free_in_container(tmp_path) > 1e15
    (tmp_path / "memory.max").write_text("4000\n")
    assert memory_plan.free_in_container(tmp_path) == 1500
