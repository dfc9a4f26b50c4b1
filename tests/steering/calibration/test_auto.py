"""Profiles that a model gets from synthetic items, and the cache where they stay."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from steering import load
from steering.calibration import auto
from steering.calibration.assembly import SYNTHETIC
from steering.calibration.auto import (
    NoProfile,
    find_or_make,
    is_wanted,
    load_cached,
    profile_folder,
)
from steering.calibration.calibrate import calibrate
from steering.calibration.prompt_trial import PromptTrial
from steering.calibration.specialists import CORRECTNESS, EFFECT, Criterion
from steering.errors import DataError, ProfileError
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO_WEIGHTS
from steering.model.prompt_style import R1_AQA, STYLES
from steering.profile import SCHEMA_VERSION, Profile, save
from steering.profile import load as load_profile
from steering.synthetic.data import write_items

ITEMS = 60


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    """The embedded model in another folder: one for which no profile is shipped."""
    folder = tmp_path_factory.mktemp("copied") / "model"
    shutil.copytree(DEMO_WEIGHTS, folder)
    return load(str(folder), device="cpu", dtype="float32")


class Stopped(Exception):
    """What a server raises to end the work."""


def stop_at(words: str) -> Callable[[str], None]:
    def on_progress(text: str) -> None:
        if words in text:
            raise Stopped

    return on_progress


@pytest.fixture(scope="module")
def made(copied: AudioModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A cache in which a profile was made after three stops, and what was said at last."""
    cache = tmp_path_factory.mktemp("cache")
    folder = profile_folder(cache, copied, ITEMS)
    for words in ("3 of 20 clips", "7 of 40 items", f"45 of {ITEMS} items"):
        with pytest.raises(Stopped):
            find_or_make(copied, cache, items=ITEMS, on_progress=stop_at(words))
        assert load_cached(folder, copied) is None, "nothing half"
    messages: list[str] = []
    assert isinstance(
        find_or_make(copied, cache, items=ITEMS, on_progress=messages.append), Profile
    )
    return cache, messages


@pytest.fixture
def cache(made: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A cache of one's own that holds the profile."""
    shutil.copytree(made[0], tmp_path / "cache")
    return tmp_path / "cache"


def never(text: str) -> None:
    raise AssertionError(f"nothing was to be done, but: {text}")


# ---- made


def test_a_profile_is_made_marked_and_kept(
    copied: AudioModel, made: tuple[Path, list[str]]
) -> None:
    cache, messages = made
    assert messages[0] == f"calibrating: 45 of {ITEMS} items", "nothing is done again"
    profile = find_or_make(copied, cache, items=ITEMS, on_progress=never)
    assert isinstance(profile, Profile)
    assert profile.calibrated_on == "synthetic"
    assert profile.fingerprint == copied.fingerprint
    folder = profile_folder(cache, copied, ITEMS)
    record = json.loads((folder / "profile" / "profile.json").read_text())
    assert record["calibrated_on"] == "synthetic"
    assert record["calibration"]["items"] == ITEMS, "of 40 items chance makes as much"
    kept = {path.name for path in folder.iterdir()} - {"lock"}
    assert kept == {"profile"}, "neither sounds nor evidence"
    assert load_profile(folder / "profile").heads == profile.heads


def test_an_entry_belongs_to_one_checkpoint_dtype_style_schema_and_size(copied: AudioModel) -> None:
    cache = Path("cache")
    folder = profile_folder(cache, copied, 40)
    assert folder.parent == cache / "profiles"
    assert f"schema{SCHEMA_VERSION}" in folder.name
    others = [
        profile_folder(cache, copied, 41),
        profile_folder(cache, replace(copied, fingerprint="f00d"), 40),
        profile_folder(cache, replace(copied, dtype=torch.bfloat16), 40),
        profile_folder(cache, replace(copied, prompt_style=R1_AQA), 40),
    ]
    assert len({folder, *others}) == 5


def test_when_a_profile_is_made_by_itself(copied: AudioModel) -> None:
    demo = replace(copied, name="demo")
    assert is_wanted("auto", demo)
    assert is_wanted(None, copied)
    assert not is_wanted(None, demo), "it has a shipped one"
    assert not is_wanted("none", copied)
    assert not is_wanted("some/folder", copied)


# ---- what a stopped run left


def test_evidence_of_another_version_is_recorded_anew(copied: AudioModel, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        find_or_make(copied, tmp_path, items=40, on_progress=stop_at("2 of 40 items"))
    folder = profile_folder(tmp_path, copied, 40)
    key = folder / "draft.evidence" / "key.json"
    key.write_text(json.dumps(json.loads(key.read_text()) | {"torch": "1.0"}))
    said: list[str] = []

    def on_progress(text: str) -> None:
        said.append(text)
        stop_at("2 of 40 items")(text)

    with pytest.raises(Stopped):
        find_or_make(copied, tmp_path, items=40, on_progress=on_progress)
    assert any(re.match(r"calibrating again: .*torch '1.0'", text) for text in said)
    assert "calibrating: 0 of 40 items" in said
    assert not (folder / "refusal.json").exists()


def test_a_full_disk_is_no_refusal(
    copied: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(auto, "kept_trial", lambda *_: PromptTrial("plain", 16, {}))
    with pytest.raises(ProfileError, match=r"No space left on device.*--cache"):
        find_or_make(copied, tmp_path, items=40, on_progress=lambda _: None)
    assert not list(tmp_path.rglob("refusal.json"))


# ---- more items, while the heads are no better than chance


def test_a_profile_that_grew_is_that_of_all_its_items(
    copied: AudioModel, made: tuple[Path, list[str]], tmp_path: Path
) -> None:
    data = write_items(tmp_path / "items", split="calibration", count=ITEMS, seed=auto._SEED)
    grown = profile_folder(made[0], copied, ITEMS) / "profile"
    trial = PromptTrial(**load_profile(grown).calibration["prompt_trial"])
    asked = replace(copied, prompt_style=STYLES[trial.style])
    by_answers = load_profile(grown).criterion == CORRECTNESS
    calibrate(
        asked,
        data,
        data.parent,
        tmp_path / "once",
        calibrated_on=SYNTHETIC,
        trial=trial,
        criterion=CORRECTNESS if by_answers else EFFECT,
    )
    for name in ("profile.json", "profile.safetensors"):
        assert (grown / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


@pytest.mark.parametrize(("most", "tried"), [(40, [40]), (60, [40, 60]), (400, [100, 200, 400])])
def test_a_quarter_of_the_items_is_tried_first(most: int, tried: list[int]) -> None:
    assert list(auto._counts(most)) == tried


# ---- by effect, where right answers say too little


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ((4.0, 3.0), "effect"),
        ((4.0, 5.0), "correctness"),
        ((None, 5.0), "correctness"),
        ((4.0, None), "effect"),
        ((0.0, 0.0), "effect"),
    ],
)
def test_where_right_answers_choose_no_heads_the_criterion_with_more_gain_does(
    made: tuple[Path, list[str]],
    copied: AudioModel,
    gains: tuple[float | None, float | None],
    chosen: str,
    tmp_path: Path,
) -> None:
    profile = load_profile(profile_folder(made[0], copied, ITEMS) / "profile")
    by = dict(zip(("effect", "correctness"), gains, strict=True))

    def fit(criterion: Criterion) -> Profile:
        if by[criterion] is None:
            raise DataError("no heads can be chosen")
        held_out = {"gain_balanced": [by[criterion]]}
        save(replace(profile, name=criterion, refusal=None, held_out=held_out), draft)
        return load_profile(draft)

    draft = tmp_path / "draft"
    assert auto._fit_by_either(fit, draft, lambda _: None).name == chosen
    assert load_profile(draft).name == chosen


def test_where_neither_criterion_chooses_heads_the_reason_is_said(tmp_path: Path) -> None:
    def fit(criterion: Criterion) -> Profile:
        raise DataError(f"nothing by {criterion}")

    with pytest.raises(DataError, match="nothing by correctness"):
        auto._fit_by_either(fit, tmp_path / "draft", lambda _: None)


# ---- out of reach


def test_a_large_model_on_a_cpu_is_served_bare_at_once_or_with_a_profile_made_elsewhere(
    copied: AudioModel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auto.out_of_reach(copied) is None
    monkeypatch.setattr(auto, "MOST_PARAMETERS_ON_A_CPU", 1_000_000)
    found = find_or_make(copied, tmp_path / "empty", items=ITEMS, on_progress=never)
    assert isinstance(found, NoProfile)
    for words in ("CPU", "allears calibrate", "allears profile push", "allears profile pull"):
        assert words in found.reason
    assert str(copied.name) not in found.reason, "no path of the server"
    assert not (tmp_path / "empty").exists()
    named = auto.out_of_reach(replace(copied, name="Qwen/Qwen2-Audio-7B-Instruct"))
    assert named is not None and "--model Qwen/Qwen2-Audio-7B-Instruct" in named
    assert auto.out_of_reach(replace(copied, device=torch.device("cuda"))) is None
    kept = find_or_make(copied, cache, items=ITEMS, on_progress=never)
    assert isinstance(kept, Profile)


# ---- two at once


def test_while_another_works_there_one_waits_and_may_stop(copied: AudioModel, cache: Path) -> None:
    lock = FileLock(profile_folder(cache, copied, ITEMS) / "lock")
    with lock, pytest.raises(Stopped):
        find_or_make(copied, cache, items=ITEMS, on_progress=stop_at("another server"))
    assert isinstance(find_or_make(copied, cache, items=ITEMS, on_progress=never), Profile)


# ---- damaged, and in the way


def test_a_damaged_profile_is_made_again_and_that_is_said(
    copied: AudioModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = profile_folder(cache, copied, ITEMS)
    (folder / "profile" / "profile.safetensors").write_bytes(b"{")
    monkeypatch.setattr(auto, "_make_profile", lambda *_: NoProfile("made again"))
    messages: list[str] = []
    assert find_or_make(copied, cache, items=ITEMS, on_progress=messages.append) == NoProfile(
        "made again"
    )
    assert "calibrating again" in messages[0] and "no usable profile" in messages[0]
    assert not (folder / "profile").exists()


def test_a_damaged_refusal_is_made_again(
    copied: AudioModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (profile_folder(cache, copied, ITEMS) / "refusal.json").write_text("[]")
    monkeypatch.setattr(auto, "_make_profile", lambda *_: NoProfile("made again"))
    messages: list[str] = []
    assert find_or_make(copied, cache, items=ITEMS, on_progress=messages.append) == NoProfile(
        "made again"
    )
    assert "refusal.json is damaged" in messages[0]


def test_a_profile_of_another_model_in_the_entry_is_made_again(
    copied: AudioModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = profile_folder(cache, copied, ITEMS) / "profile" / "profile.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "f00d"}))
    monkeypatch.setattr(auto, "_make_profile", lambda *_: NoProfile("made again"))
    messages: list[str] = []
    find_or_make(copied, cache, items=ITEMS, on_progress=messages.append)
    assert "f00d" in messages[0]


def test_a_cache_that_can_not_be_written_says_the_way_out(
    copied: AudioModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProfileError, match="--cache"):
        find_or_make(copied, tmp_path / "file", items=ITEMS, on_progress=never)
