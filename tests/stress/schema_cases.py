"""What schemathesis loads beside the OpenAPI document: rules that JSON Schema has no words for.

A case that is valid by the document is sent after these rules were applied to it, so that the check
`positive_data_acceptance` holds: whatever keeps to the document and to these rules is answered.
Cases that are to be refused are left as they are. docs/reliability.md lists the rules.
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
_LONGEST = 60  # characters of a text
_MODEL = os.environ.get("TORTURE_MODEL", "demo")
_HEARD = ("input_audio", "audio_url")


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """A valid case, with the rules applied; any other as it is."""
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and isinstance(case.body, dict) and case.method == "POST":
        body = mended(case.body, form=case.media_type == "multipart/form-data")
        case.body.clear()  # in place and frozen: a new body with bytes in it would count as invalid
        case.body.update(body)
        case.freeze_metadata()
    return case


def mended(body: dict[str, Any], *, form: bool) -> dict[str, Any]:
    """A body that keeps to the rules."""
    found = dict(body)
    if form:
        found = _form(found)
    elif found.get("audio") is not None and "model" not in found:
        found["audio"] = {"data": _CLIP_DATA, "format": "wav"}
    beside = found.get("audio") is not None and "model" not in found
    if found.get("question") is not None:
        found["question"] = _short(found["question"])
    if found.get("messages") is not None:
        found["messages"] = _messages(found["messages"], with_clip=not beside)
    if found.get("choices") is not None:
        found["choices"] = _distinct(found["choices"])
    if isinstance(found.get("stop"), list):
        found["stop"] = found["stop"][:4]
    if found.get("steering") is not None:
        found["steering"] = _steering(found["steering"])
    if found.get("max_tokens") is not None:
        found["max_tokens"] = min(int(found["max_tokens"]), 32)
    return _openai(found) if "model" in found else found


def _form(found: dict[str, Any]) -> dict[str, Any]:
    """A form with files, and one way of asking: schemathesis makes forms without, and calls them
    valid though the document's `oneOf` forbids them.
    """
    if "messages" in found:
        found.pop("question", None)
    else:
        found.setdefault("question", "What is this?")
    if "audio" in found or not list(_clip_parts(found.get("messages", []))):
        found["audio"] = [Binary(_CLIP)]
    return found


def _openai(found: dict[str, Any]) -> dict[str, Any]:
    found["model"] = _MODEL
    if found.get("max_completion_tokens") is not None:
        found["max_completion_tokens"] = min(int(found["max_completion_tokens"]), 32)
        if found.get("max_tokens") is not None:
            found["max_tokens"] = found["max_completion_tokens"]
    if found.get("stream_options") is not None:
        found["stream"] = True
    form = found.get("response_format")
    if form is not None and form.get("type") == "json_schema":
        schema = {"type": "string", "enum": ["dog", "cat"]}
        found["response_format"] = {**form, "json_schema": {"name": "kind", "schema": schema}}
        found["choices"] = None
    return found


def _messages(messages: list[Any], *, with_clip: bool) -> list[Any]:
    """The last three at most, short; the last is the user's, and has a text and perhaps a clip."""
    kept = [_without_clips(message) for message in messages[-3:]]
    last = {**kept[-1], "role": "user"}
    if with_clip:
        parts = [_clip_part(part) for part in _clip_parts(messages)][:2]
        last["content"] = [*parts, *_texts(last["content"])]
    return [*kept[:-1], last]


def _without_clips(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    short = _short(content) if isinstance(content, str) else list(_texts(content))[:2]
    return {**message, "content": short}


def _texts(content: Any) -> Iterator[dict[str, Any]]:
    """The texts of a message as parts; one of our own where there are none."""
    if isinstance(content, str):
        yield {"type": "text", "text": _short(content)}
        return
    found = [part["text"] for part in content if part.get("type") not in _HEARD]
    for text in found or ["What is this?"]:
        yield {"type": "text", "text": _short(text)}


def _clip_parts(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part for part in message["content"] if part.get("type") in _HEARD)


def _clip_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_audio":
        return {**part, "input_audio": {**part["input_audio"], "data": _CLIP_DATA}}
    return {**part, "audio_url": {"url": f"data:audio/wav;base64,{_CLIP_DATA}"}}


def _distinct(choices: list[str]) -> list[str]:
    return [f"{_short(choice)[:20]} {i}" for i, choice in enumerate(choices)]


def _steering(wish: dict[str, Any]) -> dict[str, Any]:
    found = dict(wish)
    if not isinstance(found.get("strength", ""), str):
        found["strength"] = min(found["strength"], 0.5)
    if found.get("clip") is not None:
        found["clip"] = 0
    return found


def _short(text: str) -> str:
    """The text's beginning, without what could be a control token, and never blank."""
    return text.replace("<|", "< ")[:_LONGEST].strip() or "What is this?"
