from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steering.calibration import prompt_trial
from steering.calibration.prompt_trial import TRIAL_ITEMS, PromptTrial, kept_trial, try_styles
from steering.items import Item, read
from steering.model.audio_model import AudioModel
from steering.model.prompt_style import LISTED, OPTION_ONLY, PLAIN
from tests.steering.examples import write_items

STYLES = [PLAIN.name, OPTION_ONLY.name, LISTED.name]


@pytest.fixture
def items(tmp_path: Path) -> tuple[Item, ...]:
    return read(write_items(tmp_path, 6), tmp_path).items


def right_from(style: str, item_number: int) -> Callable[[AudioModel, Item], bool]:
    """A model that is right on some items, if asked in a style."""

    def is_right(model: AudioModel, item: Item) -> bool:
        return model.prompt_style.name == style and int(item.id[5:]) < item_number

    return is_right


def test_neutral_items_are_asked_in_every_style(
    untrained: AudioModel, items: tuple[Item, ...]
) -> None:
    reported: list[tuple[int, int]] = []
    trial = try_styles(untrained, items, lambda *counts: reported.append(counts))
    neutral = sum(item.wording == "neutral" for item in items)
    assert trial.items == neutral and list(trial.right) == STYLES
    assert reported == [(n + 1, neutral * len(STYLES)) for n in range(neutral * len(STYLES))]


def test_no_other_style_is_tried_where_the_own_one_does_well(
    untrained: AudioModel, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_trial, "_is_right", right_from(PLAIN.name, 6))
    trial = try_styles(untrained, items, lambda *_: None)
    assert trial == PromptTrial(PLAIN.name, 3, {PLAIN.name: 3})


@pytest.mark.parametrize(("right", "chosen"), [(6, LISTED.name), (4, PLAIN.name)])
def test_another_style_must_be_clearly_better(
    untrained: AudioModel,
    items: tuple[Item, ...],
    monkeypatch: pytest.MonkeyPatch,
    right: int,
    chosen: str,
) -> None:
    monkeypatch.setattr(prompt_trial, "_is_right", right_from(LISTED.name, right))
    trial = try_styles(untrained, items, lambda *_: None)
    assert trial.style == chosen
    assert trial.right == {PLAIN.name: 0, OPTION_ONLY.name: 0, LISTED.name: right // 2}
    assert trial.items <= TRIAL_ITEMS


def test_a_calibration_goes_on_with_the_same_prompts(untrained: AudioModel, tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text(
        '{"style": "listed", "items": 3, "right": {"plain": 0, "listed": 3}}'
    )
    trial = kept_trial(tmp_path / "trial.json", untrained, (), lambda *_: None)
    assert trial == PromptTrial("listed", 3, {"plain": 0, "listed": 3})
