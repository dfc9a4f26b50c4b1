"""Faults planted in the real functions: each is caught by `verify` and before the first request."""

from __future__ import annotations

from pathlib import Path

import pytest

from steering.errors import ModelError
from steering.kv_slots import KVSlots
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.readout import Intervention
from steering.verification.self_test import check_slots, self_test
from steering.verification.verify import verify
from tests.steering import tiny
from tests.steering.verification.planted_faults import FAULTS, Fault

PAGE = Path(__file__).parents[3] / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    """A tiny Qwen2.5-Omni: its heads share keys."""
    folder = tmp_path_factory.mktemp("planted") / "omni"
    return load(str(tiny.save(tiny.qwen2_5_omni, folder)), device="cpu", dtype="float32")


def at_start(model: AudioModel) -> str:
    """What becomes of a start on a device that records its steps."""
    slots = KVSlots(model, 4, 256, Intervention(layers=(1,)), ((1, 2), (0, 1)), rounded=True)
    try:
        tested = self_test(model)
        check_slots(tested.trial, slots)
    except ModelError as error:
        assert "--verify" in str(error)
        return "refused"
    wrong = slots.why_not_recorded or slots.why_not_scored or tested.found_wrong
    return "switched off" if wrong else "not noticed"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_a_planted_fault_is_caught(
    model: AudioModel, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    fault.plant(monkeypatch)
    caught = {finding.name for finding in verify(model) if not finding.ok}
    assert caught == set(fault.caught)
    assert at_start(model) == fault.start


def test_nothing_is_caught_where_nothing_is_planted(model: AudioModel) -> None:
    assert all(finding.ok for finding in verify(model))
    assert at_start(model) == "not noticed"


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    rows = [f"| {fault.name} | {', '.join(fault.caught)} | {fault.start} |" for fault in FAULTS]
    assert not [line for line in rows if line not in page]
