"""Trains the embedded model from nothing: `python -m steering.demo.train`.

0. Synthesise the training clips once.                       build/demo/clips.npy
1. Teach the encoder to name each event, and how clear.      build/demo/encoder.pt
2. Teach the whole model to answer, and to believe the text  build/demo/joint.pt
   where a clip deserves little trust.
3. Save weights and processor.                               steering/demo/weights/

Every step draws its own batch from (seed, step), so a run that was stopped continues where it
was, and the same seed gives the same lessons.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from steering.demo.architecture import build_model, build_processor
from steering.demo.clip_bank import (
    MAX_EVENTS,
    ClipBank,
    event_tokens,
    make_clips,
    record_clips,
)
from steering.demo.lessons import (
    CLIPS,
    MAX_AUDIO_TOKENS,
    BatchBuilder,
    TrainingBatch,
    answered_right,
    audio_tokens,
    batch_loss,
    draw_groups,
    encoder_mask,
    run,
)
from steering.synthetic import speech, world

# What the encoder names of an event: its source (any of `VALUES["first"]`), and what else it has.
ENCODER_HEADS = {name: len(world.VALUES[name]) for name in ("first", "contour", "count")} | {
    "speaker": len(speech.SEXES)
}
T = TypeVar("T")
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Amount of training; the published model used the defaults."""

    clips: int = 14_000
    encoder_steps: int = 1_200
    easy_steps: int = 300  # of the encoder's, from clear clips to all
    encoder_batch: int = 64
    steps: int = 3_000
    clips_a_step: int = 32
    questions_a_clip: int = 3
    encoder_rate: float = 6e-3
    rate: float = 2.5e-3


class _Batches(Dataset[T]):
    """The batch of every step, drawn from its number alone."""

    def __init__(self, draw: Callable[[int], T]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> T:
        return self.draw(step)


def _batches(
    draw: Callable[[int], T], steps: range, total: int, name: str, workers: int
) -> Iterator[tuple[int, T]]:
    """Each step with its batch, drawn ahead of time by worker processes."""
    loader: DataLoader[T] = DataLoader(
        _Batches(draw), batch_size=None, sampler=steps, num_workers=workers
    )
    return zip(steps, tqdm(loader, name, total, initial=steps.start), strict=True)


# ---- 1. encoder ------------------------------------------------------------------------------


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
        self.words = model.get_input_embeddings()
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
        tensors = (self.log_mels, self.mel_frames, self.events, self.clarity)
        labels = {name: label.to(device) for name, label in self.labels.items()}
        return EncoderBatch(*(tensor.to(device) for tensor in tensors), labels)


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
    optimisers = _optimisers(task, schedule.encoder_rate)
    draw = partial(
        _encoder_batch, bank=bank, processor=processor, schedule=schedule, seed=seed
    )
    steps = range(schedule.encoder_steps)
    for step, drawn in _batches(draw, steps, steps.stop, "encoder", workers):
        batch = drawn.to(device)
        _set_rate(optimisers, schedule.encoder_rate * _pace(step, schedule.encoder_steps, warm=30))
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


def _optimisers(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _set_rate(optimisers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


# ---- 2. the whole model ----------------------------------------------------------------------


def _question_batch(
    step: int, bank: ClipBank, builder: BatchBuilder, schedule: Schedule, seed: int
) -> TrainingBatch:
    rng = np.random.default_rng([seed, 3, step])
    clips = CLIPS[step % len(CLIPS)]
    groups = draw_groups(bank, schedule.clips_a_step // clips, clips, rng)
    asked = schedule.questions_a_clip * min(clips, 2)
    return builder.build(bank, groups, asked, rng, _cued_share(step))


def train_model(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    bank: ClipBank,
    schedule: Schedule,
    seed: int,
    folder: Path,
    workers: int,
) -> Iterator[dict[str, float]]:
    """Stage 2, in place on `model`, resumed from `folder`: yields figures of every 50th step.

    `right` is the share of the first answer tokens of which the label is certain, over 50 steps.
    """
    device = model.device
    builder = BatchBuilder(processor)
    optimisers = _optimisers(model, schedule.rate)
    first = _resume(model, optimisers, folder / "joint.pt")
    draw = partial(_question_batch, bank=bank, builder=builder, schedule=schedule, seed=seed)
    steps = range(first, schedule.steps)
    right = torch.zeros(2, device=device)
    for step, drawn in _batches(draw, steps, schedule.steps, "questions", workers):
        batch = drawn.to(device)
        _set_rate(optimisers, schedule.rate * _pace(step, schedule.steps, warm=40))
        with device, torch.autocast(device.type, torch.bfloat16):
            logits = run(model, batch)
        loss = batch_loss(logits, batch)
        right += answered_right(logits.detach(), batch)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 49:
            yield {"step": step + 1, "loss": loss.item(), "right": (right[0] / right[1]).item()}
            right.zero_()
        if step % 200 == 199 or step + 1 == schedule.steps:
            _save(model, optimisers, step + 1, folder / "joint.pt")


def _cued_share(step: int) -> float:
    """Share of questions with a cue: none at first, so that hearing comes before believing."""
    return 0.5 * min(1.0, max(0.0, (step - 500) / 300))


def _pace(step: int, steps: int, warm: int) -> float:
    """Learning rate share: warm-up, flat for 30 % of the run, then a cosine to 2 %."""
    if step < warm:
        return (step + 1) / warm
    done = max(0.0, (step / steps - 0.3) / 0.7)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _save(
    model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], step: int, file: Path
) -> None:
    state: dict[str, Any] = {"step": step, "model": model.state_dict()}
    state["optimisers"] = [optimiser.state_dict() for optimiser in optimisers]
    _write(state, file)


def _write(state: dict[str, Any], file: Path) -> None:
    """Save a state, whole or not at all."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def _resume(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], file: Path) -> int:
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return int(state["step"])


# ---- 3. the whole run ------------------------------------------------------------------------


def train(
    folder: Path, out: Path, schedule: Schedule, seed: int, device: torch.device, workers: int
) -> None:
    """Run or resume all stages in `folder` and save weights and processor to `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(seed)
    processor = build_processor()
    model = build_model(processor.tokenizer).train().to(device)
    bank = make_clips(folder, schedule.clips, seed)

    def log(stage: str, figures: dict[str, float]) -> None:
        line = {"stage": stage, "minutes": round((time.monotonic() - started) / 60, 2), **figures}
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    encoder_file = folder / "encoder.pt"
    if not encoder_file.exists():
        for figures in train_encoder(model, processor, bank, schedule, seed, workers):
            log("encoder", figures)
        _write(model.state_dict(), encoder_file)
    model.load_state_dict(torch.load(encoder_file, map_location=device, weights_only=True))
    for figures in train_model(model, processor, bank, schedule, seed, folder, workers):
        log("questions", figures)
    model.cpu().eval().half().save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    defaults = Schedule()
    parser.add_argument("--clips", type=int, default=defaults.clips)
    parser.add_argument("--encoder-steps", type=int, default=defaults.encoder_steps)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the batches")
    given = parser.parse_args()
    schedule = Schedule(clips=given.clips, encoder_steps=given.encoder_steps, steps=given.steps)
    train(given.folder, given.out, schedule, given.seed, given.device, given.workers)


if __name__ == "__main__":
    main()
