"""The keys that open a server: each has a name, which metrics and logs show in its place.

They are listed in `ALLEARS_API_KEYS`, or stand with names in the TOML file `ALLEARS_API_KEYS_FILE`:

    [ann]
    key = "..."
    requests_per_minute = 60    # in place of the setting for all keys; 0 is no limit
    concurrent_requests = 4
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import KeysFileError

NOBODY = "none"  # the name of a request without a key
MIN_CHARACTERS = 16  # of a key in a file
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_PRINTABLE = re.compile(r"[!-~]+")
_LIMITS = ("requests_per_minute", "concurrent_requests")
_MAX_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key: its name, its digest, and its own limits, if it has any."""

    name: str
    digest: bytes = field(repr=False)  # SHA-256
    requests_per_minute: int | None = None  # None: as set for all keys; 0: no limit
    concurrent_requests: int | None = None


def digest(key: str) -> bytes:
    """The digest of a key: all have one length, so that comparing leaks nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def find(text: str, keys: Sequence[ApiKey]) -> ApiKey | None:
    """The key of this text, in a time that depends neither on which it is nor on how near."""
    text_digest = digest(text)
    matches = [hmac.compare_digest(text_digest, key.digest) for key in keys]
    return next((key for key, match in zip(keys, matches, strict=True) if match), None)


def number_keys(keys: Sequence[str]) -> tuple[ApiKey, ...]:
    """Keys without names, called key-1, key-2 and so on in their order."""
    return tuple(ApiKey(f"key-{i}", digest(key)) for i, key in enumerate(keys, 1))


def read_keys_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises KeysFileError, which says what is wrong and where."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeysFileError(f"it can't be read: {error.strerror or 'no file'}") from None
    except tomllib.TOMLDecodeError as error:
        raise KeysFileError(f"it is not TOML, or a name stands twice: {_place(error)}") from None
    except ValueError:
        raise KeysFileError("it is not UTF-8 text") from None
    keys = tuple(_key(name, table) for name, table in tables.items())
    if not keys:
        raise KeysFileError('it holds no key; add a table [NAME] with key = "..."')
    names: dict[bytes, str] = {}  # by digest
    for key in keys:
        if key.digest in names:
            raise KeysFileError(f"[{names[key.digest]}] and [{key.name}] have the same key")
        names[key.digest] = key.name
    return keys


def _place(error: tomllib.TOMLDecodeError) -> str:
    """The place of a parser's error; the rest of its message may hold a piece of a key."""
    match = re.search(r"\(at (line \d+, column \d+|end of document)\)$", str(error))
    return match[1] if match else "somewhere"


def _key(name: str, table: Any) -> ApiKey:
    if not isinstance(table, Mapping):
        raise KeysFileError('a value stands outside of a table; write [NAME] above key = "..."')
    if not _NAME.fullmatch(name) or name == NOBODY:
        raise KeysFileError(
            f"a name has 1 to 32 of A-Z, a-z, 0-9, _ and - and is not {NOBODY!r}, and one is not so"
        )
    unknown = sorted(table.keys() - {"key", *_LIMITS})
    if unknown:
        raise KeysFileError(f"[{name}] has a field of another name than key, {', '.join(_LIMITS)}")
    text = table.get("key")
    if not isinstance(text, str) or not _PRINTABLE.fullmatch(text):
        raise KeysFileError(f"[{name}] has no key of printable ASCII without spaces")
    if len(text) < MIN_CHARACTERS:
        raise KeysFileError(
            f"the key of [{name}] has {len(text)} characters; make it {MIN_CHARACTERS} or more,"
            " for instance by `openssl rand -hex 24`"
        )
    return ApiKey(name, digest(text), *(_limit(name, table, field) for field in _LIMITS))


def _limit(name: str, table: Mapping[str, Any], field: str) -> int | None:
    value = table.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_LIMIT:
        raise KeysFileError(
            f"{field} of [{name}] is no whole number from 0 (no limit) to {_MAX_LIMIT:,}"
        )
    return value
