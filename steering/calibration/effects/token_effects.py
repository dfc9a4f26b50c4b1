"""Token effects: what the sound did to each token of the bare answer, and where the heads looked.

A place is where an answer token is chosen: the prompt's last token, then each answer token but the
last. Every place has the audio mass of all heads, and the effect: KL(heard || silent) / ln 2 of the
bare model's next token, with the same answer so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.attention.taps import Head
from steering.calibration.activation_store import ActivationStore
from steering.calibration.activations import (
    ANSWER,
    ActivationRow,
    Columns,
    all_heads,
    build_item_prompt,
    load_item_clip,
)
from steering.calibration.collecting import EvidenceKind
from steering.generation import UNSTEERED, generate
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread
from steering.prompt import Prompt
from steering.silence import prefill_with_silence, silent_prefix
from steering.silence_cache import SilenceCache
from steering.words.effects import hear, token_effects

_VERSION = 1  # goes up when the numbers of the same item change


@dataclass(frozen=True, slots=True, eq=False)
class TokenEffects:
    """Recorded numbers of I items with up to T places each, one row an item."""

    mass: NDArray[np.float32]  # (I, T, L * H) audio mass of every head; 0 behind the last place
    effect: NDArray[np.float32]  # (I, T) bits; 0 behind the last place
    places: NDArray[np.int64]  # (I,) how many an item has, at least 1
    token_ids: NDArray[np.int64]  # (I, T) of the answer, -1 behind the last and where it is empty
    silent_mass: NDArray[np.float32]  # (I, L * H) at the first place, on the silent twin
    differences: NDArray[np.float32]  # (I, L, D) residual on the clip minus on the twin, there

    @classmethod
    def of(cls, store: ActivationStore) -> TokenEffects:
        """The numbers of a store, memory-mapped; every item must be recorded."""
        assert not store.missing(), store.missing()
        return cls(**store.columns)


@dataclass(frozen=True, slots=True, eq=False)
class AnswerEffects:
    """The K places of one bare greedy answer, on the model's device."""

    token_ids: list[int]  # of the answer, without an end token; K of them, or none where K is 1
    mass: Tensor  # (K, N) float32 audio mass of each tapped head
    effect: Tensor  # (K,) float32 bits
    silent_mass: Tensor  # (N,) float32 at the first place, on the silent twin
    differences: Tensor  # (L, D) residual on the clip minus on the twin, there


def effect_layout(model: AudioModel) -> Columns:
    """Shape and type of one item's value in each field of TokenEffects."""
    heads = model.num_layers * model.num_heads
    return {
        "mass": ((ANSWER.max_tokens, heads), np.float32),
        "effect": ((ANSWER.max_tokens,), np.float32),
        "places": ((), np.int64),
        "token_ids": ((ANSWER.max_tokens,), np.int64),
        "silent_mass": ((heads,), np.float32),
        "differences": ((model.num_layers, model.hidden_size), np.float32),
    }


def record_effects(model: AudioModel, item: Item, silence_cache: SilenceCache) -> ActivationRow:
    """The row of one item; on a CPU in one thread, so that it is the same everywhere."""
    with one_thread(model):
        prompt = build_item_prompt(model, item, load_item_clip(model, item))
        answer = answer_effects(model, prompt, all_heads(model), silence_cache)
    places = len(answer.effect)
    rest = ANSWER.max_tokens - places
    return (
        np.pad(answer.mass.cpu().numpy(), ((0, rest), (0, 0))),
        np.pad(answer.effect.cpu().numpy(), (0, rest)),
        np.int64(places),
        np.array(answer.token_ids + [-1] * (ANSWER.max_tokens - len(answer.token_ids))),
        answer.silent_mass.cpu().numpy(),
        answer.differences.float().cpu().numpy(),
    )


@torch.inference_mode()
def answer_effects(
    model: AudioModel, prompt: Prompt, heads: Sequence[Head], silence_cache: SilenceCache
) -> AnswerEffects:
    """Answer a prompt greedily, and measure what the sound did to each token of the answer.

    Args:
        model: the model, which is not steered.
        prompt: the prompt with its clips.
        heads: whose attention on the audio is read at every place.
        silence_cache: silent prefixes at hand; a new one is kept there.

    Returns:
        Audio mass (K, N) and effect (K,) of the answer's K tokens, its end left out; of an answer
        that is empty, those of the prompt's end alone.
    """
    prefix = silent_prefix(model, prompt, silence_cache, model.num_layers)
    layers = range(model.num_layers)
    prefilled, twin = prefill_with_silence(
        model, prompt, prefix, heads=heads, layers=layers, one_pass=False
    )
    written = generate(model, prefilled, UNSTEERED, ANSWER)
    token_ids = [token for token in written if token not in model.eos_token_ids]
    heard = hear(model, prompt, prefilled, token_ids, heads)
    bits = [each for part in token_effects(model, prompt, prefix, heard) for each in part]
    effect = torch.tensor(bits, device=model.device)
    silent_mass = twin.silence_attention.sum(-1)
    return AnswerEffects(token_ids, heard.mass, effect, silent_mass, twin.differences)


TOKEN_EFFECTS = EvidenceKind("effects", _VERSION, effect_layout, record_effects)
