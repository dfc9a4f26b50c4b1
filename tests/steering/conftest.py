from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2AudioForConditionalGeneration

from steering.attention.taps import ATTENTION
from steering.demo.architecture import build_model, build_processor
from steering.model.audio_model import AudioModel
from steering.model.loading import load


def _sharpen(network: Any) -> None:
    """Make the attention of fresh weights look somewhere, instead of everywhere alike."""
    for layer in network.model.language_model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.weight.data.mul_(3.0)
            part.bias.data.normal_(std=0.3)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's checkpoint as a folder, with weights that were never trained."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = build_processor()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(processor.tokenizer)
        _sharpen(network)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untrained(checkpoint: Path) -> AudioModel:
    """An untrained model in float32 on the CPU, one key head for each query head."""
    return load(str(checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def grouped(untrained: AudioModel) -> AudioModel:
    """An untrained model of 3 layers whose 8 query heads share 2 key heads."""
    config = type(untrained.network.config).from_dict(untrained.network.config.to_dict())
    config.text_config.num_hidden_layers = 3
    config.text_config.num_key_value_heads = 2
    config.text_config.layer_types = ["full_attention"] * 3
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Qwen2AudioForConditionalGeneration._from_config(
            config, attn_implementation="sdpa"
        )
        _sharpen(network)
    network.generation_config = untrained.network.generation_config
    network.eval().requires_grad_(False)
    network.model.language_model.config._attn_implementation = ATTENTION
    return replace(untrained, name="grouped", network=network)


@pytest.fixture(params=["untrained", "grouped"])
def model(request: pytest.FixtureRequest) -> AudioModel:
    """Each of the untrained models in turn."""
    loaded: AudioModel = request.getfixturevalue(request.param)
    return loaded


def _eager(model: AudioModel) -> Any:
    network = Qwen2AudioForConditionalGeneration._from_config(
        type(model.network.config).from_dict(model.network.config.to_dict()),
        attn_implementation="eager",
    )
    network.load_state_dict(model.network.state_dict())
    network.generation_config = model.network.generation_config
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def _eager_networks(untrained: AudioModel, grouped: AudioModel) -> dict[str, Any]:
    return {model.name: _eager(model) for model in (untrained, grouped)}


@pytest.fixture
def oracle(model: AudioModel, _eager_networks: dict[str, Any]) -> Any:
    """The same weights in transformers alone: eager attention, nothing of ours in the way."""
    return _eager_networks[model.name]
