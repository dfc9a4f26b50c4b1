"""Folders as the hub has them, served: calibrated by `auto`, asked in every way, steered."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server.app import create_app
from server.engine.runtime import Runtime
from server.loading import load_runtime
from server.settings import NO_LOG, Settings
from steering.profile import Profile
from tests.server.conftest import Server
from tests.server.engine.test_families import profile_of
from tests.steering.hub_folders import HUB_FOLDERS

pytestmark = [pytest.mark.slow, pytest.mark.system]

QUESTION = "What do you hear?"
STEERING = {"strength": 0.5}


@dataclass(frozen=True, slots=True)
class Case:
    """A folder's name, what `auto` made of it, and a server of it with a profile made by hand."""

    name: str
    calibrated: Runtime
    server: Server

    @property
    def window_seconds(self) -> float:
        return self.calibrated.model.max_clip_seconds


@pytest.fixture(scope="module", params=HUB_FOLDERS)
def case(
    request: pytest.FixtureRequest,
    hub_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    tiny_profile: Profile,
) -> Iterator[Case]:
    settings = Settings(
        model=str(hub_folder(request.param)),
        device="cpu",
        dtype="float32",
        profile="auto",
        calibration_items=40,
        cache=tmp_path_factory.mktemp("cache"),
        listening_log_url=SecretStr(NO_LOG),
        max_batch_rows=4,
    )
    calibrated = load_runtime(settings, lambda stage: None)
    runtime = Runtime.of(calibrated.model, profile_of(calibrated.model, tiny_profile), rows=4)
    with Server(create_app(settings, runtime)).started() as server:
        yield Case(request.param, calibrated, server)


def clip(make_sound: Callable[..., bytes], seconds: float) -> dict[str, str]:
    return {"data": base64.b64encode(make_sound(seconds)).decode(), "format": "wav"}


def test_forty_items_make_a_profile_or_the_reason_is_said(case: Case) -> None:
    """The model knows nothing, so mostly a refusal."""
    if case.calibrated.profile is None:
        assert "no gain" in case.calibrated.no_profile_reason
        assert "40 synthetic items" in case.calibrated.no_profile_reason
    else:
        assert case.calibrated.profile.calibrated_on == "synthetic"


def test_json_openai_and_streams_give_one_steered_answer(
    case: Case, make_sound: Callable[..., bytes]
) -> None:
    sound = clip(make_sound, 2.0)
    body: dict[str, Any] = {
        "audio": sound, "question": QUESTION, "steer": True, "steering": STEERING, "max_tokens": 8,
    }  # fmt: skip
    whole = case.server.chat(**body, include=["timeline"])
    assert whole.status_code == 200, whole.text
    answer = whole.json()
    tokens = 26 if "Qwen3" in case.name else 50
    assert answer["usage"]["audio_tokens"] == tokens == len(answer["listening"]["timeline"])
    assert 0 < answer["listening"]["score"] < 1
    assert answer["steering"]["applied"] is True
    assert answer["steering"]["relative_norm"] == pytest.approx(STEERING["strength"])

    stream = case.server.chat(**body, stream=True).text.split("\n\n")
    deltas = [json.loads(line[6:])["delta"] for line in stream if line.startswith("data: {")]
    assert "".join(deltas) == answer["answer"]

    parts = [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": QUESTION}]
    openai = {
        "model": case.server.get("/v1/models").json()["data"][0]["id"],
        "messages": [{"role": "user", "content": parts}],
        "steer": True, "steering": STEERING, "max_tokens": 8,
    }  # fmt: skip
    completion = case.server.post("/v1/chat/completions", json=openai)
    assert completion.status_code == 200, completion.text
    assert completion.json()["choices"][0]["message"]["content"] == answer["answer"]
    chunks = case.server.post("/v1/chat/completions", json={**openai, "stream": True}).text
    pieces = [json.loads(line[6:]) for line in chunks.split("\n\n") if line.startswith("data: {")]
    said = (c["choices"][0]["delta"].get("content") for c in pieces if c["choices"])
    assert "".join(piece or "" for piece in said) == answer["answer"]


def test_choices_and_several_clips(case: Case, make_sound: Callable[..., bytes]) -> None:
    clips = [clip(make_sound, seconds) for seconds in (0.3, 1.0, 2.5)]
    response = case.server.chat(
        audio=clips,
        question=QUESTION,
        choices=["dog", "a brown cow"],
        steer=True,
        include=["clips"],
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert sum(choice["probability"] for choice in body["choices"]) == pytest.approx(1)
    assert sorted(each["rank"] for each in body["listening"]["clips"]) == [1, 2, 3]


@pytest.mark.parametrize("how", ["cut", "window"])
def test_a_clip_of_31_seconds(case: Case, how: str, make_sound: Callable[..., bytes]) -> None:
    response = case.server.chat(
        audio=clip(make_sound, 31.0), question=QUESTION, max_tokens=4, long_audio=how, steer=True
    )
    assert response.status_code == 200, response.text
    body = response.json()
    fits = case.window_seconds >= 31
    heard = 31 if fits or how == "window" else 30
    assert body["audio"][0]["heard_seconds"] == pytest.approx(heard, abs=0.1)
    assert body["audio"][0]["truncated"] is (heard < 31)
