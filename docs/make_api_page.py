"""docs/api.md from the OpenAPI document: `python -m docs.make_api_page docs/api.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]

_HEAD = """# API reference

Made from the OpenAPI document by `python -m docs.make_api_page docs/api.md`; a running server shows
the same at `/docs`. How to begin is told in the [guide](guide.md).
"""
_PREFIX = "#/components/schemas/"
_HIDDEN = ("HTTPValidationError", "ValidationError")  # fastapi's, which this server never sends


def page(document: Mapping[str, Any]) -> str:
    """The page: each path with its body and answers, then every object that they hold."""
    schemas: Mapping[str, Schema] = document["components"]["schemas"]
    parts = [_HEAD, "## Paths\n"]
    for path, methods in document["paths"].items():
        parts += [_operation(path, method, told) for method, told in methods.items()]
    parts.append("## Objects\n")
    for name in sorted(schemas):
        if not name.endswith("Form") and name not in _HIDDEN:
            parts.append(_object(name, schemas[name]))
    return "\n".join(parts)


def _operation(path: str, method: str, told: Mapping[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}\n", f"{_text(told.get('description', ''))}\n"]
    for given in told.get("parameters", ()):
        lines.append(f"- `{given['name']}` in {given['in']}: {_kind(given['schema'])}")
    for media, content in told.get("requestBody", {}).get("content", {}).items():
        form = " with the clips as files named `audio`" if "form" in media else ""
        lines.append(f"- body, `{media}`: {_kind(content['schema'])}{form}")
    lines += [f"- {', '.join(statuses)}: {kind}" for kind, statuses in _answers(told).items()]
    return "\n".join(lines) + "\n"


def _answers(told: Mapping[str, Any]) -> Mapping[str, list[str]]:
    """The statuses of an operation by what they answer."""
    found: dict[str, list[str]] = {}
    for status, answer in sorted(told["responses"].items()):
        for media, content in answer.get("content", {}).items():
            kind = "server-sent events" if "event-stream" in media else _kind(content["schema"])
            if "HTTPValidationError" not in json.dumps(content):
                found.setdefault(kind, []).append(status)
    return found


def _object(name: str, schema: Schema) -> str:
    lines = [f"### {name}\n", f"{_text(schema.get('description', ''))}\n"]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    lines += _rows(schema)
    return "\n".join(lines) + "\n"


def _rows(schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else f"`{json.dumps(field.get('default'))}`"
        told = "; ".join(filter(None, [_text(field.get("description", "")), _limits(field)]))
        yield f"| `{name}` | {_kind(field)} | {default} | {told} |"


def _kind(schema: Schema) -> str:
    """A type in a few words, with links to objects."""
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(_PREFIX).removesuffix("Form")
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_kind(one) for one in schema.get("anyOf", schema.get("oneOf", ()))]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _limits(schema: Schema) -> str:
    """What a number or a list may be, found in the schema or in one of its branches."""
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "over {}",
        "maximum": "to {}",
        "exclusiveMaximum": "below {}",
        "minItems": "at least {} of them",
        "maxItems": "at most {} of them",
        "maxLength": "at most {} characters",
    }
    places = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    found = [
        word.format(place[key]) for key, word in words.items() for place in places if key in place
    ]
    return ", ".join(dict.fromkeys(found))


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(path: Path) -> None:
    """Write the page of this version's API."""
    from server.app import create_app  # torch is slow to import
    from server.settings import Settings

    path.write_text(page(create_app(Settings()).openapi()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
