"""At which strengths a token is the likeliest of the whole vocabulary, without trying any.

The final norm only scales what it is given (RMSNorm: a gain for each channel, then one positive
factor for all), and so does `keep_norm`. A positive factor changes no order among the logits, so
along a direction every logit is a straight line in the strength, and "no other token is above
this one" holds on an interval. Its two ends are found in one pass over the vocabulary: exact, and
as dear as a single strength.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.calibration.activations import Activations, pooled_directions
from steering.errors import ModelError
from steering.model.audio_model import AudioModel
from steering.readout import Intervention

_BLOCK_ITEMS = 512
_BLOCK_TOKENS = 8192  # (items, tokens) float32 of a block: 16 MB


def gains(model: AudioModel) -> Tensor:
    """(D,) float32: what the final norm multiplies each channel with, before its common factor.

    Raises ModelError for a readout that is not a norm without a shift and a matrix.
    """
    norm, readout = model.decoder.norm, model.family.readout(model.network)
    ones = torch.ones(1, model.width, device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        gain = norm(ones)[0].float()
        shifts = norm(torch.zeros_like(ones)).any() or not gain.any()
    if shifts or not isinstance(readout, torch.nn.Linear) or readout.bias is not None:
        raise ModelError(
            f"{model.name}: its readout is {type(norm).__name__} and {type(readout).__name__};"
            " calibration needs a norm without a shift (RMSNorm) and a matrix without a bias"
        )
    return gain


@torch.inference_mode()
def winning_strengths(
    model: AudioModel, states: Tensor, directions: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """(I,) and (I,): least and largest strength s at which the token wins, from 0 up.

    A token of the I wins where its logit in W (states + s directions) is no lower than any other's;
    W is the readout's matrix, states and directions (I, D) are what goes into it. The least is over
    the largest where the token never wins.
    """
    matrix = model.family.readout(model.network).weight  # (V, D)
    blocks = zip(*(x.split(_BLOCK_ITEMS) for x in (states, directions, tokens)), strict=True)
    parts = [
        _block_intervals(matrix, state.float(), direction.float(), token)
        for state, direction, token in blocks
    ]
    least, largest = zip(*parts, strict=True)
    return torch.cat(least), torch.cat(largest)


def _block_intervals(
    matrix: Tensor, states: Tensor, directions: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The two ends for a block of items, the vocabulary block by block."""
    own = matrix[tokens].float()  # (I, D)
    level, slope = (own * states).sum(-1), (own * directions).sum(-1)  # (I,) of the token itself
    least, largest = torch.zeros_like(level), torch.full_like(level, torch.inf)
    for start in range(0, len(matrix), _BLOCK_TOKENS):
        block = matrix[start : start + _BLOCK_TOKENS].float()
        ahead = level[:, None] - states @ block.T  # (I, V') lead of the token at strength 0
        gained = slope[:, None] - directions @ block.T  # (I, V') lead it wins by a strength of 1
        columns = tokens - start
        rows = ((columns >= 0) & (columns < len(block))).nonzero()[:, 0]
        ahead[rows, columns[rows]] = gained[rows, columns[rows]] = 0.0  # not its own rival
        crossing = -ahead / gained
        least = torch.maximum(least, crossing.masked_fill(gained <= 0, 0.0).amax(-1))
        largest = torch.minimum(largest, crossing.masked_fill(gained >= 0, torch.inf).amin(-1))
        never = ((gained == 0) & (ahead < 0)).any(-1)
        largest = largest.masked_fill(never, -1.0)
    return least, largest


@dataclass(frozen=True, slots=True, eq=False)
class StrengthIntervals:
    """Where along its direction the answer of each item is right, for one place."""

    least: NDArray[np.float64]  # (I,) between this
    largest: NDArray[np.float64]  # (I,) and this many times the raw mean direction
    times: NDArray[np.float64]  # (I,) that direction must be taken to be as long as h

    def correct_at(
        self, strengths: NDArray[np.float64], intervention: Intervention
    ) -> NDArray[np.bool_]:
        """Whether the answers are right at strengths (..., I) of an intervention at this place."""
        if intervention.scale == "norm":
            times = strengths * self.times
        else:
            times = strengths * (len(intervention.layers) if intervention.pool == "sum" else 1)
        return np.asarray((times >= self.least) & (times <= self.largest))


def strength_intervals(
    model: AudioModel, activations: Activations, intervention: Intervention, rows: NDArray[np.int64]
) -> StrengthIntervals:
    """The reach of some items along the mean of an intervention's layers, at its place."""
    gain = gains(model)
    direction = pooled_directions(activations, Intervention(intervention.layers), rows).to(
        model.device
    )
    final = torch.from_numpy(activations.deciding[rows]).to(model.device)
    if (
        intervention.place == "before_norm"
    ):  # the norm's common factor changes no order: it is left out
        state, added, length = final * gain, direction * gain, final.norm(dim=-1)
    else:
        with torch.inference_mode():
            state = model.decoder.norm(final.to(model.dtype)).float()
        added, length = direction, state.norm(dim=-1)
    tokens = torch.from_numpy(activations.first_token[rows]).to(model.device)
    least, largest = winning_strengths(model, state, added, tokens)
    times = length / direction.norm(dim=-1).clamp_min(1e-12)
    return StrengthIntervals(*(x.double().cpu().numpy() for x in (least, largest, times)))
