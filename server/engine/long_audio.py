"""A clip longer than is heard as one: asked about window by window, one answer from all.

A window is as long as the model's own, or as the row has room for beside the text and other clips.

The rule. With choices, each choice's score is the mean over windows of the logarithm of its
probability, weighted by the window's listening score: a window that did not listen hardly counts.
Without, the answer is that of the window that listened most. That window's listening and steering
are the answer's. Without a profile all windows weigh the same, and the first one speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from server.engine.clip_room import ClipRoom, clips_of, replace_clips
from server.engine.events import Event, Finished, NeedsToken, NeedsTurn, Piece, Started
from server.engine.messages import Answer, Question, Timings, WindowAnswer
from steering.audio.windows import Window, cut
from steering.errors import RequestError

Events = Generator[Event, None, None]
_LEAST_PROBABILITY = 1e-30


def long_clip(room: ClipRoom) -> int | None:
    """Index of the clip that is heard in windows, None if all are heard as one."""
    long = room.shortened
    if len(long) > 1:
        raise RequestError(
            f"clips {', '.join(map(str, long))} are longer than is heard as one,"
            f" {max(room.heard_seconds):g} s here; one can be heard in windows: send one at a time",
            "audio",
        )
    return long[0] if long else None


def answer_windows(
    question: Question, room: ClipRoom, answer_window: Callable[[Question], Events]
) -> Events:
    """The events of one answer, made from an answer about each window."""
    index = long_clip(room)
    assert index is not None, "every clip is heard as one"
    whole = room.clips[index]
    windows = cut(whole, room.heard_seconds[index])
    answers: list[Answer] = []
    for window in windows:
        yield NeedsTurn(0, lets_pass=True)
        part = replace_clips(question, {whole: window.clip})
        answers.append((yield from _last_answer(answer_window(part))))
    answer = _merge(question, index, windows, answers)
    yield Started(answer.listening, answer.steering)
    if answer.text:
        yield Piece(answer.text, answer.token_scores)
    yield Finished(answer)


def _last_answer(events: Events) -> Generator[NeedsToken | NeedsTurn, None, Answer]:
    """The answer about one window; it waits for tokens and turns as ever."""
    with closing(events):
        for event in events:
            match event:
                case NeedsToken() | NeedsTurn():
                    yield event
                case Finished(answer):
                    return answer
    raise AssertionError("a window ended without its Answer")


def _merge(
    question: Question, index: int, windows: Sequence[Window], answers: Sequence[Answer]
) -> Answer:
    """One answer from those of the windows."""
    scores = np.array([answer.listening.score or 0.0 for answer in answers])
    best = answers[int(scores.argmax())]
    text, probabilities = best.text, best.probabilities
    if question.choices and question.generate:
        probabilities = _weighted_probabilities(
            [answer.probabilities for answer in answers], scores
        )
        text = question.choices[int(np.argmax(probabilities))]
    listening = best.listening
    if text != best.text:  # the words are of the window's own choice
        listening = replace(listening, words=())
    clips = clips_of(question)
    heard_seconds = list(best.prompt.heard_seconds)
    heard_seconds[index] = clips[index].seconds
    prompt = replace(
        best.prompt,
        clips=clips,
        heard_seconds=tuple(heard_seconds),
        tokens=torch.cat([answer.prompt.tokens for answer in answers]),
        audio_mask=torch.cat([answer.prompt.audio_mask for answer in answers]),
    )
    return replace(
        best,
        text=text,
        probabilities=probabilities,
        listening=listening,
        prompt=prompt,
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        timings=_summed_timings([answer.timings for answer in answers]),
        began_at=answers[0].began_at,
        first_token_seconds=sum(answer.first_token_seconds for answer in answers),
        windows=tuple(
            _window_answer(index, window, answer)
            for window, answer in zip(windows, answers, strict=True)
        ),
    )


def _window_answer(index: int, window: Window, answer: Answer) -> WindowAnswer:
    return WindowAnswer(
        clip=index,
        start_seconds=window.start_seconds,
        end_seconds=window.end_seconds,
        score=answer.listening.score,
        verdict=answer.listening.verdict,
        strength=answer.steering.strength,
        answer=answer.text,
        effect_bits=answer.listening.effect_bits,
    )


def _weighted_probabilities(
    probabilities: Sequence[Sequence[float]], scores: NDArray[np.float64]
) -> tuple[float, ...]:
    """Softmax of the mean log-probabilities of the choices, weighted by the listening scores."""
    logs = np.log(np.maximum(np.array(probabilities), _LEAST_PROBABILITY))  # (windows, choices)
    weights = scores if scores.sum() > 0 else np.ones_like(scores)
    means = (weights[:, None] * logs).sum(0) / weights.sum()
    shares = np.exp(means - means.max())
    return tuple((shares / shares.sum()).tolist())


def _summed_timings(timings: Sequence[Timings]) -> Timings:
    """The time of all windows, and the queue's of the first."""
    first = timings[0]
    missed = any(window.silence_cache == "miss" for window in timings)
    return Timings(
        queue_seconds=first.queue_seconds,
        prefill_seconds=sum(window.prefill_seconds for window in timings),
        silence_seconds=sum(window.silence_seconds for window in timings),
        decode_seconds=sum(window.decode_seconds for window in timings),
        silence_cache="miss" if missed else first.silence_cache,
    )
