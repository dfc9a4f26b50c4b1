"""Prompt styles: the wording a fine-tune was trained on, where its template does not have it, and
others that self-calibration tries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steering.errors import ModelError


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The wording of a question, and the marks around the answer."""

    name: str
    ask: Callable[[str, Sequence[str]], str]  # question, choices (may be none) -> the prompt's text
    before: str = ""  # the model's turn begins with this
    after: str = ""  # and its answer ends here
    lettered: bool = False  # the options have letters, so that a letter names one


def _lettered(question: str, choices: Sequence[str]) -> str:
    """The question followed by its lettered options, one a line."""
    lines = [f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices)]
    return "\n".join([question, *lines])


def _r1_aqa(question: str, choices: Sequence[str]) -> str:
    """The question as R1-AQA was trained on it. Source: its own evaluation code's prompt."""
    options = f"Please choose the answer from the following options: {list(choices)}. "
    return f"{question} {options * bool(choices)}Output the final answer in <answer> </answer>."


def _option_only(question: str, choices: Sequence[str]) -> str:
    """The lettered options, and the wish for one of them."""
    return _lettered(question, choices) + "\nAnswer with one option only." * bool(choices)


def _listed(question: str, choices: Sequence[str]) -> str:
    """The options in one sentence, without letters."""
    return question + f" Choose one of: {', '.join(choices)}." * bool(choices)


PLAIN = PromptStyle("plain", _lettered, lettered=True)
R1_AQA = PromptStyle("r1_aqa", _r1_aqa, before="<answer>", after="</answer>")
OPTION_ONLY = PromptStyle("option_only", _option_only, lettered=True)
LISTED = PromptStyle("listed", _listed)
STYLES = {style.name: style for style in (PLAIN, R1_AQA, OPTION_ONLY, LISTED)}


def style_of(wanted: str, name: str) -> PromptStyle:
    """The style called `wanted`; `auto` goes by the checkpoint's name. ModelError if unknown."""
    if wanted == "auto":
        folded = name.lower().replace("-", "_")
        return R1_AQA if R1_AQA.name in folded else PLAIN
    if wanted not in STYLES:
        raise ModelError(f"prompt style {wanted!r} is unknown; allowed: auto, {', '.join(STYLES)}")
    return STYLES[wanted]
