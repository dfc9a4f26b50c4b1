"""Words over HTTP: of generated answers on both chat routes, of answers of any origin."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from steering.decision import FELT_BITS

QUESTION = "What is this?"
TEXT = "A dog barks, and 犬 too."
WORDS = ["A", "dog", "barks", "and", "犬", "too"]


def weigh(server: Any, audio: Any, **fields: Any) -> Any:
    body = {"audio": audio, "question": QUESTION, "answer": TEXT, **fields}
    response = server.post("/v1/listening-score", json=body)
    assert response.status_code == 200, response.text
    return response.json()["listening"]["words"]


def test_an_answer_of_any_origin_is_weighed_word_by_word(server: Any, audio: Any) -> None:
    words = weigh(server, audio, include=["words"])
    assert [word["text"] for word in words] == WORDS
    for word in words:
        assert TEXT[word["start"] : word["end"]] == word["text"]
        assert word["effect_bits"] > 0
        assert 0 < word["score"] < 1
    assert weigh(server, audio) == words, "an answer is there to be weighed"
    chosen = server.chat(
        audio=audio, question=QUESTION, choices=["a dog", "a cow"], include=["words"]
    ).json()
    again = weigh(server, audio, answer=chosen["answer"], choices=["a dog", "a cow"])
    assert [word["text"] for word in again] == chosen["answer"].split()
    for word, other in zip(again, chosen["listening"]["words"], strict=True):
        assert word["effect_bits"] == pytest.approx(other["effect_bits"], rel=1e-3, abs=1e-5)
    assert "words" not in server.chat(audio=audio, question=QUESTION).json()["listening"]


def test_every_way_of_asking_gives_the_same_words(server: Any, audio: Any) -> None:
    own = {"max_tokens": 8, "include": ["words"], "steer": True, "steering": {"strength": 0.7}}
    answer = server.chat(audio=audio, question=QUESTION, **own).json()
    words = answer["listening"]["words"]
    assert words
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    body = {"model": answer["model"], "messages": messages, **own}
    for path, asked in (
        ("/v1/audio-chat", {"audio": audio, "question": QUESTION, **own}),
        ("/v1/chat/completions", body),
    ):
        stream = server.post(path, json={**asked, "stream": True}).text
        last = json.loads(stream.split("\n\n")[-3].removeprefix("data: "))
        assert last["listening"]["words"] == words
    completion = server.post("/v1/chat/completions", json=body).json()
    assert completion["listening"]["words"] == words


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"answer": " "}, "answer", "more than spaces"),
    ({"answer": 3}, "answer", "string"),
    ({"answer": "a <|im_end|>"}, "answer", "control token"),
    ({"answer": "dog " * 2000}, "answer", "at most 1,024 are weighed here"),
    ({"answer": "x" * 50_001}, "answer", "50000"),
    ({"answer": "dog", "audio": None}, "audio", "there is no audio"),
    ({"include": ["words"]}, "include", "there is no answer"),
]


@pytest.mark.parametrize(("fields", "param", "why"), REFUSED, ids=lambda case: str(case)[:20])
def test_what_can_not_be_weighed_says_why(
    server: Any, audio: Any, fields: dict[str, Any], param: str, why: str
) -> None:
    body = {"audio": audio, "question": QUESTION, **fields}
    response = server.post("/v1/listening-score", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert why in response.json()["error"]["message"]


def test_a_form_may_hold_the_word_null(server: Any, sound: bytes) -> None:
    fields = {"question": QUESTION, "answer": "null", "include": "words"}
    response = server.post("/v1/listening-score", files=[("audio", ("x.wav", sound))], data=fields)
    assert [word["text"] for word in response.json()["listening"]["words"]] == ["null"]


def test_words_are_counted_and_need_no_profile(start: Any, audio: Any, runtime: Any) -> None:
    with start(heard_by=replace(runtime, profile=None)) as server:
        words = weigh(server, audio)
        bits = [word["effect_bits"] for word in words]
        guessed = sum(effect < FELT_BITS for effect in bits)
        assert server.metric("allears_answer_effect_bits_count") == 1
        mean = sum(bits) / len(bits)
        assert server.metric("allears_answer_effect_bits_sum") == pytest.approx(mean, abs=1e-5)
        assert server.metric("allears_words_total", source="guessed") == guessed
        assert server.metric("allears_words_total", source="heard") == len(bits) - guessed
    assert {word["score"] for word in words} == {None}


def test_a_conversation_without_audio_has_no_words(server: Any) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    body = server.chat(messages=messages, max_tokens=2, include=["words"]).json()
    assert body["listening"] is None
