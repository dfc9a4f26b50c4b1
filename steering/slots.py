"""Slots: keys and values of the answers being written, one preallocated row each.

Rows 0 to B - 1 are in use, without gaps, so a decode step reads a slice and copies nothing; a row
that leaves is filled from the last one. Each row writes at its own length, so rows of any age and
any prompt share a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from steering.answer import Plan, Sampling, draw, plan_logits
from steering.model import AudioModel
from steering.prefill import Heard, walk
from steering.readout import Intervention, logits

_GRAIN = 64  # tokens: keys are read up to the longest row, rounded up to this


@dataclass(slots=True, eq=False)
class Row:
    """One answer being written: how it is steered and drawn, and where its keys stand."""

    plan: Plan
    sampling: Sampling
    random: torch.Generator = field(default_factory=torch.Generator)
    token: int = -1  # the last one drawn
    step: int = 0  # answer tokens drawn so far
    place: int = -1  # its row in the slots; -1 while it has none

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.random.manual_seed(seed) if seed is not None else self.random.seed()


class Slots(Cache):
    """Keys and values of up to R rows of up to S tokens each."""

    def __init__(self, model: AudioModel, rows: int, tokens: int, how: Intervention | None) -> None:
        super().__init__(layers=[])
        self.model, self.rows, self.tokens, self.how = model, rows, tokens, how
        shape = (model.layers, 2, rows, model.kv_heads, tokens, model.head_width)
        self.store = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.directions = torch.zeros(rows, model.width, device=model.device)  # float32
        self.strengths = torch.zeros(rows, device=model.device)
        self.seated: list[Row] = []
        self._reach = 0  # tokens that the running step reads
        self._at = (self.lengths[:0], self.lengths[:0])  # rows and positions that it writes

    @staticmethod
    def bytes_of(model: AudioModel, rows: int, tokens: int) -> int:
        """Memory that so many rows of so many tokens take."""
        item = torch.empty(0, dtype=model.dtype).element_size()
        return 2 * model.layers * rows * model.kv_heads * tokens * model.head_width * item

    @property
    def free(self) -> int:
        """Rows that nobody has."""
        return self.rows - len(self.seated)

    def seat(self, row: Row, heard: Heard) -> None:
        """Give a row its place, with the keys and values of the prompt that was heard."""
        assert self.free and heard.length < self.tokens, (self.free, heard.length, self.tokens)
        place, length = len(self.seated), heard.length
        layers: list[Any] = heard.cache.layers
        for layer, kept in enumerate(layers):
            self.store[layer, 0, place, :, :length] = kept.keys[0, :, :length]
            self.store[layer, 1, place, :, :length] = kept.values[0, :, :length]
        self.lengths[place] = length
        steered = row.plan.direction is not None and not (self.how and self.how.tokens == "first")
        self.strengths[place] = row.plan.strength if steered else 0.0
        if row.plan.direction is not None:
            self.directions[place] = row.plan.direction
        row.place = place
        self.seated.append(row)

    def leave(self, row: Row) -> None:
        """Free a row's place; the last row moves into it."""
        last = self.seated.pop()
        if last is not row:
            place, length = row.place, int(self.lengths[last.place])
            self.store[:, :, place, :, :length] = self.store[:, :, last.place, :, :length]
            for each in (self.lengths, self.directions, self.strengths):
                each[place] = each[last.place]
            self.seated[place] = last
            last.place = place
        row.place = -1

    @torch.inference_mode()
    def step(self) -> None:
        """Draw the next token of every seated row, all in one pass."""
        model, rows = self.model, len(self.seated)
        if not rows:  # a question only let others go first
            return
        at = self.lengths[:rows].clone()
        self._at = (torch.arange(rows, device=at.device), at)
        self._reach = min(-(-(int(at.max()) + 1) // _GRAIN) * _GRAIN, self.tokens)
        mask = (torch.arange(self._reach, device=at.device) <= at[:, None])[:, None, None]
        tokens = torch.tensor([[row.token] for row in self.seated], device=at.device)
        states = model.decoder.embed_tokens(tokens)
        final = walk(model, states, at[:, None], mask, self)[0][:, -1]  # (B, D)
        self.lengths[:rows] += 1
        drawn = draw_rows(self._logits(final), self.seated)
        for row, token in zip(self.seated, drawn, strict=True):
            row.token, row.step = token, row.step + 1

    def _logits(self, final: Tensor) -> Tensor:
        """(B, V): bare where no row is steered, else one (B, D) add."""
        rows = len(final)
        if self.how is None or not any(row.plan.strength for row in self.seated):
            return logits(self.model, final)
        direction, strength = self.directions[:rows], self.strengths[:rows]
        return logits(self.model, final, direction, strength, self.how)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What a layer reads in the running step: (B, H, reach, d) keys and values, new ones in."""
        place, at = self._at
        keys, values = self.store[layer_idx, :, : len(place)]
        card = key_states.device  # the layer's; the store's as well, unless layers are spread
        keys[place, :, at] = key_states[:, :, 0].to(keys.device)
        values[place, :, at] = value_states[:, :, 0].to(keys.device)
        return keys[:, :, : self._reach].to(card), values[:, :, : self._reach].to(card)


def draw_rows(rows_logits: Tensor, rows: list[Row]) -> list[int]:
    """A token for each row from logits (B, V): greedy ones in one go, the others by their own."""
    tokens: list[int] = rows_logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.sampling.temperature > 0:
            tokens[i] = draw(rows_logits[i], row.sampling, row.random)
    return tokens


@torch.inference_mode()
def write_together(
    slots: Slots, heard: Heard, plans: Sequence[Plan], sampling: Sampling
) -> list[list[int]]:
    """Tokens of several answers to one prompt, one a plan, written side by side."""
    rows = [Row(plan, sampling) for plan in plans]
    written: list[list[int]] = [[] for _ in rows]
    for row in rows:
        row.token = draw_rows(plan_logits(slots.model, heard.final[None], row.plan, 0), [row])[0]
        slots.seat(row, heard)
    while slots.seated:
        for row, ids in zip(rows, written, strict=True):
            if row.place < 0:
                continue
            ids.append(row.token)
            if sampling.ends(row.token, slots.model) or len(ids) == sampling.max_tokens:
                slots.leave(row)
        if slots.seated:
            slots.step()
    return written
