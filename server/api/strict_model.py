"""JSON objects of requests: what asks for nothing is dropped, unknown keys are refused by name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from steering.errors import RequestError

_SHOWN_CHARACTERS = 60
_UNEXPLAINED = ("missing", "unknown_key", "unsupported", "repeated")  # errors without their value
_OBJECT = "Input should be an object"  # pydantic's own words name a class of ours
_MESSAGES = {"model_type": _OBJECT, "model_attributes_type": _OBJECT, "dict_type": _OBJECT}
_NULL = {"type": "null"}
_BESIDE_TYPE = ("title", "description", "default", "examples")  # of a field, not of its type


@dataclass(frozen=True, slots=True)
class Extra:
    """A key of other servers that is dropped where its value asks for nothing."""

    reason: str
    neutral: tuple[Any, ...] | None = None  # the values that change nothing, beside null; None: all

    @property
    def description(self) -> str:
        """The key's text in the OpenAPI document, and the message of its refusal."""
        if self.neutral is None:
            return f"Accepted without effect: {self.reason}."
        shown = " or ".join(json.dumps(value) for value in (None, *self.neutral))
        return f"Taken at {shown} only: {self.reason}."

    def allows(self, value: object) -> bool:
        """Whether the value asks for nothing."""
        return self.neutral is None or any(_same(value, neutral) for neutral in self.neutral)

    def json_schema(self) -> JsonSchemaValue:
        """The key's schema."""
        schema: JsonSchemaValue = {"description": self.description, "default": None}
        return schema if self.neutral is None else {**schema, "enum": [None, *self.neutral]}


class StrictModel(BaseModel):
    """A JSON object of ours: nulls are as left out, no unknown keys, no NaN, no infinity.

    The text below a field is its description in /docs. `extras` are other servers' keys.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    extras: ClassVar[Mapping[str, Extra]] = {}

    @model_validator(mode="before")
    @classmethod
    def _keep_fields(cls, data: Any) -> Any:
        """The fields of an object; pydantic's own refusal does not say which keys there are."""
        if not isinstance(data, Mapping):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        for key in [key for key in given if key not in cls.model_fields]:
            cls._check_extra(str(key), given.pop(key))
        return given

    @classmethod
    def _check_extra(cls, key: str, value: object) -> None:
        """Raise unless a key that is no field is known and asks for nothing."""
        if key in cls.extras:
            extra = cls.extras[key]
            if not extra.allows(value):
                message = f"{extra.description}{seen(value)}"
                raise PydanticCustomError("unsupported", "{text}", {"text": message, "key": key})
            return
        shown, allowed = key[:_SHOWN_CHARACTERS], list(cls.model_fields)
        close = difflib.get_close_matches(shown, allowed, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise PydanticCustomError(
            "unknown_key",
            "unknown key; allowed: {allowed}{meant}",
            {"key": shown, "allowed": ", ".join(allowed), "meant": meant},
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema, with the nulls and the extras that are dropped."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        required = schema.get("required", ())
        properties = schema.setdefault("properties", {})
        for name, field in properties.items():
            properties[name] = field if name in required else _nullable(field)
        properties.update({name: extra.json_schema() for name, extra in cls.extras.items()})
        schema["additionalProperties"] = dict(_NULL)
        return reference


def _nullable(field: JsonSchemaValue) -> JsonSchemaValue:
    """A field's schema that allows null as well."""
    if _NULL in field.get("anyOf", ()):
        return field
    beside = {key: value for key, value in field.items() if key in _BESIDE_TYPE}
    kind = {key: value for key, value in field.items() if key not in _BESIDE_TYPE}
    branches = kind["anyOf"] if kind.keys() == {"anyOf"} else [kind]
    return {**beside, "anyOf": [*branches, dict(_NULL)]} if kind else field


def _same(value: object, other: object) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


Body = TypeVar("Body", bound=StrictModel)


def validate(kind: type[Body], data: Any, *, strict: bool) -> Body:
    """The data as a request. Raises RequestError that names the first wrong field."""
    try:
        return kind.model_validate(data, strict=strict)
    except ValidationError as error:
        raise wrong_field(error.errors(include_url=False)) from None


def wrong_field(errors: Sequence[Any]) -> RequestError:
    """A RequestError that names the first of pydantic's errors, and how many there are."""
    first = errors[0]
    key = (first.get("ctx") or {}).get("key")
    names = [str(part) for part in first["loc"] if not str(part).startswith("<")]
    param = ".".join([*names, *([key] if key else [])])[:200]
    more = f" ({len(errors) - 1} more fields are wrong)" if len(errors) > 1 else ""
    message, value = _MESSAGES.get(first["type"], first["msg"]), first["input"]
    unexplained = first["type"] in _UNEXPLAINED or isinstance(value, dict | list)
    value_seen = "" if unexplained else seen(value)
    return RequestError(f"{param or 'the body'}: {message}{value_seen}{more}", param or None)


def seen(value: object) -> str:
    """`; got ...`: a wrong value, cut short."""
    shown = json.dumps(value, default=repr)
    return f"; got {shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + '…'}"
