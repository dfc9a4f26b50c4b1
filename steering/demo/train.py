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
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from steering.demo.architecture import build_model, build_processor
from steering.demo.clip_bank import (
    ClipBank,
    make_clips,
)
from steering.demo.encoder import train_encoder
from steering.demo.lessons import (
    CLIPS,
    BatchBuilder,
    TrainingBatch,
    answered_right,
    batch_loss,
    draw_groups,
    run,
)
from steering.demo.schedule import Schedule, batches, build_optimisers, pace, set_rate

WEIGHTS = Path(__file__).parent / "weights"


# ---- the whole model


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
    optimisers = build_optimisers(model, schedule.rate)
    first = _resume(model, optimisers, folder / "joint.pt")
    draw = partial(_question_batch, bank=bank, builder=builder, schedule=schedule, seed=seed)
    steps = range(first, schedule.steps)
    right = torch.zeros(2, device=device)
    for step, drawn in batches(draw, steps, schedule.steps, "questions", workers):
        batch = drawn.to(device)
        set_rate(optimisers, schedule.rate * pace(step, schedule.steps, warm=40))
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


# ---- the whole run


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
