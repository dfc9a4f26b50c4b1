"""A model that answers in a style of its own is calibrated as well as one that says one word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steering import load
from steering.calibration import auto
from steering.calibration.activations import record
from steering.calibration.calibrate import calibrate
from steering.calibration.confirmation import AnswerGenerator
from steering.calibration.option_mentions import FORMS
from steering.calibration.strength_intervals import strength_intervals
from steering.items import read
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.readout import Intervention
from tests.steering.answer_styles import STYLES, speaking, write_items

FEW, MANY, AUTO_ITEMS = 8, 60, 60
PLAIN = "plain"


@pytest.fixture(scope="module")
def demo() -> AudioModel:
    return load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_items(tmp_path_factory.mktemp("few"), FEW)


@pytest.mark.parametrize(
    ("style", "form"),
    [
        ("capitalised", "option"),
        ("sentence", "sentence"),
        ("letter", "letter"),
        ("tags", "tag"),
        ("chatty", "sentence"),
    ],
)
def test_one_token_says_what_the_whole_answer_says(
    demo: AudioModel, few: Path, style: str, form: str
) -> None:
    model, items = speaking(demo, style), read(few, few.parent).items
    recorded = record(model, items)
    assert {FORMS[each] for each in recorded.form} == {form}
    intervention, rows = Intervention((model.num_layers - 1,)), np.arange(FEW)
    strengths = np.array([0.0, 0.6])
    predicted = strength_intervals(model, recorded, intervention, rows).correct_at(
        strengths[:, None], intervention
    )
    generate = AnswerGenerator(model, items)
    generated = generate(recorded, rows, [intervention] * FEW, np.tile(strengths, (FEW, 1))).T
    np.testing.assert_array_equal(predicted, generated)
    np.testing.assert_array_equal(generated[0], recorded.right)
    assert not generated[0].all() and generated[1].sum() > generated[0].sum()


@pytest.mark.slow
def test_every_style_gains_what_the_plain_one_gains(
    demo: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_items(tmp_path / "items", MANY)

    def ordered(out: Path, **_: object) -> Path:
        """Such items in the place of those that `auto` makes, whose options have no fixed order."""
        return write_items(out, AUTO_ITEMS)

    monkeypatch.setattr(auto, "write_items", ordered)

    def by_calibrate(model: AudioModel, style: str) -> Profile:
        return calibrate(model, data, data.parent, tmp_path / style)

    def by_auto(model: AudioModel, style: str) -> Profile:
        cache = tmp_path / "cache" / style
        profile = auto.find_or_make(model, cache, items=AUTO_ITEMS, on_progress=lambda _: None)
        assert isinstance(profile, Profile)
        assert profile.calibration["prompt_trial"]["style"] == PLAIN
        return profile

    ways: list[Callable[[AudioModel, str], Profile]] = [by_calibrate, by_auto]
    for make in ways:
        gains = {}
        for style in (PLAIN, *(STYLES if make is by_calibrate else ("sentence",))):
            profile = make(demo if style == PLAIN else speaking(demo, style), style)
            generated = profile.held_out["generated"]
            assert profile.refusal is None, style
            adaptive = generated["adaptive"]
            assert abs(adaptive["predicted_percent"] - adaptive["generated_percent"]) <= 3, style
            gains[style] = profile.held_out["gain_balanced"][0]
            really = adaptive["generated_percent"] - generated["bare"]["generated_percent"]
            assert abs(really - gains[PLAIN]) <= 2, (style, really, gains)
        assert gains[PLAIN] > 5
