"""The start-up check: one dummy request through taps, twin and readout, every shape verified."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from steering.audio.clip import Clip
from steering.errors import ModelError
from steering.generation import UNSTEERED, steered_logits
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import build_question
from steering.silence import contrast_with_silence
from steering.silence_cache import SilenceCache


def self_test(model: AudioModel) -> None:
    """Raise ModelError unless a second of quiet noise goes through as it should."""
    rate_hz = model.sample_rate_hz
    noise = np.random.default_rng(0).standard_normal(rate_hz).astype(np.float32) * 0.01
    prompt = build_question(model, [Clip(noise, rate_hz, 1.0, rate_hz, 1)], "What do you hear?")
    heads = ((0, 0), (model.num_layers - 1, model.num_heads - 1))
    layers = (0, model.num_layers - 1)
    audio_tokens = sum(model.audio_tokens(int(frames)) for frames in prompt.mel_frames)
    try:
        prefilled = prefill(model, prompt, heads=heads, layers=layers)
        twin = contrast_with_silence(
            model, prompt, prefilled, heads=heads, layers=layers, silence_cache=SilenceCache(0)
        )
        with torch.inference_mode():
            logits = steered_logits(model, prefilled.final[None], UNSTEERED, 0)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ModelError(_remedy(model, f"{type(error).__name__}: {error}")) from error
    _verify(model, "audio tokens of one second", prompt.audio_mask.nonzero(), (audio_tokens, 1))
    _verify(model, "taps", prefilled.attention, (2, audio_tokens))
    _verify(model, "states", prefilled.states, (2, model.hidden_size))
    _verify(model, "differences from silence", twin.differences, (2, model.hidden_size))
    _verify(model, "taps on silence", twin.silence_attention, (2, audio_tokens))
    _verify(model, "logits", logits, (1, int(model.text_config.vocab_size)))


def _verify(model: AudioModel, name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ModelError(_remedy(model, f"{name} are {tuple(values.shape)}, not {shape}"))
    if not bool(torch.isfinite(values).all()):
        raise ModelError(_remedy(model, f"{name} are not finite: try --dtype float32"))


def _remedy(model: AudioModel, fault: str) -> str:
    return (
        f"{model.name} does not pass the start-up check of family {model.family.name}: {fault}."
        " If its architecture was changed, describe it as a family of its own: docs/families.md"
    )
