"""What both stages of the training share: schedule, batches ahead of time, optimisers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

T = TypeVar("T")


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


def batches(
    draw: Callable[[int], T], steps: range, total: int, name: str, workers: int
) -> Iterator[tuple[int, T]]:
    """Each step with its batch, drawn ahead of time by worker processes."""
    loader: DataLoader[T] = DataLoader(
        _Batches(draw), batch_size=None, sampler=steps, num_workers=workers
    )
    return zip(steps, tqdm(loader, name, total, initial=steps.start), strict=True)


def build_optimisers(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
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


def set_rate(optimisers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


def pace(step: int, steps: int, warm: int) -> float:
    """Learning rate share: warm-up, flat for 30 % of the run, then a cosine to 2 %."""
    if step < warm:
        return (step + 1) / warm
    done = max(0.0, (step / steps - 0.3) / 0.7)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
