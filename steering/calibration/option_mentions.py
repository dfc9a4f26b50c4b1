"""Options named in an answer: which one it names, where in the text, and in what form.

A model says "Dog.", "The sound is a **dog**.", "(B) dog", "B", "<answer>dog</answer>", or that it
can't hear. MMAU's rule compares sets of words and knows none of these forms: what names exactly one
option is read as that option first, here and in evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steering.items import Item, is_right

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])(\)?[.):]?)(?:\s+(.*))?$", re.DOTALL)
_SAID_LETTER = re.compile(
    r"(?i:answer|option|choice)(?:\s+is|\s*:)?\s*(?i:option\s+)?\**(\(?([A-Z])\)?)(?![\w'])"
)
_REFUSAL = re.compile(
    r"\b(?:can(?:no|\s+no|')t|could(?:\s+not|n't)|(?:do|am|'m|was)(?:\s+not|n't)|unable|not\s+able)\b"
    r"[^.!?]{0,40}?\b(?:hear|heard|listen|process|play|access|identify|determine|analy[sz]e|tell)"
    r"|\bno\s+(?:audio|sound|clip|recording)\b",
    re.IGNORECASE,
)
_MARKS = " \t\n.,:;!?*_\"'`"

FORMS = ("option", "sentence", "letter", "tag", "several", "refusal", "other")


@dataclass(frozen=True, slots=True)
class Mention:
    """One option named in a text, by its words or its letter."""

    choice: str
    start: int  # first character
    end: int  # after the last
    letter: int = -1  # character of the option's letter, -1 where it is named by its words


def prediction(text: str, choices: Sequence[str], *, lettered: bool) -> str:
    """The bare option if a model's answer names exactly one, else the answer as it is.

    The official matcher compares sets of words and has no notion of "A. X" or "The answer is X":
    the words around an option count against it. `lettered` says whether the prompt gave the
    options letters; only then is a letter the name of one. An empty answer stays empty: the
    official script counts it as wrong.
    """
    named = {mention.choice for mention in mentions(text, choices, lettered=lettered)}
    return named.pop() if len(named) == 1 else answer_part(text)


def answered_right(text: str, item: Item, *, lettered: bool) -> bool:
    """MMAU's rule on the option that an answer names, else on its words."""
    return is_right(prediction(text, item.choices, lettered=lettered), item.answer, item.choices)


def answer_part(text: str) -> str:
    """The text of the last <answer> tag, closed or cut off; the whole text without one."""
    start, end = _answer_span(text)
    return text[start:end].strip()


def _answer_span(text: str) -> tuple[int, int]:
    """First and last character of the answer in a text: within its last tag, or all of it."""
    tags = list(_TAG.finditer(text))
    return tags[-1].span(1) if tags else (0, len(text))


def mentions(text: str, choices: Sequence[str], *, lettered: bool) -> list[Mention]:
    """The options that an answer names, in the order of its text.

    An option inside a longer one that is also named does not count. A letter counts alone, before
    its own option's text, or as "the answer is B".
    """
    start, end = _answer_span(text)
    answer = text[start:end]
    margin = len(answer) - len(answer.lstrip())
    for choice in choices:
        if answer.strip().casefold() == choice.strip().casefold():
            return [Mention(choice, start + margin, start + len(answer.rstrip()))]
    mention = _by_letter(answer.strip(), choices, start + margin) if lettered else None
    if mention is not None:
        return [mention]
    named = _by_words(answer, choices, start)
    if not named and lettered and (said := _SAID_LETTER.search(answer)):
        place = ord(said[2]) - ord("A")
        if place < len(choices):
            first, last = (start + at for at in said.span(1))
            named = [Mention(choices[place], first, last, start + said.start(2))]
    return [_with_letter(text, mention, choices) for mention in named] if lettered else named


def _by_letter(answer: str, choices: Sequence[str], start: int) -> Mention | None:
    """The option of a letter that is alone or followed by that option's own text."""
    match = _LETTER.fullmatch(answer)
    if match is None or (place := ord(match[1].upper()) - ord("A")) >= len(choices):
        return None
    rest = (match[3] or "").strip(_MARKS).casefold()
    if rest not in ("", choices[place].strip(_MARKS).casefold()) or (rest and not match[2]):
        return None  # "A dog": an article
    return Mention(choices[place], start, start + len(answer), start + match.start(1))


def _by_words(answer: str, choices: Sequence[str], start: int) -> list[Mention]:
    """The options whose words are in the answer as they are; longer ones are looked for first."""
    remaining, mentioned = answer, []
    for choice in sorted(choices, key=len, reverse=True):
        whole = re.compile(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", re.IGNORECASE)
        for match in whole.finditer(remaining):
            mentioned.append(Mention(choice, start + match.start(), start + match.end()))
        remaining = whole.sub(lambda match: " " * len(match[0]), remaining)
    return sorted(mentioned, key=lambda mention: mention.start)


def _with_letter(text: str, mention: Mention, choices: Sequence[str]) -> Mention:
    """A mention together with the option's own letter before it, as in "is (B) dog"."""
    letter = chr(ord("A") + choices.index(mention.choice))
    before = re.search(rf"(?<!\w)\(?({letter})[).:]+\s*\**$", text[: mention.start])
    if mention.letter >= 0 or before is None:
        return mention
    return Mention(mention.choice, before.start(), mention.end, before.start(1))


def form_of(text: str, choices: Sequence[str], *, lettered: bool) -> str:
    """The form of an answer, one of FORMS."""
    named = mentions(text, choices, lettered=lettered)
    if not named:
        return "refusal" if _REFUSAL.search(text.replace("\u2019", "'")) else "other"
    if len({mention.choice for mention in named}) > 1:
        return "several"
    if named[0].letter >= 0:
        return "letter"
    if _TAG.search(text):
        return "tag"
    bare = text.strip(_MARKS).casefold() == named[0].choice.strip(_MARKS).casefold()
    return "option" if bare else "sentence"
