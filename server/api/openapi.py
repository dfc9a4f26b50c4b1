"""The OpenAPI document: what fastapi finds in the routes, and the bodies that they read themselves.

It says what JSON Schema can say. What it can't, such as that the last message is the user's, a 422
says with the name of the field.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic.json_schema import models_json_schema

from server.api.openai_requests import ChatCompletionRequest
from server.api.requests import AudioChatRequest, ListeningRequest

_FORMS = (ListeningRequest, AudioChatRequest)
_CLIP = {"required": ["type"], "properties": {"type": {"enum": ["input_audio", "audio_url"]}}}
_WITH_CLIP = {
    "type": "array",
    "contains": {
        "required": ["content"],
        "properties": {"content": {"type": "array", "contains": _CLIP}},
    },
}
_CLIPS = {"type": ["object", "array"]}
_NULL = {"type": "null"}
_ASKED_BY = [
    {
        "title": "A question about clips",
        "required": ["audio", "question"],
        "properties": {"audio": _CLIPS, "question": {"type": "string"}, "messages": _NULL},
    },
    {
        "title": "Messages, with clips beside them",
        "required": ["audio", "messages"],
        "properties": {"audio": _CLIPS, "question": _NULL, "messages": {"type": "array"}},
    },
    {
        "title": "Messages, with clips in them",
        "required": ["messages"],
        "properties": {"audio": _NULL, "question": _NULL, "messages": _WITH_CLIP},
    },
]
_ASKED_BY_FORM = [
    {"title": "A question about clips", "required": ["audio", "question"]},
    {"title": "Messages, with clips beside them", "required": ["audio", "messages"]},
    {
        "title": "Messages, with clips in them",
        "required": ["messages"],
        "properties": {"messages": _WITH_CLIP, "audio": False, "question": False},
    },
]


def with_bodies(
    document: dict[str, Any], open_paths: Collection[str], *, keyed: bool
) -> dict[str, Any]:
    """The document with the schemas of the bodies, and with the key that all other paths need.

    Where this deployment has no keys, one may be sent and none is asked for.
    """
    parts = document.setdefault("components", {})
    parts.setdefault("schemas", {}).update(_bodies())
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for operation in methods.values() if path not in open_paths else ():
            operation["security"] = [{"key": []}] if keyed else [{"key": []}, {}]
    return document


def _bodies() -> dict[str, Any]:
    """Schemas of the bodies, two of them also as forms, and of what they hold."""
    _, found = models_json_schema(
        [(kind, "validation") for kind in (*_FORMS, ChatCompletionRequest)],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = found["$defs"]
    for kind in _FORMS:
        schemas[f"{kind.__name__}Form"] = _form(schemas[kind.__name__])
        schemas[kind.__name__]["anyOf"] = _ASKED_BY
    messages = schemas["ChatCompletionRequest"]["properties"]["messages"]
    messages["contains"] = _WITH_CLIP["contains"]
    return schemas


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """A body as a form: its clips are files, and what is null is left out."""
    properties = {name: _without_null(field) for name, field in schema["properties"].items()}
    properties["audio"] = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "format": "binary"},
        "description": "files, heard before the question",
    }
    return {**schema, "properties": properties, "anyOf": _ASKED_BY_FORM}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != _NULL]
    rest = {key: value for key, value in field.items() if key != "anyOf"}
    if "default" in rest and rest["default"] is None:
        del rest["default"]
    if not kinds:
        return rest
    return {**rest, **kinds[0]} if len(kinds) == 1 else {**rest, "anyOf": kinds}
