"""Profiles pushed to a hub and pulled from it, by huggingface_hub's own client over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from steering.calibration.publishing import card, pull, push
from steering.errors import ProfileError
from steering.profile import DEMO_PROFILE, Profile, load, save
from tests.hub import TOKEN, Hub, running_hub

REPOSITORY = "me/my-profile"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, asked in place of the real one, with a token that may write."""
    with running_hub() as hub:
        hub.instead_of_the_real_one(monkeypatch, tmp_path)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A profile made of a checkpoint in a folder, with a stray file beside it."""
    model = "/home/someone/models/mine"
    made = replace(load(DEMO_PROFILE), model=model, name=f"{model}-2ca61413")
    save(made, tmp_path / "made")
    (tmp_path / "made" / "notes.txt").write_text("private")
    return tmp_path / "made"


def test_what_is_pushed_is_pulled(hub: Hub, folder: Path, tmp_path: Path) -> None:
    assert push(folder, REPOSITORY, licence="apache-2.0") == f"{hub.url}/{REPOSITORY}"
    assert hub.private == {REPOSITORY}
    files = hub.repositories[REPOSITORY]
    assert set(files) == {"README.md", "profile.json", "profile.safetensors"}, "nothing else"
    assert b"/home/someone" not in b"".join(files.values()), "no path of the machine"
    pulled = pull(REPOSITORY, tmp_path / "deep" / "pulled")
    assert (pulled.model, pulled.name) == ("mine", "mine-2ca61413")
    assert {p.name: p.read_bytes() for p in (tmp_path / "deep" / "pulled").iterdir()} == {
        name: raw for name, raw in files.items() if name != "README.md"
    }
    assert load(tmp_path / "deep" / "pulled").heads == load(folder).heads
    save(replace(load(folder), fixed_strength=0.1), folder)
    push(folder, REPOSITORY)
    assert pull(REPOSITORY, tmp_path / "deep" / "pulled").fixed_strength == 0.1, "the newest"


def test_a_repository_is_public_where_that_is_wanted(hub: Hub, folder: Path) -> None:
    push(folder, REPOSITORY, public=True)
    assert REPOSITORY in hub.repositories and not hub.private


# ---- refused


def test_without_a_token_nothing_is_asked(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ProfileError, match="HF_TOKEN"):
        push(folder, REPOSITORY)
    assert not hub.asked


@pytest.mark.parametrize(
    ("token", "repository"),
    [(TOKEN, "others/theirs"), ("hf_wrong", REPOSITORY), (TOKEN, "no such id")],
    ids=["not ours", "wrong token", "no id"],
)
def test_where_one_may_not_write(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, repository: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ProfileError, match=f"{repository}.*may write"):
        push(folder, repository)
    assert not hub.repositories


def test_a_hub_that_is_away(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ProfileError, match=REPOSITORY):
        push(folder, REPOSITORY)
    with pytest.raises(ProfileError, match=REPOSITORY):
        pull(REPOSITORY, folder.parent / "pulled")


def test_only_a_whole_profile_is_pushed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no usable profile"):
        push(tmp_path, REPOSITORY)
    (folder / "profile.safetensors").write_bytes(b"damaged")
    with pytest.raises(ProfileError, match="no usable profile"):
        push(folder, REPOSITORY)
    assert not hub.asked


def test_a_repository_that_is_not_there_is_not_pulled(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"me/typo.*Check the id"):
        pull("me/typo", tmp_path / "pulled")
    hub.repositories["me/empty"] = {"README.md": b"nothing"}
    with pytest.raises(ProfileError, match=r"me/empty.*holds no profile"):
        pull("me/empty", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def another_schema(files: dict[str, bytes]) -> None:
    record = json.loads(files["profile.json"])
    files["profile.json"] = json.dumps({**record, "schema_version": 99}).encode()


def cut_off(files: dict[str, bytes]) -> None:
    files["profile.safetensors"] = files["profile.safetensors"][:50]


@pytest.mark.parametrize(
    ("damage", "said"), [(another_schema, "schema 99"), (cut_off, "no usable profile")]
)
def test_a_damaged_profile_is_not_pulled_over_a_good_one(
    hub: Hub, folder: Path, damage: Any, said: str
) -> None:
    push(folder, REPOSITORY)
    damage(hub.repositories[REPOSITORY])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ProfileError, match=said):
        pull(REPOSITORY, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_other_files_is_left_alone(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, REPOSITORY)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ProfileError, match="not a profile folder"):
        pull(REPOSITORY, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


# ---- the card


def metadata(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_model_data_figures_and_licence() -> None:
    profile = replace(load(DEMO_PROFILE), model="Qwen/Qwen2-Audio-7B-Instruct", revision="0123")
    text = card(profile, REPOSITORY, "cc-by-4.0")
    assert metadata(text)["base_model"] == profile.model
    assert metadata(text)["license"] == "cc-by-4.0"
    assert f"--model {profile.model} --profile {REPOSITORY}" in text
    for said in (profile.fingerprint, "0123", str(profile.calibration["sha256"]), "6000"):
        assert said in text
    held_out = profile.held_out
    assert f"| gain balanced | {held_out['gain_balanced']} |" in text
    adaptive = held_out["accuracy_percent"]["adaptive"]["conflict"]
    assert f"| accuracy percent: adaptive: conflict | {adaptive} |" in text


def test_the_card_of_a_model_that_is_not_steered_says_so() -> None:
    doubts = {"head_choice": {"warning": "no better than chance"}}
    profile: Profile = replace(
        load(DEMO_PROFILE), refusal="no gain | none", calibration=doubts, held_out={}
    )
    text = card(profile, REPOSITORY, None)
    assert "**Not steered**: no gain | none." in text
    assert "**Warning**: no better than chance." in text
    assert "license" not in metadata(text) and "base_model" not in metadata(text)
