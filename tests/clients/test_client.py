"""The client against a real server, and against what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from clients.client import AllEars, AllEarsHTTPError, NoServer, UnreadableAudio
from server.cli import app

QUESTION = "What animal is this?"


@pytest.fixture
def ears(running_url: str) -> Iterator[AllEars]:
    with AllEars(running_url) as ears:
        yield ears


@pytest.fixture
def file(tmp_path: Path, sound: bytes) -> Path:
    path = tmp_path / "x.wav"
    path.write_bytes(sound)
    return path


def test_an_answer_is_a_dataclass(ears: AllEars, sound: bytes) -> None:
    answer = ears.ask(
        sound,
        QUESTION,
        choices=["dog", "cat"],
        steer=True,
        strength=0.5,
        include=["timeline", "heads", "unsteered", "silence"],
    )
    assert answer.text in answer.probabilities
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.steering.applied
    assert answer.steering.strength == 0.5
    assert answer.steering.unsteered_answer in ("dog", "cat")
    assert answer.silent_answer in ("dog", "cat")
    assert len(answer.listening.timeline) == 25
    assert answer.raw["id"] == answer.id
    assert ears.listening_score(answer.id)["id"] == answer.id
    assert ears.listening_score()["count"] >= 1


def test_audio_may_be_bytes_a_path_or_several(ears: AllEars, sound: bytes, file: Path) -> None:
    sounds: list[bytes | Path | str] = [sound, file, str(file)]
    heard = [ears.listen(one, QUESTION) for one in sounds]
    assert len({one.listening.score for one in heard}) == 1
    assert len(ears.listen(sounds, QUESTION).raw["audio"]) == 3


def test_messages_go_as_they_are(ears: AllEars, sound: bytes) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    assert ears.ask(sound, messages=messages, max_tokens=1).text is not None


def test_a_refusal_is_an_error_with_the_servers_words(ears: AllEars, sound: bytes) -> None:
    with pytest.raises(AllEarsHTTPError) as caught:
        ears.ask(sound, QUESTION, temperature=5)
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "invalid_request", "temperature")
    assert error.message in str(error)


def test_an_unreadable_file_is_found_here(ears: AllEars) -> None:
    with pytest.raises(UnreadableAudio, match=r"nowhere\.wav"):
        ears.ask("nowhere.wav", QUESTION)


def test_no_server_says_how_to_start_one(sound: bytes) -> None:
    with AllEars("http://127.0.0.1:1") as ears:
        assert not ears.ready()
        with pytest.raises(NoServer, match="allears serve"):
            ears.ask(sound, QUESTION)


def test_keys_retries_and_strangers(sound: bytes) -> None:
    seen: list[httpx.Request] = []

    def busy(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        error = {"message": "full", "type": "x", "param": None, "code": "queue_full"}
        return httpx.Response(429, json={"error": error}, headers={"retry-after": "3"})

    ears = AllEars(api_key="key", transport=httpx.MockTransport(busy))
    with ears, pytest.raises(AllEarsHTTPError) as caught:
        ears.ask(sound, QUESTION)
    assert caught.value.retry_after_seconds == 3
    assert seen[0].headers["authorization"] == "Bearer key"
    stranger = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    with AllEars(transport=stranger) as ears, pytest.raises(AllEarsHTTPError, match="allears"):
        ears.listening_score()


# ---- the commands

runner = CliRunner()


def test_ask_and_listen_print_words_or_json(running_url: str, file: Path) -> None:
    words = [str(file), QUESTION, "--url", running_url, "--choice", "dog", "--choice", "cat"]
    asked = runner.invoke(app, ["ask", *words, "--steer", "--strength", "0.5"])
    assert asked.exit_code == 0
    assert "strength 0.5" in asked.stdout
    listened = runner.invoke(app, ["listen", *words])
    assert listened.exit_code == 0
    assert "listening" in listened.stdout
    for command in ("ask", "listen"):
        body = json.loads(runner.invoke(app, [command, *words, "--json"]).stdout)
        assert body["listening"]["score"] > 0


def test_what_goes_wrong_is_one_line(running_url: str, file: Path) -> None:
    cases = [
        ["ask", "nowhere.wav", QUESTION, "--url", running_url],
        ["ask", str(file), QUESTION, "--url", "http://127.0.0.1:1"],
        ["ask", str(file), QUESTION, "--url", running_url, "--steer", "--strength", "99"],
        ["listen", str(file), " ", "--url", running_url],
    ]
    for words in cases:
        result = runner.invoke(app, words)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
    for option, value in (("--strength", "much"), ("--direction", "up")):
        result = runner.invoke(app, ["ask", str(file), QUESTION, option, value])
        assert result.exit_code == 2
