"""Clips longer than the window or than a row holds, for every family: cut, refused, in windows."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from server.app import create_app
from server.engine.answering import prepare_prompt
from server.engine.clip_room import _equal_share
from server.engine.messages import Question
from server.engine.runtime import Runtime
from server.loading import load_runtime
from server.settings import Settings
from steering.audio.clip import Clip
from steering.errors import AudioTooLarge
from steering.generation import Sampling
from steering.prompt import Message
from tests.server.conftest import Server
from tests.steering import tiny

QUESTION = "What is this?"
LENGTHS = (31.0, 100.0, 200.0)
TOKENS = 1024  # of a row: 40 s at 25 tokens a second
# Seconds of the feature extractor's window, as the checkpoints have it.
FAMILIES = {"qwen2_audio": 6, "qwen2_5_omni": 300, "qwen3_omni_moe": 300}


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of a tiny model, whose window is that of its family's checkpoints."""
    folder = tmp_path_factory.mktemp("long") / request.param
    tiny.save(tiny.WHOLE[request.param], folder)
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            widen(folder / file, FAMILIES[request.param])
    settings = Settings(
        model=str(folder), profile="none", device="cpu", max_context_tokens=TOKENS, max_batch_rows=2
    )
    with Server(create_app(settings, load_runtime(settings, print))).started() as server:
        yield server


def widen(file: Path, seconds: int) -> None:
    """Give a feature extractor a window of so many seconds."""
    config = json.loads(file.read_text())
    window = {
        "chunk_length": seconds,
        "n_samples": seconds * 16_000,
        "nb_max_frames": seconds * 100,
    }
    if "feature_extractor" in config:
        config["feature_extractor"].update(window)
    else:
        config.update(window)
    file.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def clips(make_sound: Callable[..., bytes]) -> dict[float, dict[str, str]]:
    """Clips by their seconds, as requests carry them."""
    sounds = {seconds: make_sound(seconds, rate_hz=8_000) for seconds in (2.0, 30.0, *LENGTHS)}
    return {
        seconds: {"data": base64.b64encode(sound).decode()} for seconds, sound in sounds.items()
    }


def longest(server: Server) -> float:
    """Seconds of the longest clip that is heard as one."""
    assert server.deployment.engine is not None
    return server.deployment.engine.runtime.window_seconds


@pytest.mark.parametrize("seconds", LENGTHS)
def test_a_long_clip_is_cut_refused_or_heard_in_windows(
    family: Server, clips: dict[float, dict[str, str]], seconds: float
) -> None:
    asked = {"audio": clips[seconds], "question": QUESTION, "max_tokens": 8}
    one = longest(family)
    fits = seconds < one - 6  # text and answer take less
    cut = family.chat(**asked, long_audio="cut")
    assert cut.status_code == 200, cut.text
    (heard,), warnings = cut.json()["audio"], cut.json()["warnings"]
    assert heard["submitted_seconds"] == seconds
    assert heard["truncated"] is (not fits)
    if fits:
        assert heard["heard_seconds"] == seconds and not warnings
    else:
        assert 0.8 * one < heard["heard_seconds"] <= one
        assert f"{seconds:.2f} s long" in warnings[0]
    refused = family.chat(**asked, long_audio="refuse")
    assert refused.status_code == (200 if fits else 413), refused.text
    if not fits:
        assert refused.json()["error"]["param"] == "audio"
        assert "window" in refused.json()["error"]["message"]
    response = family.chat(**asked, long_audio="window")
    assert response.status_code == 200, response.text
    windows = response.json().get("windows", [])
    assert bool(windows) is not fits
    assert response.json()["audio"][0]["heard_seconds"] == seconds
    if windows:
        assert (windows[0]["start_seconds"], windows[-1]["end_seconds"]) == (0, seconds)
        assert all(w["end_seconds"] - w["start_seconds"] <= one for w in windows)
        assert all(a["end_seconds"] > b["start_seconds"] for a, b in pairwise(windows))


def test_clips_that_are_together_longer_than_a_row_share_it(
    family: Server, clips: dict[float, dict[str, str]]
) -> None:
    """Eight clips, the most that are allowed: one short one is heard whole."""
    many = [clips[2.0], *[clips[30.0]] * 7]
    asked: dict[str, Any] = {"audio": many, "question": QUESTION, "max_tokens": 8}
    cut = family.chat(**asked)
    assert cut.status_code == 200, cut.text
    heard = [clip["heard_seconds"] for clip in cut.json()["audio"]]
    assert heard[0] == 2
    assert len(set(heard[1:])) == 1
    assert cut.json()["usage"]["prompt_tokens"] + 8 <= TOKENS
    assert len(cut.json()["warnings"]) == 7
    whole = heard[1] == min(30, longest(family))
    refused = family.chat(**asked, long_audio="refuse")
    assert refused.status_code == 413
    if not whole and longest(family) > 30:
        assert "212.0 s in 8 clips, is" in refused.json()["error"]["message"]
        assert "ALLEARS_MAX_CONTEXT_TOKENS=" in refused.json()["error"]["message"]
    windows = family.chat(**asked, long_audio="window")
    assert windows.status_code == 422
    assert "one at a time" in windows.json()["error"]["message"]


def test_beside_too_much_text_no_clip_is_heard(
    family: Server, clips: dict[float, dict[str, str]]
) -> None:
    for long_audio in ("cut", "refuse", "window"):
        text = "x" * (TOKENS - 40)
        response = family.chat(audio=clips[2.0], question=text, long_audio=long_audio)
        assert response.status_code == 422, response.text
        message = response.json()["error"]["message"]
        assert f"a row of {TOKENS:,} holds" in message
        assert "ALLEARS_MAX_CONTEXT_TOKENS=" in message


def test_the_row_that_is_named_holds_all_and_no_shorter_one_does(family: Server) -> None:
    assert family.deployment.engine is not None
    model = family.deployment.engine.runtime.model
    clip = Clip(np.ones(5 * 16_000, np.float32), 16_000, 5.0, 16_000, 1)
    sampling = Sampling(max_tokens=8)
    asked = Question("one", (Message("user", (clip, clip, "x" * 180)),), sampling=sampling)

    def heard(tokens: int, long_audio: Literal["cut", "refuse"]) -> tuple[float, ...]:
        runtime = Runtime.of(model, None, rows=1, tokens=tokens)
        prompt = prepare_prompt(runtime, replace(asked, long_audio=long_audio))
        assert prompt is not None
        assert len(prompt.tokens) + 8 <= tokens
        return prompt.heard_seconds

    with pytest.raises(AudioTooLarge) as caught:
        heard(320, "refuse")
    enough = int(re.findall(r"TOKENS=(\d+)", str(caught.value))[0])
    assert heard(enough, "refuse") == (5.0, 5.0)
    first, second = heard(enough - 1, "cut")
    assert first == second and 4.5 < first < 5


def test_the_longest_share_a_room_equally() -> None:
    assert _equal_share([10, 20, 30], 60) == 30
    assert _equal_share([10, 20, 30], 59) == 29
    assert _equal_share([10, 20, 30], 45) == 17
    assert _equal_share([30, 10, 30], 50) == 20
    assert _equal_share([5], 3) == 3
    assert _equal_share([5, 5], -2) == 0
