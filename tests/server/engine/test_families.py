"""Every family over HTTP, from a checkpoint's folder to the answer, with random weights."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from server import loading
from server.app import create_app
from server.engine.runtime import Runtime
from server.loading import load_runtime
from server.settings import Settings
from steering.errors import ModelError
from steering.model import memory_plan
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.profile import Profile, save
from tests.server.conftest import Server
from tests.steering import tiny

CHECKPOINTS = {**tiny.WHOLE, "r1-aqa": tiny.qwen2_audio}
TOKENS_A_SECOND = {"qwen3_omni_moe": 13}
QUESTION = "What is this?"
CHOICES = ["dog", "a brown cow"]


def profile_of(model: AudioModel, like: Profile) -> Profile:
    """A profile of a tiny model: its heads were not calibrated."""
    return replace(
        like,
        model=model.name,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=((0, 1), (1, 2), (2, 3)),
        intervention=replace(like.intervention, layers=(0, 2)),
        direction=torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1)),
    )


@pytest.fixture(scope="module", params=CHECKPOINTS)
def family(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_profile: Profile,
) -> Iterator[tuple[str, Server]]:
    """A family's name and a server of a tiny model of it, loaded as `allears serve` does."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = tiny.save(CHECKPOINTS[request.param], folder / request.param)
    save(profile_of(load(str(checkpoint), device="cpu"), tiny_profile), folder / "profile")
    settings = Settings(model=str(checkpoint), profile=str(folder / "profile"), device="cpu")
    with Server(create_app(settings, load_runtime(settings, print))).started() as server:
        yield request.param, server


def test_an_answer_is_steered_and_shows_how_it_listened(
    family: tuple[str, Server], make_sound: Callable[..., bytes]
) -> None:
    name, server = family
    audio = {"data": base64.b64encode(make_sound(2.0)).decode()}
    response = server.chat(
        audio=audio,
        question=QUESTION,
        steer=True,
        steering={"strength": 0.5},
        max_tokens=4,
        include=["timeline", "heads", "unsteered", "silence"],
    )
    assert response.status_code == 200, response.text
    body = response.json()
    tokens = 2 * TOKENS_A_SECOND.get(name, 25)
    assert body["model"] == name
    assert body["usage"]["audio_tokens"] == tokens == len(body["listening"]["timeline"])
    assert body["listening"]["hop_seconds"] == pytest.approx(2 / tokens)
    assert 0 < body["listening"]["score"] < 1
    assert 0 < body["listening"]["silence_score"] < 1
    assert body["steering"]["applied"] is True
    assert body["steering"]["relative_norm"] == pytest.approx(0.5)
    assert body["timings"]["silence_cache"] == "hit", "the first question about any length"
    for seconds in (0.2, 3.7, 5.9):
        audio = {"data": base64.b64encode(make_sound(seconds)).decode()}
        response = server.chat(audio=audio, question=QUESTION, steer=True, max_tokens=1)
        assert response.json()["timings"]["silence_cache"] == "hit", seconds


def test_choices_streams_and_several_clips(
    family: tuple[str, Server], make_sound: Callable[..., bytes]
) -> None:
    _, server = family
    clips = [{"data": base64.b64encode(make_sound(s)).decode()} for s in (1.0, 2.5)]
    chosen = server.chat(audio=clips, question=QUESTION, choices=CHOICES, steer=True)
    assert chosen.status_code == 200, chosen.text
    body = chosen.json()
    assert sum(choice["probability"] for choice in body["choices"]) == pytest.approx(1)
    assert len(body["listening"]["clips"]) == 2
    whole = server.chat(audio=clips, question=QUESTION, max_tokens=6).json()["answer"]
    stream = server.chat(audio=clips, question=QUESTION, max_tokens=6, stream=True)
    pieces = [line for line in stream.text.split("\n\n") if line.startswith("data: {")]
    assert "".join(json.loads(piece[6:])["delta"] for piece in pieces) == whole


def test_audio_that_never_arrives_is_at_the_floor(
    family: tuple[str, Server], make_sound: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor gets the clip and drops it, as where `audios=` was renamed to `audio=`."""
    name, server = family
    assert server.deployment.engine is not None
    model = server.deployment.engine.runtime.model
    tokenizer = model.processor.tokenizer

    def deaf(self: Any, text: str, **options: Any) -> dict[str, torch.Tensor]:
        text = text.replace(self.audio_token, "")
        return {
            "input_ids": tokenizer(text, return_tensors="pt")["input_ids"],
            "input_features": torch.zeros(0, tiny.MEL_BINS, 100),
            "feature_attention_mask": torch.zeros(0, 100, dtype=torch.int64),
        }

    audio = {"data": base64.b64encode(make_sound(1.0)).decode()}
    heard = server.chat(audio=audio, question=QUESTION, max_tokens=1).json()
    with monkeypatch.context() as patch:
        patch.setattr(type(model.processor), "__call__", deaf)
        lost = server.chat(audio=audio, question=QUESTION, max_tokens=1, steer=True)
    assert lost.status_code == 200, (name, lost.text)
    assert heard["listening"]["score"] > 0.001
    assert lost.json()["listening"]["score"] == 0
    assert lost.json()["listening"]["verdict"] == "not_listening"
    assert "never reached" in lost.json()["warnings"][0]
    assert lost.headers["x-listening-score"] == "0.000000"


def test_r1_aqa_is_asked_in_its_own_words(family: tuple[str, Server]) -> None:
    name, server = family
    assert server.deployment.engine is not None
    runtime: Runtime = server.deployment.engine.runtime
    assert runtime.model.prompt_style.name == ("r1_aqa" if name == "r1-aqa" else "plain")
    assert np.isfinite(runtime.model.hop_seconds)


@pytest.mark.slow
def test_a_checkpoint_is_served_by_a_real_process(
    serve_process: Callable[..., Any], tmp_path: Path, sound: bytes
) -> None:
    """`allears serve` of an Omni folder, without a profile."""
    checkpoint = tiny.save(tiny.qwen2_5_omni, tmp_path / "omni")
    with serve_process(checkpoint, "none", tmp_path / "log") as (_, url):
        files = [("audio", ("x.wav", sound))]
        response = httpx.post(f"{url}/v1/audio-chat", files=files, data={"question": QUESTION})
        assert response.status_code == 200, response.text
        assert response.json()["listening"]["verdict"] == "unknown"
    assert "loaded" in (tmp_path / "log").read_text()


def test_rows_that_do_not_fit_are_refused_with_the_figures(
    checkpoint_folder: Path, profile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        model=str(checkpoint_folder),
        profile=str(profile_folder),
        device="cpu",
        max_batch_rows=1024,
        max_context_tokens=1_000_000,
    )
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 5_000_000_000)
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("nothing is loaded before"))
    with pytest.raises(ModelError, match=r"short of 1\d\.\d+ GB .* rows of \d+ tokens would fit"):
        load_runtime(settings, print)


@pytest.mark.parametrize(("wanted", "asked"), [("auto", "listed"), ("plain", "plain")])
def test_a_model_is_asked_as_its_profile_was_fitted(
    small_checkpoint: Path,
    tiny_profile: Profile,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wanted: Any,
    asked: str,
) -> None:
    model = load(str(small_checkpoint), device="cpu")
    fitted = replace(profile_of(model, tiny_profile), calibration={"prompt_style": "listed"})
    save(fitted, tmp_path / "profile")
    settings = Settings(
        model=model.name, profile=str(tmp_path / "profile"), device="cpu", prompt_style=wanted
    )
    assert load_runtime(settings, print).model.prompt_style.name == asked
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ["listed" in record.getMessage() for record in warned] == [True] * (wanted == "plain")
