"""Slots: keys and values of the answers being written, one preallocated row each.

Slots 0 to B - 1 are in use, without gaps, so a decode step reads a slice and copies nothing; a
released slot is filled from the last one. Each row writes at its own length, so rows of any age and
any prompt share a step. Each new token gets its listening score: the taps stay on.

A step reads and writes preallocated memory only, and waits for the device once, for its tokens. On
CUDA it is captured as a graph, once for each size: rows and KV length are rounded up to a few
sizes, and what free slots compute is thrown away. On a CPU the same code runs as it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from steering.attention.taps import Head, ScoredHeads, ScoreTaps
from steering.generation import (
    Sampling,
    SteeringPlan,
    penalised,
    penalised_after,
    sample,
    seen,
    steered_logits,
)
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, run_layers
from steering.readout import Intervention, logits

log = logging.getLogger("allears")

_KV_BUCKET_TOKENS = 16  # keys are read up to the longest row, rounded up to this
_GRAPH_BUCKET_TOKENS = 64  # at least, where every KV length is captured as a graph of its own
_GRAPH_BUCKETS_PER_DOUBLING = 4
Size = tuple[int, int]  # of a step: rows, and tokens read of each


@dataclass(slots=True, eq=False)
class Row:
    """One answer being written: how it is steered and sampled, and where its keys stand."""

    plan: SteeringPlan
    sampling: Sampling
    random: torch.Generator = field(default_factory=torch.Generator)
    token: int = -1  # the last one sampled
    score: float | None = None  # listening score of that token; None if its prompt was not tapped
    step: int = 0  # answer tokens sampled in slots so far
    slot: int = -1  # -1 while it has none
    length: int = 0  # tokens that have keys there

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.random.manual_seed(seed) if seed is not None else self.random.seed()


class KVSlots(Cache):
    """Keys and values of up to R rows of up to S tokens each.

    `rounded` steps are of a few sizes only, so that each can be captured: on CUDA they are.
    `heads` are those that the rows' prompts were tapped at, and make the score of every new token.
    """

    def __init__(
        self,
        model: AudioModel,
        rows: int,
        tokens: int,
        intervention: Intervention | None,
        heads: Sequence[Head] = (),
        *,
        rounded: bool | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.model, self.rows, self.tokens, self.intervention = model, rows, tokens, intervention
        device = model.device
        on_cuda = device.type == "cuda"
        self.bucketing = on_cuda if rounded is None else rounded
        shape = (model.num_layers, 2, rows, model.num_kv_heads, tokens, model.head_dim)
        self.store = torch.zeros(shape, device=device, dtype=model.dtype)  # (L, 2, R, H, S, d)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)  # (R,)
        self.directions = torch.zeros(rows, model.hidden_size, device=device)  # (R, D) float32
        self.strengths = torch.zeros(rows, device=device)  # (R,) float32
        self.penalties = torch.ones(rows, device=device)  # (R,) float32, on repetition
        vocabulary = int(model.text_config.vocab_size)
        self.seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)  # (R, V)
        width, dtype = model.hidden_size, model.dtype
        self.finals = torch.zeros(rows, width, device=device, dtype=dtype)  # (R, D) newest, bare
        self.heads = tuple(heads)
        queries_a_key = model.num_heads // model.num_kv_heads
        self.scored = ScoredHeads.of(heads, queries_a_key, device) if heads else None
        self.why_not_scored = ""  # the fault for which tokens get no score
        self.audio = torch.zeros(rows, tokens, device=device)  # (R, S) float32, 1 at audio tokens
        self.scores = torch.zeros(rows, device=device)  # (R,) float32, of the newest tokens
        self.active: list[Row] = []  # the row in each slot in use
        self._tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)  # (R, 1) newest
        self._slot_indices = torch.arange(rows, device=device)  # (R,)
        self._positions = torch.arange(tokens, device=device)  # (S,)
        self._size = (0, 0)  # rows and tokens that the running step reads
        self.use_cuda_graphs = on_cuda and not model.layer_devices  # not across cards
        self.why_not_recorded = ""  # the fault for which recorded steps were switched off
        self._graphs = CudaGraphs()

    @staticmethod
    def bytes_of(model: AudioModel, rows: int, tokens: int) -> int:
        """Memory that so many rows of so many tokens take."""
        return rows * tokens * model.token_bytes(model.num_layers)

    @property
    def free_slots(self) -> int:
        """Number of slots without a row."""
        return self.rows - len(self.active)

    def admit(self, row: Row, prefilled: PrefillResult) -> None:
        """Give a row its slot, with the keys and values of its prompt."""
        slot, length = len(self.active), prefilled.length
        assert self.free_slots and length < self.tokens, (self.free_slots, length, self.tokens)
        layers: list[Any] = prefilled.cache.layers
        for layer, cached in enumerate(layers):
            self.store[layer, 0, slot, :, :length] = cached.keys[0, :, :length]
            self.store[layer, 1, slot, :, :length] = cached.values[0, :, :length]
        self.active.append(row)
        self._begin(row, slot, prefilled)

    def hand_over(self, row: Row, other: Row, prefilled: PrefillResult) -> None:
        """Give a row's slot to another answer to the same prompt, whose keys and values stay."""
        slot, row.slot = row.slot, -1
        self.active[slot] = other
        self._begin(other, slot, prefilled)

    def _begin(self, row: Row, slot: int, prefilled: PrefillResult) -> None:
        """Let a row begin in a slot that holds its prompt."""
        self.lengths[slot] = prefilled.length
        if self.scored is None:
            row.score = None
        else:
            audio = (prefilled.tokens == self.model.audio_token_id).to(self.audio)  # (T,)
            self.audio[slot, : len(audio)], self.audio[slot, len(audio) :] = audio, 0.0
        steered = row.plan.direction is not None and not (
            self.intervention and self.intervention.tokens == "first"
        )
        self.strengths[slot] = row.plan.strength if steered else 0.0
        if row.plan.direction is not None:
            self.directions[slot] = row.plan.direction
        row.slot, row.length = slot, prefilled.length
        row.sampling = row.sampling.of(self.model)
        self.penalties[slot] = row.sampling.penalty
        if row.sampling.penalty != 1.0:
            marks = seen(prefilled.tokens, self.seen.shape[-1])
            self.seen[slot] = marks.to(self.seen.device)

    def release(self, row: Row) -> None:
        """Free a row's slot; the last row moves into it."""
        last = self.active.pop()
        freed = last.slot
        if last is not row:
            slot, length = row.slot, last.length
            self.store[:, :, slot, :, :length] = self.store[:, :, freed, :, :length]
            kept = (self.lengths, self.directions, self.strengths, self.penalties, self.seen)
            for values in (*kept, self.audio, self.finals):
                values[slot] = values[freed]
            self.active[slot] = last
            last.slot = slot
        self.lengths[freed] = 0  # in a rounded step it writes its first key, which nobody reads
        self.strengths[freed] = 0.0
        row.slot = -1

    def step(self) -> Tensor:
        """Sample the next token of every row, all in one pass.

        Returns their logits (B, V) before any penalty, valid until the next step.
        """
        rows = len(self.active)
        size = self._bucketed(rows, 1 + max(row.length for row in self.active))
        self._tokens[:rows] = torch.tensor([[row.token] for row in self.active])  # (B, 1)
        rows_logits = self._logits(size)[:rows]
        scored = [row for row in self.active if row.score is not None]
        scores = self.scores[: rows if scored else 0].to("cpu", non_blocking=True)  # (B,)
        sampled = sample_rows(self._penalised(rows_logits), self.active)  # waits for both
        for row, token in zip(self.active, sampled, strict=True):
            row.token, row.step, row.length = token, row.step + 1, row.length + 1
        for row in scored:
            row.score = float(scores[row.slot])
        self.lengths[:rows] += 1
        return rows_logits

    def _penalised(self, rows_logits: Tensor) -> Tensor:
        """Logits (B, V) by the rows' penalties, in one go for all, where any row has one."""
        if all(row.sampling.penalty == 1.0 for row in self.active):
            return rows_logits
        rows = len(rows_logits)
        self.seen[self._slot_indices[:rows], self._tokens[:rows, 0]] = True
        return penalised(rows_logits, self.seen[:rows], self.penalties[:rows])

    def warm_up(self) -> None:
        """Capture steps as long as the last one for any number of rows, while no slot is in use."""
        assert not self.active, self.active
        kv_length = self._size[1]
        if self.use_cuda_graphs and kv_length:
            for rows in {self._bucketed(rows, kv_length)[0] for rows in range(1, self.rows + 1)}:
                self._logits((rows, kv_length))

    def _bucketed(self, rows: int, kv_length: int) -> Size:
        """The size of a step that has room for so many rows, and reads so many tokens of each."""
        bucket = _KV_BUCKET_TOKENS
        if self.bucketing:
            rows = min(1 << (rows - 1).bit_length(), self.rows)
            bucket = _graph_bucket(kv_length)
        return rows, min(-(-kv_length // bucket) * bucket, self.tokens)

    @torch.inference_mode()
    def _logits(self, size: Size) -> Tensor:
        """(B, V) after the newest tokens; from a graph where there is one."""
        if self.use_cuda_graphs:
            try:
                return self._graphs.run(size, lambda: self._decode(size))
            except GraphCaptureFailed as error:
                self.record_no_steps(str(error))
        return self._decode(size)

    def record_no_steps(self, reason: str) -> None:
        """Go on with steps of exact sizes that are not recorded: slower, and right."""
        log.warning("decoding goes on without recorded steps, slower: %s", reason)
        self.use_cuda_graphs = self.bucketing = False
        self._graphs = CudaGraphs()  # frees their memory
        self.why_not_recorded = reason

    def score_nothing(self, reason: str) -> None:
        """Go on with tokens that have no listening score."""
        log.warning("tokens are written without listening scores: %s", reason)
        self.scored, self.why_not_scored = None, reason
        self._graphs = CudaGraphs()  # those that score are not replayed

    def _decode(self, size: Size) -> Tensor:
        """(B, V): one token more for each row; bare where no row is steered, else a (B, D) add."""
        self._size = (rows, kv_length) = size
        positions = self.lengths[:rows]  # (B,)
        mask = (self._positions[:kv_length] <= positions[:, None])[:, None, None]  # (B, 1, 1, S)
        states = self.model.decoder.embed_tokens(self._tokens[:rows])
        taps = self._taps(rows, kv_length)
        final, _ = run_layers(self.model, states, positions[:, None], mask, self, taps=taps)
        final = final[:, -1]  # (B, D)
        self.finals[:rows] = final
        if taps is not None:
            self.scores[:rows] = taps.scores()
        steered = self.use_cuda_graphs or any(row.plan.strength for row in self.active)
        if self.intervention is None or not steered:
            return logits(self.model, final)
        direction, strength = self.directions[:rows], self.strengths[:rows]
        return logits(self.model, final, direction, strength, self.intervention)

    def _taps(self, rows: int, kv_length: int) -> ScoreTaps | None:
        """Taps for the rows' scores; none where no row of a step that is not recorded has one."""
        heard = self.use_cuda_graphs or any(row.score is not None for row in self.active)
        if self.scored is None or not heard:
            return None
        return ScoreTaps(self.scored, self.audio[:rows, :kv_length])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """(B, H, KV length, d) keys and values for a layer of the running step, new ones in."""
        rows, kv_length = self._size
        slots, positions = self._slot_indices[:rows], self.lengths[:rows]
        keys, values = self.store[layer_idx, :, :rows]
        card = key_states.device  # the layer's; the store's as well, unless layers are spread
        keys[slots, :, positions] = key_states[:, :, 0].to(keys.device)
        values[slots, :, positions] = value_states[:, :, 0].to(keys.device)
        return keys[:, :, :kv_length].to(card), values[:, :, :kv_length].to(card)


def _graph_bucket(kv_length: int) -> int:
    """What the length of a captured step is rounded up to a multiple of."""
    doubled = 1 << kv_length.bit_length()
    return max(_GRAPH_BUCKET_TOKENS, doubled // (2 * _GRAPH_BUCKETS_PER_DOUBLING))


def captured_rows(rows: int, tokens: int) -> int:
    """Rows of all steps that may be captured, together: each keeps logits of its own."""
    lengths, length = 0, 1
    while length <= tokens:
        bucket = _graph_bucket(length)
        length = -(-length // bucket) * bucket + 1
        lengths += 1
    return lengths * sum({min(1 << power, rows) for power in range(rows.bit_length() + 1)})


class GraphCaptureFailed(Exception):
    """A step could not be captured as a graph; the reason is the message."""


class CudaGraphs:
    """CUDA graphs of decode steps, one for each size, in one pool of memory."""

    def __init__(self) -> None:
        self._graphs: dict[Size, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # and its logits (B, V)
        self._pool: Any = None  # a handle of torch

    def run(self, size: Size, step: Callable[[], Tensor]) -> Tensor:
        """Logits (B, V) of `step`, valid until the next run of that size; captured at the first."""
        if size not in self._graphs:
            self._graphs[size] = self._capture(step)
        graph, out = self._graphs[size]
        graph.replay()
        return out

    def _capture(self, step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph of `step` and its logits (B, V); raises GraphCaptureFailed."""
        warm_up_stream = torch.cuda.Stream()
        warm_up_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up_stream):  # kernels are chosen before they are captured
            step()
            step()
        torch.cuda.current_stream().wait_stream(warm_up_stream)
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


def sample_rows(rows_logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """A token for each row from logits (B, V)."""
    return sample(rows_logits, [row.sampling for row in rows], [row.random for row in rows])


def sample_first(model: AudioModel, prefilled: PrefillResult, row: Row) -> None:
    """Give a row its first token and that one's score, from its prompt's last state."""
    row.score = prefilled.score
    row.sampling = row.sampling.of(model)
    first = steered_logits(model, prefilled.final[None], row.plan, 0)  # (1, V)
    (row.token,) = sample_rows(penalised_after(first, prefilled.tokens, row.sampling), [row])


@torch.inference_mode()
def generate_batch(
    slots: KVSlots, answers: Sequence[tuple[PrefillResult, SteeringPlan]], sampling: Sampling
) -> list[list[int]]:
    """Token ids of several answers, each to a prefilled prompt and by a plan of its own."""
    rows = [Row(plan, sampling) for _, plan in answers]
    token_ids: list[list[int]] = [[] for _ in rows]
    for row, (prefilled, _) in zip(rows, answers, strict=True):
        sample_first(slots.model, prefilled, row)
        slots.admit(row, prefilled)
    while slots.active:
        for row, ids in zip(rows, token_ids, strict=True):
            if row.slot < 0:
                continue
            ids.append(row.token)
            if sampling.is_end(row.token, slots.model) or len(ids) == sampling.max_tokens:
                slots.release(row)
        if slots.active:
            slots.step()
    return token_ids
