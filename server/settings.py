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
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server import errors
from server.access import api_keys as access_keys
from server.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy import URL

PREFIX = "ALLEARS_"
NO_LOG = "none"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?")
_ORIGIN = re.compile(r"https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?")
# Of the same family, but read by others: the client's commands and the test suite.
_FOREIGN = frozenset({"ALLEARS_API_KEY", "ALLEARS_URL", "ALLEARS_REQUIRE_SYSTEM"})


class Settings(BaseSettings):
    """Everything that can be set; the description of a field says what is allowed."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    model: str = Field(
        default="demo",
        min_length=1,
        description="`demo`, a model hub id `org/name`, or the folder of a checkpoint",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="branch, tag or commit of a model from the hub"
    )
    profile: str | None = Field(
        default=None,
        min_length=1,
        description="folder or hub id of a listening profile, `auto` (made at first start from"
        " synthetic items and kept), or `none`; unset: the one shipped for the model, else `auto`",
    )
    calibration_items: int = Field(
        default=400,
        ge=40,
        le=100_000,
        description="synthetic items that `auto` makes a profile from, from 40",
    )
    cache: Path | None = Field(
        default=None,
        description="folder for profiles made by `auto`; unset: `allears` in the user's cache"
        " folder, which `XDG_CACHE_HOME` may name",
    )
    adapter: str | None = Field(
        default=None,
        min_length=1,
        description="folder or hub id of a LoRA adapter, merged into the weights at load",
    )
    quantize: Literal["8bit", "4bit"] | None = Field(
        default=None, description="`8bit` or `4bit` for the decoder's weights; unset: as `dtype`"
    )
    prompt_style: Literal["auto", "plain", "r1_aqa"] = Field(
        default="auto",
        description="`auto`, `plain` or `r1_aqa`; auto goes by the checkpoint's name",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|spread)$",
        description="`auto`, `cpu`, `cuda`, `cuda:N` or `spread`; auto is CUDA where there is one,"
        " spread all cards",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="`auto`, `float32`, `bfloat16` or `float16`; auto is float32 on a CPU,"
        " bfloat16 else",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="TCP port from 0 to 65535; 0 takes a free one"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="comma separated keys, printable ASCII without spaces; unset: open to"
        " everyone who reaches the port",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="TOML file with a table for each key: its name, `key`, limits of its own;"
        " in place of `api_keys`",
    )
    key_requests_per_minute: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="requests of one key in a minute, from 0 (no limit); the next gets 429",
    )
    key_concurrent_requests: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="requests of one key at once, from 0 (no limit); the next gets 429",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma separated origins (`https://host`, or with `:port`) whose pages may ask"
        " from a browser; `*` is not allowed; unset: only the server's own",
    )
    log_format: Literal["plain", "json"] = Field(
        default="plain",
        description="`plain` or `json`: log lines for people, or each a JSON object; those of"
        " requests always are",
    )
    log_text: bool = Field(
        default=False,
        description="`true` or `false`: whether question and answer are in the log, their first 500"
        " characters",
    )
    max_batch_rows: int = Field(
        default=16, ge=1, le=1024, description="answers written at once, from 1 to 1024"
    )
    max_context_tokens: int = Field(
        default=2048,
        ge=64,
        le=1_000_000,
        description="tokens of a prompt and its answer, from 64; rows x tokens are kept in memory",
    )
    queue_limit_requests: int = Field(
        default=64,
        ge=1,
        le=100_000,
        description="requests that may wait, from 1; the next gets 429",
    )
    queue_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds a request may wait, over 0; then it gets 503",
    )
    request_timeout_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds an answer may take once its audio is decoded, the wait for its turn"
        " included, over 0; then it gets 504",
    )
    body_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds the body of a request may take to arrive, over 0; then it gets 408",
    )
    stall_timeout_seconds: float = Field(
        default=20.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds a connection may take to send the headers of a request, or to read"
        " nothing of what was written to it, over 0; then it is cut",
    )
    max_connections: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="connections open at once, from 1; requests on further ones get 503",
    )
    max_audio_bytes: int = Field(
        default=25_000_000,
        ge=1_000,
        le=2_000_000_000,
        description="bytes of one audio file, from 1000; a whole request may hold 4/3 of it and"
        " 1 MB",
    )
    max_audio_seconds: float = Field(
        default=30.0,
        ge=0.1,
        le=86_400,
        allow_inf_nan=False,
        description="seconds of one clip, from 0.1; what is over the model's window is not heard",
    )
    long_audio: Literal["refuse", "cut", "window"] = Field(
        default="cut",
        description="`refuse`, `cut` or `window`: a clip over the model's window, where the request"
        " does not say",
    )
    max_long_audio_seconds: float = Field(
        default=300.0,
        ge=0.1,
        le=86_400,
        allow_inf_nan=False,
        description="seconds of a clip that is heard in windows, from 0.1",
    )
    max_audio_clips: int = Field(
        default=8, ge=1, le=64, description="clips of one request, from 1 to 64"
    )
    allowed_audio_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma separated hosts (`host`, or `host:port`) whose http(s) URLs are fetched"
        " as audio; unset: no URL is",
    )
    decode_workers: int = Field(
        default=2, ge=1, le=64, description="processes that decode audio, from 1 to 64"
    )
    decode_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3_600,
        allow_inf_nan=False,
        description="seconds that decoding one clip may take, over 0; then it is refused",
    )
    silence_cache_bytes: int = Field(
        default=1_000_000_000,
        ge=0,
        description="bytes for keys and values of silent audio, from 0 (none are kept)",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="copies of the model that answer, each with a GPU of its own where there are"
        " any; over 1 needs `allears[ray]`",
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="replicas that load may make of them; unset: no more than `replicas`",
    )
    drain_seconds: float = Field(
        default=20.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds that running requests get to finish after SIGTERM, from 0",
    )
    listening_log_url: SecretStr | None = Field(
        default=None,
        description="`sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, or `none`"
        " (records end with the process); unset: `listening.sqlite` in `allears` in the user's"
        " state folder, which `XDG_STATE_HOME` may name",
    )
    listening_log_max_rows: int = Field(
        default=100_000,
        ge=1000,
        le=1_000_000_000,
        description="records kept in the database, from 1000; the oldest are removed",
    )
    listening_log_max_days: float = Field(
        default=90.0,
        gt=0,
        le=36_500,
        allow_inf_nan=False,
        description="days that a record is kept in the database, over 0",
    )
    listening_log_buffer_rows: int = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="records that wait in memory for the database, from 1; then the oldest are"
        " lost, and counted",
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = [key.strip() for key in value.split(",") if key.strip()]
        if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
            raise ValueError("a key holds a space or a character that is not printable ASCII")
        return keys

    @field_validator("api_keys_file")
    @classmethod
    def _check_keys(cls, value: Path | None, found: ValidationInfo) -> Path | None:
        if value is not None and found.data.get("api_keys"):
            raise ValueError("ALLEARS_API_KEYS is set, too; unset one of them")
        if value is not None:
            try:
                access_keys.read(value)
            except errors.KeysFileError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = [origin.strip().lower() for origin in value.split(",") if origin.strip()]
        if any(not _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("an origin is http:// or https://, a host, and :PORT at most")
        return origins

    @field_validator("allowed_audio_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hosts = [host.strip().lower() for host in value.split(",") if host.strip()]
        if any(not _HOST.fullmatch(host) for host in hosts):
            raise ValueError("a host is a name or an IPv4 address, with :PORT at most behind it")
        return hosts

    @field_validator("listening_log_url")
    @classmethod
    def _check_log(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value() != NO_LOG:
            from server.listening_log.database import parse  # slow to import, and --help needs none

            parse(value.get_secret_value())
        return value

    @property
    def log_database(self) -> URL:
        """The listening log's database."""
        from server.listening_log.database import (  # slow to import, and --help needs none
            file,
            parse,
        )

        if self.listening_log_url is None:
            return file(self.state_folder / "listening.sqlite")
        return parse(self.listening_log_url.get_secret_value())

    @property
    def logs_to_memory(self) -> bool:
        """Whether records end with the process."""
        url = self.listening_log_url
        return url is not None and url.get_secret_value() == NO_LOG

    @property
    def state_folder(self) -> Path:
        """Where the listening log is kept if nothing else is said."""
        return user_state_path("allears")

    @property
    def known_keys(self) -> tuple[access_keys.ApiKey, ...]:
        """The keys that open this server, a file of them read anew; none: it is open."""
        if self.api_keys_file is not None:
            return access_keys.read(self.api_keys_file)
        return access_keys.listed([key.get_secret_value() for key in self.api_keys])

    @property
    def cache_folder(self) -> Path:
        """Where profiles made by `auto` are kept."""
        return self.cache or user_cache_path("allears")

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a request's body: one file of the largest size in base64, and the rest."""
        return self.max_audio_bytes * 4 // 3 + 1_000_000


def read_settings(environ: Mapping[str, str], options: Mapping[str, object]) -> Settings:
    """The settings: options that are not None, then the environment, then the defaults.

    `environ` is only searched for variables that nobody reads: the values come from the process's
    own environment. Raises SettingsError with a line for each wrong value or unknown variable.
    """
    lines = _unknown(environ)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines += [_line(details) for details in error.errors()]
    if lines:
        raise SettingsError("\n".join(lines))
    if environ.get("ALLEARS_API_KEY") and not settings.known_keys:
        raise SettingsError(
            "ALLEARS_API_KEY is set, which is the key of a client, but ALLEARS_API_KEYS is not:"
            " the server would be open. Set ALLEARS_API_KEYS, or unset ALLEARS_API_KEY"
        )
    return settings


def masked(url: str) -> str:
    """A database's URL, also one that can't be read, without its password."""
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", url)


def wrong_log(settings: Settings, reason: str) -> SettingsError:
    """The error of a listening log that can't be had: the setting, its value, what is allowed."""
    name, given = "listening_log_url", settings.listening_log_url
    url = str(settings.log_database) if given is None else given.get_secret_value()
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


def _unknown(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable of our prefix that is no setting."""
    known = [variable(field) for field in Settings.model_fields]
    lines = []
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name.upper() in {*known, *_FOREIGN}:
            continue
        closest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)
        lines.append(f"{name} is not a setting; the closest is {closest[0]}. Correct or unset it")
    return lines


def _line(details: Any) -> str:
    """Name, value and what is allowed, of one of pydantic's errors."""
    field = str(details["loc"][0])
    if field not in Settings.model_fields:
        return f"{variable(field)} is not a setting"
    value = "(hidden)" if field == "api_keys" else repr(details["input"])
    if field == "listening_log_url":
        value = repr(masked(str(details["input"])))
    allowed = Settings.model_fields[field].description
    reason = str(details["msg"]).removeprefix("Value error, ")
    return f"{variable(field)} ({option(field)}) is {value}: {reason}. Allowed: {allowed}"
