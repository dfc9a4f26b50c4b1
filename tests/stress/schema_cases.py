"""Hooks of schemathesis: the server's rules that JSON Schema can't express.

A case that is valid by the document is sent after these rules were applied to it, so that the check
`positive_data_acceptance` holds: whatever keeps to the document and to these rules is answered.
Cases that are to be refused are left as they are. The rules:

- a clip is an audio file; links are `data:` URIs, or go to allowed hosts;
- clips stand beside the messages or in the user's messages, not both, at most max_audio_clips;
- there is either `question` or `messages` (schemathesis calls both valid); the last message is the
  user's, and has a text where there are `choices`;
- texts, clips and `max_tokens` fit max_context_tokens, and no text holds a control token;
- on /v1/listening-score `include` has words only where an `answer` is;
- choices differ by more than spaces around them;
- `steering.strength` is at most the profile's `max_strength`, `steering.clip` a clip that was sent;
- of OpenAI's fields: `model` is the one served, `stream_options` comes with `stream`, `max_tokens`
  and `max_completion_tokens` agree, `response_format` holds choices and stands without `choices`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Any

import schemathesis
from schemathesis.transport.serialization import Binary

from tests.stress.signals_made import sound

_CLIP = sound(0)
_CLIP_DATA = base64.b64encode(_CLIP).decode()
_MAX_TEXT = 60  # characters of a text
_MODEL = os.environ.get("STRESS_MODEL", "demo")
_AUDIO_PARTS = ("input_audio", "audio_url")


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """A valid case, with the rules applied; any other as it is."""
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and isinstance(case.body, dict) and case.method == "POST":
        body = corrected(case.body, form=case.media_type == "multipart/form-data")
        if case.path == "/v1/listening-score" and "words" in (body.get("include") or ()):
            body["answer"] = body.get("answer") or "A dog."
        case.body.clear()  # in place and frozen: a new body with bytes in it would count as invalid
        case.body.update(body)
        case.freeze_metadata()
    return case


def corrected(body: dict[str, Any], *, form: bool) -> dict[str, Any]:
    """A body that keeps to the rules."""
    fields = dict(body)
    if form and "file" in fields:
        fields["file"] = Binary(_CLIP)
        fields["model"] = _MODEL
        return {name: value for name, value in fields.items() if name in ("file", "model")}
    if form:
        fields = _form(fields)
    elif fields.get("audio") is not None and "model" not in fields:
        fields["audio"] = {"data": _CLIP_DATA, "format": "wav"}
    separate = fields.get("audio") is not None and "model" not in fields
    if fields.get("question") is not None:
        fields["question"] = _short(fields["question"])
    if fields.get("messages") is not None:
        fields["messages"] = _messages(fields["messages"], with_clip=not separate)
    if fields.get("answer") is not None:
        fields["answer"] = _short(fields["answer"])
    if fields.get("choices") is not None:
        fields["choices"] = _distinct(fields["choices"])
    if isinstance(fields.get("stop"), list):
        fields["stop"] = fields["stop"][:4]
    if fields.get("steering") is not None:
        fields["steering"] = _steering(fields["steering"])
    if fields.get("max_tokens") is not None:
        fields["max_tokens"] = min(int(fields["max_tokens"]), 32)
    return _openai(fields) if "model" in fields else fields


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    """A form with files, and one way of asking: schemathesis makes forms without, and calls them
    valid though the document's `oneOf` forbids them.
    """
    if "messages" in fields:
        fields.pop("question", None)
    else:
        fields.setdefault("question", "What is this?")
    if "audio" in fields or not list(_clip_parts(fields.get("messages", []))):
        fields["audio"] = [Binary(_CLIP)]
    return fields


def _openai(fields: dict[str, Any]) -> dict[str, Any]:
    fields["model"] = _MODEL
    if fields.get("max_completion_tokens") is not None:
        fields["max_completion_tokens"] = min(int(fields["max_completion_tokens"]), 32)
        if fields.get("max_tokens") is not None:
            fields["max_tokens"] = fields["max_completion_tokens"]
    if fields.get("stream_options") is not None:
        fields["stream"] = True
    form = fields.get("response_format")
    if form is not None and form.get("type") == "json_schema":
        schema = {"type": "string", "enum": ["dog", "cat"]}
        fields["response_format"] = {**form, "json_schema": {"name": "kind", "schema": schema}}
        fields["choices"] = None
    return fields


def _messages(messages: list[Any], *, with_clip: bool) -> list[Any]:
    """The last three at most, shortened; the last is the user's, with a text and perhaps a clip."""
    shortened = [_without_clips(message) for message in messages[-3:]]
    last = {**shortened[-1], "role": "user"}
    if with_clip:
        parts = [_clip_part(part) for part in _clip_parts(messages)][:2]
        last["content"] = [*parts, *_texts(last["content"])]
    return [*shortened[:-1], last]


def _without_clips(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    short = _short(content) if isinstance(content, str) else list(_texts(content))[:2]
    return {**message, "content": short}


def _texts(content: Any) -> Iterator[dict[str, Any]]:
    """The texts of a message as parts; one of our own where there are none."""
    if isinstance(content, str):
        yield {"type": "text", "text": _short(content)}
        return
    texts = [part["text"] for part in content if part.get("type") not in _AUDIO_PARTS]
    for text in texts or ["What is this?"]:
        yield {"type": "text", "text": _short(text)}


def _clip_parts(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part for part in message["content"] if part.get("type") in _AUDIO_PARTS)


def _clip_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_audio":
        return {**part, "input_audio": {**part["input_audio"], "data": _CLIP_DATA}}
    return {**part, "audio_url": {"url": f"data:audio/wav;base64,{_CLIP_DATA}"}}


def _distinct(choices: list[str]) -> list[str]:
    return [f"{_short(choice)[:20]} {i}" for i, choice in enumerate(choices)]


def _steering(options: dict[str, Any]) -> dict[str, Any]:
    fields = dict(options)
    if isinstance(fields.get("strength"), int | float):
        fields["strength"] = min(fields["strength"], 0.5)
    if fields.get("clip") is not None:
        fields["clip"] = 0
    return fields


def _short(text: str) -> str:
    """The text's beginning, without what could be a control token, and never blank."""
    return text.replace("<|", "< ")[:_MAX_TEXT].strip() or "What is this?"
