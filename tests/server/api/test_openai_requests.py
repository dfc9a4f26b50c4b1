"""POST /v1/chat/completions: every field of OpenAI's is heeded, refused or ignored on purpose."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import httpx
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from server.api import neutral_fields
from server.api.openai_requests import ChatCompletionRequest

QUESTION = "What animal is this?"
CHOICES = ["dog", "cat", "cow", "bird"]


def turn(audio: dict[str, str], text: str = QUESTION) -> list[Any]:
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def complete(server: Any, audio: dict[str, str]) -> Any:
    def complete(**more: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": turn(audio), "max_tokens": 4, **more}
        response: httpx.Response = server.post("/v1/chat/completions", json=body)
        return response

    return complete


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_every_field_of_openais_is_known(complete: Any) -> None:
    fields = {**ChatCompletionRequest.model_fields, **ChatCompletionRequest.extras}
    missing = get_type_hints(CompletionCreateParamsBase).keys() - fields.keys()
    assert not missing, "OpenAI has new fields: heed, refuse or ignore each"
    for name in ("top_a", "frequency_penalty", "extra"):
        response = complete(**{name: 2})
        assert response.status_code == 422
        assert response.json()["error"]["param"] == name


def test_a_completion_says_what_audio_chat_says(
    server: Any, complete: Any, audio: dict[str, str]
) -> None:
    more = {"steer": True, "steering": {"strength": 0.5}, "include": ["timeline", "silence"]}
    body = complete(**more).json()
    native = server.chat(audio=audio, question=QUESTION, max_tokens=4, **more).json()
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    message = {"role": "assistant", "content": native["answer"], "refusal": None}
    assert choice == {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": native["finish_reason"],
    }
    for key in ("model", "listening", "steering", "audio", "warnings", "silent_answer"):
        assert body[key] == native[key]
    used = {**native["usage"]}
    details = {"audio_tokens": used.pop("audio_tokens"), "cached_tokens": 0}
    assert body["usage"] == {**used, "prompt_tokens_details": details}
    record = server.get("/listening-score", params={"request_id": body["id"]}).json()
    assert record["score"] == pytest.approx(body["listening"]["score"], abs=1e-6)


IGNORED = {
    "user": "u",
    "safety_identifier": "s",
    "metadata": {"a": "b"},
    "store": True,
    "parallel_tool_calls": False,
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
}
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "modalities": ["text"],
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "reasoning_effort": "none",
    "verbosity": "medium",
    "audio": None,
    "prediction": None,
}
REFUSED: dict[str, Any] = {
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "logit_bias": {"50256": -100},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "prediction": {"type": "content", "content": "x"},
    "web_search_options": {},
    "moderation": {},
    "reasoning_effort": "high",
    "verbosity": "low",
    "response_format": {"type": "json_object"},
    "stream_options": {"include_usage": True},
    "seed": -1,
    "max_completion_tokens": 5,
    "temperature": 3,
    "stop": ["a", "b", "c", "d", "e"],
    "messages": [],
    "choices": ["dog"],
}


def test_the_three_lists_are_whole() -> None:
    told = {name: str(f.description) for name, f in ChatCompletionRequest.model_fields.items()}
    told |= {name: extra.description for name, extra in neutral_fields.OPENAI.items()}
    openais = {name for name in told if name not in neutral_fields.SAMPLING} | {"n", "logprobs"}
    ignored = {n for n, text in told.items() if text.startswith("Accepted without")}
    assert IGNORED.keys() == ignored & openais
    restricted = {name for name, text in told.items() if text.startswith("Taken at ")}
    assert restricted & openais - {"plugins", "safe_prompt"} <= REFUSED.keys()
    assert all(len(text) > len("None") for text in told.values() if text != "None")


def test_what_has_no_effect_has_none(complete: Any) -> None:
    assert content(complete(**IGNORED, **NEUTRAL)) == content(complete())


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_done_is_refused_by_name(complete: Any, name: str) -> None:
    response = complete(**{name: REFUSED[name]})
    error = response.json()["error"]
    assert response.status_code == 422, response.text
    assert (error["param"] or "").split(".")[0] in (name, "max_tokens")
    assert len(error["message"]) > 20


def test_options_of_a_stream_that_ask_for_nothing_need_no_stream(complete: Any) -> None:
    for options in ({}, {"include_usage": False}, {"include_usage": None}):
        content(complete(stream_options=options))


def test_sampling_fields_are_heeded(complete: Any) -> None:
    bare = content(complete(max_tokens=12))
    assert content(complete(max_tokens=None, max_completion_tokens=12)) == bare
    cut = bare[len(bare) // 2]
    assert content(complete(max_tokens=12, stop=cut)) == bare[: bare.index(cut)]
    assert content(complete(max_tokens=12, stop=[cut, "zzz"])) == bare[: bare.index(cut)]
    drawn = {seed: content(complete(max_tokens=12, temperature=2, seed=seed)) for seed in range(4)}
    assert len(set(drawn.values())) > 1
    assert content(complete(max_tokens=12, temperature=2, seed=0)) == drawn[0]
    assert content(complete(max_tokens=12, temperature=2, top_p=1e-6)) == bare
    assert content(complete(max_tokens=12, temperature=2, top_k=1)) == bare
    assert content(complete(max_tokens=12, temperature=2, min_p=1)) == bare
    assert content(complete(max_tokens=12, repetition_penalty=1.8)) != bare


# ---- choices as a JSON schema


def schema(of: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": of}}


def test_an_enum_is_a_choice(complete: Any) -> None:
    enum = {"type": "string", "enum": CHOICES}
    plain = complete(choices=CHOICES)
    chosen = content(plain)
    assert chosen in CHOICES
    assert [one["text"] for one in plain.json()["probabilities"]] == CHOICES
    assert json.loads(content(complete(response_format=schema(enum)))) == chosen
    holder = {"type": "object", "properties": {"animal": enum}, "required": ["animal"]}
    closed = {**holder, "additionalProperties": False}
    assert json.loads(content(complete(response_format=schema(closed)))) == {"animal": chosen}
    behind = {"properties": {"animal": {"$ref": "#/$defs/A"}}, "$defs": {"A": enum}}
    referred = {**closed, **behind}
    assert json.loads(content(complete(response_format=schema(referred)))) == {"animal": chosen}
    assert content(complete(response_format={"type": "text"})) == content(complete())


ENUM = {"enum": ["x", "y"]}
HOLDER = {"type": "object", "properties": {"a": ENUM}}
REFERRING = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}
WRONG_DEFINITIONS: list[Any] = ["A", ["A"], 3, True, {"A": "A"}, {"A": None}, {"A": {}}]


@pytest.mark.parametrize(
    "of",
    [
        {"type": "string"},
        {"type": "string", "enum": ["dog"]},
        {"type": "string", "enum": ["dog", 3]},
        {"type": "string", "enum": ["dog", "dog"]},
        {"type": "string", "enum": ["dog", "cat"], "pattern": "^d"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
        {"type": "array", "items": {"enum": ["x", "y"]}},
        None,
    ],
    ids=str,
)
def test_other_schemas_are_refused(complete: Any, of: Any) -> None:
    response = complete(response_format=schema(of))
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("response_format")


@pytest.mark.parametrize(
    "of",
    [
        *({**REFERRING, "$defs": wrong} for wrong in WRONG_DEFINITIONS),
        {**REFERRING, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        *({**HOLDER, "properties": {"a": wrong}} for wrong in ("b", 3, None, {**ENUM, "title": 3})),
        {**REFERRING, "properties": {"a": {"$ref": ["A"]}}, "$defs": {"['A']": ENUM}},
        *({**HOLDER, "properties": wrong} for wrong in ("a", ["a"], 3, None)),
        *({**HOLDER, "type": wrong} for wrong in (["object"], ["string"], 3)),
        *({**HOLDER, name: 3} for name in ("required", "additionalProperties", "title")),
        *({**ENUM, name: 3} for name in ("type", "title", "description", "$schema", "$defs")),
        *({"enum": wrong} for wrong in ("dog", {"dog": "cat"}, 3, None, [["x"], {}])),
        *({"const": wrong} for wrong in (3, ["x", "y"], None)),
        *("enum", ["enum"], 3),
    ],
    ids=str,
)
def test_schemas_of_wrong_types_are_refused(complete: Any, of: Any) -> None:
    response = complete(response_format=schema(of))
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("response_format")


# ---- messages


def test_a_conversation_goes_on_with_our_own_answer(complete: Any, audio: Any) -> None:
    first = complete().json()["choices"][0]["message"]
    follow = {"role": "user", "content": "Are you sure?", "name": "ann"}
    told = {"role": "developer", "content": "Be brief."}
    answer = content(complete(messages=[told, *turn(audio), first, follow]))
    told["role"] = "system"
    assert content(complete(messages=[told, *turn(audio), first, follow])) == answer


def test_a_data_uri_is_heard_like_input_audio(complete: Any, audio: dict[str, str]) -> None:
    def linked(url: str) -> httpx.Response:
        part = {"type": "audio_url", "audio_url": {"url": url}}
        text = {"type": "text", "text": QUESTION}
        response: httpx.Response = complete(messages=[{"role": "user", "content": [part, text]}])
        return response

    heard = complete().json()
    for head in ("data:audio/wav;base64,", "DATA:audio/x-wav;charset=x;BASE64,", "data:;base64,"):
        found = linked(head + audio["data"]).json()
        assert found["listening"] == heard["listening"]
    for wrong in ("data:audio/wav,abc", "data:audio/wav;base64", "data:audio/wav;base64,%%%"):
        assert linked(wrong).json()["error"]["code"] == "invalid_audio"
    for url in ("https://example.com/x.wav", "file:///etc/passwd", "x.wav", "//x/y"):
        response = linked(url)
        assert response.status_code == 422
        assert response.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": " "}], "messages.0.content"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.0.tool_call_id"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0"),
        ([{"role": "assistant", "tool_calls": [{}], "content": "x"}], "messages.0.tool_calls"),
    ],
)
def test_messages_that_can_not_be_heard_are_refused(
    complete: Any, messages: Any, param: str
) -> None:
    response = complete(messages=messages)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param


def test_other_models_and_other_media_are_refused(server: Any, complete: Any) -> None:
    response = complete(model="gpt-4o-audio-preview")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "'tiny'" in response.json()["error"]["message"]
    form = server.post("/v1/chat/completions", data={"model": "tiny"})
    assert form.status_code == 415
    assert server.get("/v1/models/tiny").json()["id"] == "tiny"
    assert server.get("/v1/models/org/name").status_code == 404


# ---- streaming


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_a_stream_has_role_pieces_finish_and_usage(complete: Any, options: Any) -> None:
    more = {"steer": True, "include": ["timeline"], "max_tokens": 12}
    whole = complete(**more).json()
    response = complete(stream=True, stream_options=options, **more)
    first, *rest = events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    with_usage = bool(options and options["include_usage"])
    usage = rest.pop() if with_usage else None
    last = rest.pop()
    text = "".join(one["choices"][0]["delta"]["content"] for one in rest)
    assert text == whole["choices"][0]["message"]["content"]
    scores = [score for one in rest for score in one["token_scores"]]
    assert scores[0] == whole["listening"]["score"]
    assert 0 <= whole["usage"]["completion_tokens"] - len(scores) <= 1, "an end token at most"
    assert [one["choices"][0]["finish_reason"] for one in (first, *rest)] == [None] * (
        len(rest) + 1
    )
    assert last["choices"][0] | {"delta": {}} == last["choices"][0]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["listening"], last["steering"]) == (whole["listening"], whole["steering"])
    assert all(("usage" in one) == with_usage for one in (first, *rest, last))
    if usage is not None:
        assert usage["choices"] == []
        assert usage["usage"] == whole["usage"]
        assert usage["listening"] == whole["listening"]
    assert float(response.headers["x-listening-score"]) == whole["listening"]["score"]


def test_a_streamed_choice_is_json_as_well(complete: Any) -> None:
    form = schema({"type": "string", "enum": CHOICES})
    whole = content(complete(response_format=form))
    pieces = events(complete(response_format=form, stream=True))
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    assert text == whole
    assert pieces[-1]["probabilities"]
