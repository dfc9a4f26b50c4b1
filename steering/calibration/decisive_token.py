"""The decisive token of an answer, so that one stored state can judge it.

It stands where the model's own bare answer settles which option it names: at "dog" in "The sound is
a dog.", at "B" in "(B) dog", at the second word of "A woman" where another option is "A man". The
tokens before it are taken as given. There every spelling of the right option counts: with and
without capital, leading space, article and letter.

At strength 0 the judgement is that on the bare answer itself. Where the right option shares its
next token with another one and the model went elsewhere, the shared token counts as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.calibration.option_mentions import Mention, answered_right, mentions
from steering.generation import crop_to_prompt
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, next_state
from steering.readout import logits

MAX_RIGHT = 16  # tokens kept; the model's own spelling comes first
_ARTICLES = ("a ", "an ", "the ", "A ", "An ", "The ")
_ENDS = (".", ",", "!", "\n", "<", "**")  # after an option that another one continues

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecisiveToken:
    """The tokens before the place that decides, and those that are right there."""

    before: Tokens
    right: Tokens  # at most MAX_RIGHT


@dataclass(frozen=True, slots=True)
class _Spellings:
    """Token sequences of an option at one place: as the model spells, and in any other way."""

    own: list[Tokens]
    others: list[Tokens]

    @property
    def all(self) -> list[Tokens]:
        """Every one of them."""
        return self.own + self.others


def find_decisive_token(
    model: AudioModel, item: Item, prefilled: PrefillResult, answer: Sequence[int]
) -> DecisiveToken:
    """The place that decides an item and the tokens that are right there; `answer` holds the ids
    of the bare answer to the prefilled prompt.
    """
    while answer and answer[-1] in model.eos_token_ids:
        answer = answer[:-1]
    text, ends = _decoded(model, answer)
    lettered = model.prompt_style.lettered
    named = mentions(text, item.choices, lettered=lettered)
    mention = next((m for m in named if m.choice != item.answer), named[0] if named else None)
    if mention is None:
        place = _likeliest_place(model, item, prefilled, answer)
    else:
        place = max(k for k in range(len(answer)) if ends[k] <= mention.start)
    before = tuple(answer[:place])
    right = _spellings(model, item, [item.answer], text, mention, before)
    rest = [choice for choice in item.choices if choice != item.answer]
    others = _spellings(model, item, rest, text, mention, before)
    path = [*answer[place:], int(model.processor.tokenizer.eos_token_id)]
    step, tokens = _follow(model, path, right, others)
    if answered_right(text, item, lettered=lettered):
        tokens = [path[step], *tokens]
    else:
        tokens = [token for token in tokens if token != path[step]]
    return DecisiveToken((*before, *path[:step]), tuple(dict.fromkeys(tokens))[:MAX_RIGHT])


def _decoded(model: AudioModel, answer: Sequence[int]) -> tuple[str, list[int]]:
    """The text of an answer up to the prompt style's mark, and its length before each token."""
    decode, after = model.processor.tokenizer.decode, model.prompt_style.after
    texts = [str(decode(answer[:k], skip_special_tokens=True)) for k in range(len(answer) + 1)]
    whole = texts[-1].partition(after)[0] if after else texts[-1]
    return whole, [len(text) for text in texts]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


_CASES: tuple[Callable[[str], str], ...] = (str, str.lower, _capitalised, str.title, str.upper)


def _spellings(
    model: AudioModel,
    item: Item,
    choices: Sequence[str],
    text: str,
    mention: Mention | None,
    before: Tokens,
) -> _Spellings:
    """The spellings of some options in the place of the option that the answer mentions."""
    own, others = [], []
    by_letter = mention is not None and mention.letter >= 0  # then "A" is no article
    for choice in choices:
        letter = chr(ord("A") + item.choices.index(choice))
        if mention:
            own.append(text[: mention.start] + _as_written(text, mention, choice, letter))
        words = [case(choice.strip()) for case in _CASES]
        words += [article + choice.strip() for article in _ARTICLES if not by_letter]
        words += [f"({letter}", f"**{letter}"] if model.prompt_style.lettered else []
        others += [space + word for space in ("", " ") for word in words]
    in_place = [_behind(before, tokens) for tokens in _tokenized(model, own)]
    in_other_ways = _tokenized(model, others)
    if by_letter:  # a letter is no word's beginning
        decode = model.processor.tokenizer.decode
        in_other_ways = [each for each in in_other_ways if len(decode(each[0]).strip(" (*")) > 1]
    return _Spellings([tokens for tokens in in_place if tokens], in_other_ways)


def _as_written(text: str, mention: Mention, choice: str, letter: str) -> str:
    """An option, or its letter, as the answer writes the one that it mentions."""
    if mention.letter >= 0:
        behind = text[mention.letter + 1 : mention.end]
        closing = behind.split()[0] if behind and not behind[0].isspace() else ""
        small = text[mention.letter].islower()
        opening = text[mention.start : mention.letter]
        return opening + (letter.lower() if small else letter) + closing
    written = text[mention.start : mention.end]
    case = next((change for change in _CASES if change(mention.choice.strip()) == written), str)
    return case(choice.strip())


def _behind(before: Tokens, tokens: Tokens) -> Tokens:
    """The tokens after `before`; none where a tokenizer cuts the beginning in another way."""
    return tokens[len(before) :] if tokens[: len(before)] == before else ()


def _tokenized(model: AudioModel, texts: Sequence[str]) -> list[Tokens]:
    """The token ids of some texts."""
    if not texts:
        return []
    ids = model.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [tuple(each) for each in ids]


def _follow(
    model: AudioModel, path: Sequence[int], right: _Spellings, others: _Spellings
) -> tuple[int, list[int]]:
    """How many tokens of the model's path no option owns alone, and the right ones behind them."""
    step = 0
    while path[step] in _next(right.all, path[:step]) and path[step] in _next(
        others.all, path[:step]
    ):
        step += 1
    taken = _next(others.all, path[:step])
    tokens = _next(right.own, path[:step])
    tokens += [token for token in _next(right.others, path[:step]) if token not in taken]
    if step and tuple(path[:step]) in right.all:  # it may end here, where another goes on
        ends = [end[0] for end in _tokenized(model, _ENDS)]
        tokens += sorted(model.eos_token_ids) + [end for end in ends if end not in taken]
    return step, tokens


def _next(spellings: Iterable[Tokens], before: Sequence[int]) -> list[int]:
    """The tokens that follow `before` in some spellings, in their order."""
    start, count = tuple(before), len(before)
    return [each[count] for each in spellings if len(each) > count and each[:count] == start]


@torch.inference_mode()
def _likeliest_place(
    model: AudioModel, item: Item, prefilled: PrefillResult, answer: Sequence[int]
) -> int:
    """The place, in an answer that names no option, where one would most likely have stood."""
    words = [
        space + case(choice.strip())
        for choice in item.choices
        for case in _CASES
        for space in ("", " ")
    ]
    firsts = sorted({tokens[0] for tokens in _tokenized(model, words)})
    crop_to_prompt(prefilled)
    states = [prefilled.final]
    for token in answer[:-1]:
        states.append(next_state(model, prefilled, token))
    likely = logits(model, torch.stack(states)).softmax(-1)[:, firsts].sum(-1)
    return int(likely.argmax())


@torch.inference_mode()
def state_at(model: AudioModel, prefilled: PrefillResult, before: Sequence[int]) -> Tensor:
    """(D,) last residual of the unsteered model after it wrote `before`."""
    crop_to_prompt(prefilled)
    final = prefilled.final
    for token in before:
        final = next_state(model, prefilled, token)
    return final
