"""Strength intervals: the steering strengths at which an item's answer is right, found exactly.

The final norm only scales what it is given (RMSNorm: a gain for each channel, then one positive
factor for all), and so does `keep_norm`. A positive factor keeps the order of the logits, so along
a direction every logit is a straight line in the strength, and the strengths at which one token is
the likeliest of the whole vocabulary are an interval. One pass over the vocabulary gives its two
ends, at the cost of trying a single strength. Where several tokens are right, the strengths at
which one of them wins are the union of each one's interval against all that are not right.

1. `strength_intervals`: the intervals of every item, along the mean difference of some layers.
2. `winning_strengths`: the intervals of some tokens, from states and directions.
3. `gains`: the final norm as a gain for each channel.
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


@dataclass(frozen=True, slots=True, eq=False)
class StrengthIntervals:
    """Strengths at which each right token of each of I items wins, for one place of the direction.

    An answer is right in the union of its N intervals.
    """

    least: NDArray[np.float64]  # (I, N) of the raw mean direction, which is added this often
    largest: NDArray[np.float64]  # (I, N) to this often; under `least` where no strength is right
    times: NDArray[np.float64]  # (I,) length of h over the length of the raw mean direction

    def correct_at(
        self, strengths: NDArray[np.float64], intervention: Intervention
    ) -> NDArray[np.bool_]:
        """Whether the answers are right at strengths (..., I) of an intervention at this place."""
        if intervention.scale == "norm":
            times = strengths * self.times
        else:
            times = strengths * (len(intervention.layers) if intervention.pool == "sum" else 1)
        inside = (times[..., None] >= self.least) & (times[..., None] <= self.largest)
        return np.asarray(inside.any(-1))


def strength_intervals(
    model: AudioModel,
    activations: Activations,
    intervention: Intervention,
    rows: NDArray[np.int64],
) -> StrengthIntervals:
    """The intervals of some items along the mean of an intervention's layers, at its place."""
    gain = gains(model)
    raw = pooled_directions(activations, Intervention(intervention.layers), rows).to(model.device)
    final = torch.from_numpy(activations.deciding[rows]).to(model.device)
    if intervention.place == "before_norm":  # the norm's common factor changes no order: left out
        state, direction, length = final * gain, raw * gain, final.norm(dim=-1)
    else:
        with torch.inference_mode():
            state = model.decoder.norm(final.to(model.dtype)).float()
        direction, length = raw, state.norm(dim=-1)
    tokens = torch.from_numpy(activations.right_tokens[rows]).to(model.device)
    least, largest = winning_strengths(model, state, direction, tokens)
    times = length / raw.norm(dim=-1).clamp_min(1e-12)
    return StrengthIntervals(*(x.double().cpu().numpy() for x in (least, largest, times)))


@torch.inference_mode()
def winning_strengths(
    model: AudioModel, states: Tensor, directions: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """(I, N) and (I, N): least and largest strength s >= 0 at which each right token (I, N) wins.

    A token wins if its logit in W (states + s directions) is no lower than that of any token that
    is not right; W is the readout's matrix, states and directions (I, D) are its inputs. The least
    is over the largest if the token never wins, where there is none (-1), and where another right
    one leads it at every strength.
    """
    matrix = model.family.readout(model.network).weight  # (V, D)
    blocks = zip(*(x.split(_BLOCK_ITEMS) for x in (states, directions, tokens)), strict=True)
    ends = [
        _block_ends(matrix, state.float(), direction.float(), token)
        for state, direction, token in blocks
    ]
    least, largest = zip(*ends, strict=True)
    return torch.cat(least), torch.cat(largest)


def _block_ends(
    matrix: Tensor, states: Tensor, directions: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The two ends for a block of items, the vocabulary block by block."""
    own = matrix[tokens.clamp_min(0)].float()  # (I, N, D)
    level = (own @ states[..., None])[..., 0]  # (I, N) of the right tokens at strength 0
    slope = (own @ directions[..., None])[..., 0]  # (I, N) its rise by strength 1
    needed = _leads_somewhere(level, slope, tokens >= 0)  # (I, N)
    order = needed.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    order = order[:, : max(1, int(needed.sum(-1).max()))]  # (I, N') the needed ones first
    level, slope = level.gather(-1, order), slope.gather(-1, order)
    first, last = torch.zeros_like(level), torch.full_like(level, torch.inf)
    for start in range(0, len(matrix), _BLOCK_TOKENS):
        rivals = matrix[start : start + _BLOCK_TOKENS].float()  # (V', D)
        height, rise = states @ rivals.T, directions @ rivals.T  # (I, V')
        column = tokens - start
        rows, places = ((column >= 0) & (column < len(rivals)) & (tokens >= 0)).nonzero().T
        height[rows, column[rows, places]] = -torch.inf  # what is right is no rival
        for n in range(level.shape[1]):
            lead, gained = level[:, n, None] - height, slope[:, n, None] - rise
            crossing = -lead / gained
            begins = crossing.masked_fill(gained <= 0, 0.0).amax(-1)
            ends = crossing.masked_fill(gained >= 0, torch.inf).amin(-1)
            never = ((gained == 0) & (lead < 0)).any(-1)
            first[:, n] = torch.maximum(first[:, n], begins)
            last[:, n] = torch.minimum(last[:, n], ends.masked_fill(never, -1.0))
    least = torch.zeros(tokens.shape, device=level.device).scatter(-1, order, first)
    largest = torch.full_like(least, -1.0).scatter(-1, order, last)
    return least.masked_fill(~needed, 0.0), largest.masked_fill(~needed, -1.0)


def _leads_somewhere(level: Tensor, slope: Tensor, present: Tensor) -> Tensor:
    """(I, N) bool: right tokens that another right one does not lead at every strength >= 0; the
    intervals of the others lie within that one's.
    """
    places = torch.arange(level.shape[1], device=level.device)
    first = places[:, None] < places[None]  # of equals the first leads
    above = (level[:, :, None] >= level[:, None]) & (slope[:, :, None] >= slope[:, None])
    equal = (level[:, :, None] == level[:, None]) & (slope[:, :, None] == slope[:, None])
    above &= present[:, :, None] & (~equal | first)  # (I, N, N): the first token of each pair leads
    return present & ~above.any(1)


def gains(model: AudioModel) -> Tensor:
    """(D,) float32: the final norm's gain for each channel, without its common factor.

    Raises ModelError unless the readout is a norm without a shift and a matrix without a bias.
    """
    norm, readout = model.decoder.norm, model.family.readout(model.network)
    ones = torch.ones(1, model.hidden_size, device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        gain = norm(ones)[0].float()
        shifts = norm(torch.zeros_like(ones)).any() or not gain.any()
    if shifts or not isinstance(readout, torch.nn.Linear) or readout.bias is not None:
        raise ModelError(
            f"{model.name}: its readout is {type(norm).__name__} and {type(readout).__name__};"
            " calibration needs a norm without a shift (RMSNorm) and a matrix without a bias"
        )
    return gain
