"""Findings: how far two ways to the same result are apart, and how far they may be.

A distance is relative: the norm of the difference over the norm of what transformers has. Rounding
alone sets two right ways apart, and how far depends on the model, so it is measured on it: another
attention kernel of transformers, in a batch of two, against eager attention alone. Allowed is five
times that: at least a floor of the dtype (about 10 roundings in half precision; in float32 a card's
convolutions may round to 10 bits), and no more than a half, but where rounding alone makes more
than a quarter, twice that. What moves a result by less can only be seen in a finer dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOORS = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
MOST = 0.5


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    measured: float  # distance, or a number of tokens; infinite where the check could not be run
    allowed: float
    compared: str  # what with what, or the error

    @property
    def ok(self) -> bool:
        """Whether no more was measured than is allowed; what is not finite never is."""
        return self.measured <= self.allowed

    def __str__(self) -> str:
        return f"{self.name}: {self.measured:.3g}, allowed {self.allowed:.3g} ({self.compared})"


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest of the rows' distances: (N, ...) against (N, ...)."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {tuple(ours.shape)}, not {tuple(theirs.shape)}")
    a, b = (values.detach().cpu().double().flatten(1) for values in (ours, theirs))
    apart, length = (a - b).norm(dim=1), b.norm(dim=1)
    relative = torch.where(apart == 0, 0.0, apart / length)
    return float(relative.max()) if bool(relative.isfinite().all()) else float("inf")


def logit_distance(ours: Tensor, theirs: Tensor) -> float:
    """The same of logits (N, V), whose means no probability depends on."""
    a, b = (values.detach().cpu().double() for values in (ours, theirs))
    return distance(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True))


def tolerance(dtype: torch.dtype, rounding: float = 0.0, floor_times: float = 1.0) -> float:
    """The distance allowed where rounding alone makes `rounding`."""
    if not math.isfinite(rounding):
        return MOST
    return max(floor_times * FLOORS[dtype], min(5 * rounding, MOST), 2 * rounding)
