"""An answer on a terminal: coloured words, a gauge for the score, a sparkline for its timeline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table
from rich.text import Text

from allears_client.answers import Answer, Heard, Listening, WindowListening, WordListening

_WIDTH = 32  # columns of bars
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS = {"not_listening": "red", "partly_listening": "yellow", "listening": "green"}
GUESSED_BITS = 0.1  # below: silence would do as well
_HEARD_BITS = 1.0  # from here on the sound decided the word


def answer_table(answer: Answer) -> Table:
    """Answer, probabilities, listening, steering, warnings."""
    grid = _grid()
    words = answer.listening.words
    grid.add_row("answer", shaded_text(answer.text, words) if words else Text(answer.text, "bold"))
    for text, probability in answer.probabilities.items():
        style = "bold" if text == answer.text else "dim"
        grid.add_row("", _bar(probability, style).append(f" {probability:6.1%} {text}", style))
    if answer.silent_answer is not None:
        grid.add_row("in silence", Text(answer.silent_answer))
    if words:
        grid.add_row("words", _effects(words))
    _add_listening(grid, answer.listening)
    grid.add_row("steering", _steering(answer))
    _add_windows(grid, answer.windows)
    return _with_warnings(grid, answer.warnings)


def heard_table(heard: Heard) -> Table:
    """Listening and warnings of a question that was not answered."""
    grid = _grid()
    _add_listening(grid, heard.listening)
    _add_windows(grid, heard.windows)
    return _with_warnings(grid, heard.warnings)


def shaded_text(text: str, words: Sequence[WordListening]) -> Text:
    """The answer, each word in the colour of what the sound did to it."""
    shaded = Text(text)
    for word in words:
        shaded.stylize(_shade(word), word.start, word.end)
    return shaded


def gauge(score: float, threshold: float | None, colour: str) -> Text:
    """The score as a bar from 0 to 1, with a mark at the threshold."""
    bar = _bar(score, colour)
    if threshold is None:
        return bar
    at = min(_WIDTH - 1, int(threshold * _WIDTH))
    marked = bar[:at].append("┃", "bold")
    return marked.append_text(bar[at + 1 :])


def sparkline(timeline: Sequence[float], width: int = _WIDTH) -> str:
    """The timeline in at most `width` columns; the highest column is its largest mass."""
    count = min(width, len(timeline))
    edges = [round(i * len(timeline) / count) for i in range(count + 1)] if count else []
    columns = [sum(timeline[a:b]) for a, b in pairwise(edges)]
    largest = max(columns, default=0.0) or 1.0
    return "".join(_BLOCKS[min(7, int(8 * column / largest))] for column in columns)


def _add_listening(grid: Table, listening: Listening) -> None:
    _add_score(grid, listening)
    if listening.effect_bits is not None:
        effect = Text(f"{listening.effect_bits:.2f} bits", "bold")
        grid.add_row("effect", effect.append(" between the sound and silence", "dim"))


def _add_score(grid: Table, listening: Listening) -> None:
    if listening.score is None:
        grid.add_row("listening", "unknown: the server has no listening profile")
        return
    colour = _COLOURS.get(listening.verdict, "default")
    line = gauge(listening.score, listening.threshold, colour)
    line.append(f" {listening.score:.2f} ", "bold").append(
        listening.verdict.replace("_", " "), colour
    )
    grid.add_row("listening", line)
    if listening.timeline:
        seconds = len(listening.timeline) * listening.hop_seconds
        spark = Text(sparkline(listening.timeline), colour)
        grid.add_row("where", spark.append(f" 0 to {seconds:.1f} s", "dim"))
    grid.add_row("", Text(", ".join(_details(listening)), "dim"))


def _details(listening: Listening) -> list[str]:
    details = []
    if listening.threshold is not None:
        details.append(f"┃ {listening.threshold:.2f} is listening")
    if listening.percentile is not None:
        details.append(f"percentile {listening.percentile:.0%}")
    if listening.silence_score is not None:
        details.append(f"silence {listening.silence_score:.2f}")
    return details


def _add_windows(grid: Table, windows: Sequence[WindowListening]) -> None:
    """A row for each window of a long clip: where it is, how far it was listened to, its answer."""
    for window in windows:
        row = Text(f"{window.start_seconds:.1f} to {window.end_seconds:.1f} s")
        if window.score is not None:
            row.append(f"  {window.score:.2f} ", "bold")
            row.append(window.verdict.replace("_", " "), _COLOURS.get(window.verdict, "default"))
        grid.add_row(f"window of clip {window.clip}", row.append(f"  {window.answer}"))


def _steering(answer: Answer) -> Text:
    steering = answer.steering
    if not steering.applied:
        return Text(f"none: {steering.reason}")
    text = Text(f"{steering.direction}, strength {steering.strength:.3g}")
    if steering.answer_changed:
        text.append(f"; bare it was {steering.unsteered_answer!r}", "yellow")
    elif steering.unsteered_answer is not None:
        text.append("; the bare answer is the same", "dim")
    return text


def _effects(words: Sequence[WordListening]) -> Text:
    """Each word with its effect."""
    effects = Text()
    for word in words:
        effects.append(word.text, _shade(word)).append(f":{word.effect_bits:.2f} ", "dim")
    return effects.append(f" bits; guessed: under {GUESSED_BITS}", "dim")


def _shade(word: WordListening) -> str:
    """Red where it was guessed, green where the sound decided, yellow between."""
    if word.effect_bits < GUESSED_BITS:
        return "red"
    return "bold green" if word.effect_bits >= _HEARD_BITS else "yellow"


def _bar(share: float, style: str) -> Text:
    full = max(0, min(_WIDTH, round(share * _WIDTH)))
    return Text("━" * full, style).append("─" * (_WIDTH - full), "dim")


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _with_warnings(grid: Table, warnings: Sequence[Any]) -> Table:
    for warning in warnings:
        grid.add_row("warning", Text(str(warning), "yellow"))
    return grid
