"""First stage of the training: the encoder learns what sounds, where, and how clearly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from steering.demo.clip_bank import MAX_EVENTS, ClipBank, event_tokens, record_clips
from steering.demo.lessons import MAX_AUDIO_TOKENS, audio_tokens, encoder_mask
from steering.demo.schedule import Schedule, batches, build_optimisers, pace, set_rate
from steering.synthetic import speech, world

# What the encoder names of an event: its source (any of `VALUES["first"]`), and what else it has.
ENCODER_HEADS = {name: len(world.VALUES[name]) for name in ("first", "contour", "count")} | {
    "speaker": len(speech.SEXES)
}


class EncoderTask(nn.Module):
    """Names the attributes of every event from the audio tokens in which it sounds.

    It also tells in which tokens anything sounds, and how clear the recording is. The source that
    sounds in a token is named in the decoder's own words, those of the options and of the answer:
    so the decoder understands the audio tokens from the start.
    """

    def __init__(
        self, model: Qwen2AudioForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        width = model.model.audio_tower.config.d_model
        self.tower = model.model.audio_tower
        self.mixing = nn.Sequential(nn.Linear(2 * width, 256), nn.GELU())
        self.time = nn.Parameter(torch.randn(MAX_AUDIO_TOKENS, width) * 0.02)  # (F, E)
        self.heads = nn.ModuleDict({k: nn.Linear(256, n) for k, n in ENCODER_HEADS.items()})
        self.projector = model.model.multi_modal_projector
        self.words: Any = model.get_input_embeddings()
        self.readout = model.lm_head
        sources = world.VALUES["first"]
        self.option_ids = [tokenizer(f" {x}")["input_ids"][0] for x in sources]
        self.answer_ids = [tokenizer(x)["input_ids"][0] for x in sources]
        self.sounding = nn.Linear(width, 1)
        self.clarity = nn.Linear(width, 1)

    def forward(
        self, mels: Tensor, frames: Tensor, events: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """What is named of each event (B, E, F) as a whole, (B, E, N), and of each token.

        Of a token: the source that sounds there, as an option and as an answer (B, F, 2, N), and
        whether any does (B, F). Of the clip: its clarity (B,).
        """
        states = self.tower(mels, attention_mask=encoder_mask(frames)).last_hidden_state
        counts = events.sum(-1, keepdim=True).clamp(min=1)
        share = events.to(states.dtype)
        starts = events.int().argmax(-1, keepdim=True)  # (B, E, 1)
        since = (torch.arange(events.shape[-1]) - starts).clamp(min=0)  # (B, E, F)
        mean = share @ states / counts
        moment = (self.time[since] * share[..., None] * states[:, None]).sum(2) / counts.sqrt()
        mixed = self.mixing(torch.cat([mean, moment], -1))
        present = torch.arange(states.shape[1])[None] < audio_tokens(frames)[:, None]
        whole = (states * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        names = {k: head(mixed) for k, head in self.heads.items()}
        spoken = self.projector(states)  # (B, F, D)
        table = torch.cat(
            [self.words.weight[self.option_ids], self.readout.weight[self.answer_ids]]
        )
        source = (spoken @ table.T).unflatten(-1, (2, -1))  # (B, F, 2, N)
        sounding, clarity = self.sounding(states)[..., 0], self.clarity(whole)[:, 0]
        return names, source, sounding, clarity


@dataclass(frozen=True, slots=True)
class EncoderBatch:
    """B clips as they are heard, and what the encoder is to say of their E events."""

    log_mels: Tensor  # (B, 64, 300) float32
    mel_frames: Tensor  # (B,) int64, before the padding
    events: Tensor  # (B, E, F) bool, the audio tokens in which each sounds
    clarity: Tensor  # (B,) float32
    labels: dict[str, Tensor]  # (B, E) int64 of each head, -100 where an event has none

    def to(self, device: torch.device) -> "EncoderBatch":
        """The same batch on a device."""
        return EncoderBatch(
            self.log_mels.to(device),
            self.mel_frames.to(device),
            self.events.to(device),
            self.clarity.to(device),
            {name: label.to(device) for name, label in self.labels.items()},
        )


def _encoder_batch(
    step: int, bank: ClipBank, processor: Qwen2AudioProcessor, schedule: Schedule, seed: int
) -> EncoderBatch:
    rng = np.random.default_rng([seed, 2, step])
    indices = rng.integers(len(bank.facts), size=schedule.encoder_batch).tolist()
    ease = max(0.0, 1 - step / schedule.easy_steps)
    recorded = record_clips(bank, indices, processor, rng, ease)
    return EncoderBatch(
        recorded.log_mels,
        recorded.mel_frames,
        event_tokens(bank, indices),
        torch.from_numpy(recorded.clarity).float(),
        _event_labels([bank.facts[i] for i in indices]),
    )


def train_encoder(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    bank: ClipBank,
    schedule: Schedule,
    seed: int,
    workers: int,
) -> Iterator[dict[str, float]]:
    """Stage 1, in place on `model`: yields the losses of every 50th step."""
    device = model.device
    task = EncoderTask(model, processor.tokenizer).to(device)
    optimisers = build_optimisers(task, schedule.encoder_rate)
    draw = partial(_encoder_batch, bank=bank, processor=processor, schedule=schedule, seed=seed)
    steps = range(schedule.encoder_steps)
    for step, drawn in batches(draw, steps, steps.stop, "encoder", workers):
        batch = drawn.to(device)
        set_rate(optimisers, schedule.encoder_rate * pace(step, schedule.encoder_steps, warm=30))
        with device, torch.autocast(device.type, torch.bfloat16):
            names, source, sounding, clarity = task(batch.log_mels, batch.mel_frames, batch.events)
        losses = _encoder_losses(batch, names, source, sounding, clarity)
        for optimiser in optimisers:
            optimiser.zero_grad()
        torch.stack(list(losses.values())).nansum().backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 49:
            yield {
                "step": step + 1,
                "clarity_mse": losses["clarity"].item(),
                "sounding": losses["sounding"].item(),
                "loss": losses["first"].item(),
                **{name: _share_right(names[name], batch.labels[name]) for name in names},
            }


def _encoder_losses(
    batch: EncoderBatch,
    names: dict[str, Tensor],
    source: Tensor,
    sounding: Tensor,
    clarity: Tensor,
) -> dict[str, Tensor]:
    positions = torch.arange(batch.events.shape[-1], device=sounding.device)
    heard = positions[None] < audio_tokens(batch.mel_frames)[:, None]
    losses = {
        "clarity": F.mse_loss(clarity.float(), batch.clarity),
        "sounding": F.binary_cross_entropy_with_logits(
            sounding.float()[heard], batch.events.any(1).float()[heard]
        ),
        "source": F.cross_entropy(
            source.float().flatten(0, 2),
            _token_labels(batch.events, batch.labels["first"]).repeat_interleave(2, 1).flatten(),
            ignore_index=-100,
        ),
    }
    for name, logits in names.items():
        losses[name] = F.cross_entropy(
            logits.float().flatten(0, 1), batch.labels[name].flatten(), ignore_index=-100
        )
    return losses


def _share_right(logits: Tensor, labels: Tensor) -> float:
    known = labels >= 0
    return (logits.argmax(-1) == labels)[known].float().mean().item()


def _event_labels(facts: Sequence[world.Facts]) -> dict[str, Tensor]:
    """(B, E) int64 for each head: the value of each event, -100 where it has none."""
    labels = {name: torch.full((len(facts), MAX_EVENTS), -100) for name in ENCODER_HEADS}
    for row, known in enumerate(facts):
        for attribute in known.audible:
            event = int(attribute == "last")
            name = "first" if attribute in (*world.SOURCES, *world.ORDER) else attribute
            value = known.attributes[attribute]
            labels[name][row, event] = world.VALUES[name].index(value)
        if known.speaker:
            labels["speaker"][row, 0] = speech.SEXES.index(known.speaker)
    return labels


def _token_labels(events: Tensor, sources: Tensor) -> Tensor:
    """(B, F) int64: the source (B, E) that sounds in each token, -100 where none does."""
    labels = sources.new_full((len(events), events.shape[-1]), -100)
    for event in range(MAX_EVENTS):
        labels = torch.where(events[:, event], sources[:, event, None], labels)
    return labels
