"""Nulls are as left out, and wrong values of every field are refused in words of the API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server.api import (
    neutral_fields,
    openai_requests,
    openai_responses,
    requests,
    responses,
    strict_model,
)
from server.api.openai_requests import ChatCompletionRequest
from server.api.requests import AudioChatRequest, ChatMessage, ListeningRequest
from server.api.strict_model import Extra, StrictModel
from steering.errors import RequestError

QUESTION = "What is this?"
ROUTES: dict[str, type[StrictModel]] = {
    "/v1/audio-chat": AudioChatRequest,
    "/v1/listening-score": ListeningRequest,
    "/v1/chat/completions": ChatCompletionRequest,
}
WRONG: tuple[Any, ...] = (
    3, -1, 2.5, 10**30, "", "x", " ", True, [], [1], [""], [[]], [{}], [None], list("abcdef"),
    {}, {"x": 1}, {"type": "x"}, [{"role": "x"}], [{"role": "user"}],
    [{"role": "user", "content": 3}], [{"role": "user", "content": [3, "x"]}],
    [{"role": "user", "content": [{"type": "text"}, {"type": "input_audio", "input_audio": 1}]}],
)  # fmt: skip


@pytest.fixture
def bodies(audio: dict[str, str]) -> dict[str, dict[str, Any]]:
    """A small body for each route."""
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": QUESTION}]
    native = {"audio": audio, "question": QUESTION}
    return {
        "/v1/audio-chat": {**native, "max_tokens": 1},
        "/v1/listening-score": native,
        "/v1/chat/completions": {
            "model": "tiny",
            "max_tokens": 1,
            "messages": [{"role": "user", "content": parts}],
        },
    }


@pytest.mark.parametrize("route", ROUTES)
def test_a_null_is_as_left_out(server: Any, bodies: dict[str, dict[str, Any]], route: str) -> None:
    body, kind = bodies[route], ROUTES[route]
    nulls = dict.fromkeys([*kind.model_fields, *kind.extras, "of_nobody"])
    sent = {**nulls, **body}
    response = server.post(route, json=sent)
    assert response.status_code == 200, response.text


def test_nulls_inside_objects_are_as_left_out(server: Any, audio: dict[str, str]) -> None:
    nulls = dict.fromkeys(("text", "input_audio", "audio_url", "image_url", "cache_control"))
    parts = [
        {**nulls, "type": "input_audio", "input_audio": {**audio, "format": None, "url": None}},
        {**nulls, "type": "text", "text": QUESTION},
    ]
    message = {**dict.fromkeys(("name", "tool_calls", "x")), "role": "user", "content": parts}
    options = {"direction": None, "strength": None, "clip": None, "x": None}
    more = {"steering": options, "steer": True, "max_tokens": 1}
    assert server.chat(messages=[message], **more).status_code == 200
    whole = {"model": "tiny", "messages": [message], "response_format": {"type": "text", "x": None}}
    response = server.post("/v1/chat/completions", json={**whole, **more})
    assert response.status_code == 200, response.text


def test_nulls_and_empty_fields_of_a_form_are_as_left_out(server: Any, sound: bytes) -> None:
    names = [n for n in (*AudioChatRequest.model_fields, *AudioChatRequest.extras) if n != "audio"]
    for value in ("null", ""):
        fields = {**dict.fromkeys(names, value), "question": QUESTION, "max_tokens": "1"}
        files = [("audio", ("x.wav", sound))]
        response = server.post("/v1/audio-chat", files=files, data=fields)
        assert response.status_code == 200, response.text
    neutral = {"top_k": "-1", "repetition_penalty": "1.0", "skip_special_tokens": "true"}
    neutral |= {"min_p": "0", "top_a": "0"}
    response = server.post("/v1/audio-chat", files=files, data={**fields, **neutral})
    assert response.status_code == 200, response.text
    response = server.post("/v1/audio-chat", files=files, data={**fields, "top_a": "5"})
    assert response.json()["error"]["param"] == "top_a"


def test_a_required_field_is_missing_where_it_is_null(server: Any) -> None:
    response = server.chat(audio={"data": None}, question=QUESTION)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "audio.data"


def class_names() -> set[str]:
    """The names of the classes of the API, which no message may hold."""
    modules = (requests, openai_requests, responses, openai_responses, strict_model)
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and not hasattr(__builtins__, name) and name[0].isupper()
    }


def wrong_bodies(kind: type[StrictModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field with each wrong value; the same inside of objects."""
    for name in (*kind.model_fields, *kind.extras):
        yield from ((name, {name: value}) for value in WRONG)
    options = requests.SteeringOptions.model_fields
    yield from (("steering", {"steering": {name: value}}) for name in options for value in WRONG)
    for name in ("role", "content", *ChatMessage.extras):
        for value in WRONG:
            turn = {"role": "user", "content": "x", name: value}
            yield "messages", {"messages": [turn]}


@pytest.mark.parametrize("route", ROUTES)
def test_no_message_names_what_is_inside(
    server: Any, bodies: dict[str, dict[str, Any]], route: str
) -> None:
    inside = re.compile(
        r"constrained|function-|\[|pydantic|instance of|_tag\(|tuple|dictionary|Value error|\b("
        + "|".join(class_names())
        + r")\b"
    )
    refused = 0
    for name, wrong in wrong_bodies(ROUTES[route]):
        try:
            strict_model.validate(ROUTES[route], {**bodies[route], **wrong}, strict=True)
        except RequestError as error:
            refused += 1
            said = str(error).partition("; got ")[0].replace(" or []", "").replace("[] only", "")
            allowed = re.sub(r"Taken at .* only", "", said)
            assert not inside.search(allowed), (name, wrong, allowed)
            assert str(error.param).split(".")[0] in {name, "messages", "steering"}
    assert refused > 200


def test_stop_takes_four_strings(server: Any, bodies: dict[str, dict[str, Any]]) -> None:
    for route in ("/v1/audio-chat", "/v1/chat/completions"):
        for stop in ("zz", ["zz"], list("wxyz"), []):
            assert server.post(route, json={**bodies[route], "stop": stop}).status_code == 200
        for stop in (list("abcde"), ""):
            error = server.post(route, json={**bodies[route], "stop": stop}).json()["error"]
            assert error["param"] == "stop"
            assert ("at most 4" in error["message"]) == bool(stop)


# ---- keys of other servers


@pytest.mark.parametrize("route", ["/v1/audio-chat", "/v1/chat/completions"])
def test_what_asks_for_nothing_is_accepted_and_else_refused_by_name(
    bodies: dict[str, dict[str, Any]], route: str
) -> None:
    kind = ROUTES[route]
    assert len(kind.extras) > 60
    for name, extra in kind.extras.items():
        for value in extra.neutral or () if extra.neutral is not None else ("x", 1, {}):
            strict_model.validate(kind, {**bodies[route], name: value}, strict=True)
        if extra.neutral is not None:
            with pytest.raises(RequestError, match=extra.reason) as caught:
                strict_model.validate(kind, {**bodies[route], name: {"of": 7}}, strict=True)
            assert caught.value.param == name
            assert '"of": 7' in str(caught.value)


def test_neutral_values_change_nothing(server: Any, bodies: dict[str, dict[str, Any]]) -> None:
    for route in ("/v1/audio-chat", "/v1/chat/completions"):
        neutral = {n: e.neutral[0] for n, e in neutral_fields.SAMPLING.items() if e.neutral}
        before = server.post(route, json=bodies[route]).json()
        after = server.post(route, json={**bodies[route], **neutral}).json()
        assert before["listening"] == after["listening"]


def test_one_and_true_are_not_the_same() -> None:
    assert Extra("x", (1,)).allows(1.0)
    assert not Extra("x", (1,)).allows(True)
    assert not Extra("x", (False,)).allows(0)


def test_labels_of_messages_and_parts_are_accepted(server: Any, audio: dict[str, str]) -> None:
    label = {"id": "a", "cache_control": {"type": "ephemeral"}}
    file = {**audio, "filename": "a.wav", **label}
    parts = [
        {"type": "input_audio", "input_audio": file, "uuid": "b", **label},
        {"type": "text", "text": QUESTION, "annotations": [], **label},
    ]
    answer = {"role": "assistant", "content": "dog", "reasoning_content": "hm", "tool_calls": []}
    turns = [{"role": "user", "content": parts, "name": "ann", **label}, answer]
    again = {"role": "user", "content": "Sure?", "metadata": {"x": 1}}
    response = server.chat(messages=[*turns, again], max_tokens=1)
    assert response.status_code == 200, response.text


def test_parts_of_other_types_are_refused_with_the_types_there_are(
    server: Any, audio: dict[str, str]
) -> None:
    clip = {"type": "input_audio", "input_audio": audio}
    for wrong in ({"type": "image_url", "image_url": {"url": "x"}}, {"text": "x"}, {}, 3, "x"):
        for route in ("/v1/audio-chat", "/v1/chat/completions"):
            body = {"messages": [{"role": "user", "content": [clip, wrong]}]}
            named = {"model": "tiny", **body} if "completions" in route else body
            response = server.post(route, json=named)
            assert response.status_code == 422
            error = response.json()["error"]
            assert error["param"] == "messages.0.content.1"
            if isinstance(wrong, dict):
                assert "text, input_audio, audio_url" in error["message"]


def test_every_extra_says_why() -> None:
    tables = (neutral_fields.OPENAI, neutral_fields.MESSAGE, neutral_fields.PART)
    for name, extra in (pair for table in tables for pair in table.items()):
        assert extra.reason, name
        json.dumps(extra.json_schema())
