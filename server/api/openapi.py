"""The OpenAPI document: what fastapi finds in the routes, and the bodies that they read themselves.

It says what JSON Schema can say. Other rules, such as that the last message is the user's, are
explained by a 422 that names the field.
"""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api import sse
from server.api.openai_requests import ChatCompletionRequest
from server.api.requests import AudioChatRequest, ListeningRequest
from server.api.responses import ErrorReport
from server.api.transcriptions import TranscriptionRequest

TAGS = [
    {"name": "ask", "description": "Questions about audio."},
    {"name": "listening", "description": "How far the audio decides, without an answer."},
    {"name": "OpenAI", "description": "The paths that OpenAI's clients know."},
    {"name": "operations", "description": "Probes and metrics."},
]
_FORMS = (ListeningRequest, AudioChatRequest)
_SCHEMA_REF = "#/components/schemas/"
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
_FILE = {"type": "string", "format": "binary"}
_JSON_VARIANTS = [
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
_CHAT_JSON_VARIANTS = [
    *_JSON_VARIANTS[:2],
    {
        "title": "Messages, with or without clips in them",
        "required": ["messages"],
        "properties": {"audio": _NULL, "question": _NULL, "messages": {"type": "array"}},
    },
]
_FORM_VARIANTS = [
    {"title": "A question about clips", "required": ["audio", "question"]},
    {"title": "Messages, with clips beside them", "required": ["audio", "messages"]},
    {
        "title": "Messages, with clips in them",
        "required": ["messages"],
        "properties": {"messages": _WITH_CLIP, "audio": False, "question": False},
    },
]


# ---- what the routes declare


def body_of(kind: type[BaseModel], *, form: bool = True) -> dict[str, Any]:
    """The body of a route that reads it itself; `complete` adds schema and example."""
    ref = f"{_SCHEMA_REF}{kind.__name__}"
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": ref}}}
    if form:
        files = {"audio": {"contentType": "audio/*"}}
        content["multipart/form-data"] = {"schema": {"$ref": f"{ref}Form"}, "encoding": files}
    return {"requestBody": {"required": True, "content": content}}


def upload_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that takes a form with one file."""
    schema = {"$ref": f"{_SCHEMA_REF}{kind.__name__}Form"}
    content = {"schema": schema, "encoding": {"file": {"contentType": "audio/*"}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route's errors, 401 among them."""
    return {status: {"model": ErrorReport} for status in (401, *statuses)}


_HEADERS = {
    name: {"description": description, "required": True, "schema": {"type": "string"}}
    for name, description in (
        ("x-request-id", "the request's own id, or a fresh one"),
        ("x-listening-score", "as `listening.score`; `unknown` without a profile or audio"),
        ("x-steering-strength", "as `steering.strength`"),
    )
}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
ASKING = {**errors(400, 408, 413, 415, 422, 429, 503, 504), 200: {"headers": _HEADERS}}
ANSWERING = {
    **ASKING,
    200: {"headers": _HEADERS, "content": {sse.MEDIA_TYPE: {"schema": _EVENT}}},
}
TRANSCRIPT = {"headers": _HEADERS, **TEXT}


# ---- the whole document


def complete(
    document: dict[str, Any], open_paths: Collection[str], *, keyed: bool, model: str
) -> dict[str, Any]:
    """Add the schemas and examples of the bodies, and the key that all but open paths need.

    Without keys in this deployment one may be sent and none is required. `model` is the name of
    the model in the examples.
    """
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(_bodies())
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values() if path not in open_paths else ():
            operation["security"] = [{"key": []}] if keyed else [{"key": []}, {}]
    for path, example in _examples(model).items():
        content = document["paths"][path]["post"]["requestBody"]["content"]
        content["application/json"]["example"] = example
    return document


def _bodies() -> dict[str, Any]:
    """Schemas of the bodies, two of them also as forms, and of the objects in them."""
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in (*_FORMS, ChatCompletionRequest, TranscriptionRequest)],
        ref_template=_SCHEMA_REF + "{model}",
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for kind in _FORMS:
        schemas[f"{kind.__name__}Form"] = _form(schemas[kind.__name__])
        schemas[kind.__name__]["anyOf"] = _JSON_VARIANTS
    schemas[AudioChatRequest.__name__]["anyOf"] = _CHAT_JSON_VARIANTS
    transcription = schemas.pop("TranscriptionRequest")
    schemas["TranscriptionRequestForm"] = _upload(transcription)
    return schemas


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """A body as a form: its clips are files, and null fields are left out."""
    audio = {
        "type": "array",
        "minItems": 1,
        "items": _FILE,
        "description": "files, heard before the question",
    }
    return {**_fields(schema, audio=audio), "anyOf": _FORM_VARIANTS}


def _upload(schema: dict[str, Any]) -> dict[str, Any]:
    """A body as a form with one file."""
    form = _fields(schema, file={**_FILE, "description": "the clip, as a file"})
    return {**form, "required": ["file", *schema["required"]]}


def _fields(schema: dict[str, Any], **files: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form's fields, with its files."""
    properties = {name: _without_null(field) for name, field in schema["properties"].items()}
    properties |= files
    properties = {name: field for name, field in properties.items() if field.get("enum") != [None]}
    return {**schema, "properties": properties, "additionalProperties": False}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != _NULL]
    rest = {key: value for key, value in field.items() if key != "anyOf"}
    if "default" in rest and rest["default"] is None:
        del rest["default"]
    if not kinds:
        return rest
    return {**rest, **kinds[0]} if len(kinds) == 1 else {**rest, "anyOf": kinds}


def _examples(model: str) -> dict[str, Any]:
    """A body for each POST route of JSON that is answered as it stands."""
    audio = {"data": base64.b64encode(_tone_wav()).decode(), "format": "wav"}
    question = "What do you hear?"
    content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": question}]
    return {
        "/v1/audio-chat": {"audio": audio, "question": question, "steer": True, "max_tokens": 16},
        "/v1/chat/completions": {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": 16,
        },
        "/v1/listening-score": {"audio": audio, "question": question},
    }


def _tone_wav(seconds: float = 0.1, rate_hz: int = 8000, tone_hz: float = 440) -> bytes:
    """A short tone as a WAV file of 8 bits: small enough to stand in the document."""
    times = [i / rate_hz for i in range(round(seconds * rate_hz))]
    with io.BytesIO() as file:
        with wave.open(file, "wb") as audio:
            audio.setnchannels(1)
            audio.setsampwidth(1)
            audio.setframerate(rate_hz)
            audio.writeframes(
                bytes(round(128 + 60 * math.sin(math.tau * tone_hz * t)) for t in times)
            )
        return file.getvalue()
