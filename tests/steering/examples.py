"""Small clips, prompts and oracles that the tests of steering share."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from steering.attention.taps import Head
from steering.audio.clip import Clip
from steering.generation import SteeringPlan
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult
from steering.prompt import Prompt, build_question, silent_mels
from steering.readout import Intervention
from steering.silence_cache import Ladder

RATE_HZ = 16_000
QUESTION = "Which sound is this?"


def clip(seconds: float = 1.0, seed: int = 0) -> Clip:
    """A chirp in noise, different for every seed."""
    rng = np.random.default_rng([seed, 77])
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    sweep = np.sin(2 * np.pi * (rng.uniform(200, 900) + rng.uniform(0, 900) * time) * time)
    samples = (0.5 * sweep + 0.1 * rng.standard_normal(len(time))).astype(np.float32)
    return Clip(samples, RATE_HZ, seconds, RATE_HZ, 1)


def prompt(model: AudioModel, *seconds: float, text: str = QUESTION) -> Prompt:
    """A question about one chirp for each length given, one of 1 s if none is."""
    return build_question(model, [clip(s, seed=i) for i, s in enumerate(seconds or (1.0,))], text)


def hearing_silence(model: AudioModel, ladder: Ladder) -> AudioModel:
    """The model, to which every clip sounds like as many tokens of the ladder's silence."""
    family = model.family

    def hear(network: Any, mels: Tensor, frames: Tensor) -> list[Tensor]:
        silences = []
        for count in frames.tolist():
            rung = ladder.rung(count, model.window_frames)
            quiet = silent_mels(model, [rung / 100])
            (whole,) = family.hear(network, quiet.to(mels), torch.tensor([rung]))
            silences.append(whole[: model.audio_tokens(count)])
        return silences

    return replace(model, family=replace(family, hear=hear))


def every_head(model: AudioModel) -> list[Head]:
    """All (layer, head) of a model."""
    return [(layer, head) for layer in range(model.num_layers) for head in range(model.num_heads)]


def keys_and_values(heard: PrefillResult) -> list[tuple[Tensor, Tensor]]:
    """What the cache holds, a pair a layer: each (1, H, T, d)."""
    layers: list[Any] = list(heard.cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


@dataclass(frozen=True, slots=True)
class FullPass:
    """What transformers itself says about a whole sequence, with its eager attention."""

    logits: Tensor  # (T, V)
    residuals: Tensor  # (L, T, D) after each layer, before the final norm
    attention: Tensor  # (L, H, T, T)


@torch.inference_mode()
def full_pass(
    network: Any,
    example: Prompt,
    answer: list[int] | None = None,
    mask_name: str = "feature_attention_mask",
) -> FullPass:
    """One pass of transformers over a prompt and the answer's tokens, nothing cached."""
    tokens = torch.cat([example.tokens, torch.tensor(answer or [], dtype=torch.int64)])[None]
    residuals: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        residuals.append(output[0])

    hooks = [layer.register_forward_hook(keep) for layer in network.model.language_model.layers]
    try:
        out = network(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            input_features=example.log_mels,
            output_attentions=True,
            use_cache=False,
            **{mask_name: feature_mask(example)},
        )
    finally:
        for hook in hooks:
            hook.remove()
    attention = torch.stack([layer[0] for layer in out.attentions])
    return FullPass(out.logits[0], torch.stack(residuals), attention)


def feature_mask(example: Prompt) -> Tensor:
    """(C, N) int64: 1 where the mel frames of a clip are not padding."""
    return (torch.arange(example.log_mels.shape[-1])[None] < example.mel_frames[:, None]).long()


def generated(network: Any, example: Prompt, count: int) -> list[int]:
    """Greedy tokens by transformers' own generate."""
    tokens = example.tokens[None]
    out = network.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        input_features=example.log_mels,
        feature_attention_mask=feature_mask(example),
        do_sample=False,
        max_new_tokens=count,
    )
    answer: list[int] = out[0, tokens.shape[1] :].tolist()
    return answer


def plan_for(
    model: AudioModel, heard: PrefillResult, strength: float, intervention: Intervention
) -> SteeringPlan:
    """A plan along a random direction of about the length of the final residual."""
    random = torch.Generator().manual_seed(3)
    direction = torch.randn(model.hidden_size, generator=random)
    return SteeringPlan(direction * heard.final.norm() / direction.norm(), strength, intervention)


def write_items(folder: Path, count: int) -> Path:
    """Path of `folder`/items.json: questions about chirps, two a clip, every wording in turn."""
    options = ("dog", "cow", "rain", "bell")
    records = []
    for i in range(count):
        audio = folder / f"{i // 2}.wav"
        if not audio.exists():
            soundfile.write(audio, clip(0.4 + 0.1 * i, seed=i).samples, RATE_HZ)
        wording = ("neutral", "conflict")[i % 2]
        records.append(
            {
                "id": f"item-{i}",
                "audio_id": audio.name,
                "question": QUESTION if wording == "neutral" else f"It may be cow. {QUESTION}",
                "choices": options,
                "answer": options[i % 4],
                "task": ("sound", "music")[i % 2],
                "wording": wording,
                "cue": "weak" if wording == "conflict" else None,
            }
        )
    path = folder / "items.json"
    path.write_text(json.dumps(records))
    return path
