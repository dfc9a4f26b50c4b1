from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steering.calibration.activations import Activations, head_columns
from steering.evaluation.localisation import STRETCHES, localisation_figures
from steering.items import Item, read
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import HEADS, activations, profile_of
from tests.steering.examples import write_items

COUNT = 6
SHARE = 0.25  # of each clip


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Two items a clip; the last ones know no events."""
    read_items = read(write_items(tmp_path, COUNT), tmp_path).items
    return [replace(item, events=((0.0, 0.2),) if i < 4 else ()) for i, item in
            enumerate(read_items)]  # fmt: skip


def looking(model: AudioModel, *, inside: float) -> Activations:
    """All heads look at everything alike, but the profile's put a share inside the events."""
    recorded = activations(model, COUNT)
    event_mass = SHARE * recorded.mass
    columns = head_columns(HEADS, model.num_heads)
    event_mass[:, columns] = inside * recorded.mass[:, columns]
    share = np.array([SHARE] * 4 + [np.nan] * 2, np.float32)
    return replace(recorded, event_mass=event_mass, event_share=share)


@pytest.mark.parametrize("inside", [0.8, 0.3])
def test_the_timeline_is_held_against_the_events(
    grouped: AudioModel, items: list[Item], inside: float
) -> None:
    profile = profile_of(grouped)
    recorded = looking(grouped, inside=inside)
    figures = localisation_figures(grouped, profile, items, recorded, seed=0)
    assert figures is not None
    json.dumps(figures, allow_nan=False)
    assert (figures["items"], figures["clips"]) == (4, 2), "of those that know their events"
    assert figures["event_share"] == SHARE
    assert figures["mass_share"] == pytest.approx(inside)
    assert figures["ratio"] == pytest.approx([inside / SHARE] * 3, abs=1e-3), "every clip is alike"
    assert figures["localises"] == (inside == 0.8)
    assert ("does not localise" in figures["words"]) == (inside != 0.8)
    assert 1 <= figures["random_heads"]["mean"] < figures["ratio"][0]
    assert tuple(figures["best_head"]["head"]) in HEADS
    by_effect = figures["effect_by_time"]
    assert (by_effect["stretches"], by_effect["clips"]) == (STRETCHES, 2)
    assert by_effect["event_share"] == pytest.approx((0.2 / 0.4 + 0.2 / 0.6) / 2, abs=1e-3)
    lead, low, high = by_effect["ratio"]
    assert 0 <= low <= lead <= high


def test_an_event_as_long_as_the_clip_holds_all_of_the_effect(
    grouped: AudioModel, items: list[Item]
) -> None:
    whole = [replace(item, events=((0.0, 9.0),)) for item in items]
    recorded = looking(grouped, inside=0.5)
    figures = localisation_figures(grouped, profile_of(grouped), whole, recorded, seed=0)
    assert figures is not None
    assert figures["effect_by_time"]["effect_share"] == pytest.approx(1)
    assert figures["effect_by_time"]["ratio"] == pytest.approx([1, 1, 1])


def test_without_events_there_is_nothing_to_judge(grouped: AudioModel, items: list[Item]) -> None:
    nowhere = np.full(COUNT, np.nan, np.float32)
    recorded = replace(looking(grouped, inside=0.5), event_share=nowhere)
    assert localisation_figures(grouped, profile_of(grouped), items, recorded, seed=0) is None
