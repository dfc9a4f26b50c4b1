"""The models that are measured: the embedded one, and models of random weights of a given size.

Speed does not depend on the weights' values, so nothing is downloaded and nothing is written. The
listening profiles of the random models are made by hand: as many heads, as deep, as a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from steering import profile as profiles
from steering.audio.clip import Clip
from steering.heads import Verdicts
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO, DEMO_WEIGHTS
from steering.model.families import QWEN2_AUDIO
from steering.model.merging import merge_and_pack
from steering.profile import Profile
from steering.prompt import Message, build_question
from steering.readout import Intervention
from steering.strength import Gate

_SENTENCE = "Which sound is this?\n"


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of a Qwen2-Audio, and the part of it that a listening profile taps."""

    encoder: Mapping[str, float]
    decoder: Mapping[str, float]
    tapped_heads: int
    deepest_layer: int  # of tapped heads and silence directions, from 0
    clip_seconds: float = 30.0
    question_tokens: int = 60


MID = Size(
    encoder={
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "num_mel_bins": 80,
    },
    decoder={
        "hidden_size": 768,
        "intermediate_size": 2560,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 4096,
    },
    tapped_heads=8,
    deepest_layer=10,
)
REAL = Size(  # Qwen2-Audio-7B-Instruct
    encoder={
        "initializer_range": 0.02,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
    },
    decoder={
        "initializer_range": 0.02,  # wider ones make bfloat16's rounding grow from layer to layer
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 8192,
        "vocab_size": 156032,
    },
    tapped_heads=24,
    deepest_layer=20,
)
SCALED_DOWN = Size(  # the script of REAL, at a size that a CPU runs in seconds
    encoder={
        "d_model": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 256,
        "num_mel_bins": 128,
    },
    decoder={
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "vocab_size": 4096,
    },
    tapped_heads=4,
    deepest_layer=2,
)


@dataclass(frozen=True, slots=True, eq=False)
class BenchModel:
    """A model that is measured, its profile, and the length of its prompts."""

    model: AudioModel  # its products merged and packed, as the server does
    plain: AudioModel  # the same as transformers makes it: what others do is measured on it
    profile: Profile
    clip_seconds: float
    question: str

    def messages(self, seed: int, seconds: float | None = None) -> tuple[Message, ...]:
        """A question about noise; every seed makes another clip of the same length."""
        rate_hz = self.model.sample_rate_hz
        length = round((seconds or self.clip_seconds) * rate_hz)
        noise = np.random.default_rng(seed).standard_normal(length).astype(np.float32) * 0.1
        clip = Clip(noise, rate_hz, length / rate_hz, rate_hz, 1)
        return (Message("user", (clip, self.question)),)


def bench_model(name: str, device: torch.device, *, scale_down: bool = False) -> BenchModel:
    """The model called demo, mid or real, on a device."""
    if name == DEMO:
        model, plain = (loading.load(DEMO, device=str(device), dtype="float32") for _ in range(2))
        profile = profiles.find(None, model)
        assert profile is not None
        seconds, tokens = model.max_clip_seconds, 60
    else:
        size = MID if name == "mid" else SCALED_DOWN if scale_down else REAL
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model, plain = (random_model(name, size, device, dtype) for _ in range(2))
        profile = random_profile(model, size)
        seconds, tokens = size.clip_seconds, size.question_tokens
    merge_and_pack(model)
    return BenchModel(model, plain, profile, seconds, _question(model, tokens))


def random_model(name: str, size: Size, device: torch.device, dtype: torch.dtype) -> AudioModel:
    """A Qwen2-Audio of random weights on the device; tokenizer and template of the embedded one."""
    embedded: Any = Qwen2AudioProcessor.from_pretrained(DEMO_WEIGHTS)
    extractor = WhisperFeatureExtractor(
        feature_size=size.encoder["num_mel_bins"],
        chunk_length=int(size.clip_seconds),
        return_attention_mask=True,
    )
    processor: Any = Qwen2AudioProcessor(extractor, embedded.tokenizer, embedded.chat_template)
    config: Any = AutoConfig.from_pretrained(DEMO_WEIGHTS)
    sizes = config.to_dict()
    sizes["audio_config"] |= {**size.encoder, "max_source_positions": extractor.nb_max_frames // 2}
    sizes["text_config"] |= {**size.decoder, "layer_types": None, "max_window_layers": 0}
    sizes["text_config"].pop("head_dim", None)
    config = type(config).from_dict(sizes)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        network: Any = Qwen2AudioForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    network.generation_config.eos_token_id = embedded.tokenizer.eos_token_id
    network.generation_config.pad_token_id = embedded.tokenizer.pad_token_id
    network = network.eval().requires_grad_(False).to(device)
    loading.take_attention(QWEN2_AUDIO, network, device)
    return AudioModel(
        name, Path(), None, f"random-{name}", QWEN2_AUDIO, network, processor, device, dtype
    )


def random_profile(model: AudioModel, size: Size) -> Profile:
    """A profile made by hand: heads spread over the layers up to the deepest, those layers."""
    last, count = size.deepest_layer, size.tapped_heads
    first = max(last // 3, 1)
    heads = tuple(
        (last - i * (last - first + 1) // count, (i * 5 + 1) % model.num_heads)
        for i in range(count)
    )
    return Profile(
        name="by-hand",
        model=model.name,
        revision=None,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=heads,
        correlations=tuple(0.5 for _ in heads),
        intervention=Intervention(layers=tuple(sorted({layer for layer, _ in heads}))),
        gate=Gate(1.0, 0.5, 0.1),
        fixed_strength=0.5,
        verdicts=Verdicts(0.2, 0.6),
        calibration={},
        held_out={},
        versions={},
        direction=torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1)),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        head_mean=np.full(count, 0.5, np.float32),
        head_std=np.full(count, 0.1, np.float32),
    )


def _question(model: AudioModel, tokens: int) -> str:
    """A question with which `tokens` tokens follow the audio, the template's own included."""
    clip = Clip(
        np.zeros(model.sample_rate_hz, np.float32),
        model.sample_rate_hz,
        1.0,
        model.sample_rate_hz,
        1,
    )
    text = ""
    while True:
        prompt = build_question(model, [clip], text + _SENTENCE)
        if len(prompt.tokens) - prompt.audio_end > tokens:
            return text or _SENTENCE
        text += _SENTENCE
