"""Activations of a model on a data set: every head and layer, on the clip and on its silence.

Each item costs one prefill of its clip and one of silence as long; the twin that is cut from a kept
silence costs little more. Since an intervention acts only
on the readout, every setting of it can be tried on these vectors without another pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from steering.attention.taps import Head
from steering.audio.clip import Clip
from steering.audio.decode import read_clip
from steering.calibration.data_checks import FILE_LIMITS
from steering.calibration.decisive_token import MAX_RIGHT, find_decisive_token, state_at
from steering.calibration.option_mentions import FORMS, answered_right, form_of
from steering.generation import UNSTEERED, Sampling, SteeringPlan, generate
from steering.heads import inside_events
from steering.items import Item
from steering.meters.waveform import METERS, read_meters
from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread
from steering.prefill import PrefillResult, prefill
from steering.prompt import Prompt, build_question, silent_twin, with_choices
from steering.readout import Intervention, logits, pool
from steering.silence import contrast_with_silence
from steering.silence_cache import SILENCE_BYTES, SilenceCache

ACTIVATIONS_VERSION = 3  # goes up when the numbers of the same item change
ANSWER = Sampling(max_tokens=32)  # greedy
_LARGE = "differences"
_BLOCK_ITEMS = 256

ActivationRow = tuple[Any, ...]  # one item's values, in the order of the fields they go to
Columns = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
RecordItem = Callable[[AudioModel, Item, SilenceCache], ActivationRow]


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Recorded numbers of I items, one row an item."""

    mass: NDArray[np.float32]  # (I, L * H) audio mass of every head on the clip
    silent_mass: NDArray[np.float32]  # (I, L * H) the same on the silent twin, cut from a ladder's
    differences: NDArray[np.float32]  # (I, L, D) residual on the clip minus on that twin
    final: NDArray[np.float32]  # (I, D) last residual at the first answer token
    deciding: NDArray[np.float32]  # (I, D) the same at the decisive token, mostly the first
    right_tokens: NDArray[np.int64]  # (I, N) tokens that are right there, -1 behind the last
    right: NDArray[np.bool_]  # (I,) whether the bare greedy answer is right, by MMAU's rule
    form: NDArray[np.int64]  # (I,) of that answer, a place in FORMS
    top_probability: NDArray[np.float32]  # (I,) of the likeliest token at the decisive one, bare
    exact_differences: NDArray[np.float32] | None = None  # (I, L, D) from silence of its own length
    exact_mass: NDArray[np.float32] | None = None  # (I, L * H) of the heads on that silence
    seconds: NDArray[np.float32] | None = None  # (I,) of the clip, as far as it is heard
    meters: NDArray[np.float32] | None = None  # (I, 6) of the waveform, as far as it is heard
    event_mass: NDArray[np.float32] | None = None  # (I, L * H) mass inside the events
    event_share: NDArray[np.float32] | None = None  # (I,) of the clip; NaN without events

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Activations:
        """The activations of some items, without the differences.

        For a real model those are gigabytes on disk: index `differences[rows, layer]` directly.
        """
        small = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.default is MISSING}
        return replace(self, **{**small, _LARGE: self.differences[:0]})

    def scores(self, heads: Sequence[Head], heads_a_layer: int) -> NDArray[np.float32]:
        """(I,) listening scores by a set of heads."""
        return np.asarray(self.mass[:, head_columns(heads, heads_a_layer)].mean(axis=1))

    def silent_scores(self, heads: Sequence[Head], heads_a_layer: int) -> NDArray[np.float32]:
        """(I,) listening scores of the silent twins."""
        return np.asarray(self.silent_mass[:, head_columns(heads, heads_a_layer)].mean(axis=1))


def head_columns(heads: Sequence[Head], heads_a_layer: int) -> list[int]:
    """Columns of some heads among all L * H of them."""
    return [layer * heads_a_layer + head for layer, head in heads]


def all_heads(model: AudioModel) -> list[Head]:
    """Every (layer, head) of a model, layer by layer."""
    return [(layer, head) for layer in range(model.num_layers) for head in range(model.num_heads)]


def load_item_clip(model: AudioModel, item: Item) -> Clip:
    """The item's sound at the model's rate."""
    return read_clip(item.audio, rate_hz=model.sample_rate_hz, limits=FILE_LIMITS)


def build_item_prompt(model: AudioModel, item: Item, clip: Clip, preface: str = "") -> Prompt:
    """The item's prompt: its clip, then its question and options."""
    return build_question(
        model, [clip], preface + with_choices(item.question, item.choices, model.prompt_style)
    )


def greedy_answer(model: AudioModel, heard: PrefillResult, plan: SteeringPlan = UNSTEERED) -> str:
    """The whole greedy answer, over the full vocabulary."""
    return decode_answer(model, list(generate(model, heard, plan, ANSWER)))


def decode_answer(model: AudioModel, ids: Sequence[int]) -> str:
    """The text of an answer's tokens, without the marks of the prompt style."""
    text = str(model.processor.tokenizer.decode(ids, skip_special_tokens=True))
    return (
        text.partition(model.prompt_style.after)[0] if model.prompt_style.after else text
    ).strip()


def column_layout(model: AudioModel) -> Columns:
    """Shape and type of one item's value in each field of Activations."""
    heads = (model.num_layers * model.num_heads,)
    return {
        "mass": (heads, np.float32),
        "silent_mass": (heads, np.float32),
        "differences": ((model.num_layers, model.hidden_size), np.float32),
        "final": ((model.hidden_size,), np.float32),
        "deciding": ((model.hidden_size,), np.float32),
        "right_tokens": ((MAX_RIGHT,), np.int64),
        "right": ((), np.bool_),
        "form": ((), np.int64),
        "top_probability": ((), np.float32),
        "exact_differences": ((model.num_layers, model.hidden_size), np.float32),
        "exact_mass": (heads, np.float32),
        "seconds": ((), np.float32),
        "meters": ((len(METERS),), np.float32),
        "event_mass": (heads, np.float32),
        "event_share": ((), np.float32),
    }


def pooled_directions(
    activations: Activations, intervention: Intervention, rows: NDArray[np.int64] | None = None
) -> Tensor:
    """(N, D) float32: directions of some items, of all if None, read from disk block by block."""
    rows = np.arange(len(activations.final)) if rows is None else rows
    layers = np.array(intervention.layers)
    blocks = (rows[i : i + _BLOCK_ITEMS, None] for i in range(0, len(rows), _BLOCK_ITEMS))
    directions = [
        pool(torch.from_numpy(activations.differences[block, layers]), intervention)
        for block in blocks
    ]
    return torch.cat(directions)


def record(model: AudioModel, items: Sequence[Item]) -> Activations:
    """The activations of some items; raises AudioError with the path of an unusable clip."""
    recorded = record_items(model, items, range(len(items)), record_item)
    rows = tqdm(recorded, "listening", len(items), disable=None)
    return Activations(*(np.stack(column) for column in zip(*(r for _, r in rows), strict=True)))


def record_items(
    model: AudioModel, items: Sequence[Item], wanted: Iterable[int], record_one: RecordItem
) -> Iterator[tuple[int, ActivationRow]]:
    """Index and row of each wanted item, one after the other, in this process."""
    silence_cache = SilenceCache(SILENCE_BYTES)
    for index in wanted:
        yield index, record_one(model, items[index], silence_cache)


def record_item(model: AudioModel, item: Item, silence_cache: SilenceCache) -> ActivationRow:
    """The row of one item: a pass over its clip, both silent twins, a greedy answer.

    On a CPU it runs in one thread, so that the numbers are the same, to the last bit, for any
    number of cores and worker processes.
    """
    heads, layers = all_heads(model), range(model.num_layers)
    with one_thread(model):
        prompt = build_item_prompt(model, item, load_item_clip(model, item))
        heard = prefill(model, prompt, heads=heads, layers=layers)
        exact = prefill(model, silent_twin(model, prompt), heads=heads, layers=layers)
        twin = contrast_with_silence(
            model, prompt, heard, heads=heads, layers=layers, silence_cache=silence_cache
        )
        ids = list(generate(model, heard, UNSTEERED, ANSWER))
        answer, lettered = decode_answer(model, ids), model.prompt_style.lettered
        decisive = find_decisive_token(model, item, heard, ids)
        state = state_at(model, heard, decisive.before)
        right_tokens = np.full(MAX_RIGHT, -1, np.int64)
        right_tokens[: len(decisive.right)] = decisive.right
        with torch.inference_mode():
            first = logits(model, state[None])[0].softmax(-1)
        return (
            heard.attention.sum(-1).cpu().numpy(),
            twin.silence_attention.sum(-1).cpu().numpy(),
            twin.differences.float().cpu().numpy(),
            heard.final.float().cpu().numpy(),
            state.float().cpu().numpy(),
            right_tokens,
            np.bool_(answered_right(answer, item, lettered=lettered)),
            np.int64(FORMS.index(form_of(answer, item.choices, lettered=lettered))),
            np.float32(first.max().item()),
            (heard.states - exact.states).float().cpu().numpy(),
            exact.attention.sum(-1).cpu().numpy(),
            np.float32(sum(prompt.heard_seconds)),
            _read_meters(prompt),
            *_event_mass(model, item, heard),
        )


def _read_meters(prompt: Prompt) -> NDArray[np.float32]:
    """(6,) meters of the prompt's clip, as far as it is heard."""
    (clip,), (seconds,) = prompt.clips, prompt.heard_seconds
    return read_meters(clip.samples[: round(seconds * clip.sample_rate_hz)], clip.sample_rate_hz)


def _event_mass(
    model: AudioModel, item: Item, heard: PrefillResult
) -> tuple[NDArray[np.float32], np.float32]:
    """(N,) audio mass of every head inside the item's events, and their share of the clip."""
    attention = heard.attention.cpu().numpy()  # (N, F)
    inside = inside_events(item.events, attention.shape[1], model.hop_seconds)
    share = inside.mean() if item.events else np.nan
    return (attention * inside).sum(-1), np.float32(share)
