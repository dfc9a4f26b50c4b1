"""Several clips a question: a score each, and which of them decided."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

QUESTION = "Which is it?"


@pytest.fixture(scope="module")
def three(make_sound: Callable[..., bytes]) -> list[dict[str, str]]:
    sounds = [make_sound(1.0), make_sound(0.5, amplitude=0.0), make_sound(2.0, amplitude=0.05)]
    return [{"data": base64.b64encode(data).decode()} for data in sounds]


def chat(server: Any, **body: Any) -> dict[str, Any]:
    response = server.chat(question=QUESTION, max_tokens=3, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_every_clip_has_a_score(server: Any, three: list[dict[str, str]]) -> None:
    body = chat(server, audio=three, include=["timeline"])
    clips = body["listening"]["clips"]
    assert [one["index"] for one in clips] == [0, 1, 2]
    assert sum(one["score"] for one in clips) == pytest.approx(body["listening"]["score"], abs=1e-5)
    assert [len(one["timeline"]) for one in clips] == [25, 12, 50]
    assert [x for one in clips for x in one["timeline"]] == body["listening"]["timeline"]
    assert all("influence" not in one for one in clips)
    assert "clips" not in chat(server, audio=three[0])["listening"]


@pytest.mark.parametrize("more", [{}, {"choices": ["dog", "cat"]}, {"steer": True}])
def test_the_clips_are_ranked_by_their_influence(
    server: Any, three: list[dict[str, str]], more: dict[str, Any]
) -> None:
    clips = chat(server, audio=three, include=["clips"], **more)["listening"]["clips"]
    by_rank = sorted(clips, key=lambda one: one["rank"])
    assert [one["rank"] for one in by_rank] == [1, 2, 3]
    influences = [one["influence"] for one in by_rank]
    assert influences == sorted(influences, reverse=True)
    assert clips[1]["influence"] == pytest.approx(0, abs=1e-5), "it was silent already"


def test_clips_may_stand_anywhere_in_a_conversation(
    server: Any, three: list[dict[str, str]]
) -> None:
    def heard(index: int) -> dict[str, Any]:
        return {"type": "input_audio", "input_audio": three[index]}

    messages = [
        {"role": "user", "content": [heard(0), {"type": "text", "text": "Listen."}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "And"}, heard(1), heard(2)]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Which one?"},
    ]
    response = server.chat(messages=messages, max_tokens=2, include=["clips"])
    assert response.status_code == 200, response.text
    assert [one["index"] for one in response.json()["listening"]["clips"]] == [0, 1, 2]


def test_one_clip_can_be_the_one_contrasted_with_silence(
    server: Any, three: list[dict[str, str]]
) -> None:
    def steered(**wish: Any) -> dict[str, Any]:
        choices = {"choices": ["dog", "cat"], "steer": True}
        return chat(server, audio=three, steering={"strength": 0.9, **wish}, **choices)

    first, third, both = steered(clip=0), steered(clip=2), steered()
    found = [body["choices"][0]["probability"] for body in (first, third, both)]
    assert len(set(found)) == 3
    assert first["timings"]["silence_cache"] == "miss"
    refused = server.chat(
        audio=three, question=QUESTION, steer=True, steering={"clip": 3}, max_tokens=1
    )
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "steering.clip"
