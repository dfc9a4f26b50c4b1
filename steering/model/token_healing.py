"""Token healing: texts behind a prompt that ends inside a word are tokenized with that end.

R1-AQA's prompt ends in `<answer>`. In a text BPE joins its `>` with most words that follow: "Dog"
there is `>D`, `og`. Behind a `>` of its own the model was never taught any "Dog", and a word that
joins nothing would win. So the tokens that some text would join are taken back, and each text is
scored from there on, among the tokens that begin with what was taken back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.model.audio_model import AudioModel


@dataclass(frozen=True, slots=True, eq=False)
class Continuations:
    """Texts as tokens behind a prompt whose last tokens are taken back."""

    tokenizer: Any
    removed: list[int]  # the tokens taken back; none where no text joins the prompt's end
    tokens: list[list[int]]  # of each text, from there on
    forced: list[int]  # how many of these hold letters of the prompt's end alone

    def lengths(self) -> list[int]:
        """The number of tokens of each text that hold some of its own letters."""
        return [len(ids) - n for ids, n in zip(self.tokens, self.forced, strict=True)]

    def open_boundary(self, logits: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Logits (N, V), -inf for tokens that contradict the removed letters.

        Row n is about token k of text c, (c, k) = places[n].
        """
        if not self.removed:
            return logits
        pending = [self._pending(*place) for place in places]
        size = logits.shape[-1]
        allowed = torch.stack([_openings(self.tokenizer, letters, size) for letters in pending])
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def _pending(self, text: int, k: int) -> str:
        """The removed letters that the text's first k tokens leave open."""
        written = _letters(self.tokenizer, self.tokens[text][:k])
        return _letters(self.tokenizer, self.removed)[len(written) :]


def continuations(model: AudioModel, texts: Sequence[str]) -> Continuations:
    """Texts as continuations of any prompt in the model's style."""
    tokenizer, before = model.processor.tokenizer, model.prompt_style.before
    end = _ids(tokenizer, before)
    whole = [_ids(tokenizer, before + text) for text in texts]
    shared = [_shared(end, ids) for ids in whole]
    kept = min(shared)
    return Continuations(
        tokenizer,
        end[kept:],
        [ids[kept:] for ids in whole],
        [count - kept for count in shared],
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _letters(tokenizer: Any, ids: Sequence[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


@functools.lru_cache(maxsize=64)
def _openings(tokenizer: Any, letters: str, size: int) -> Tensor:
    """(V,) bool: the tokens that begin with some letters, or that the letters begin with."""
    allowed = torch.full((size,), not letters)  # with no letter left any token may come
    for token, id in tokenizer.get_vocab().items():
        if token and (token.startswith(letters) or letters.startswith(token)):
            allowed[id] = True
    return allowed
