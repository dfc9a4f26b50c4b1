"""Tokens become words: their places in the text, their effects added up.

A word is a run of letters, marks and digits, also with a hyphen, an apostrophe or a point inside.
Han, Hiragana and the scripts of South-East Asia write no spaces: there a word is one character, or
as many as a token holds. Tokens that share a character, as bytes do, are of one word. Spaces and
punctuation alone are no words.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex
from tokenizers.decoders import DecodeStream
from tokenizers.pre_tokenizers import Split

from steering.model.audio_model import AudioModel

Span = tuple[int, int]  # begin and end, in characters (code points) of a text

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_KATAKANA = r"[\p{Katakana}ー]+"
_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}_]&&[^{_UNSPACED}\p{{Katakana}}]]+"
_SPACED = rf"{_LETTERS}(?:[-'\u2019.]{_LETTERS})*"
_SIGNS = r"\p{S}[\p{S}\p{M}\u200d]*"
_PATTERN = rf"{_KATAKANA}|[{_UNSPACED}]\p{{M}}*|{_SPACED}|{_SIGNS}"
_SEGMENTS = Split(Regex(_PATTERN), "removed", invert=True)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of an answer, how far it was listened for, and what the sound did to it."""

    text: str
    start: int  # in characters of the answer
    end: int
    score: float | None  # mean listening score of its tokens; None where none was read
    effect_bits: float  # sum over its tokens


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text and its tokens."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]  # of the tokens, in the text; empty for those that hold none of it


def tokenize(model: AudioModel, text: str) -> TokenizedText:
    """A text's tokens behind any prompt, with the tokenizer's own offsets."""
    encoded: Any = model.processor.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True
    )
    spans = ((int(start), int(end)) for start, end in encoded["offset_mapping"])
    return TokenizedText(text, tuple(encoded["input_ids"]), tuple(spans))


def placed(model: AudioModel, ids: Sequence[int], text: str) -> TokenizedText:
    """Tokens as they were generated, placed in the text that became of them.

    Those behind its end are left out: an end token, and what a stop string took away.
    """
    tokenizer, stream = model.processor.tokenizer, DecodeStream(skip_special_tokens=True)
    silent = {*tokenizer.all_special_ids, *model.eos_token_ids}
    spans: list[Span] = []
    at = 0  # end of the text so far
    unfinished: list[int] = []  # tokens whose last character is not whole
    for place, token in enumerate(ids):
        piece = stream.step(tokenizer.backend_tokenizer, token) or ""
        spans.append((at, at))
        unfinished += [] if token in silent else [place]
        if piece:
            for sharing in unfinished:
                spans[sharing] = (at, min(at + len(piece), len(text)))
            at, unfinished = at + len(piece), []
    count = 1 + max((i for i, (start, end) in enumerate(spans) if start < end), default=-1)
    return TokenizedText(text, tuple(ids[:count]), tuple(spans[:count]))


def words_of(
    answer: TokenizedText, scores: Sequence[float], effects: Sequence[float]
) -> tuple[Word, ...]:
    """The words of an answer.

    Args:
        answer: of T tokens.
        scores: (T,) listening score of each token; none where none was read.
        effects: (T,) effect of each token, in bits.

    Returns:
        The words in their order; scores are means over tokens, effects sums.
    """
    words = []
    for start, end, tokens in _joined(answer):
        score = sum(scores[i] for i in tokens) / len(tokens) if scores else None
        bits = sum(effects[i] for i in tokens)
        words.append(Word(answer.text[start:end], start, end, score, bits))
    return tuple(words)


def _joined(answer: TokenizedText) -> Iterator[tuple[int, int, list[int]]]:
    """Begin, end and tokens of each word: segments that share a token are one."""
    segments = [place for _, place in _SEGMENTS.pre_tokenize_str(answer.text)]
    starts, ends = [start for start, _ in segments], [end for _, end in segments]
    own: list[list[int]] = [[] for _ in segments]  # tokens that begin in a segment
    last = list(range(len(segments)))  # the last segment that such a token reaches
    for token, (start, end) in enumerate(answer.spans):
        first, behind = bisect_right(ends, start), bisect_left(starts, end)
        if start < end and first < behind:
            own[first].append(token)
            last[first] = max(last[first], behind - 1)
    i = 0
    while i < len(segments):
        begin, reach, tokens = i, i, list[int]()
        while i <= reach:
            reach, tokens = max(reach, last[i]), tokens + own[i]
            i += 1
        if tokens:
            yield starts[begin], ends[reach], tokens
