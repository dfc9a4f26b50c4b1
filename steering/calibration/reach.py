"""Reach: how far along its direction an item can be steered and be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from steering.calibration.winning import gains, winning_strengths
from steering.evidence import Evidence, pooled
from steering.model import AudioModel
from steering.readout import Intervention


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """Where along its direction the answer of each item is right, for one place."""

    least: NDArray[np.float64]  # (I,) between this
    largest: NDArray[np.float64]  # (I,) and this many times the raw mean direction
    times: NDArray[np.float64]  # (I,) that direction must be taken to be as long as h

    def right_at(self, strengths: NDArray[np.float64], how: Intervention) -> NDArray[np.bool_]:
        """Whether the answers are right at strengths (..., I) of an intervention at this place."""
        if how.scale == "norm":
            times = strengths * self.times
        else:
            times = strengths * (len(how.layers) if how.pool == "sum" else 1)
        return np.asarray((times >= self.least) & (times <= self.largest))


def reach(
    model: AudioModel, evidence: Evidence, how: Intervention, rows: NDArray[np.int64]
) -> Reach:
    """The reach of some items along the mean of an intervention's layers, at its place."""
    gain = gains(model)
    direction = pooled(evidence, Intervention(how.layers), rows).to(model.device)
    final = torch.from_numpy(evidence.deciding[rows]).to(model.device)
    if how.place == "before_norm":  # the norm's common factor changes no order: it is left out
        state, way, length = final * gain, direction * gain, final.norm(dim=-1)
    else:
        with torch.inference_mode():
            state = model.decoder.norm(final.to(model.dtype)).float()
        way, length = direction, state.norm(dim=-1)
    tokens = torch.from_numpy(evidence.first_token[rows]).to(model.device)
    least, largest = winning_strengths(model, state, way, tokens)
    times = length / direction.norm(dim=-1).clamp_min(1e-12)
    return Reach(*(x.double().cpu().numpy() for x in (least, largest, times)))
