"""Prompts: messages and clips in the checkpoint's own template, as tokens and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.audio.clip import Clip
from steering.errors import RequestError
from steering.model.audio_model import AudioModel
from steering.model.control_tokens import control_tokens
from steering.model.passes import Passes, at_once
from steering.model.prompt_style import PLAIN, PromptStyle


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: text and clips in the order they were given."""

    role: str  # system, user, assistant
    parts: tuple[str | Clip, ...]
    fields: tuple[str, ...] = field(default=(), compare=False)  # that the parts came in, for errors


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
        """Position after the last audio token, 0 without one: what follows is text only."""
        places = self.audio_mask.nonzero()
        return int(places[-1]) + 1 if len(places) else 0


def with_choices(question: str, choices: Sequence[str], style: PromptStyle = PLAIN) -> str:
    """The question and its options, worded in a prompt style."""
    return style.ask(question, choices)


def build_question(model: AudioModel, clips: Sequence[Clip], text: str) -> Prompt:
    """The prompt of one question about some clips. Raises RequestError if there is no clip."""
    if not clips:
        raise RequestError("the question has no audio; send at least one clip", "audio")
    fields = (*("audio" for _ in clips), "question")
    return build_prompt(model, [Message("user", (*clips, text), fields)])


def build_prompt(model: AudioModel, messages: Sequence[Message]) -> Prompt:
    """The prompt of a conversation, in the words of the checkpoint's own chat template.

    Without clips it has no audio token. Raises RequestError if the texts, joined, hold one of the
    model's control tokens.
    """
    clips = tuple(part for m in messages for part in m.parts if isinstance(part, Clip))
    text = _joined(model, messages)
    _refuse_forged_tokens(model, messages, text)
    text += model.prompt_style.before
    heard = [clip.samples[: int(model.max_clip_seconds * model.sample_rate_hz)] for clip in clips]
    inputs = _processed(model, text, heard) if clips else _without_audio(model, text)
    tokens = inputs["input_ids"][0]
    return Prompt(
        tokens=tokens,
        log_mels=inputs["input_features"],
        mel_frames=inputs["feature_attention_mask"].sum(-1),
        clips=clips,
        heard_seconds=tuple(len(samples) / model.sample_rate_hz for samples in heard),
        audio_mask=tokens == model.audio_token_id,
    )


def silent_mels(model: AudioModel, lengths_seconds: Sequence[float]) -> Tensor:
    """(C, M, N) float32: features of digital silence, a clip for each length."""
    zeros: list[NDArray[np.float32]] = [
        np.zeros(round(seconds * model.sample_rate_hz), np.float32) for seconds in lengths_seconds
    ]
    return log_mels(model, zeros)


def log_mels(model: AudioModel, waves: Sequence[NDArray[np.float32]]) -> Tensor:
    """(C, M, N) float32: features of some waveforms at the model's rate."""
    inputs = _processed(model, model.processor.audio_token * len(waves), waves)
    features: Tensor = inputs["input_features"]
    return features


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


def _without_audio(model: AudioModel, text: str) -> Any:
    """The processor's output for a text alone: features of no clip."""
    tokens = model.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    bins = int(model.processor.feature_extractor.feature_size)
    return {
        "input_ids": tokens,
        "input_features": torch.zeros(0, bins, 0),
        "feature_attention_mask": torch.zeros(0, 0, dtype=torch.int64),
    }


def silent_twin(model: AudioModel, prompt: Prompt) -> Prompt:
    """The same prompt about digital silence: same tokens, same positions, other features."""
    clips = tuple(clip.silent() for clip in prompt.clips)
    return replace(prompt, log_mels=silent_mels(model, prompt.heard_seconds), clips=clips)


def embed(model: AudioModel, prompt: Prompt) -> Tensor:
    """(1, T, D) in the model's dtype: token embeddings, the encoder's output at audio tokens."""
    return at_once(embed_in_passes(model, prompt, None))


def embed_in_passes(model: AudioModel, prompt: Prompt, limit: int | None) -> Passes[Tensor]:
    """The same, the encoder's passes clip by clip."""
    tokens = prompt.tokens.to(model.device)
    states: Tensor = model.decoder.embed_tokens(tokens)[None]
    if not len(prompt.mel_frames):
        return states  # the processor dropped the audio: nothing is heard, and the score says so
    mels = prompt.log_mels.to(model.device, model.dtype)
    clips: list[Tensor] = []
    for mel, frames in zip(mels.split(1), prompt.mel_frames.split(1), strict=True):
        clips.append((yield from encode_in_passes(model, mel, frames, limit)))
    heard = torch.cat(clips)  # (F, D)
    states[:, prompt.audio_mask.to(model.device)] = heard.to(states.device, states.dtype)
    return states


def encode_in_passes(
    model: AudioModel, mel: Tensor, frames: Tensor, limit: int | None
) -> Passes[Tensor]:
    """(F, D) audio embeddings of one clip, from log-mels (1, M, N) and its frames (1,).

    With a limit by the encoder's layers, where they are ours.
    """
    in_passes = model.family.hear_in_passes
    if limit is not None and in_passes is not None:
        (audio,) = yield from in_passes(model.network, mel, frames)
    else:
        yield model.audio_tokens(int(frames))
        (audio,) = model.family.hear(model.network, mel, frames)
    return audio


def _part(part: str | Clip) -> dict[str, str]:
    return (
        {"type": "audio", "audio": ""} if isinstance(part, Clip) else {"type": "text", "text": part}
    )


def _joined(model: AudioModel, messages: Sequence[Message]) -> str:
    """The conversation as the checkpoint's template joins it, an audio token for each clip."""
    chat = [{"role": m.role, "content": [_part(part) for part in m.parts]} for m in messages]
    text: str = model.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    return text


def _refuse_forged_tokens(model: AudioModel, messages: Sequence[Message], text: str) -> None:
    """Raise RequestError if the users' texts add a control token to the joined `text`.

    The same conversation with other words shows which ones are the template's own.
    """
    neutral = [replace(m, parts=tuple(_neutral(part) for part in m.parts)) for m in messages]
    token = control_tokens(model.processor).added(text, _joined(model, neutral))
    if token is None:
        return
    texts = [
        (field, part)
        for m in messages
        for field, part in zip(m.fields or [""] * len(m.parts), m.parts, strict=True)
        if isinstance(part, str)
    ]
    for name, part in texts:
        refuse_control_tokens(model, {name or "messages": part})
    raise _forged(token, "the texts, joined, hold", texts[-1][0].partition(".")[0] or "messages")


def refuse_control_tokens(model: AudioModel, texts: Mapping[str, str]) -> None:
    """Raise RequestError, which names the field, if one of the texts alone has a control token."""
    for name, text in texts.items():
        token = control_tokens(model.processor).added(text, "")
        if token is not None:
            raise _forged(token, "the text holds", name)


def _forged(token: str, holds: str, field: str) -> RequestError:
    return RequestError(
        f"{holds} {token!r}, a control token of this model; write it differently", field
    )


def _neutral(part: str | Clip) -> str | Clip:
    """A text that can be no part of a control token, in the place of another; empty stays empty."""
    return "x" if isinstance(part, str) and part.strip() else part
