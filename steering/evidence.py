"""Evidence: what every head and layer of a model did on each item of a data set, clip and silence.

One prefill of the clip and one of its silent twin an item. Since an intervention acts only on the
readout, every setting of it can be tried on these vectors without another pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from steering.answer import BARE, Plan, Sampling, generate
from steering.clip import Clip
from steering.decode import AudioLimits, read_clip
from steering.items import Item, is_right
from steering.model import AudioModel
from steering.prefill import Heard, prefill
from steering.prompt import Prompt, ask, silent_twin, with_choices
from steering.readout import logits
from steering.taps import Head

FILE_LIMITS = AudioLimits(max_bytes=1_000_000_000, max_seconds=3600.0)
ANSWER = Sampling(max_tokens=32)  # greedy


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Numbers of I items, rows in the order of the items."""

    mass: NDArray[np.float32]  # (I, L * H) audio mass of every head on the clip
    silent_mass: NDArray[np.float32]  # (I, L * H) the same on the silent twin
    differences: NDArray[np.float32]  # (I, L, D) residual on the clip minus on the silent twin
    final: NDArray[np.float32]  # (I, D) last residual at the first answer token
    first_token: NDArray[np.int64]  # (I,) of the right answer
    right: NDArray[np.bool_]  # (I,) the bare model's greedy answer, by MMAU's rule
    top_probability: NDArray[np.float32]  # (I,) of the bare model's first token

    def of(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Evidence:
        """The evidence of some items."""
        return Evidence(*(getattr(self, f.name)[rows] for f in fields(self)))

    def scores(self, heads: Sequence[Head], heads_a_layer: int) -> NDArray[np.float32]:
        """(I,) listening scores by a set of heads."""
        return np.asarray(self.mass[:, columns(heads, heads_a_layer)].mean(axis=1))

    def silent_scores(self, heads: Sequence[Head], heads_a_layer: int) -> NDArray[np.float32]:
        """(I,) listening scores of the silent twins."""
        return np.asarray(self.silent_mass[:, columns(heads, heads_a_layer)].mean(axis=1))


def columns(heads: Sequence[Head], heads_a_layer: int) -> list[int]:
    """Where heads stand in a row of all L * H of them."""
    return [layer * heads_a_layer + head for layer, head in heads]


def all_heads(model: AudioModel) -> list[Head]:
    """Every (layer, head) of a model, layer by layer."""
    return [(layer, head) for layer in range(model.layers) for head in range(model.heads)]


def clip_of(model: AudioModel, item: Item) -> Clip:
    """The item's sound at the model's rate."""
    return read_clip(item.audio, rate_hz=model.rate_hz, limits=FILE_LIMITS)


def prompt_of(model: AudioModel, item: Item, clip: Clip, preface: str = "") -> Prompt:
    """The item's prompt: question and options, under the clip."""
    return ask(model, [clip], preface + with_choices(item.question, item.choices, model.style))


def answer_text(model: AudioModel, heard: Heard, plan: Plan = BARE) -> str:
    """The whole greedy answer, over the full vocabulary."""
    return text_of(model, list(generate(model, heard, plan, ANSWER)))


def text_of(model: AudioModel, ids: Sequence[int]) -> str:
    """The words of an answer's tokens."""
    text = str(model.processor.tokenizer.decode(ids, skip_special_tokens=True))
    return (text.partition(model.style.after)[0] if model.style.after else text).strip()


def gather(model: AudioModel, items: Sequence[Item]) -> Evidence:
    """The evidence of some items; raises AudioError with the path of a clip that can't be used."""
    rows = list(tqdm(_rows(model, items), "listening", len(items), disable=None))
    return Evidence(*(np.stack(column) for column in zip(*rows, strict=True)))


def _rows(model: AudioModel, items: Sequence[Item]) -> Iterator[tuple[Any, ...]]:
    heads, layers = all_heads(model), range(model.layers)
    for item in items:
        prompt = prompt_of(model, item, clip_of(model, item))
        heard = prefill(model, prompt, heads=heads, layers=layers)
        silent = prefill(model, silent_twin(model, prompt), heads=heads, layers=layers)
        with torch.inference_mode():
            first = logits(model, heard.final[None])[0].softmax(-1)
        token = model.processor.tokenizer(item.answer, add_special_tokens=False)["input_ids"][0]
        yield (
            heard.attention.sum(-1).cpu().numpy(),
            silent.attention.sum(-1).cpu().numpy(),
            (heard.states - silent.states).float().cpu().numpy(),
            heard.final.float().cpu().numpy(),
            np.int64(token),
            np.bool_(is_right(answer_text(model, heard), item.answer, item.choices)),
            np.float32(first.max()),
        )
