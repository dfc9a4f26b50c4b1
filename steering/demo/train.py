"""Trains the embedded model from nothing: `python -m steering.demo.train`, about 50 minutes.

0. Synthesise the training clips once.        build/demo/clips.npy
1. Teach the encoder to name what it hears.   build/demo/encoder.pt
2. Teach the whole model to answer, with a bias towards what the text suggests.
3. Save weights and processor.                steering/demo/weights/

Every step draws its own batch from (seed, step), so a run that was stopped continues where it
was, and the same seed gives the same lessons.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from steering.demo.architecture import build_model, build_processor
from steering.demo.lessons import (
    CLIPS,
    MAX_AUDIO_TOKENS,
    BatchBuilder,
    audio_tokens,
    batch_loss,
    draw_groups,
    encoder_mask,
    run,
)
from steering.demo.recordings import ClipBank, make_clips, record_clips
from steering.synthetic import world

ENCODER_HEADS = {name: len(values) for name, values in world.VALUES.items()}
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Amount of training; the published model used the defaults."""

    clips: int = 12_000
    encoder_steps: int = 800
    encoder_batch: int = 64
    steps: int = 2_000
    clips_a_step: int = 16
    questions_a_clip: int = 6
    encoder_rate: float = 1e-3
    rate: float = 2e-3


# ---- 1. encoder ------------------------------------------------------------------------------


class EncoderTask(nn.Module):
    """Names every attribute of a clip, and its level, from the mean of its audio tokens."""

    def __init__(self, model: Qwen2AudioForConditionalGeneration) -> None:
        super().__init__()
        width = model.model.audio_tower.config.d_model
        self.tower = model.model.audio_tower
        self.mixing = nn.Sequential(nn.Linear(2 * width, 256), nn.GELU())
        self.time = nn.Parameter(torch.randn(MAX_AUDIO_TOKENS, width) * 0.02)  # (F, E)
        self.heads = nn.ModuleDict({k: nn.Linear(256, n) for k, n in ENCODER_HEADS.items()})
        self.level = nn.Linear(256, 1)

    def forward(self, mels: Tensor, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        states = self.tower(mels, attention_mask=encoder_mask(frames)).last_hidden_state
        counts = audio_tokens(frames)
        present = (torch.arange(states.shape[1])[None] < counts[:, None])[..., None]
        mean = (states * present).sum(1) / counts[:, None]
        moment = (states * self.time * present).sum(1) / counts[:, None].sqrt()  # where in time
        mixed = self.mixing(torch.cat([mean, moment], -1))
        return {k: head(mixed) for k, head in self.heads.items()}, self.level(mixed)[:, 0]


def train_encoder(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    bank: ClipBank,
    schedule: Schedule,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Stage 1, in place on `model`: yields the losses of every 50th step."""
    task = EncoderTask(model)
    optimiser = torch.optim.AdamW(task.parameters(), lr=schedule.encoder_rate, weight_decay=0.01)
    for step in tqdm(range(schedule.encoder_steps), "encoder"):
        rng = np.random.default_rng([seed, 2, step])
        indices = rng.integers(len(bank.facts), size=schedule.encoder_batch)
        mels, frames, trusts = record_clips(bank, indices.tolist(), processor, rng)
        for group in optimiser.param_groups:
            group["lr"] = schedule.encoder_rate * _pace(step, schedule.encoder_steps, warm=50)
        with torch.autocast("cpu", torch.bfloat16):
            named, level = task(mels, frames)
        facts = [bank.facts[i] for i in indices]
        losses = {"level": F.mse_loss(level.float(), torch.tensor(trusts, dtype=torch.float32))}
        right = {}
        for name, logits in named.items():
            labels = torch.tensor([_label(fact, name) for fact in facts])
            losses[name] = F.cross_entropy(logits.float(), labels, ignore_index=-100)
            known = labels >= 0
            right[name] = (logits.argmax(-1) == labels)[known].float().mean().item()
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            yield {"step": step + 1, "level_mse": losses["level"].item(), **right}


def _label(facts: world.Facts, attribute: str) -> int:
    kind = "noise" if facts.domain == "silence" else facts.domain
    value = kind if attribute == "kind" else facts.attributes.get(attribute)
    return world.VALUES[attribute].index(value) if value else -100


# ---- 2. the whole model ----------------------------------------------------------------------


def train_model(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    bank: ClipBank,
    schedule: Schedule,
    seed: int,
    folder: Path,
) -> Iterator[dict[str, float]]:
    """Stage 2, in place on `model`, resumed from `folder`: yields figures of every 50th step."""
    builder = BatchBuilder(processor)
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=schedule.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=schedule.rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    first = _resume(model, optimisers, folder / "joint.pt")
    for step in tqdm(range(first, schedule.steps), "questions", schedule.steps, initial=first):
        rng = np.random.default_rng([seed, 3, step])
        clips = CLIPS[step % len(CLIPS)]
        groups = draw_groups(bank, schedule.clips_a_step // clips, clips, rng)
        batch = builder.build(bank, groups, schedule.questions_a_clip * min(clips, 2), rng)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * _pace(step, schedule.steps, warm=40)
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(model, batch)
        loss = batch_loss(logits, batch)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 49:
            yield {"step": step + 1, "loss": loss.item()}
        if step % 200 == 199 or step + 1 == schedule.steps:
            _save(model, optimisers, step + 1, folder / "joint.pt")


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
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return int(state["step"])


# ---- 3. the whole run ------------------------------------------------------------------------


def train(folder: Path, out: Path, schedule: Schedule, seed: int) -> None:
    """Run or resume all stages in `folder` and save weights and processor to `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(seed)
    processor = build_processor()
    model = build_model(processor.tokenizer).train()
    bank = make_clips(folder, schedule.clips, seed)

    def log(stage: str, figures: dict[str, float]) -> None:
        line = {"stage": stage, "minutes": round((time.monotonic() - started) / 60, 2), **figures}
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    encoder_file = folder / "encoder.pt"
    if not encoder_file.exists():
        for figures in train_encoder(model, processor, bank, schedule, seed):
            log("encoder", figures)
        _write(model.model.audio_tower.state_dict(), encoder_file)
    model.model.audio_tower.load_state_dict(torch.load(encoder_file, weights_only=True))
    for figures in train_model(model, processor, bank, schedule, seed, folder):
        log("questions", figures)
    model.eval().half().save_pretrained(out)
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
    given = parser.parse_args()
    schedule = Schedule(clips=given.clips, encoder_steps=given.encoder_steps, steps=given.steps)
    train(given.folder, given.out, schedule, given.seed)


if __name__ == "__main__":
    main()
