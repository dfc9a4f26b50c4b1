"""Every row of the table of errors, and what hostile bodies get; the next request is fine."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import torch

from server import errors
from server.api import error_responses
from server.engine import engine
from server.engine.answering import answer_question
from server.engine.events import Piece
from steering.errors import (
    AllEarsError,
    AudioError,
    AudioTooLarge,
    DataError,
    ModelError,
    ProfileError,
    RequestError,
    UnsupportedAudio,
)

QUESTION = "What is this?"


def refused(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    """The message of an error that is as it should be."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert response.headers["x-request-id"]
    message: str = error["message"]
    return message


@pytest.fixture(autouse=True)
def _the_next_request_is_fine(server: Any, audio: dict[str, str]) -> Iterator[None]:
    yield
    assert server.chat(audio=audio, question=QUESTION, max_tokens=1).status_code == 200


# ---- fields

BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("unknown key", {"volume": 1}, "volume"),
    ("several answers", {"n": 2}, "n"),
    ("misspelt key", {"max_token": 1}, "max_token"),
    ("unknown key in steering", {"steering": {"power": 1}}, "steering.power"),
    ("unknown key in audio", {"audio": {"data": "AAAA", "url": "x"}}, "audio.url"),
    ("unknown key in a list", {"audio": [{"data": "A"}, {"file": 1}]}, "audio.1.file"),
    ("audio of a wrong type", {"audio": 3}, "audio"),
    ("no data", {"audio": {}}, "audio.data"),
    ("empty audio list", {"audio": []}, "audio"),
    ("no audio", {"audio": None}, "audio"),
    ("format of a wrong type", {"audio": {"data": "AAAA", "format": 3}}, "audio.format"),
    ("question of a wrong type", {"question": 7}, "question"),
    ("blank question", {"question": " \n"}, "question"),
    ("endless question", {"question": "x" * 60_000}, "question"),
    ("neither question nor messages", {"question": None}, "question"),
    ("both", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ("a control token", {"question": "<|im_start|>system"}, "question"),
    ("one choice", {"choices": ["a"]}, "choices"),
    ("27 choices", {"choices": [str(i) for i in range(27)]}, "choices"),
    ("blank choice", {"choices": ["a", " "]}, "choices.1"),
    ("choice twice", {"choices": ["a", "b", "a "]}, "choices"),
    ("choices of a wrong type", {"choices": "ab"}, "choices"),
    ("steer as a word", {"steer": "yes"}, "steer"),
    ("strength below 0", {"steering": {"strength": -1}}, "steering.strength"),
    ("strength as another word", {"steering": {"strength": "max"}}, "steering.strength"),
    ("strength as a boolean", {"steering": {"strength": True}}, "steering.strength"),
    ("unknown direction", {"steering": {"direction": "up"}}, "steering.direction"),
    ("max_tokens 0", {"max_tokens": 0}, "max_tokens"),
    ("max_tokens -1", {"max_tokens": -1}, "max_tokens"),
    ("max_tokens as text", {"max_tokens": "64"}, "max_tokens"),
    ("temperature over 2", {"temperature": 2.1}, "temperature"),
    ("top_p 0", {"top_p": 0}, "top_p"),
    ("top_k -2", {"top_k": -2}, "top_k"),
    ("top_k in parts", {"top_k": 2.5}, "top_k"),
    ("min_p over 1", {"min_p": 1.1}, "min_p"),
    ("repetition_penalty 0", {"repetition_penalty": 0}, "repetition_penalty"),
    ("repetition_penalty over 2", {"repetition_penalty": 2.1}, "repetition_penalty"),
    ("huge seed", {"seed": 2**63}, "seed"),
    ("five stops", {"stop": list("abcde")}, "stop"),
    ("empty stop", {"stop": [""]}, "stop.0"),
    ("unknown include", {"include": ["secrets"]}, "include.0"),
    ("stream as a number", {"stream": 1}, "stream"),
]
BAD_MESSAGES: list[tuple[str, Any, str]] = [
    ("none", [], "messages"),
    ("65", [{"role": "user", "content": "x"}] * 65, "messages"),
    ("a role", [{"role": "god", "content": "x"}], "messages.0.role"),
    ("a key", [{"role": "user", "content": "x", "mood": "y"}], "messages.0.mood"),
    ("no content", [{"role": "user"}], "messages.0.content"),
    ("empty content", [{"role": "user", "content": []}], "messages.0.content"),
    ("a part", [{"role": "user", "content": [{"type": "image"}]}], "messages.0.content.0"),
    (
        "a key of a part",
        [{"role": "user", "content": [{"type": "text", "text": "x", "bold": 1}]}],
        "messages.0.content.0.bold",
    ),
    (
        "a key of a clip",
        [
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "A", "rate": 1}}],
            }
        ],
        "messages.0.content.0.input_audio.rate",
    ),
    ("the assistant last", [{"role": "assistant", "content": "x"}], "messages.0.role"),
    ("much text", [{"role": "user", "content": "x" * 40_000}] * 2, "messages"),
]


@pytest.mark.parametrize(
    ("wrong", "param"), [x[1:] for x in BAD_FIELDS], ids=[x[0] for x in BAD_FIELDS]
)
def test_a_wrong_field_is_named(
    server: Any, audio: dict[str, str], wrong: dict[str, Any], param: str
) -> None:
    response = server.chat(**{"audio": audio, "question": QUESTION, **wrong})
    assert refused(response, 422, "invalid_request", param)


@pytest.mark.parametrize(
    ("messages", "param"), [x[1:] for x in BAD_MESSAGES], ids=[x[0] for x in BAD_MESSAGES]
)
def test_a_wrong_message_is_named(
    server: Any, audio: dict[str, str], messages: Any, param: str
) -> None:
    refused(server.chat(audio=audio, messages=messages), 422, "invalid_request", param)


def test_audio_stands_in_one_place_and_with_the_user(server: Any, audio: dict[str, str]) -> None:
    clip = {"type": "input_audio", "input_audio": audio}
    messages = [{"role": "user", "content": [clip, {"type": "text", "text": "x"}]}]
    refused(server.chat(audio=audio, messages=messages), 422, "invalid_request", "audio")
    system = [{"role": "system", "content": [clip]}, {"role": "user", "content": "x"}]
    refused(server.chat(messages=system), 422, "invalid_request", "messages.0.content.0")


def test_too_many_clips(server: Any, audio: dict[str, str], sound: bytes) -> None:
    refused(server.chat(audio=[audio] * 9, question=QUESTION), 422, "invalid_request", "audio")
    files = [("audio", ("x.wav", sound))] * 9
    form = server.post("/v1/audio-chat", files=files, data={"question": QUESTION})
    refused(form, 422, "invalid_request", "audio")


def test_a_strength_over_the_profiles_says_the_limit(server: Any, audio: dict[str, str]) -> None:
    response = server.chat(
        audio=audio, question=QUESTION, steer=True, steering={"strength": 1.5}, stream=True
    )
    assert " 1;" in refused(response, 422, "invalid_request", "steering.strength")


def test_choices_need_a_text_to_stand_under(server: Any, audio: dict[str, str]) -> None:
    messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}]
    response = server.chat(messages=messages, choices=["a", "b"])
    refused(response, 422, "invalid_request", "messages")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"temperature": {}', '"steering": {{"strength": {}}}'])
def test_numbers_are_finite(server: Any, audio: Any, place: str, number: str) -> None:
    start = json.dumps({"audio": audio, "question": QUESTION})[:-1]
    body = f"{start}, {place.format(number)}}}"
    response = server.post(
        "/v1/audio-chat", content=body, headers={"content-type": "application/json"}
    )
    param = "steering.strength" if "steering" in place else "temperature"
    refused(response, 422, "invalid_request", param)


def test_a_prompt_that_does_not_fit(start: Any, audio: dict[str, str]) -> None:
    with start() as server:
        message = refused(
            server.chat(audio=audio, question="What is it? " * 400), 422, "invalid_request", None
        )
        assert "a row of 2,048 holds 0.0 s" in message and "MAX_CONTEXT_TOKENS=" in message


# ---- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"question": "\\ud800"}',
        b'{"audio": ' + b"[" * 100_000,
        b'{"a": ' * 5_000 + b"1" + b"}" * 5_000,
    ],
    ids=lambda body: body[:12].decode(errors="replace"),
)
def test_a_body_that_is_no_object(server: Any, body: bytes) -> None:
    response = server.post(
        "/v1/audio-chat", content=body, headers={"content-type": "application/json"}
    )
    refused(response, 422, "invalid_request", None)


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_kind(server: Any, media: str) -> None:
    headers = {"content-type": media} if media else {}
    response = server.post("/v1/audio-chat", content=b"question=x", headers=headers)
    refused(response, 415, "unsupported_media_type", None)


FORMS: list[tuple[str, dict[str, Any], str]] = [
    ("unknown field", {"volume": "1"}, "volume"),
    ("a number", {"max_tokens": "many"}, "max_tokens"),
    ("not finite", {"temperature": "nan"}, "temperature"),
    ("field twice", {"seed": ["1", "2"]}, "seed"),
    ("not JSON", {"steering": "{"}, "steering"),
    ("key in JSON", {"steering": '{"power": 1}'}, "steering.power"),
    ("list that is not JSON", {"choices": "[a"}, "choices"),
    ("audio as text", {"audio": "RIFF"}, "audio"),
]


@pytest.mark.parametrize(("fields", "param"), [x[1:] for x in FORMS], ids=[x[0] for x in FORMS])
def test_a_wrong_form_field_is_named(
    server: Any, sound: bytes, fields: dict[str, Any], param: str
) -> None:
    files = [("audio", ("x.wav", sound))]
    response = server.post("/v1/audio-chat", files=files, data={"question": QUESTION, **fields})
    refused(response, 422, "invalid_request", param)


def test_a_form_that_is_none(server: Any) -> None:
    for media in ("multipart/form-data", "multipart/form-data; boundary=x"):
        response = server.post(
            "/v1/audio-chat", content=b"--y\r\nrubbish", headers={"content-type": media}
        )
        refused(response, 422, "invalid_request", None)


def test_a_huge_body_is_refused_while_it_comes(start: Any, audio: dict[str, str]) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b" " * 10_000
            await asyncio.sleep(0)

    with start(max_audio_bytes=1_000) as server:
        headers = {"content-type": "application/json"}
        announced = server.post("/v1/audio-chat", content=b" " * 1_100_000, headers=headers)
        refused(announced, 413, "body_too_large", None)
        came = server.post("/v1/audio-chat", content=endless(), headers=headers)
        assert "transfer-encoding" in came.request.headers
        refused(came, 413, "body_too_large", None)


# ---- audio


def test_audio_that_is_none(server: Any, sound: bytes, make_sound: Any) -> None:
    for data in ("not base64!", "Zm9v", base64.b64encode(b"RIFF    WAVE").decode(), "=", "AA=A"):
        response = server.chat(audio={"data": data}, question=QUESTION)
        assert "audio.0" in refused(response, 400, "invalid_audio", "audio")
    empty = server.post(
        "/v1/audio-chat", files=[("audio", ("x.wav", b""))], data={"question": QUESTION}
    )
    refused(empty, 400, "invalid_audio", "audio")
    cut = {"data": base64.b64encode(sound[:60]).decode()}
    refused(server.chat(audio=[cut], question=QUESTION), 400, "invalid_audio", "audio")
    uri = {"data": "data:audio/wav," + base64.b64encode(sound).decode()}
    assert "URI" in refused(
        server.chat(audio=uri, question=QUESTION), 400, "invalid_audio", "audio"
    )


def test_line_breaks_in_base64_are_fine(server: Any, sound: bytes) -> None:
    wrapped = base64.encodebytes(sound).decode()
    body = {"audio": {"data": wrapped}, "question": QUESTION, "max_tokens": 1}
    assert server.chat(**body).status_code == 200


def test_audio_over_the_limits(start: Any, make_sound: Any) -> None:
    with start(max_audio_bytes=50_000, max_audio_seconds=2.0) as server:
        for data in (make_sound(1.9), make_sound(2.5, container="OGG")):
            clip = {"data": base64.b64encode(data).decode()}
            response = server.chat(audio=clip, question=QUESTION)
            refused(response, 413, "audio_too_large", "audio")


# ---- paths, methods, and what nobody expected


def test_unknown_paths_and_methods(server: Any) -> None:
    refused(server.get("/v2/<script>"), 404, "not_found", None)
    response = server.get("/v1/audio-chat")
    refused(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("secret 0x7f"), 500, "internal_error"),
        (torch.OutOfMemoryError("secret 0x7f"), 503, "out_of_memory"),
    ],
    ids=["bug", "memory"],
)
def test_what_fails_inside_is_not_shown(
    server: Any,
    audio: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    code: str,
    stream: bool,
) -> None:
    def fail(*_: object) -> Iterator[Any]:
        yield from ()
        raise error

    headers = {"x-request-id": "my-id"}
    body = {"audio": audio, "question": QUESTION, "stream": stream}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "answer_question", fail)
        response = server.post("/v1/audio-chat", json=body, headers=headers)
    message = refused(response, status, code, None)
    assert "secret" not in response.text
    assert ("my-id" in message) == (status == 500)
    assert "my-id" in caplog.text
    assert (response.headers.get("retry-after") is not None) == (status == 503)


def test_what_fails_inside_a_stream_is_its_last_event(
    server: Any, audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Iterator[Any]:
        for event in answer_question(*given):
            yield event
            if isinstance(event, Piece):
                raise RuntimeError("secret 0x7f")

    before = server.metric("allears_errors_total", code="internal_error")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "answer_question", fail)
        response = server.chat(audio=audio, question=QUESTION, stream=True)
    assert response.status_code == 200
    *pieces, last = [line for line in response.text.split("\n\n") if line]
    assert len(pieces) == 1
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert server.metric("allears_errors_total", code="internal_error") == before + 1


def test_every_error_that_a_request_may_meet_has_its_row() -> None:
    tree = {AudioError, AudioTooLarge, UnsupportedAudio, RequestError}
    at_start = {ModelError, ProfileError, DataError}
    assert set(AllEarsError.__subclasses__()) - {AudioError, RequestError} >= at_start
    assert tree <= error_responses.TABLE.keys()
    busy = {one for one in error_responses.TABLE if issubclass(one, errors.Busy)}
    assert busy == set(errors.Busy.__subclasses__())


def subclasses_of(parent: type[Exception]) -> Iterator[type[Exception]]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses_of(child)


def test_every_exception_of_the_server_has_a_row_of_its_own() -> None:
    own = {cls for cls in subclasses_of(Exception) if cls.__module__.startswith("server.")}
    assert {cls.__module__ for cls in own} == {"server.errors"}
    assert own - error_responses.TABLE.keys() == {errors.Busy}, "of which only children are raised"


def test_a_path_names_the_methods_of_all_its_routes(server: Any) -> None:
    response = server.begin("DELETE", "/v1/listening-score").result(20)
    refused(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "GET, HEAD, POST"


def test_a_whole_number_may_have_a_point(server: Any, audio: dict[str, str]) -> None:
    fields = {"audio": audio, "question": QUESTION}
    assert server.chat(**fields, max_tokens=1.0, seed=7.0).status_code == 200
    refused(server.chat(**fields, max_tokens=1.5), 422, "invalid_request", "max_tokens")
    refused(server.chat(**fields, seed=-1.0), 422, "invalid_request", "seed")
