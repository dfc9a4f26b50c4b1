from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steering.attention.taps import Head
from steering.calibration import activations as activations_module
from steering.calibration import collecting, confirmation
from steering.calibration.activations import ActivationRow, Activations, head_columns
from steering.calibration.assembly import verdicts
from steering.calibration.calibrate import calibrate, fit_profile
from steering.calibration.data_checks import MIN_ITEMS
from steering.calibration.decisive_token import MAX_RIGHT
from steering.calibration.search import (
    FOLDS,
    STRENGTHS,
    FittedSettings,
    Search,
    folds,
    nearest,
    smooth,
)
from steering.errors import DataError
from steering.generation import Sampling
from steering.items import DataSet, Item
from steering.measures import auroc_against_silence
from steering.meters.waveform import METERS
from steering.model.audio_model import AudioModel
from steering.profile import load
from steering.readout import Intervention, logits
from tests.steering.examples import write_items

ITEMS = 120
PLANTED: tuple[Head, ...] = ((5, 3), (2, 6), (6, 0), (5, 1))  # they listen
DEAF: Head = (1, 1)  # knows the answer too, but looks the same at silence


def items() -> tuple[Item, ...]:
    """Two items a clip, neutral and conflict in turn, every cue."""
    return tuple(
        Item(
            id=f"{i}",
            audio=Path(f"{i // 2}.wav"),
            question="Which sound is this?",
            choices=("dog", "cow"),
            answer="dog",
            task="sound",
            wording=("neutral", "conflict")[i % 2],
            cue=("weak", "medium", "strong")[i // 2 % 3] if i % 2 else "",
            record={},
        )
        for i in range(ITEMS)
    )


def dataset() -> DataSet:
    return DataSet(items(), "00ff", "items.json")


def unit(rows: torch.Tensor) -> NDArray[np.float32]:
    unit_rows: NDArray[np.float32] = (rows / rows.norm(dim=-1, keepdim=True)).numpy()
    return unit_rows


def activations(model: AudioModel, *, helps: bool) -> Activations:
    """Neutral items are right, half of the conflicts wrong; the planted heads see which.

    The last layer's difference turns a wrong answer into the right one and, in one of twelve, a
    right one into a wrong one; every other layer's leads astray. With `helps` false all layers hold
    noise, and so do the heads.
    """
    rng = np.random.default_rng(4)
    right = np.array([i % 2 == 0 or rng.random() < 0.5 for i in range(ITEMS)])
    answer, wrong, other = rng.choice(700, (3, ITEMS)) + np.array([[0], [3], [7]])
    words = unit(model.network.lm_head.weight)
    token = np.where(right, answer, wrong)
    final = 10 * words[token] + 0.1 * rng.standard_normal((ITEMS, model.hidden_size))
    differences = rng.standard_normal((ITEMS, model.num_layers, model.hidden_size))
    silent = rng.uniform(0.0, 0.2, (ITEMS, model.num_layers * model.num_heads))
    mass = rng.uniform(0.25, 0.45, silent.shape)
    meters = rng.standard_normal((ITEMS, len(METERS)))
    meters[:, 0] += right  # the level knows a little, whatever the heads know
    if helps:
        differences += 40 * words[other][:, None]
        hurt = right & (rng.random(ITEMS) < 1 / 12)
        differences[:, -1] = 30 * words[np.where(hurt, wrong, answer)]
        for n, column in enumerate(head_columns(PLANTED, model.num_heads)):
            noise = 0.02 * (n + 1) * rng.standard_normal(ITEMS)
            mass[:, column] = 0.3 + 0.4 * right + noise
        column = head_columns([DEAF], model.num_heads)[0]
        mass[:, column] = silent[:, column] = 0.3 + 0.4 * right
    return Activations(
        mass=mass.astype(np.float32),
        silent_mass=silent.astype(np.float32),
        differences=differences.astype(np.float32),
        final=final.astype(np.float32),
        deciding=final.astype(np.float32),
        right_tokens=np.pad(answer[:, None], ((0, 0), (0, MAX_RIGHT - 1)), constant_values=-1),
        right=right,
        form=np.zeros(ITEMS, np.int64),
        top_probability=np.ones(ITEMS, np.float32),
        exact_differences=differences.astype(np.float32),
        exact_mass=silent.astype(np.float32),
        seconds=np.linspace(0.3, 25, ITEMS).astype(np.float32),
        meters=meters.astype(np.float32),
        event_mass=(mass / 2).astype(np.float32),
        event_share=np.full(ITEMS, 0.5, np.float32),
    )


# ---- the whole of it


def test_planted_heads_and_a_planted_direction_are_found(untrained: AudioModel) -> None:
    planted_activations = activations(untrained, helps=True)
    profile = fit_profile(untrained, dataset(), planted_activations)

    assert set(profile.heads) == set(PLANTED), "and not the head that is deaf"
    assert profile.heads[0] == PLANTED[0], "the clearest first"
    assert min(profile.correlations) > 0.8
    assert list(profile.correlations) == sorted(profile.correlations, reverse=True)
    assert profile.intervention.layers == (untrained.num_layers - 1,)
    torch.testing.assert_close(
        profile.direction, torch.from_numpy(planted_activations.differences[:, -1]).mean(0)
    )

    accuracy = profile.held_out["accuracy_percent"]
    assert accuracy["bare"]["neutral"] == 100
    assert accuracy["bare"]["conflict"] == pytest.approx(50, abs=12)
    assert accuracy["adaptive"]["all"] > 97
    assert accuracy["adaptive"]["all"] > accuracy["fixed"]["all"] > accuracy["bare"]["all"]
    gain, low, high = profile.held_out["gain_balanced"]
    assert 15 < low <= gain <= high
    repaired, broken = profile.held_out["repaired_broken"]
    assert repaired > 20 and broken <= 2

    heard, deaf = profile.gate.strength(0.7), profile.gate.strength(0.3)
    assert deaf > 0.3 and heard < deaf / 8, "a listening model is left alone"
    assert profile.verdicts.of(0.72) == "listening"
    assert profile.verdicts.of(0.2) == "not_listening"

    figures = profile.calibration["meters"]
    assert figures["telling_items"] == ITEMS / 2
    assert figures["heads"] > 0.95 > figures["by_meter"]["peak_dbfs"] > 0.6
    assert profile.warning is None, "the heads know more than any meter"
    meters = planted_activations.meters
    assert profile.meter_gate is not None and meters is not None
    assert 0 < profile.meter_gate.gate.max_strength <= 2
    by_meters = profile.meter_gate.strengths(meters)
    right = planted_activations.right
    assert by_meters[right].mean() < by_meters[~right].mean()


@pytest.mark.parametrize("better", [False, True])
def test_silence_as_long_as_the_clip_is_taken_only_if_it_gains_more(
    untrained: AudioModel, better: bool
) -> None:
    recorded = activations(untrained, helps=True)
    if better:
        noise = activations(untrained, helps=False).differences
        recorded = replace(recorded, differences=noise)
    profile = fit_profile(untrained, dataset(), recorded)
    assert profile.silence == ("exact" if better else "ladder")
    assert bool(profile.ladder.steps) == (not better)
    figures = profile.calibration["silence"]
    gain, low, high = figures["gain_of_exact"]
    assert low <= gain <= high and (low > 0) == better
    assert profile.held_out["gain_balanced"][1] > 0, "it is fitted on what it is served with"
    cosine = figures["cosine_with_exact"]
    assert sum(band["items"] for band in cosine) == ITEMS
    assert all((band["lowest"] > 0.999) == (not better) for band in cosine)
    assert [band["from_seconds"] for band in cosine] == [0, 0.5, 1, 2, 5, 10, 20]


def test_what_a_profile_says_of_its_data(untrained: AudioModel) -> None:
    planted_activations = activations(untrained, helps=True)
    assert planted_activations.meters is not None
    planted_activations.meters[:, 0] = 10 * planted_activations.right
    profile = fit_profile(untrained, dataset(), planted_activations)
    assert "the clip's peak level tells right from wrong" in str(profile.warning)
    scores = planted_activations.scores(profile.heads, untrained.num_heads)
    assert profile.fingerprint == untrained.fingerprint
    assert profile.name.endswith("00ff"), "named for its data"
    assert profile.calibration["items"] == ITEMS
    assert profile.calibration["sha256"] == "00ff"
    assert profile.calibration["settings_tried"] > 1000
    assert profile.calibration["calibrated_on"] == "user data"
    assert "within wording" in profile.calibration["heads_optimise"]
    chance = profile.held_out["nulls"]
    among = chance["random_heads"]["strata"]["all"]
    assert among["auroc"] > 0.95 > 0.8 > among["random_mean"] and among["share_beaten"] >= 0.75
    assert chance["random_layers"]["random_mean_percent"] < 90, "other layers lead astray"
    assert chance["halves"]["shared"] >= 3
    assert {"python", "torch", "transformers", "allears"} <= profile.versions.keys()
    assert profile.quantiles[[0, 50, 100]] == pytest.approx(
        [scores.min(), np.median(scores), scores.max()]
    )
    own = planted_activations.mass[:, head_columns(profile.heads, untrained.num_heads)]
    np.testing.assert_allclose(profile.head_mean, own.mean(0), rtol=1e-5)
    np.testing.assert_allclose(profile.head_std, own.std(0), rtol=1e-5)
    json.dumps(dict(profile.held_out), allow_nan=False)
    again = fit_profile(untrained, dataset(), planted_activations)
    assert (again.heads, again.intervention, again.gate) == (
        profile.heads,
        profile.intervention,
        profile.gate,
    )
    assert again.held_out == profile.held_out


def test_where_nothing_helps_steering_is_refused(untrained: AudioModel) -> None:
    profile = fit_profile(untrained, dataset(), activations(untrained, helps=False))
    assert profile.held_out["gain_balanced"][1] <= 0
    assert (profile.fixed_strength, profile.gate.max_strength) == (0.0, 0.0)
    assert profile.max_strength == 0.0
    assert profile.refusal and "outside the fold" in profile.refusal
    assert profile.gate.strength(0.0) == 0.0
    assert profile.meter_gate is not None
    assert profile.meter_gate.gate.max_strength == 0, "as the score's"
    assert profile.heads, "it can still be heard whether the model listens"


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_too_few_clips_to_hold_any_out(untrained: AudioModel, clips: int) -> None:
    few = tuple(
        replace(item, audio=Path(f"{i * clips // ITEMS}.wav")) for i, item in enumerate(items())
    )
    data = DataSet(few, "00ff", "items.json")
    profile = fit_profile(untrained, data, activations(untrained, helps=True))
    assert (profile.refusal is None) == bool(profile.held_out)
    assert profile.refusal is None or "outside the fold" in profile.refusal
    assert (profile.max_strength > 0) == (clips > 1)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_refused(untrained: AudioModel, right: bool) -> None:
    alike = replace(activations(untrained, helps=False), right=np.full(ITEMS, right))
    with pytest.raises(DataError, match="right" if right else "wrong"):
        fit_profile(untrained, dataset(), alike)


def test_a_profile_is_saved_whole(
    untrained: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_items(tmp_path, ITEMS)
    planted_activations = activations(untrained, helps=True)

    def planted(*_: object) -> Iterator[tuple[int, ActivationRow]]:
        for i in range(ITEMS):
            yield i, tuple(getattr(planted_activations, f.name)[i] for f in fields(Activations))

    monkeypatch.setattr(collecting, "record_items", planted)
    monkeypatch.setattr(confirmation, "SAMPLE_ITEMS", 4)
    monkeypatch.setattr(activations_module, "ANSWER", Sampling(max_tokens=2))
    profile = calibrate(untrained, data, tmp_path, tmp_path / "out" / "mine")
    saved = load(tmp_path / "out" / "mine")
    assert (saved.name, saved.heads, saved.intervention) == (
        profile.name,
        profile.heads,
        profile.intervention,
    )
    assert saved.held_out["generated"]["items"] == 4, "confirmed by answers in full"
    assert saved.confirmed == saved.held_out["generated"]["words"]


def test_what_is_wrong_with_the_data_is_said_before_any_pass(
    untrained: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Iterator[tuple[int, ActivationRow]]:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(collecting, "record_items", never)
    few = write_items(tmp_path, MIN_ITEMS - 1)
    with pytest.raises(DataError, match=f"{MIN_ITEMS - 1} items.*at least {MIN_ITEMS}"):
        calibrate(untrained, few, tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="gone"):
        calibrate(untrained, tmp_path / "gone.json", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- its parts


@pytest.mark.parametrize(
    "intervention", [Intervention((7,)), Intervention((0, 7), scale="raw")], ids=str
)
def test_every_strength_is_tried_on_every_item(
    untrained: AudioModel, intervention: Intervention
) -> None:
    planted_activations = activations(untrained, helps=True)
    correct = Search(untrained, planted_activations, items()).correct_at(intervention)
    assert correct.shape == (len(STRENGTHS), ITEMS)
    final = torch.from_numpy(planted_activations.final)
    right_token = planted_activations.right_tokens[:, 0]
    with torch.inference_mode():
        bare = logits(untrained, final).argmax(-1).numpy() == right_token
        np.testing.assert_array_equal(correct[0], bare)
        direction = torch.from_numpy(
            planted_activations.differences[:, list(intervention.layers)].mean(1)
        )
        for at in (1, 10, 40):
            strengths = torch.full((ITEMS,), float(STRENGTHS[at]))
            tokens = logits(untrained, final, direction, strengths, intervention).argmax(-1).numpy()
            np.testing.assert_array_equal(correct[at], tokens == right_token)


def test_a_clip_is_never_on_both_sides_of_a_fold() -> None:
    clips = np.array([f"{i // 3}.wav" for i in range(90)])
    fold = folds(clips)
    assert all(len(set(fold[clips == clip])) == 1 for clip in set(clips))
    assert np.bincount(fold, minlength=FOLDS).tolist() == [18] * FOLDS
    np.testing.assert_array_equal(fold, folds(clips))
    order = np.random.default_rng(0).permutation(90)
    np.testing.assert_array_equal(folds(clips[order]), fold[order])


def test_what_is_held_out_was_not_fitted_on(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(untrained, activations(untrained, helps=True), items())
    fitted: list[set[int]] = []
    fit = search.fit

    def watched(rows: NDArray[np.int64]) -> FittedSettings:
        fitted.append(set(rows.tolist()))
        return fit(rows)

    monkeypatch.setattr(search, "fit", watched)
    search.held_out()
    outside = [set(range(ITEMS)) - inside for inside in fitted]
    assert len(outside) == FOLDS
    assert set().union(*outside) == set(range(ITEMS))
    for held, inside in zip(outside, fitted, strict=True):
        assert not {i // 2 for i in held} & {i // 2 for i in inside}, "items of one clip"


def test_the_gate_reads_the_effect_only_where_that_gains_more(untrained: AudioModel) -> None:
    planted = activations(untrained, helps=True)
    noise = 0.3 * np.random.default_rng(6).standard_normal(planted.mass.shape)
    blurred = replace(planted, mass=(planted.mass + noise).astype(np.float32))
    effects = np.where(planted.right, 3.0, 0.02)
    for recorded, bits, reads in (
        (planted, effects, "score"),  # which tells as well
        (blurred, effects, "effect"),
        (blurred, np.full(ITEMS, 1.0), "score"),
    ):
        search = Search(untrained, recorded, items())
        search._effects = bits
        outside = search.held_out()
        assert outside.reads == reads
        assert (outside.gain_of_effect[1] > 0) == (reads == "effect")
        assert {fit.gates["effect"].reads for fit in outside.fits} == {"effect"}
        figures = search.held_out_figures(outside)
        assert figures["gain_of_effect_gate"] == list(outside.gain_of_effect)
        tried = (
            outside.fits[0].gates[outside.reads].strengths(search.readings(outside.reads, PLANTED))
        )
        assert np.ptp(tried) > 0 or reads == "score"
        if reads == "effect":  # as good as what it reads: all that were wrong are steered
            assert outside.adaptive.mean() > 0.97
            assert (outside.strengths[~planted.right] > 0).all()


def test_of_equal_gates_the_one_that_steers_least_is_taken(untrained: AudioModel) -> None:
    search = Search(untrained, activations(untrained, helps=True), items())
    scores = np.linspace(0, 1, ITEMS).astype(np.float32)
    right = np.ones((len(STRENGTHS), ITEMS), bool)
    gate, _ = search.best_gate(right, scores)
    assert gate.max_strength == 0, "bare is as good as anything"
    right[0] = False  # any steering at all is enough
    gate, worth = search.best_gate(right, scores)
    assert gate.strengths(scores).min() >= STRENGTHS[1] / 2
    assert worth[0] == 1


def test_against_compares_clips_with_their_silence() -> None:
    heard, silent = np.array([0.5, 0.2], np.float32), np.array([0.1, 0.3], np.float32)
    assert auroc_against_silence(heard, silent) == pytest.approx(3 / 4)


def test_the_nearest_strength_tried() -> None:
    indices = nearest(np.array([0.0, 0.024, 0.026, 1.0, 1.99, 7.0]))
    assert STRENGTHS[indices].tolist() == [0.0, 0.0, 0.05, 1.0, 2.0, 2.0]


def test_smoothing_is_a_mean_of_three() -> None:
    assert smooth(np.array([0.0, 3.0, 0.0, 0.0])) == pytest.approx([1.0, 1.0, 1.0, 0.0])


def test_verdicts_part_right_from_wrong() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9] * 10, np.float32)
    thresholds = verdicts(scores, scores > 0.5)
    assert 0.4 < thresholds.listening <= 0.6
    assert thresholds.partly == pytest.approx(0.25)
