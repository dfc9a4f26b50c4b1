"""Clips longer than the model's window: cut and said to be, refused, or heard in windows."""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from server.engine.long_audio import _weighted_probabilities
from server.engine.runtime import Runtime

QUESTION = "What is this?"
CHOICES = ["dog", "cat"]


@pytest.fixture(scope="module")
def minute(make_sound: Callable[..., bytes]) -> dict[str, str]:
    """60 s; the tiny model's window is 3 s."""
    return {"data": base64.b64encode(make_sound(60.0)).decode()}


@pytest.fixture(scope="module")
def five_seconds(make_sound: Callable[..., bytes]) -> dict[str, str]:
    return {"data": base64.b64encode(make_sound(5.0)).decode()}


def test_a_minute_is_refused_with_the_limit(start: Any, minute: dict[str, str]) -> None:
    with start(max_audio_seconds=30.0) as server:
        for options in ({}, {"long_audio": "cut"}, {"long_audio": "refuse"}):
            response = server.chat(audio=minute, question=QUESTION, **options)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (413, "audio_too_large")
            assert "60.00 s" in error["message"]
            assert "at most 30 s" in error["message"]
            assert 'long_audio "window"' in error["message"]


def test_a_minute_is_cut_by_default(server: Any, minute: dict[str, str]) -> None:
    body = server.chat(audio=minute, question=QUESTION, max_tokens=1).json()
    assert body["audio"][0]["truncated"]
    assert body["audio"][0]["submitted_seconds"] == 60.0
    assert "60.00 s" in body["warnings"][0]


def test_a_clip_over_the_window_is_refused_where_that_is_asked(
    server: Any, start: Any, five_seconds: dict[str, str], audio: dict[str, str]
) -> None:
    def refused(response: Any) -> None:
        assert response.status_code == 413
        assert "window is 3 s" in response.json()["error"]["message"]

    refused(server.chat(audio=five_seconds, question=QUESTION, long_audio="refuse"))
    with start(long_audio="refuse") as strict:
        refused(strict.chat(audio=five_seconds, question=QUESTION))
        assert strict.chat(audio=audio, question=QUESTION, max_tokens=1).status_code == 200


def test_what_is_cut_is_said(server: Any, five_seconds: dict[str, str]) -> None:
    body = server.chat(audio=five_seconds, question=QUESTION, max_tokens=1).json()
    assert body["audio"][0]["truncated"] is True
    assert body["audio"][0]["heard_seconds"] == 3
    assert "windows" not in body


@pytest.mark.parametrize("more", [{"choices": CHOICES}, {"max_tokens": 2}], ids=["choices", "free"])
def test_a_minute_in_windows(
    server: Any, runtime: Runtime, minute: dict[str, str], more: dict[str, Any]
) -> None:
    response = server.chat(audio=minute, question=QUESTION, long_audio="window", steer=True, **more)
    assert response.status_code == 200, response.text
    body = response.json()
    windows = body["windows"]
    assert windows[0]["start_seconds"] == 0
    assert windows[-1]["end_seconds"] == 60
    for before, after in pairwise(windows):
        assert before["start_seconds"] < after["start_seconds"] < before["end_seconds"]
    assert all(0 < w["end_seconds"] - w["start_seconds"] <= 3 for w in windows)
    heard = body["audio"][0]
    assert (heard["submitted_seconds"], heard["heard_seconds"]) == (60, 60)
    assert heard["truncated"] is False
    assert body["warnings"] == []
    most = max(windows, key=lambda window: window["score"])
    assert body["listening"]["score"] == most["score"]
    assert body["steering"]["strength"] == pytest.approx(most["strength"], abs=1e-5)
    assert body["listening"]["effect_bits"] == most["effect_bits"]
    assert len({window["effect_bits"] for window in windows}) > 1
    assert body["usage"]["audio_tokens"] > 60 * 25, "overlaps were heard twice"
    if "choices" in more:
        assert sum(choice["probability"] for choice in body["choices"]) == pytest.approx(1)
    else:
        assert body["answer"] == most["answer"]


def test_choices_are_weighed_by_listening() -> None:
    windows = [(0.9, 0.1), (0.2, 0.8)]
    assert _weighted_probabilities(windows, np.array([1.0, 0.0])) == pytest.approx((0.9, 0.1))
    assert _weighted_probabilities(windows, np.array([0.0, 0.3])) == pytest.approx((0.2, 0.8))
    both = np.exp(np.log(windows).T @ np.array([0.25, 0.75]))
    assert _weighted_probabilities(windows, np.array([1.0, 3.0])) == pytest.approx(
        both / both.sum()
    )
    even = np.exp(np.log(windows).T @ np.array([0.5, 0.5]))
    assert _weighted_probabilities(windows, np.zeros(2)) == pytest.approx(even / even.sum())


def test_a_short_clip_needs_no_windows(server: Any, audio: dict[str, str]) -> None:
    plain = server.chat(audio=audio, question=QUESTION, max_tokens=3).json()
    body = server.chat(audio=audio, question=QUESTION, max_tokens=3, long_audio="window").json()
    assert (body["answer"], body["listening"]) == (plain["answer"], plain["listening"])
    assert "windows" not in body


def test_windows_stand_in_a_stream_and_in_a_score(
    server: Any, five_seconds: dict[str, str], audio: dict[str, str]
) -> None:
    wish = {"audio": [audio, five_seconds], "question": QUESTION, "long_audio": "window"}
    whole = server.chat(max_tokens=2, **wish).json()
    assert {window["clip"] for window in whole["windows"]} == {1}
    assert [clip["heard_seconds"] for clip in whole["audio"]] == [1, 5]
    stream = server.chat(max_tokens=2, stream=True, **wish)
    assert '"windows"' in stream.text
    score = server.post("/v1/listening-score", json=wish)
    assert len(score.json()["windows"]) == len(whole["windows"])


def test_one_long_clip_at_a_time_and_no_longer_than_allowed(
    start: Any, server: Any, five_seconds: dict[str, str]
) -> None:
    wish = {"question": QUESTION, "long_audio": "window"}
    two = server.chat(audio=[five_seconds, five_seconds], **wish)
    assert two.status_code == 422
    assert "one at a time" in two.json()["error"]["message"]
    with start(max_audio_seconds=2.0, max_long_audio_seconds=4.0) as strict:
        assert strict.chat(audio=five_seconds, **wish).status_code == 413


def test_others_are_answered_between_two_windows(
    server: Any, minute: dict[str, str], audio: dict[str, str]
) -> None:
    wish = {"audio": minute, "question": QUESTION, "choices": CHOICES, "long_audio": "window"}
    long = server.begin("POST", "/v1/audio-chat", json=wish)
    server.wait_until(lambda: server.metric("allears_batch_rows") > 0)
    short = server.chat(audio=audio, question=QUESTION, max_tokens=2)
    assert short.status_code == 200
    assert not long.done(), "it was answered while the minute was heard"
    assert long.result(20).status_code == 200
