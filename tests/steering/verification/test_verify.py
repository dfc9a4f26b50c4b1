"""Every check is green on every family, and leaves the model as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steering.kv_slots import KVSlots
from steering.model import families
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.verification.findings import FLOORS, MOST, Finding, distance, tolerance
from steering.verification.self_test import check_slots, self_test
from steering.verification.verify import verify
from tests.steering import tiny
from tests.steering.model.added_family import AUDIO_FLAMINGO_3, audio_flamingo_3

NAMES = ["prompt ids", "encoder", "logits", "taps", "twin", "kept twin"]
NAMES += ["cut silence", "one pass", "decode", "live score", "rows", "recorded step"]
NAMES += ["live score", "steering"]  # of a recorded step too
CHECKPOINTS = {**tiny.WHOLE, "r1_aqa": tiny.qwen2_audio, "audioflamingo3": audio_flamingo_3}
CASES = [(name, "float32") for name in CHECKPOINTS]
CASES += [(name, "bfloat16") for name in tiny.WHOLE] + [("qwen2_audio", "float16")]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_check_is_green(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families.FAMILIES, AUDIO_FLAMINGO_3.name, AUDIO_FLAMINGO_3)
    folder = tiny.save(CHECKPOINTS[name], tmp_path / name)
    model = load(str(folder), device="cpu", dtype=dtype)
    findings = list(verify(model))
    assert [finding.name for finding in findings] == NAMES
    assert not [str(finding) for finding in findings if not finding.ok]
    slots = KVSlots(model, 4, 256, None, rounded=True)
    tested = self_test(model)
    check_slots(tested.trial, slots)
    assert (slots.free_slots, slots.why_not_recorded, tested.found_wrong) == (4, "", {})


def hooks_of(model: AudioModel) -> list[list[object]]:
    """The hooks of all modules of a model."""
    modules = list(model.network.modules())
    return [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in modules]


def test_the_model_is_as_it_was(untrained: AudioModel) -> None:
    kernel = untrained.decoder.config._attn_implementation
    before = {name: weight.clone() for name, weight in untrained.network.named_parameters()}
    hooks = hooks_of(untrained)  # other tests have their own there
    list(verify(untrained))
    assert untrained.decoder.config._attn_implementation == kernel
    assert hooks_of(untrained) == hooks
    assert all(torch.equal(w, before[name]) for name, w in untrained.network.named_parameters())


@pytest.mark.parametrize(("rows", "tokens"), [(1, 256), (2, 90), (4, 64)])
def test_slots_of_any_size_are_checked_and_left_free(
    untrained: AudioModel, rows: int, tokens: int
) -> None:
    slots = KVSlots(untrained, rows, tokens, None, rounded=True)
    check_slots(self_test(untrained).trial, slots)
    assert slots.free_slots == rows


def test_a_model_that_transformers_can_not_run_is_one_finding(untrained: AudioModel) -> None:
    def broken(**inputs: object) -> object:
        raise RuntimeError("no kernel for this card")

    (finding,) = verify(replace(untrained, network=_Network(untrained.network, broken)))
    assert not finding.ok
    assert "no kernel for this card" in str(finding)


class _Network:
    """A network whose own pass is another one."""

    def __init__(self, network: object, forward: object) -> None:
        self.network, self.forward = network, forward

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)

    def __call__(self, **inputs: object) -> object:
        return self.forward(**inputs)  # type: ignore[operator]


# ---- distances


def test_a_distance_is_the_worst_row_s_and_what_is_not_finite_is_never_right() -> None:
    theirs = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    ours = torch.tensor([[3.0, 4.5], [0.0, 0.0], [1.0, 0.0]])
    assert distance(ours, theirs) == pytest.approx(0.1)
    assert distance(theirs, theirs) == 0
    for wrong in (torch.nan, torch.inf):
        assert not Finding("x", distance(theirs * wrong, theirs), MOST, "").ok
    with pytest.raises(ValueError, match="shape"):
        distance(ours[:2], theirs)


@pytest.mark.parametrize("dtype", FLOORS)
def test_what_is_allowed_grows_with_rounding(dtype: torch.dtype) -> None:
    assert tolerance(dtype) == tolerance(dtype, FLOORS[dtype] / 10) == FLOORS[dtype]
    assert tolerance(dtype, 0.06) == pytest.approx(0.3)
    assert tolerance(dtype, 0.2) == tolerance(dtype, float("inf")) == MOST
    assert tolerance(dtype, 0.4) == pytest.approx(0.8)
