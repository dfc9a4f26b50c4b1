"""Prompts: messages and clips in the checkpoint's own template, as tokens and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.audio.clip import Clip
from steering.errors import RequestError
from steering.model.audio_model import AudioModel
from steering.model.prompt_style import PLAIN, PromptStyle


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: text and clips in the order they were given."""

    role: str  # system, user, assistant
    parts: tuple[str | Clip, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The model's input; tensors on the CPU."""

    tokens: Tensor  # (T,) int64, one audio token for each that the encoder will make
    log_mels: (
        Tensor  # (C, M, N) float32 log-mel features of the clips, padded to the model's window
    )
    mel_frames: Tensor  # (C,) int64, mel frames before the padding
    clips: tuple[Clip, ...]
    heard_seconds: tuple[float, ...]  # of each clip, at most the model's window
    audio_mask: Tensor  # (T,) bool, true at audio tokens

    @property
    def audio_end(self) -> int:
        """Position after the last audio token: what follows is text only."""
        return int(self.audio_mask.nonzero()[-1]) + 1


def with_choices(question: str, choices: Sequence[str], style: PromptStyle = PLAIN) -> str:
    """The question and its options, worded in a prompt style."""
    return style.ask(question, choices)


def build_question(model: AudioModel, clips: Sequence[Clip], text: str) -> Prompt:
    """The prompt of one question about some clips."""
    return build_prompt(model, [Message("user", (*clips, text))])


def build_prompt(model: AudioModel, messages: Sequence[Message]) -> Prompt:
    """The prompt of a conversation, in the words of the checkpoint's own chat template.

    Raises RequestError if there is no clip, or the text holds one of the model's audio tokens.
    """
    processor = model.processor
    clips = tuple(part for m in messages for part in m.parts if isinstance(part, Clip))
    if not clips:
        raise RequestError("the conversation has no audio; send at least one clip", "audio")
    chat = [{"role": m.role, "content": [_part(part) for part in m.parts]} for m in messages]
    _refuse_control_tokens(model, messages)
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    text += model.prompt_style.before
    heard = [clip.samples[: int(model.max_clip_seconds * model.sample_rate_hz)] for clip in clips]
    inputs = _processed(model, text, heard)
    tokens = inputs["input_ids"][0]
    return Prompt(
        tokens=tokens,
        log_mels=inputs["input_features"],
        mel_frames=inputs["feature_attention_mask"].sum(-1),
        clips=clips,
        heard_seconds=tuple(len(samples) / model.sample_rate_hz for samples in heard),
        audio_mask=tokens == model.family.audio_token_id(model.network.config),
    )


def silent_mels(model: AudioModel, lengths_seconds: Sequence[float]) -> Tensor:
    """(C, M, N) float32: features of digital silence, a clip for each length."""
    zeros: list[NDArray[np.float32]] = [
        np.zeros(round(seconds * model.sample_rate_hz), np.float32) for seconds in lengths_seconds
    ]
    silence: Tensor = _processed(model, model.processor.audio_token * len(zeros), zeros)[
        "input_features"
    ]
    return silence


def _processed(model: AudioModel, text: str, waves: Sequence[NDArray[np.float32]]) -> Any:
    """Output of the checkpoint's own processor for a text and its waveforms."""
    options: dict[str, Any] = {}
    if model.family.any_length:  # else every clip is padded to a window of minutes
        samples = max(len(wave) for wave in waves) + model.sample_rate_hz
        longest = min(samples, model.processor.feature_extractor.n_samples)
        options["audio_kwargs"] = {"max_length": longest}
    return model.processor(
        text=text,
        audio=list(waves),
        sampling_rate=model.sample_rate_hz,
        return_tensors="pt",
        padding=True,
        **options,
    )


def silent_twin(model: AudioModel, prompt: Prompt) -> Prompt:
    """The same prompt about digital silence: same tokens, same positions, other features."""
    clips = tuple(clip.silent() for clip in prompt.clips)
    return replace(prompt, log_mels=silent_mels(model, prompt.heard_seconds), clips=clips)


def embed(model: AudioModel, prompt: Prompt) -> Tensor:
    """(1, T, D) in the model's dtype: token embeddings, the encoder's output at audio tokens."""
    tokens = prompt.tokens.to(model.device)
    states: Tensor = model.decoder.embed_tokens(tokens)[None]
    if not len(prompt.mel_frames):
        return states  # the processor dropped the audio: nothing is heard, and the score says so
    mels = prompt.log_mels.to(model.device, model.dtype)
    heard = torch.cat(model.family.hear(model.network, mels, prompt.mel_frames))  # (F, D)
    states[:, prompt.audio_mask.to(model.device)] = heard.to(states.device, states.dtype)
    return states


def _part(part: str | Clip) -> dict[str, str]:
    return (
        {"type": "audio", "audio": ""} if isinstance(part, Clip) else {"type": "text", "text": part}
    )


def _refuse_control_tokens(model: AudioModel, messages: Sequence[Message]) -> None:
    """Raise RequestError if a user's text spells a control token: it would be read as one."""
    added = model.processor.tokenizer.added_tokens_decoder.values()
    controls = [token.content for token in added if token.special]
    for message in messages:
        for part in message.parts:
            present = [t for t in controls if isinstance(part, str) and t in part]
            if present:
                raise RequestError(
                    f"the text holds {present[0]!r}, a control token of this model; write it"
                    " differently",
                    "question",
                )
