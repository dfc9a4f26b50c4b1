"""The decisive token of an answer, so that one stored state can judge it.

"A woman" and "A child" share their first token, and "(B) a child" shares its first with every
other option: there the first token decides nothing. The decisive token is the first one at which
the right answer differs from every other choice, in the model's own spelling. The tokens before it
are taken as given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.generation import crop_to_prompt
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, next_state

_LETTERED = re.compile(r"(\(?)[A-Z]([).:])\s*\S|[A-Z]$")  # "(B) a child", "B. a child", "B"


@dataclass(frozen=True, slots=True)
class DecisiveToken:
    """A token of the right answer, and the tokens before it."""

    before: tuple[int, ...]
    token: int


def find_decisive_token(model: AudioModel, item: Item, bare: str) -> DecisiveToken:
    """The token that decides the right answer to an item; `bare` is the unsteered answer."""
    tokenizer = model.processor.tokenizer
    token_ids = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in spellings(item.choices, bare)
    ]
    right = token_ids[item.choices.index(item.answer)]
    shared = max(
        (_common_prefix_length(right, other) for other in token_ids if other != right), default=0
    )
    if shared == len(right):  # the whole of another choice's beginning: it must end here
        return DecisiveToken(right, int(tokenizer.eos_token_id))
    return DecisiveToken(right[:shared], right[shared])


def spellings(choices: Sequence[str], bare: str) -> list[str]:
    """The choices as the model writes them: with or without their letters, or the letters only."""
    letter_style = _LETTERED.match(bare)
    if letter_style is None or bare in choices:
        return list(choices)
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if letter_style[2] is None:
        return letters
    pairs = zip(letters, choices, strict=True)
    return [f"{letter_style[1]}{letter}{letter_style[2]} {choice}" for letter, choice in pairs]


@torch.inference_mode()
def state_at(model: AudioModel, prefilled: PrefillResult, before: Sequence[int]) -> Tensor:
    """(D,) last residual of the unsteered model after it wrote `before`."""
    crop_to_prompt(prefilled)
    final = prefilled.final
    for token in before:
        final = next_state(model, prefilled, token)
    return final


def _common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
