"""Control tokens: the strings that a checkpoint's tokenizer reads as structure, not as words.

A user's text must add none of them to a conversation, or it could forge a turn. They are looked for
in what the template joins, by the tokenizer itself: so no split over texts, no look-alike that the
tokenizer folds, and no trick of the template brings one in.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

_STRANGE = "\ue000\U000f1234\u0e5b"  # characters that a vocabulary of words does not know
_AUDIO_TOKENS = ("audio_token", "audio_bos_token", "audio_eos_token")


@dataclass(frozen=True, slots=True, eq=False)
class ControlTokens:
    """The control tokens of one checkpoint."""

    tokenizer: Any
    ids: frozenset[int]
    marks: re.Pattern[str]  # characters of which each control token has at least one

    def added(self, text: str, neutral: str) -> str | None:
        """The control token that `text` has beyond those of `neutral`, None if they have the same.

        Texts without a mark of their own are not tokenized.
        """
        if self._marks(text) == self._marks(neutral):
            return None
        present, allowed = self._sequence(text), self._sequence(neutral)
        if present == allowed:
            return None
        extra = Counter(present) - Counter(allowed)
        changed = [*present[len(allowed) :], *allowed[len(present) :]]
        changed += [a for a, b in zip(present, allowed, strict=False) if a != b]
        token = next((token for token in present if token in extra), changed[0])
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def _marks(self, text: str) -> list[str]:
        normalizer = getattr(self.tokenizer.backend_tokenizer, "normalizer", None)
        folded = normalizer.normalize_str(text) if normalizer else ""
        return self.marks.findall(normalize("NFKD", text) + "\n" + folded)

    def _sequence(self, text: str) -> list[int]:
        """The control tokens of a text, in their order."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [token for token in tokens if token in self.ids]


@functools.lru_cache(maxsize=16)
def control_tokens(processor: Any) -> ControlTokens:
    """The control tokens of a processor: its tokenizer's special ones and those around audio.

    A token that unknown characters become is none: honest texts have it.
    """
    tokenizer = processor.tokenizer
    names = [getattr(processor, name, None) for name in _AUDIO_TOKENS]
    ids = {tokenizer.convert_tokens_to_ids(name) for name in names if name}
    ids |= {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids |= set(tokenizer.all_special_ids)
    ids -= {None, *tokenizer(_STRANGE, add_special_tokens=False)["input_ids"]}
    words = [tokenizer.convert_ids_to_tokens(id) for id in sorted(ids)]
    marks = [{c for c in word if not (c.isalnum() or c.isspace())} for word in words]
    any_character = r"[\s\S]"  # where a token is all letters, every text may hold it
    found = f"[{re.escape(''.join(sorted(set().union(*marks))))}]" if all(marks) else any_character
    return ControlTokens(tokenizer, frozenset(ids), re.compile(found))
