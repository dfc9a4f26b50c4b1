"""The client's options and answers against the server's own OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import signature
from itertools import count
from typing import Any, get_args, get_type_hints

import httpx
import pytest

from allears_client import AllEars, AsyncAllEars, ListeningOptions, Options
from allears_client.answers import parse_answer, parse_heard
from allears_client.request_body import body
from allears_client.terminal import GUESSED_BITS
from server.app import create_app
from server.settings import Settings
from steering.strength import FELT_BITS
from tests.conftest import ROOT

QUESTIONS = {"/v1/audio-chat": Options, "/v1/listening-score": ListeningOptions}
PARSERS = {"/v1/audio-chat": parse_answer, "/v1/listening-score": parse_heard}
STEERING = ("strength", "direction", "clip")
EXAMPLES: Mapping[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "choices": ["a", "b"],
    "long_audio": "window",
    "answer": "It is a dog.",
    "include": ["timeline"],
    "steer": True,
    "strength": 0.5,
    "direction": "calibrated",
    "clip": 1,
    "max_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "seed": 1,
    "stop": ["x"],
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference, or behind the branch beside null."""
    for branch in schema.get("anyOf", ()):
        if branch.get("type") != "null":
            return resolved(document, branch)
    if "$ref" in schema:
        named: Mapping[str, Any] = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
        return named
    return schema


def request_schema(document: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return resolved(document, content["application/json"]["schema"])


def literals(annotation: Any) -> set[str]:
    """All strings that stand in the Literals of an annotation."""
    arguments = get_args(annotation)
    strings = {argument for argument in arguments if isinstance(argument, str)}
    return strings.union(*(literals(argument) for argument in arguments if get_args(argument)))


def enumerated(document: Mapping[str, Any], schema: Mapping[str, Any]) -> set[str]:
    """All strings that a schema lists, those of arrays included."""
    schema = resolved(document, schema)
    if "items" in schema:
        return enumerated(document, schema["items"])
    return set(schema.get("enum", ()))


# ---- requests

OF_OTHER_SERVERS = ("Taken at ", "Accepted without effect")


@pytest.mark.parametrize("path", QUESTIONS)
def test_every_field_of_a_request_can_be_sent(document: dict[str, Any], path: str) -> None:
    properties = {
        name: field
        for name, field in request_schema(document, path)["properties"].items()
        if not field.get("description", "").startswith(OF_OTHER_SERVERS)
    }
    names = get_type_hints(QUESTIONS[path]).keys()
    sent = body(b"x", "x", {name: EXAMPLES[name] for name in names})
    assert sent.keys() == properties.keys() - {"stream"}, "`stream` is a method"
    if "steering" in properties:
        steering = resolved(document, properties["steering"])["properties"]
        assert sent["steering"].keys() == steering.keys() == set(STEERING)


@pytest.mark.parametrize("path", QUESTIONS)
def test_every_named_value_of_a_field_has_its_type(document: dict[str, Any], path: str) -> None:
    properties = dict(request_schema(document, path)["properties"])
    if "steering" in properties:
        properties |= resolved(document, properties.pop("steering"))["properties"]
    for name, annotation in get_type_hints(QUESTIONS[path]).items():
        if name not in ("messages", "strength"):  # unions of what is named and what is not
            assert literals(annotation) == enumerated(document, properties[name]), name


def test_streaming_is_asked_for(sound: bytes) -> None:
    bodies: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, content=b"")

    with (
        AllEars(transport=httpx.MockTransport(answer)) as ears,
        ears.stream(sound, "x", long_audio="cut", clip=None),
    ):
        pass
    assert bodies[0]["stream"] is True
    assert bodies[0]["long_audio"] == "cut"
    assert "steering" not in bodies[0], "None is the server's default"


# ---- answers


def filled(document: Mapping[str, Any], schema: Mapping[str, Any], unique: Iterator[int]) -> Any:
    """A body of a schema with every field; each value is a string of its own, whatever its type."""
    schema = resolved(document, schema)
    if "properties" in schema:
        fields_of = schema["properties"]
        return {name: filled(document, fields_of[name], unique) for name in fields_of}
    if schema["type"] == "array":
        return [filled(document, schema["items"], unique)]
    return f"{schema['type']} {next(unique)}"


def leaves(value: Any) -> set[str]:
    """Every string in dictionaries (their keys as well), lists and dataclasses; not in `raw`."""
    if is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value) if field.name != "raw"]
        return set().union(*map(leaves, parts))
    if isinstance(value, Mapping):
        return set(value).union(*map(leaves, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(leaves, value))
    return {value} if isinstance(value, str) else set()


def values(value: Any) -> set[str]:
    """Every string in a body, but for the names of its fields."""
    parts = value.values() if isinstance(value, dict) else value
    return {value} if isinstance(value, str) else set().union(*map(values, parts))


@pytest.mark.parametrize("path", PARSERS)
def test_every_field_of_an_answer_is_read(document: dict[str, Any], path: str) -> None:
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    raw = filled(document, content["application/json"]["schema"], count())
    unread = values(raw) - leaves(PARSERS[path](raw)) - {raw["object"]}  # the class says which
    assert not unread, {name: value for name, value in raw.items() if values(value) & unread}


def test_the_test_sees_a_field_that_is_not_read(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/audio-chat"]["post"]["responses"]["200"]["content"]
    raw = filled(document, content["application/json"]["schema"], count())
    raw["listening"]["clips"][0]["news"] = "unheard of"
    assert "unheard of" in values(raw) - leaves(parse_answer(raw))


@pytest.mark.parametrize("kind", [AllEars, AsyncAllEars])
def test_the_client_waits_for_as_long_as_an_answer_may_take(kind: type) -> None:
    waits = signature(kind).parameters["timeout_seconds"].default
    assert waits > Settings.model_fields["request_timeout_seconds"].default


def test_a_word_counts_as_guessed_below_the_same_effect_everywhere() -> None:
    playground = ROOT / "server/playground"
    assert GUESSED_BITS == FELT_BITS
    assert f"const GUESSED_BITS = {FELT_BITS};" in (playground / "words.js").read_text()
    assert f"</mark> under {FELT_BITS} bit " in (playground / "index.html").read_text()
