"""Token effects: what the sound did to each token of the bare answer, and where the heads looked.

A place is where an answer token is chosen: the prompt's last token, then each answer token but the
last. Every place has the audio mass of all heads, and the effect: KL(heard || silent) / ln 2 of the
bare model's next token, with the same answer so far. The heard side is read while the answer is
written, token by token with taps on; the silent side is one pass of the question and one of the
answer behind the kept silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from steering.decision import divergence_bits
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread
from steering.prefill import PrefillResult, causal_mask, prefill, run_layers
from steering.prompt import Prompt
from steering.readout import logits
from steering.silence import contrast_with_silence
from steering.silence_cache import SilenceCache
from steering.taps import Head, Taps

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
    layers = range(model.num_layers)
    heard = prefill(model, prompt, heads=heads, layers=layers)
    twin = contrast_with_silence(
        model,
        prompt,
        heard,
        heads=heads,
        layers=layers,
        silence_cache=silence_cache,
        to_readout=True,
    )
    assert twin.silent is not None
    token_ids, finals, mass = _write(model, prompt, heard, heads)
    silent = torch.cat([twin.silent.final[None], _read(model, twin.silent, token_ids[:-1])])
    log_heard, log_silent = (logits(model, each).log_softmax(-1) for each in (finals, silent))
    effect = divergence_bits(log_heard, log_silent).float()
    return AnswerEffects(token_ids, mass, effect, twin.silence_attention.sum(-1), twin.differences)


def _write(
    model: AudioModel, prompt: Prompt, heard: PrefillResult, heads: Sequence[Head]
) -> tuple[list[int], Tensor, Tensor]:
    """The greedy answer, and final residuals (K, D) and audio mass (K, N) where it was chosen."""
    length = heard.length
    audio = torch.zeros(1, length + ANSWER.max_tokens, dtype=torch.bool, device=model.device)
    audio[0, :length] = prompt.audio_mask.to(model.device)
    tapped = Taps.on(heads, audio).heads
    token_ids: list[int] = []
    finals, mass = [heard.final], [heard.attention.sum(-1)]
    while True:
        token = int(logits(model, finals[-1][None]).argmax())
        if token in model.eos_token_ids:
            break
        token_ids.append(token)
        if len(token_ids) == ANSWER.max_tokens:
            return token_ids, torch.stack(finals), torch.stack(mass)
        place = length + len(token_ids) - 1
        taps = Taps(tapped, audio[:, : place + 1])
        states = model.decoder.embed_tokens(torch.tensor([[token]], device=model.device))
        positions = torch.tensor([[place]], device=model.device)
        states, _ = run_layers(model, states, positions, None, heard.cache, taps=taps)
        finals.append(states[0, -1])
        mass.append(taps.rows(heads)[0].sum(-1))
    places = max(1, len(token_ids))  # where the end was chosen, no token of the answer was
    return token_ids, torch.stack(finals[:places]), torch.stack(mass[:places])


def _read(model: AudioModel, silent: PrefillResult, token_ids: Sequence[int]) -> Tensor:
    """(N, D) final residuals of the silent twin after each of N answer tokens, from one pass."""
    if not token_ids:
        return silent.final.new_empty(0, model.hidden_size)
    tokens = torch.tensor([token_ids], device=model.device)
    start, end = silent.length, silent.length + len(token_ids)
    positions = torch.arange(start, end, device=model.device)[None]
    mask = causal_mask(start, end, model.device)
    states = model.decoder.embed_tokens(tokens)
    return run_layers(model, states, positions, mask, silent.cache)[0][0]


TOKEN_EFFECTS = EvidenceKind("effects", _VERSION, effect_layout, record_effects)
