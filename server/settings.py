"""Settings of a deployment: environment variables `ALLEARS_*` or options of `allears serve`.

Read once at start and passed on as an argument. A wrong value, or a variable that nobody reads,
stops the start.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from platformdirs import user_cache_path, user_state_path
from pydantic import Field, FiniteFloat, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.access.api_keys import ApiKey, number_keys, read_keys_file
from server.errors import KeysFileError, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import URL

PREFIX = "ALLEARS_"
NO_LOG = "none"
_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?"
_LISTS = {  # fields of comma separated parts: what a part looks like, in words too
    "api_keys": ("[!-~]+", "a key holds a space or a character that is not printable ASCII"),
    "cors_origins": (
        f"https?://{_HOST}",
        "an origin is http:// or https://, a host, and :PORT at most",
    ),
    "allowed_audio_hosts": (
        _HOST,
        "a host is a name or an IPv4 address, with :PORT at most behind it",
    ),
}
_OWN_PATHS = (["v1"], ["docs"], ["playground"], ["listening-score"], ["metrics"], ["openapi.json"])
# Of the same family, but read by others: the client's commands and the test suite.
_FOREIGN = frozenset({"ALLEARS_API_KEY", "ALLEARS_URL", "ALLEARS_REQUIRE_SYSTEM"})

Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[str, ...], NoDecode]  # comma separated in the environment
KeyLimit = Annotated[int, Field(ge=0, le=1_000_000)]  # 0: no limit
Seconds = Annotated[FiniteFloat, Field(gt=0, le=86_400)]
ClipSeconds = Annotated[FiniteFloat, Field(ge=0.1, le=86_400)]


class Settings(BaseSettings):
    """Everything that can be set. The text below a field says what is allowed, in `--help` too."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    # ---- the model

    model: Text = "demo"
    """`demo`, a model hub id `org/name`, or the folder of a checkpoint"""
    revision: Text | None = None
    """branch, tag or commit of a model from the hub"""
    profile: Text | None = None
    """folder or hub id of a listening profile, `auto` (made at first start from synthetic items
    and kept), or `none`; unset: the one shipped for the model, else `auto`"""
    calibration_items: Annotated[int, Field(ge=40, le=100_000)] = 1600
    """synthetic items that `auto` makes a profile from at most, from 40: a quarter of them, twice
    as many while the heads found are no better than chance"""
    cache: Path | None = None
    """folder for profiles made by `auto`; unset: `allears` in the user's cache folder, which
    `XDG_CACHE_HOME` may name"""
    adapter: Text | None = None
    """folder or hub id of a LoRA adapter, merged into the weights at load; needs the extra
    `lora`"""
    quantize: Literal["8bit", "4bit"] | None = None
    """`8bit` or `4bit` for the decoder's weights, by the extra `quantize`; unset: as `dtype`"""
    prompt_style: Literal["auto", "plain", "r1_aqa"] = "auto"
    """`auto`, `plain` or `r1_aqa`; auto: the profile's, or by the checkpoint's name"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|spread)$")] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `spread`; auto is CUDA where there is one, spread all
    cards, by the extra `spread`"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`; auto: bfloat16 where native, else float16 on
    cards, float32 on CPUs and for `demo`"""

    # ---- who may ask

    host: Text = "127.0.0.1"
    """address to listen on"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port from 0 to 65535; 0 takes a free one"""
    root_path: Annotated[str, Field(pattern=r"^((/[A-Za-z0-9._~-]+)+)?$")] = ""
    """path under which a proxy shows this server, such as `/audio`"""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """comma separated keys, printable ASCII without spaces; unset: open to everyone who reaches
    the port"""
    api_keys_file: Path | None = None
    """TOML file with a table for each key: its name, `key`, limits of its own; in place of
    `api_keys`"""
    key_requests_per_minute: KeyLimit = 0
    """requests of one key in a minute, from 0 (no limit); the next gets 429"""
    key_concurrent_requests: KeyLimit = 0
    """requests of one key at once, from 0 (no limit); the next gets 429"""
    cors_origins: Names = ()
    """comma separated origins (`https://host`, or with `:port`) whose pages may ask from a
    browser; `*` is not allowed; unset: only the server's own"""

    # ---- the log of the process

    log_format: Literal["plain", "json"] = "plain"
    """`plain` or `json`: log lines for people, or each a JSON object; those of requests always
    are"""
    log_text: bool = False
    """`true` or `false`: whether question and answer are in the log, their first 500 characters"""

    # ---- limits of requests

    max_batch_rows: Annotated[int, Field(ge=1, le=1024)] = 16
    """answers written at once, from 1 to 1024"""
    max_context_tokens: Annotated[int, Field(ge=64, le=1_000_000)] = 2048
    """tokens of a prompt and its answer, from 64; rows x tokens are kept in memory"""
    prefill_chunk_tokens: Annotated[int, Field(ge=16, le=1_000_000)] = 512
    """prompt tokens between two tokens of other answers, from 16"""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """tokens of one answer, from 1; a request for more gets as many"""
    queue_limit_requests: Annotated[int, Field(ge=1, le=100_000)] = 64
    """requests that may wait, from 1; the next gets 429"""
    queue_timeout_seconds: Seconds = 30.0
    """seconds a request may wait, over 0; then it gets 503"""
    request_timeout_seconds: Seconds = 300.0
    """seconds an answer may take once its audio is decoded, the wait for its turn included, over
    0; then it gets 504"""
    body_timeout_seconds: Seconds = 60.0
    """seconds the body of a request may take to arrive, over 0; then it gets 408"""
    stall_timeout_seconds: Seconds = 20.0
    """seconds a connection may take to send the headers of a request, or to read nothing of what
    was written to it, over 0; then it is cut"""
    keep_alive_seconds: Seconds = 90.0
    """seconds an idle connection stays open, over 0; longer than a proxy keeps its own"""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 500
    """connections open at once, from 1; requests on further ones get 503"""

    # ---- audio

    max_audio_bytes: Annotated[int, Field(ge=1_000, le=2_000_000_000)] = 25_000_000
    """bytes of one audio file, from 1000; a whole request may hold 4/3 of it and 1 MB"""
    max_audio_seconds: ClipSeconds | None = None
    """seconds of one clip, from 0.1; unset: whatever `max_audio_bytes` hold, as only what the
    model hears is decoded"""
    long_audio: Literal["refuse", "cut", "window"] = "cut"
    """`refuse`, `cut` or `window`: a clip longer than the model's window or than its row holds,
    where the request does not say"""
    max_long_audio_seconds: ClipSeconds = 300.0
    """seconds of a clip that is heard in windows, from 0.1"""
    max_audio_clips: Annotated[int, Field(ge=1, le=64)] = 8
    """clips of one request, from 1 to 64"""
    allowed_audio_hosts: Names = ()
    """comma separated hosts (`host`, or `host:port`) whose http(s) URLs are fetched as audio;
    unset: no URL is"""
    decode_workers: Annotated[int, Field(ge=1, le=64)] = 2
    """processes that decode audio, from 1 to 64"""
    decode_timeout_seconds: Annotated[FiniteFloat, Field(gt=0, le=3_600)] = 10.0
    """seconds that decoding one clip may take, over 0; then it is refused"""

    # ---- memory, replicas, the end

    silence_cache_bytes: Annotated[int, Field(ge=0)] = 1_000_000_000
    """bytes for keys and values of silences, from 0 (none are kept); with more, their lengths are
    closer"""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """copies of the model that answer, each with a GPU of its own where there are any; over 1
    needs `allears[ray]`"""
    max_replicas: Annotated[int, Field(ge=1, le=1024)] | None = None
    """replicas that load may make of them; unset: no more than `replicas`"""
    drain_seconds: Annotated[FiniteFloat, Field(ge=0, le=86_400)] = 20.0
    """seconds that running requests get to finish after SIGTERM, from 0"""

    # ---- the listening log

    listening_log_url: SecretStr | None = None
    """`sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, or `none` (records end with
    the process); unset: `listening.sqlite` in `allears` in the user's state folder, which
    `XDG_STATE_HOME` may name"""
    listening_log_max_rows: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 100_000
    """records kept in the database, from 1000; the oldest are removed"""
    listening_log_max_days: Annotated[FiniteFloat, Field(gt=0, le=36_500)] = 90.0
    """days that a record is kept in the database, over 0"""
    listening_log_buffer_rows: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """records that wait in memory for the database, from 1; then the oldest are lost, and
    counted"""

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _split(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        pattern, rule = _LISTS[str(info.field_name)]
        cased = value if info.field_name == "api_keys" else value.lower()
        parts = [part.strip() for part in cased.split(",") if part.strip()]
        if any(not re.fullmatch(pattern, part) for part in parts):
            raise ValueError(rule)
        return parts

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        if value.split("/")[1:2] in _OWN_PATHS:
            raise ValueError("a path of this server's own begins like it")
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _check_keys_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        if info.data.get("api_keys"):
            raise ValueError("ALLEARS_API_KEYS is set, too; unset one of them")
        try:
            read_keys_file(value)
        except KeysFileError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("listening_log_url")
    @classmethod
    def _check_log_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value() != NO_LOG:
            from server.listening_log import database  # slow to import, and --help needs none

            database.parse(value.get_secret_value())
        return value

    @property
    def log_database(self) -> URL:
        """The listening log's database."""
        from server.listening_log import database  # slow to import, and --help needs none

        if self.listening_log_url is None:
            return database.file(self.state_folder / "listening.sqlite")
        return database.parse(self.listening_log_url.get_secret_value())

    @property
    def logs_to_memory(self) -> bool:
        """Whether records end with the process."""
        url = self.listening_log_url
        return url is not None and url.get_secret_value() == NO_LOG

    @property
    def state_folder(self) -> Path:
        """The folder of a listening log without a URL."""
        return user_state_path("allears")

    @property
    def known_keys(self) -> tuple[ApiKey, ...]:
        """The keys that open this server, a file of them read anew; none: it is open."""
        if self.api_keys_file is not None:
            return read_keys_file(self.api_keys_file)
        return number_keys([key.get_secret_value() for key in self.api_keys])

    @property
    def cache_folder(self) -> Path:
        """The folder of profiles made by `auto`."""
        return self.cache or user_cache_path("allears")

    @property
    def max_body_bytes(self) -> int:
        """Limit of a request's body: one file of the largest size in base64, and the rest."""
        return self.max_audio_bytes * 4 // 3 + 1_000_000


for _field in Settings.model_fields.values():  # a docstring's line breaks mean nothing
    _field.description = " ".join(str(_field.description).split())


def read_settings(environ: Mapping[str, str], options: Mapping[str, object]) -> Settings:
    """The settings: options that are not None, then the environment, then the defaults.

    `environ` is only searched for variables that nobody reads: the values come from the process's
    own environment. Raises SettingsError with a line for each wrong value or unknown variable.
    """
    lines = _unknown_variables(environ)
    values = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        lines += [_error_line(details) for details in error.errors()]
    if lines:
        raise SettingsError("\n".join(lines))
    if environ.get("ALLEARS_API_KEY") and not settings.known_keys:
        raise SettingsError(
            "ALLEARS_API_KEY is set, which is the key of a client, but ALLEARS_API_KEYS is not:"
            " the server would be open. Set ALLEARS_API_KEYS, or unset ALLEARS_API_KEY"
        )
    return settings


def masked(url: str) -> str:
    """A database's URL without its password, also a malformed one."""
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", url)


def wrong_log(settings: Settings, reason: str) -> SettingsError:
    """The error of a listening log that can't be used: the setting, its value, what is allowed."""
    name, secret = "listening_log_url", settings.listening_log_url
    url = str(settings.log_database) if secret is None else secret.get_secret_value()
    allowed = Settings.model_fields[name].description
    return SettingsError(
        f"{variable(name)} ({option(name)}) is {masked(url)!r}: {reason}. Allowed: {allowed}"
    )


def variable(field: str) -> str:
    """The environment variable of a field of Settings."""
    return PREFIX + field.upper()


def option(field: str) -> str:
    """The option of `allears serve` for a field of Settings."""
    return "--" + field.replace("_", "-")


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """An error line for each variable of our prefix that is no setting."""
    known = [variable(field) for field in Settings.model_fields]
    lines = []
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name.upper() in {*known, *_FOREIGN}:
            continue
        closest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)
        lines.append(f"{name} is not a setting; the closest is {closest[0]}. Correct or unset it")
    return lines


def _error_line(details: Any) -> str:
    """One of pydantic's errors: name, value and what is allowed."""
    field = str(details["loc"][0])
    if field not in Settings.model_fields:
        return f"{variable(field)} is not a setting"
    value = "(hidden)" if field == "api_keys" else repr(details["input"])
    if field == "listening_log_url":
        value = repr(masked(str(details["input"])))
    allowed = Settings.model_fields[field].description
    reason = str(details["msg"]).removeprefix("Value error, ")
    return f"{variable(field)} ({option(field)}) is {value}: {reason}. Allowed: {allowed}"
