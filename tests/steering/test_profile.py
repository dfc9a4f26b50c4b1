from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from steering import profile as profiles
from steering.errors import ProfileError
from steering.heads import Verdicts
from steering.meters.regression import MeterGate, MeterRegression
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO
from steering.model.prompt_style import STYLES
from steering.profile import Profile, asked_as_fitted, check_fits, find, load, save
from steering.readout import Intervention
from steering.strength import Gate


@pytest.fixture
def profile(untrained: AudioModel) -> Profile:
    return Profile(
        name="mine",
        model=untrained.name,
        revision="abc123",
        fingerprint=untrained.fingerprint,
        family=untrained.family.name,
        heads=((5, 3), (0, 7)),
        correlations=(0.51, 0.4242),
        intervention=Intervention(
            layers=(4, 7), pool="sum", scale="raw", tokens="first", keep_norm=True
        ),
        gate=Gate(1.7, 0.42, 0.03),
        fixed_strength=0.85,
        verdicts=Verdicts(0.2, 0.6),
        calibration={"items": 400, "sha256": "00ff"},
        held_out={"gain": [6.2, 3.0, 9.4]},
        versions={"torch": "2"},
        direction=torch.randn(untrained.hidden_size),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32) ** 2,
        head_mean=np.array([0.3, 0.4], np.float32),
        head_std=np.array([0.1, 0.05], np.float32),
        meter_gate=MeterGate(
            MeterRegression((-20.5,) * 6, (3.0,) * 6, (0.1,) * 6, -1.0), Gate(1.1, 0.3, 0.5)
        ),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---- saved and loaded


def test_a_profile_comes_back_as_it_was(profile: Profile, tmp_path: Path) -> None:
    save(profile, tmp_path / "deep" / "mine")
    loaded = load(tmp_path / "deep" / "mine")
    for field in fields(Profile):
        before, after = getattr(profile, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after), field.name
        elif isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype
        else:
            assert before == after, field.name


def test_an_older_profile_has_no_gate_of_meters(profile: Profile, tmp_path: Path) -> None:
    save(profile, tmp_path / "mine")
    change_record(lambda record: record.pop("meter_gate"))(tmp_path / "mine")
    assert load(tmp_path / "mine").meter_gate is None


def test_what_is_doubtful_about_the_heads_is_one_warning(profile: Profile) -> None:
    doubts = {"head_choice": {"warning": "by chance"}, "meters": {"warning": "a volume meter"}}
    assert replace(profile, calibration=doubts).warning == "by chance; a volume meter"
    assert replace(profile, calibration={"meters": {}}).warning is None


def test_saving_what_was_loaded_gives_the_same_bytes(profile: Profile, tmp_path: Path) -> None:
    save(profile, tmp_path / "one")
    save(load(tmp_path / "one"), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {"profile.json", "profile.safetensors"}


def test_whoever_may_read_one_file_may_read_the_other(profile: Profile, tmp_path: Path) -> None:
    """One user calibrates, another one serves."""
    save(profile, tmp_path / "saved")
    modes = {file.stat().st_mode for file in (tmp_path / "saved").iterdir()}
    (tmp_path / "any").touch()
    assert modes == {(tmp_path / "any").stat().st_mode}, "as the umask says"


def test_the_record_is_for_people_and_programs(profile: Profile, tmp_path: Path) -> None:
    save(profile, tmp_path / "mine")
    record = json.loads((tmp_path / "mine" / "profile.json").read_text())
    assert record["schema_version"] == 1
    assert record["heads"][0] == {"layer": 5, "head": 3, "r": 0.51}
    assert record["layers"] == [4, 7]
    assert record["max_strength"] == 1.7


def test_saving_again_replaces_the_folder_whole(profile: Profile, tmp_path: Path) -> None:
    save(profile, tmp_path / "mine")
    (tmp_path / "mine" / "stray.txt").write_text("left behind")
    save(replace(profile, fixed_strength=0.1), tmp_path / "mine")
    assert load(tmp_path / "mine").fixed_strength == 0.1
    assert set(contents(tmp_path / "mine")) == {"profile.json", "profile.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "no remains beside it"


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "for the first time"])
def test_a_crash_while_saving_leaves_the_old_one_or_none(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    folder = tmp_path / "mine"
    if before:
        save(profile, folder)
    old_contents = contents(folder) if before else {}

    def crash(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(profiles, "to_bytes", crash)
    with pytest.raises(OSError, match="No space"):
        save(replace(profile, fixed_strength=0.1), folder)
    assert folder.exists() == before
    if before:
        assert contents(folder) == old_contents
    assert len(list(tmp_path.iterdir())) == int(before), "no remains beside it"


def test_a_folder_of_other_files_is_not_replaced(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    save(profile, tmp_path / "thesis")  # an empty one is
    (tmp_path / "thesis" / "profile.json").rename(tmp_path / "thesis" / "chapter.tex")
    before = contents(tmp_path / "thesis")
    with pytest.raises(ProfileError, match="not a profile folder"):
        save(profile, tmp_path / "thesis")
    with pytest.raises(ProfileError, match="not a profile folder"):
        save(profile, tmp_path / "thesis" / "chapter.tex")
    assert contents(tmp_path / "thesis") == before


def test_the_current_folder_is_not_replaced(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty" / "within").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "within")
    for folder in (Path(), Path(".."), tmp_path / "empty" / "within"):
        with pytest.raises(ProfileError, match="the current folder"):
            save(profile, folder)
    save(profile, Path("mine"))
    assert sorted(path.name for path in (tmp_path / "empty").rglob("*.json")) == ["profile.json"]


def test_the_old_profile_stays_where_the_new_one_can_not_take_its_place(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    save(profile, folder)
    before, moves = contents(folder), []

    def move(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError("Device or resource busy")
        shutil.move(source, target)

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises(OSError, match="busy"):
        save(replace(profile, fixed_strength=0.1), folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "no remains beside it"


def test_a_model_is_asked_as_its_profile_was_fitted(
    profile: Profile, untrained: AudioModel
) -> None:
    def fitted(style: str | None) -> Profile:
        given = {} if style is None else {"prompt_style": style}
        return replace(profile, calibration=given)

    assert asked_as_fitted(untrained, fitted(None)) is untrained
    assert asked_as_fitted(untrained, fitted(untrained.prompt_style.name)) is untrained
    assert asked_as_fitted(untrained, fitted("of a later version")) is untrained
    assert asked_as_fitted(untrained, fitted("listed")).prompt_style is STYLES["listed"]


# ---- refused


def test_a_profile_of_another_model_is_refused_with_both_fingerprints(
    profile: Profile, untrained: AudioModel
) -> None:
    check_fits(profile, untrained)
    with pytest.raises(ProfileError) as caught:
        check_fits(replace(profile, fingerprint="f00d"), untrained)
    assert "f00d" in str(caught.value)
    assert untrained.fingerprint in str(caught.value)


def change_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A damage that changes profile.json and writes it back."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "profile.json").read_text())
        change(record)
        (folder / "profile.json").write_text(json.dumps(record))

    return damage


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """A damage that changes profile.safetensors and writes it back."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "profile.safetensors")
        change(tensors)
        save_file(tensors, folder / "profile.safetensors")

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no json": lambda folder: (folder / "profile.json").unlink(),
    "json cut off": lambda folder: (folder / "profile.json").write_text('{"schema_version": 1, '),
    "json not text": lambda folder: (folder / "profile.json").write_bytes(b"\xff\xfe\x00"),
    "json a list": lambda folder: (folder / "profile.json").write_text("[1, 2]"),
    "no tensors": lambda folder: (folder / "profile.safetensors").unlink(),
    "tensors cut off": lambda folder: (folder / "profile.safetensors").write_bytes(
        (folder / "profile.safetensors").read_bytes()[:100]
    ),
    "tensors empty": lambda folder: (folder / "profile.safetensors").write_bytes(b""),
    "another schema": change_record(lambda record: record.update(schema_version=2)),
    "no schema": change_record(lambda record: record.pop("schema_version")),
    "no gate": change_record(lambda record: record.pop("gate")),
    "unknown setting": change_record(lambda record: record["intervention"].update(colour="red")),
    "a gate of words": change_record(lambda record: record.update(gate="adaptive")),
    "a gate of other meters": change_record(lambda record: record["meter_gate"].update(meters=[])),
    "too few meters": change_record(
        lambda record: record["meter_gate"]["regression"].update(means=[1.0])
    ),
    "heads of words": change_record(lambda record: record.update(heads=["best"])),
    "a head without r": change_record(lambda record: record["heads"][0].pop("r")),
    "no direction": change_tensors(lambda tensors: tensors.pop("direction")),
    "too few head means": change_tensors(
        lambda tensors: tensors.update(head_mean=torch.zeros(1)),
    ),
    "a flat direction": change_tensors(
        lambda tensors: tensors.update(direction=torch.zeros(2, 160)),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_profile_is_refused(
    profile: Profile, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    save(profile, tmp_path / "mine")
    damage(tmp_path / "mine")
    with pytest.raises(ProfileError, match=r"mine.*[Cc]alibrate|mine.*allears calibrate"):
        load(tmp_path / "mine")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="nowhere"):
        load(tmp_path / "nowhere")


# ---- found


def test_a_folder_is_found_and_held_against_the_model(
    profile: Profile, untrained: AudioModel, tmp_path: Path
) -> None:
    save(profile, tmp_path / "mine")
    in_folder = find(str(tmp_path / "mine"), untrained)
    assert in_folder is not None
    assert in_folder.name == "mine"
    save(replace(profile, fingerprint="f00d"), tmp_path / "other")
    with pytest.raises(ProfileError, match="f00d"):
        find(str(tmp_path / "other"), untrained)


def test_none_is_no_profile(untrained: AudioModel) -> None:
    assert find("none", untrained) is None


def test_without_a_shipped_profile_the_way_out_is_said(untrained: AudioModel) -> None:
    with pytest.raises(ProfileError, match="allears calibrate") as caught:
        find(None, untrained)
    assert "none" in str(caught.value)


def test_the_embedded_model_has_the_shipped_one(
    profile: Profile, untrained: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(profile, tmp_path / "mine")
    monkeypatch.setattr(profiles, "DEMO_PROFILE", tmp_path / "mine")
    shipped = find(None, replace(untrained, name=DEMO))
    assert shipped is not None
    assert shipped.heads == profile.heads


def test_a_hub_id_is_downloaded(
    profile: Profile, untrained: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(profile, tmp_path / "mine")
    downloads: list[str] = []

    def download(name: str, **_: object) -> str:
        downloads.append(name)
        return str(tmp_path / "mine")

    monkeypatch.setattr(profiles, "snapshot_download", download)
    downloaded = find("someone/listening-profile", untrained)
    assert downloaded is not None
    assert downloads == ["someone/listening-profile"]


def test_a_hub_id_that_can_not_be_downloaded_is_refused(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **_: object) -> str:
        raise OSError("no such repository")

    monkeypatch.setattr(profiles, "snapshot_download", download)
    with pytest.raises(ProfileError, match="someone/typo"):
        find("someone/typo", untrained)


# ---- its numbers


def test_max_strength_is_the_larger_of_the_two(profile: Profile) -> None:
    assert profile.max_strength == 1.7
    assert replace(profile, fixed_strength=1.9).max_strength == 1.9
    refused = replace(profile, gate=Gate(0.0, 0.4, 1.0), fixed_strength=0.0)
    assert refused.max_strength == 0.0


def test_a_percentile_is_the_share_of_lower_scores(profile: Profile) -> None:
    scores = np.random.default_rng(0).beta(2, 3, 5000).astype(np.float32)
    quantiles = np.quantile(scores, np.linspace(0, 1, 101)).astype(np.float32)
    measured = replace(profile, quantiles=quantiles)
    for score in (0.1, 0.35, 0.6, 0.9):
        assert measured.percentile(score) == pytest.approx((scores < score).mean(), abs=0.005)
    assert measured.percentile(-1.0) == 0.0
    assert measured.percentile(2.0) == 1.0
