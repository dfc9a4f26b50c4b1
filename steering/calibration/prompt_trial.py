"""Trial of prompt styles: the way of asking that a model answers best, by a few items.

A model that hears well may still answer "The speaker seems to..." to one wording of the options and
name one of them when asked in another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from steering.calibration.activations import build_item_prompt, greedy_answer, load_item_clip
from steering.calibration.option_mentions import answered_right
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread
from steering.model.prompt_style import LISTED, OPTION_ONLY, PLAIN
from steering.prefill import prefill

TRIAL_ITEMS = 16
GOOD_ENOUGH = 0.75  # share right in the model's own style: no other is tried
MIN_BETTER_ITEMS = 3  # more than the model's own style has right: fewer are chance


@dataclass(frozen=True, slots=True)
class PromptTrial:
    """The chosen style, and how many of the trial's items each one had right."""

    style: str
    items: int
    right: dict[str, int]  # by style, the model's own first


def try_styles(
    model: AudioModel, items: Sequence[Item], after_each: Callable[[int, int], None]
) -> PromptTrial:
    """Ask some neutral items, unsteered, in the model's own style and, if that is not GOOD_ENOUGH,
    in every other, and choose the one with most right.

    `after_each` is called with the answers given and all answers; an exception from it ends the
    work.
    """
    styles = list(dict.fromkeys((model.prompt_style, PLAIN, OPTION_ONLY, LISTED)))
    neutral = [item for item in items if item.wording in ("", "neutral")][:TRIAL_ITEMS]
    right: dict[str, int] = {}
    with one_thread(model):
        for k, style in enumerate(styles):
            asked = replace(model, prompt_style=style)
            right[style.name] = 0
            for n, item in enumerate(neutral):
                right[style.name] += _is_right(asked, item)
                after_each(k * len(neutral) + n + 1, len(neutral) * len(styles))
            if right[model.prompt_style.name] >= GOOD_ENOUGH * len(neutral):
                break
    own = right[model.prompt_style.name]
    best = max(right, key=lambda name: right[name])  # of equals the first
    chosen = best if right[best] >= own + MIN_BETTER_ITEMS else model.prompt_style.name
    return PromptTrial(chosen, len(neutral), right)


def _is_right(model: AudioModel, item: Item) -> bool:
    heard = prefill(model, build_item_prompt(model, item, load_item_clip(model, item)))
    lettered = model.prompt_style.lettered
    return answered_right(greedy_answer(model, heard), item, lettered=lettered)


def kept_trial(
    file: Path, model: AudioModel, items: Sequence[Item], after_each: Callable[[int, int], None]
) -> PromptTrial:
    """The trial that a file holds, or a new one, which is written there: a calibration that was
    stopped goes on with the same prompts.
    """
    if file.is_file():
        return PromptTrial(**json.loads(file.read_text()))
    trial = try_styles(model, items, after_each)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(asdict(trial)))
    partial.replace(file)
    return trial
