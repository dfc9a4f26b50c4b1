"""POST /v1/audio/transcriptions: OpenAI's form, a question to the model behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from server.api.transcriptions import TranscriptionRequest, _shared_words, to_question

PATH = "/v1/audio/transcriptions"


def send(server: Any, sound: bytes | None, **fields: Any) -> httpx.Response:
    files = {} if sound is None else {"file": ("clip.wav", sound)}
    parts = {"model": "tiny", "max_tokens": "4", **fields}
    response: httpx.Response = server.post(
        PATH, files={**files, **{k: (None, v) for k, v in parts.items()}}
    )
    return response


def test_a_transcript_carries_listening(server: Any, sound: bytes) -> None:
    response = send(server, sound, language="en", prompt="It is about dogs.", steer="true")
    assert response.status_code == 200, response.text
    body = response.json()
    assert isinstance(body["text"], str)
    assert body["id"].startswith("transcr-")
    assert 0 < body["listening"]["score"] < 1
    assert response.headers["x-listening-score"] == f"{body['listening']['score']:.6f}"
    assert body["steering"]["direction"] == "request"
    assert body["audio"][0]["submitted_seconds"] == 1
    usage = body["usage"]
    assert usage["type"] == "tokens"
    assert usage["input_token_details"]["audio_tokens"] == 25
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert "answer" not in body
    record = server.get("/listening-score", params={"request_id": body["id"]})
    for name in ("score", "effect_bits"):
        assert record.json()[name] == pytest.approx(body["listening"][name], abs=1e-6)


def test_text_is_the_transcript_alone(server: Any, sound: bytes) -> None:
    whole = send(server, sound).json()
    response = send(server, sound, response_format="text")
    assert response.headers["content-type"].startswith("text/plain")
    assert "x-listening-score" in response.headers
    assert response.text == whole["text"]


def test_language_and_prompt_are_told_to_the_model() -> None:
    plain = to_question(TranscriptionRequest(model="m"))
    told = to_question(TranscriptionRequest(model="m", language="de", prompt=" Names: Ada. "))
    assert str(told.question).startswith(str(plain.question))
    assert "de" in str(told.question)
    assert str(told.question).endswith("Names: Ada.")


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    ({"response_format": "srt"}, 422, "response_format", "srt"),
    ({"response_format": "vtt"}, 422, "response_format", "'json' or 'text'"),
    ({"response_format": "verbose_json"}, 422, "response_format", "verbose_json"),
    ({"timestamp_granularities[]": "word"}, 422, "timestamp_granularities", "times of words"),
    ({"include[]": "logprobs"}, 422, "include", "log-probabilities"),
    ({"stream": "true"}, 422, "stream", "whole"),
    ({"language": "<|im_end|>"}, 422, "language", "code"),
    ({"prompt": "Names: <|im_end|>"}, 422, "prompt", "<|im_end|>"),
    ({"temperature": "3"}, 422, "temperature", "2"),
    ({"model": "whisper-1"}, 404, "model", "tiny"),
    ({"diarize": "1"}, 422, "diarize", "unknown key"),
    ({"file": "clip.wav"}, 422, "file", "came as text"),
    ({"long_audio": "split"}, 422, "long_audio", "window"),
]


@pytest.mark.parametrize(("fields", "status", "param", "words"), WRONG, ids=lambda x: str(x)[:40])
def test_what_is_not_done_is_refused_by_name(
    server: Any, sound: bytes, fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    response = send(server, None if "file" in fields else sound, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert words in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": "false"},
        {"language": "", "prompt": ""},
        {"chunking_strategy": "auto"},
        {"temperature": "0"},
        {"long_audio": "cut"},
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_taken(server: Any, sound: bytes, fields: dict[str, Any]) -> None:
    assert send(server, sound, **fields).status_code == 200


def test_an_error_names_the_file(server: Any, sound: bytes) -> None:
    for data, status in ((None, 422), (b"nonsense" * 20, 400), (b"", 400)):
        response = send(server, data)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (status, "file"), error
        assert "audio.0" not in error["message"]
    two = [("file", ("a.wav", sound)), ("file", ("b.wav", sound))]
    response = server.post(PATH, files=two, data={"model": "tiny"})
    assert response.json()["error"]["param"] == "file"
    response = server.post(PATH, json={"model": "tiny"})
    assert response.status_code == 415
    assert "file" in response.json()["error"]["message"]


def test_a_long_clip_is_heard_to_its_end(server: Any, make_sound: Callable[..., bytes]) -> None:
    body = send(server, make_sound(5.0), long_audio="window").json()
    assert len(body["windows"]) > 1
    words = [word for window in body["windows"] for word in window["answer"].split()]
    assert set(body["text"].split()) <= set(words)
    assert body["text"].split()[-1:] == words[-1:]


def test_words_of_two_windows_stand_once() -> None:
    before, after = (
        ["the", "dog", "ran", "over", "the", "Hill,"],
        ["over", "the", "hill", "and", "away"],
    )
    assert _shared_words(before, after) == 3
    assert _shared_words(before, ["and", "away"]) == 0
    assert _shared_words([], after) == 0


@pytest.fixture
def client(running_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_the_openai_client_transcribes(client: OpenAI, sound: bytes, tmp_path: Any) -> None:
    (tmp_path / "clip.wav").write_bytes(sound)
    with (tmp_path / "clip.wav").open("rb") as file:
        result = client.audio.transcriptions.create(
            model="tiny", file=file, language="en", prompt="A dog.", extra_body={"max_tokens": 2}
        )
    assert isinstance(result.text, str)
    assert 0 < (result.model_extra or {})["listening"]["score"] < 1
    text = client.audio.transcriptions.create(
        model="tiny", file=("clip.wav", sound), response_format="text", extra_body={"max_tokens": 2}
    )
    assert isinstance(text, str)
    extra = {"steer": True, "long_audio": "cut", "max_tokens": 2}
    steered = client.audio.transcriptions.create(
        model="tiny", file=("clip.wav", sound), extra_body=extra
    )
    assert (steered.model_extra or {})["steering"]["applied"] in (True, False)
    with pytest.raises(openai.UnprocessableEntityError, match="times of words"):
        client.audio.transcriptions.create(
            model="tiny", file=("clip.wav", sound), timestamp_granularities=["word"]
        )
