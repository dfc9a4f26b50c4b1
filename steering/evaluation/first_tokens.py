"""Decisive answer tokens, computed from stored activations: controls that need no further pass.

An intervention acts only on the readout, so a token under any strength and any layers is one matrix
product away from the recorded states. A written answer is judged at the token that decides it, in
any spelling; of options, those whose options are one token each are judged, the rest is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.calibration.activations import Activations
from steering.calibration.effects.first_effects import compare_with_silence
from steering.evaluation.arms import Strengths
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.model.token_healing import continuations
from steering.readout import Intervention, logits, pool

Flags = NDArray[np.bool_]
_ROWS = 256  # items read out at once: their logits are kept for a moment


@dataclass(frozen=True, slots=True, eq=False)
class OneToken:
    """The items that one token judges."""

    rows: NDArray[np.int64]  # (N,) which of all items
    options: list[list[int]]  # tokens of each item's options; none where answers are written
    wanted: NDArray[np.int64]  # (N,) token of the right option; none where answers are written


def one_token(model: AudioModel, items: Sequence[Item], mode: str) -> OneToken:
    """All items or, for `choices`, those whose options are single tokens unlike the right one.

    Options that join the prompt's end are read one token earlier: their items are left out.
    """
    if mode == "generate":
        return OneToken(np.arange(len(items)), [], np.zeros(0, np.int64))
    tokenizer = model.processor.tokenizer
    rows, options, wanted = [], [], []
    for i, item in enumerate(items):
        ids = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in item.choices]
        own = ids[item.choices.index(item.answer)]
        firsts = [each[0] for each in ids]
        alone = firsts.count(own[0]) == 1 and all(len(each) == 1 for each in ids)
        if alone and not continuations(model, item.choices).removed:
            rows.append(i)
            options.append(firsts)
            wanted.append(own[0])
    return OneToken(np.array(rows, np.int64), options, np.array(wanted, np.int64))


class FirstTokens:
    """Whether decisive tokens are right, for any strengths and layers."""

    def __init__(self, model: AudioModel, activations: Activations, known: OneToken) -> None:
        self.model, self.activations, self.known = model, activations, known
        self._directions: dict[tuple[int, ...], Tensor] = {}

    def right(self, intervention: Intervention, strengths: Strengths) -> Flags:
        """(N,) whether each token is right, at strengths (N,)."""
        if not len(self.known.rows):
            return np.zeros(0, bool)
        directions = self._pooled(intervention)
        flags = []
        for start in range(0, len(self.known.rows), _ROWS):
            block = slice(start, start + _ROWS)
            flags.append(self._right(block, directions[block], intervention, strengths[block]))
        return np.concatenate(flags)

    def _pooled(self, intervention: Intervention) -> Tensor:
        """(N, D) float32 directions of the intervention's layers; the last result is kept."""
        if intervention.layers not in self._directions:
            parts = [
                pool(
                    torch.from_numpy(self.activations.differences[row][list(intervention.layers)]),
                    intervention,
                )
                for row in self.known.rows
            ]
            self._directions = {intervention.layers: torch.stack(parts)}
        return self._directions[intervention.layers]

    @torch.inference_mode()
    def _right(
        self, block: slice, directions: Tensor, intervention: Intervention, strengths: Strengths
    ) -> Flags:
        device = self.model.device
        rows = self.known.rows[block]
        states = self.activations.final if self.known.options else self.activations.deciding
        final = torch.from_numpy(states[rows]).to(device, self.model.dtype)
        row_strengths = torch.from_numpy(strengths).float().to(device)
        token_logits = logits(self.model, final, directions.to(device), row_strengths, intervention)
        if not self.known.options:
            likeliest = token_logits.argmax(1).cpu().numpy()
            return np.asarray((self.activations.right_tokens[rows] == likeliest[:, None]).any(1))
        wanted = torch.from_numpy(self.known.wanted[block]).to(device)
        best = token_logits.gather(1, wanted[:, None])[:, 0]
        others = [token_logits[i, ids].max() for i, ids in enumerate(self.known.options[block])]
        return np.asarray((best >= torch.stack(others)).cpu().numpy())


def divergence(model: AudioModel, activations: Activations) -> NDArray[np.float64]:
    """(I,) in [0, ln 2]: Jensen-Shannon divergence of the first token's distribution on the clip
    and on its silence.
    """
    return compare_with_silence(model, activations, _jensen_shannon)


def _jensen_shannon(heard: Tensor, silent: Tensor) -> Tensor:
    """(N,) divergence of log-probabilities (N, V)."""
    middle = torch.logaddexp(heard, silent) - float(np.log(2))
    halves = [(p.exp() * (p - middle)).sum(-1) for p in (heard, silent)]
    return 0.5 * (halves[0] + halves[1])
