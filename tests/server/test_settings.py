"""Settings from the environment and from options."""

from __future__ import annotations

import os

import pytest

from server.errors import SettingsError
from server.settings import Settings, option, read_settings, variable


def test_the_defaults_are_safe() -> None:
    settings = read_settings({}, {})
    assert (settings.model, settings.host, settings.port) == ("demo", "127.0.0.1", 8000)
    assert settings.api_keys == ()
    assert settings.profile is None


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLEARS_PORT", "9000")
    monkeypatch.setenv("ALLEARS_MODEL", "org/name")
    monkeypatch.setenv("ALLEARS_REVISION", "")
    settings = read_settings(os.environ, {"port": "9001", "host": None})
    assert (settings.model, settings.port, settings.host) == ("org/name", 9001, "127.0.0.1")
    assert settings.revision is None


def test_keys_are_split_and_hidden() -> None:
    settings = read_settings({}, {"api_keys": " uno, dos ,"})
    assert [key.get_secret_value() for key in settings.api_keys] == ["uno", "dos"]
    assert "uno" not in repr(settings)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", "99999"),
        ("port", "http"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("calibration_items", "39"),
        ("queue_limit_requests", "0"),
        ("queue_timeout_seconds", "nan"),
        ("max_audio_bytes", "-1"),
        ("max_audio_seconds", "inf"),
        ("max_audio_clips", "100"),
        ("silence_cache_bytes", "1GB"),
        ("drain_seconds", "-1"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {field: value})
    message = str(caught.value)
    assert variable(field) in message
    assert option(field) in message
    assert repr(value) in message
    assert str(Settings.model_fields[field].description) in message


def test_wrong_keys_are_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {"api_keys": "se cret"})
    assert "cret" not in str(caught.value)


def test_every_wrong_setting_gets_a_line() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"ALLEARS_PROT": "1"}, {"port": "x", "dtype": "y"})
    unknown, *wrong = str(caught.value).split("\n")
    assert "ALLEARS_PROT" in unknown
    assert "ALLEARS_PORT" in unknown
    assert len(wrong) == 2


def test_a_clients_key_alone_does_not_open_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="ALLEARS_API_KEYS"):
        read_settings({"ALLEARS_API_KEY": "key"}, {})
    assert read_settings({"ALLEARS_API_KEY": "key"}, {"api_keys": "key"}).api_keys


def test_every_field_says_what_is_allowed() -> None:
    assert all(info.description for info in Settings.model_fields.values())
