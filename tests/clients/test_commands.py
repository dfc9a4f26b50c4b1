"""`allears ask` and `allears listen`: words, JSON, pipes, no server, a server of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from allears_client import terminal
from allears_client.answers import WordListening
from server.cli import app

QUESTION = "What animal is this?"
runner = CliRunner()


@pytest.fixture
def file(tmp_path: Path, sound: bytes) -> Path:
    path = tmp_path / "x.wav"
    path.write_bytes(sound)
    return path


def run(*words: str, **more: Any) -> Any:
    return runner.invoke(app, words, catch_exceptions=False, env={"COLUMNS": "120"}, **more)


def test_ask_and_listen_print_words_or_json(running_url: str, file: Path) -> None:
    words = [str(file), QUESTION, "--url", running_url, "--choice", "dog", "--choice", "cat"]
    asked = run("ask", *words, "--steer", "--strength", "0.5")
    assert asked.exit_code == 0
    assert "strength 0.5" in asked.stdout
    assert "bare" in asked.stdout
    greedy = json.loads(run("ask", *words[:4], "--json").stdout)["answer"]
    sharp = ["--temperature", "2", "--top-k", "1", "--top-p", "1", "--min-p", "0", "--seed", "1"]
    assert json.loads(run("ask", *words[:4], "--json", *sharp).stdout)["answer"] == greedy
    penalty = ["--json", "--repetition-penalty", "1.8"]
    assert json.loads(run("ask", *words[:4], *penalty).stdout)["answer"] != greedy
    listened = run("listen", *words)
    assert listened.exit_code == 0
    for text in (asked.stdout, listened.stdout):
        assert "┃ 0.60 is listening" in text, "the threshold of the profile"
        assert "0 to 1.0 s" in text
        assert set("▁▂▃▄▅▆▇█") & set(text)
        assert re.search(r"effect +\d+\.\d\d bits", text)
    assert " bits" not in run("ask", *words).stdout
    assert " bits" in run("ask", *words, "--effect").stdout
    for command in ("ask", "listen"):
        body = json.loads(run(command, *words, "--json").stdout)
        assert body["listening"]["score"] > 0


def test_a_long_file_is_heard_in_windows_and_silence_is_answered_as_well(
    running_url: str, make_sound: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(make_sound(5.0))
    words = [str(path), QUESTION, "--url", running_url, "--choice", "dog", "--choice", "cat"]
    asked = run("ask", *words, "--long-audio", "window")
    listened = run("listen", *words, "--long-audio", "window")
    for result in (asked, listened):
        assert result.exit_code == 0, result.stderr
        assert "window of clip 0" in result.stdout
        assert "to 5.0 s" in result.stdout
    cut = run("ask", *words, "--long-audio", "cut", "--silence")
    assert "window of clip" not in cut.stdout
    assert "in silence" in cut.stdout
    assert run("ask", *words, "--long-audio", "no").exit_code == 2


def test_a_sound_comes_from_a_pipe(running_url: str, file: Path, sound: bytes) -> None:
    words = [QUESTION, "--url", running_url, "--json"]
    piped = run("listen", "-", *words, input=sound)
    from_file = run("listen", str(file), *words)
    score = json.loads(piped.stdout)["listening"]["score"]
    assert score == json.loads(from_file.stdout)["listening"]["score"]
    assert run("listen", "-", *words, input=b"").exit_code == 1


def test_what_goes_wrong_is_one_line(running_url: str, file: Path) -> None:
    cases = [
        ["ask", "nowhere.wav", QUESTION, "--url", running_url],
        ["ask", str(file), QUESTION, "--url", "http://127.0.0.1:1"],
        ["ask", str(file), QUESTION, "--url", running_url, "--steer", "--strength", "99"],
        ["listen", str(file), " ", "--url", running_url],
    ]
    for words in cases:
        result = run(*words)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
    alone = run("ask", str(file), QUESTION, "--url", "http://127.0.0.1:1").stderr
    assert "allears serve" in alone
    assert "--local" in alone
    for option, value in (("--strength", "much"), ("--direction", "up")):
        assert run("ask", str(file), QUESTION, option, value).exit_code == 2


def test_local_runs_the_model_here(
    file: Path, checkpoint_folder: Path, profile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLEARS_MODEL", str(checkpoint_folder))
    monkeypatch.setenv("ALLEARS_PROFILE", str(profile_folder))
    monkeypatch.setenv("ALLEARS_API_KEYS", "of-another-server")
    result = run("ask", str(file), QUESTION, "--local", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "tiny"
    monkeypatch.setenv("ALLEARS_MODEL", "./nowhere")
    failed = run("listen", str(file), QUESTION, "--local")
    assert failed.exit_code == 1
    assert "nowhere" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_words_are_coloured_on_a_terminal_alone(
    running_url: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ask", str(file), QUESTION, "--url", running_url, "--words"]
    weighed = json.loads(run(*words, "--json").stdout)["listening"]["words"]
    assert weighed
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = run(*words).stdout
    assert "\x1b" not in plain
    for word in weighed:
        assert f"{word['text']}:{word['effect_bits']:.2f}" in " ".join(plain.split())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run(*words).stdout


def test_a_word_has_the_colour_of_its_effect() -> None:
    bits = {"A": 0.05, "𝄞clef": 0.5, "sounds": 7.0}
    words, text = [], "A 𝄞clef sounds."
    for word, effect in bits.items():
        start = text.index(word)
        words.append(WordListening(word, start, start + len(word), 0.5, effect))
    spans = terminal.shaded_text(text, words).spans
    assert [(text[start:end], style) for start, end, style in spans] == [
        ("A", "red"),
        ("𝄞clef", "yellow"),
        ("sounds", "bold green"),
    ]


def test_a_gauge_marks_the_threshold() -> None:
    for score in (0.0, 0.2, 0.5, 1.0):
        bar = terminal.gauge(score, 0.5, "red").plain
        assert len(bar) == 32
        assert bar.index("┃") == 16
        full = round(32 * score)
        assert bar.count("━") == full - (full > 16)
    assert "┃" not in terminal.gauge(0.5, None, "red").plain


def test_a_sparkline_shows_where_the_mass_is() -> None:
    assert terminal.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert terminal.sparkline([]) == ""
    assert terminal.sparkline([0.0] * 5) == "▁" * 5
    long = [0.0] * 900 + [1.0] * 100
    line = terminal.sparkline(long, 10)
    assert line == "▁" * 9 + "█"
