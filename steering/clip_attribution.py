"""Several clips: how much of the listening each got, and which of them decided the answer.

A clip's influence is what the answer loses when this clip alone is made silent: the answer's
log-probability about all clips, minus that about the same prompt with this clip silent. The
decisive clip is the one of the largest influence. Attention alone does not say it: on the embedded
model the most attended of three clips is often not the one that the question is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from steering.attention.taps import Head
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes
from steering.prefill import PrefillResult, prefill_in_passes
from steering.prompt import Prompt, log_mels, silent_mels
from steering.silence import SilenceContrast


@dataclass(frozen=True, slots=True, eq=False)
class ClipAttribution:
    """One clip's part of the listening."""

    score: float  # mean attention of the specialist heads on this clip; they sum to the whole score
    timeline: NDArray[np.float32]  # (F of the clip,)
    influence: float | None = None  # nats a token that the answer loses without it
    rank: int | None = None  # 1 is the decisive clip


def clip_scores(
    model: AudioModel, prompt: Prompt, timeline: NDArray[np.float32]
) -> tuple[ClipAttribution, ...]:
    """Each clip's part of a timeline (F,) of all audio tokens."""
    counts = [model.audio_tokens(int(frames)) for frames in prompt.mel_frames]
    ends = np.cumsum([0, *counts])
    parts = [timeline[start:end] for start, end in pairwise(ends)]
    return tuple(ClipAttribution(float(part.sum()), part) for part in parts)


def without_clip(model: AudioModel, prompt: Prompt, index: int) -> Prompt:
    """The same prompt with one clip made silent: same tokens, same positions."""
    mels = prompt.log_mels.clone()
    mels[index] = silent_mels(model, prompt.heard_seconds)[index]
    clips = tuple(c.silent() if i == index else c for i, c in enumerate(prompt.clips))
    return replace(prompt, log_mels=mels, clips=clips)


def contrast_clip(
    model: AudioModel,
    prompt: Prompt,
    prefilled: PrefillResult,
    index: int,
    limit: int | None,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
) -> Passes[SilenceContrast]:
    """One clip minus its silence, the other clips sounding. The whole prompt is run again."""
    other = without_clip(model, prompt, index)
    twin = yield from prefill_in_passes(model, other, limit, heads=heads, layers=layers)
    differences = prefilled.states - twin.states
    return SilenceContrast(differences, twin.attention, from_cache=False, silent=twin)


@torch.inference_mode()
def with_influence(
    model: AudioModel,
    prompt: Prompt,
    prefilled: PrefillResult,
    clips: Sequence[ClipAttribution],
    likelihood: Callable[[PrefillResult], Passes[float]],
    limit: int | None,
) -> Passes[tuple[ClipAttribution, ...]]:
    """The clips with influence and rank; `likelihood` is the answer's log-probability of a pass."""
    with_all = yield from likelihood(prefilled)
    losses: list[float] = []
    for i in range(len(clips)):
        without = yield from prefill_in_passes(model, without_clip(model, prompt, i), limit)
        losses.append(with_all - (yield from likelihood(without)))
    order = np.argsort(-np.array(losses), kind="stable").tolist()
    return tuple(
        replace(clip, influence=loss, rank=order.index(i) + 1)
        for i, (clip, loss) in enumerate(zip(clips, losses, strict=True))
    )


# ---- stretches of a clip


def equal_stretches(prompt: Prompt, index: int, count: int) -> list[tuple[float, float]]:
    """Start and end, in seconds, of so many equal stretches of a clip as far as it is heard."""
    edges = np.linspace(0.0, prompt.heard_seconds[index], count + 1).tolist()
    return list(pairwise(edges))


def without_stretches(
    model: AudioModel, prompt: Prompt, index: int, stretches: Sequence[tuple[float, float]]
) -> list[Prompt]:
    """The same prompt once for each stretch, zeros in its place in the waveform."""
    clip = prompt.clips[index]
    waves = []
    for start, end in stretches:
        heard = clip.samples[: round(prompt.heard_seconds[index] * clip.sample_rate_hz)].copy()
        heard[round(start * clip.sample_rate_hz) : round(end * clip.sample_rate_hz)] = 0.0
        waves.append(heard)
    prompts = []
    for mels in log_mels(model, waves):
        replaced = prompt.log_mels.clone()
        replaced[index] = mels
        prompts.append(replace(prompt, log_mels=replaced))
    return prompts
