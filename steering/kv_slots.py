"""Slots: keys and values of the answers being written, one preallocated row each.

Rows 0 to B - 1 are in use, without gaps, so a decode step reads a slice and copies nothing; a row
that leaves is filled from the last one. Each row writes at its own length, so rows of any age and
any prompt share a step.

A step reads and writes preallocated memory only, and waits for the device once, for its tokens. On
CUDA it is recorded as a graph, once for each size: rows and reach are rounded up to a few sizes,
and what the rows that nobody has compute is thrown away. On a CPU the same code runs as it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from steering.generation import Sampling, SteeringPlan, sample, steered_logits
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, run_layers
from steering.readout import Intervention, logits

log = logging.getLogger("allears")

_KV_BUCKET_TOKENS = 16  # tokens: keys are read up to the longest row, rounded up to this
_GRAPH_BUCKET_TOKENS = 64  # at least, where every reach is recorded as a graph of its own
_GRAPH_BUCKETS_PER_DOUBLING = 4


@dataclass(slots=True, eq=False)
class Row:
    """One answer being written: how it is steered and drawn, and where its keys stand."""

    plan: SteeringPlan
    sampling: Sampling
    random: torch.Generator = field(default_factory=torch.Generator)
    token: int = -1  # the last one drawn
    step: int = 0  # answer tokens drawn so far
    slot: int = -1  # its row in the slots; -1 while it has none
    length: int = 0  # tokens that have keys there

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.random.manual_seed(seed) if seed is not None else self.random.seed()


class KVSlots(Cache):
    """Keys and values of up to R rows of up to S tokens each.

    `rounded` steps are of a few sizes only, so that each can be recorded: on CUDA they are.
    """

    def __init__(
        self,
        model: AudioModel,
        rows: int,
        tokens: int,
        intervention: Intervention | None,
        *,
        rounded: bool | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.model, self.rows, self.tokens, self.intervention = model, rows, tokens, intervention
        device = model.device
        on_cuda = device.type == "cuda"
        self.bucketing = on_cuda if rounded is None else rounded
        shape = (model.num_layers, 2, rows, model.num_kv_heads, tokens, model.head_dim)
        self.store = torch.zeros(shape, device=device, dtype=model.dtype)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.directions = torch.zeros(rows, model.hidden_size, device=device)  # float32
        self.strengths = torch.zeros(rows, device=device)
        self.active: list[Row] = []
        self._last = torch.zeros(rows, 1, dtype=torch.int64, device=device)  # tokens drawn last
        self._places = torch.arange(rows, device=device)
        self._seen = torch.arange(tokens, device=device)
        self._size = (0, 0)  # rows and tokens that the running step reads
        self.use_cuda_graphs = on_cuda and not model.layer_devices  # as graphs; not across cards
        self._graphs = CudaGraphs()

    @staticmethod
    def bytes_of(model: AudioModel, rows: int, tokens: int) -> int:
        """Memory that so many rows of so many tokens take."""
        item = torch.empty(0, dtype=model.dtype).element_size()
        return 2 * model.num_layers * rows * model.num_kv_heads * tokens * model.head_dim * item

    @property
    def free_slots(self) -> int:
        """Rows that nobody has."""
        return self.rows - len(self.active)

    def admit(self, row: Row, heard: PrefillResult) -> None:
        """Give a row its place, with the keys and values of the prompt that was heard."""
        assert self.free_slots and heard.length < self.tokens, (
            self.free_slots,
            heard.length,
            self.tokens,
        )
        place, length = len(self.active), heard.length
        layers: list[Any] = heard.cache.layers
        for layer, kept in enumerate(layers):
            self.store[layer, 0, place, :, :length] = kept.keys[0, :, :length]
            self.store[layer, 1, place, :, :length] = kept.values[0, :, :length]
        self.lengths[place] = length
        steered = row.plan.direction is not None and not (
            self.intervention and self.intervention.tokens == "first"
        )
        self.strengths[place] = row.plan.strength if steered else 0.0
        if row.plan.direction is not None:
            self.directions[place] = row.plan.direction
        row.slot, row.length = place, length
        self.active.append(row)

    def release(self, row: Row) -> None:
        """Free a row's place; the last row moves into it."""
        last = self.active.pop()
        free = last.slot
        if last is not row:
            place, length = row.slot, last.length
            self.store[:, :, place, :, :length] = self.store[:, :, free, :, :length]
            for each in (self.lengths, self.directions, self.strengths):
                each[place] = each[free]
            self.active[place] = last
            last.slot = place
        self.lengths[free] = 0  # in a rounded step it writes its first key, which nobody reads
        self.strengths[free] = 0.0
        row.slot = -1

    def step(self) -> None:
        """Draw the next token of every seated row, all in one pass."""
        rows = len(self.active)
        if not rows:  # a question only let others go first
            return
        size = self._bucketed(rows, 1 + max(row.length for row in self.active))
        self._last[:rows] = torch.tensor([[row.token] for row in self.active])
        drawn = sample_rows(self._logits(size)[:rows], self.active)
        for row, token in zip(self.active, drawn, strict=True):
            row.token, row.step, row.length = token, row.step + 1, row.length + 1
        self.lengths[:rows] += 1

    def warm_up(self) -> None:
        """Record steps as long as the last one for any number of rows, while nobody is seated."""
        assert not self.active, self.active
        reach = self._size[1]
        if self.use_cuda_graphs and reach:
            for rows in {self._bucketed(rows, reach)[0] for rows in range(1, self.rows + 1)}:
                self._logits((rows, reach))

    def _bucketed(self, rows: int, reach: int) -> tuple[int, int]:
        """The size of a step that has room for so many rows, and reads so many tokens of each."""
        grain = _KV_BUCKET_TOKENS
        if self.bucketing:
            rows = min(1 << (rows - 1).bit_length(), self.rows)
            grain = max(
                _GRAPH_BUCKET_TOKENS, (1 << reach.bit_length()) // (2 * _GRAPH_BUCKETS_PER_DOUBLING)
            )
        return rows, min(-(-reach // grain) * grain, self.tokens)

    @torch.inference_mode()
    def _logits(self, size: tuple[int, int]) -> Tensor:
        """(B, V) after the last tokens; from a graph where there is one."""
        if self.use_cuda_graphs:
            try:
                return self._graphs.run(size, lambda: self._decode(size))
            except GraphCaptureFailed as error:
                log.warning("decoding goes on without CUDA graphs, slower: %s", error)
                self.use_cuda_graphs = False
        return self._decode(size)

    def _decode(self, size: tuple[int, int]) -> Tensor:
        """(B, V): one token more for each row; bare where no row is steered, else a (B, D) add."""
        self._size = (rows, reach) = size
        at = self.lengths[:rows]
        mask = (self._seen[:reach] <= at[:, None])[:, None, None]
        states = self.model.decoder.embed_tokens(self._last[:rows])
        final = run_layers(self.model, states, at[:, None], mask, self)[0][:, -1]  # (B, D)
        steered = self.use_cuda_graphs or any(row.plan.strength for row in self.active)
        if self.intervention is None or not steered:
            return logits(self.model, final)
        direction, strength = self.directions[:rows], self.strengths[:rows]
        return logits(self.model, final, direction, strength, self.intervention)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What a layer reads in the running step: (B, H, reach, d) keys and values, new ones in."""
        rows, reach = self._size
        place, at = self._places[:rows], self.lengths[:rows]
        keys, values = self.store[layer_idx, :, :rows]
        card = key_states.device  # the layer's; the store's as well, unless layers are spread
        keys[place, :, at] = key_states[:, :, 0].to(keys.device)
        values[place, :, at] = value_states[:, :, 0].to(keys.device)
        return keys[:, :, :reach].to(card), values[:, :, :reach].to(card)


class GraphCaptureFailed(Exception):
    """A step could not be recorded as a graph; the reason is the message."""


class CudaGraphs:
    """CUDA graphs of decode steps, one for each size, in one pool of memory."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[Any, Tensor]] = {}  # size -> graph, its (B, V)
        self._pool: Any = None

    def run(self, size: tuple[int, int], step: Callable[[], Tensor]) -> Tensor:
        """What `step` computes, (B, V), until the next run of that size; recorded at the first."""
        if size not in self._kept:
            self._kept[size] = self._record(step)
        graph, out = self._kept[size]
        graph.replay()
        return out

    def _record(self, step: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """A graph of `step` and where its result stands; raises NotRecorded."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels choose their way before they are recorded
            step()
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise GraphCaptureFailed(str(error).partition("\n")[0]) from error
        self._pool = graph.pool()
        return graph, out


def sample_rows(rows_logits: Tensor, rows: list[Row]) -> list[int]:
    """A token for each row from logits (B, V): greedy ones in one go, the others by their own."""
    tokens: list[int] = rows_logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.sampling.temperature > 0:
            tokens[i] = sample(rows_logits[i], row.sampling, row.random)
    return tokens


@torch.inference_mode()
def generate_batch(
    slots: KVSlots, answers: Sequence[tuple[PrefillResult, SteeringPlan]], sampling: Sampling
) -> list[list[int]]:
    """Tokens of several answers, each to a prompt that was heard and by a plan of its own."""
    rows = [Row(plan, sampling) for _, plan in answers]
    written: list[list[int]] = [[] for _ in rows]
    for row, (heard, _) in zip(rows, answers, strict=True):
        row.token = sample_rows(steered_logits(slots.model, heard.final[None], row.plan, 0), [row])[
            0
        ]
        slots.admit(row, heard)
    while slots.active:
        for row, ids in zip(rows, written, strict=True):
            if row.slot < 0:
                continue
            ids.append(row.token)
            if sampling.is_end(row.token, slots.model) or len(ids) == sampling.max_tokens:
                slots.release(row)
        if slots.active:
            slots.step()
    return written
