"""One question's way, in order: prompt, prefill, silence twin, strength, steered readout, answer.

`prepare_prompt` makes the prompt, without the network. `answer_question` is a generator of events:
Started once it knows how far the model listened, then Pieces of the answer's text as they come and,
last, Finished with all of it. Where it needs a next token it yields NeedsToken and expects it drawn
when it goes on: whoever runs it makes one decode step for many questions. Streaming, plain requests
and benchmarks all run it. It knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from functools import partial

import numpy as np

from server.engine.events import Event, Finished, Started
from server.engine.long_audio import answer_windows, long_clip_index
from server.engine.messages import Answer, Listening, Question, Steering, Timings
from server.engine.runtime import Runtime, steering_refusal
from server.engine.text_generation import generate_text
from steering import heads
from steering.clip_attribution import clip_scores, contrast_clip, with_influence
from steering.errors import RequestError
from steering.generation import UNSTEERED, SteeringPlan, mean_log_probabilities, score_choices
from steering.model.audio_model import AudioModel
from steering.model.prompt_style import PLAIN, PromptStyle
from steering.prefill import PrefillResult, prefill
from steering.prompt import Message, Prompt, build_prompt, silent_twin, with_choices
from steering.readout import pool, relative_norm
from steering.silence import SilenceContrast, contrast_with_silence


def prepare_prompt(runtime: Runtime, question: Question) -> Prompt | None:
    """The question's prompt: tokens and features, made without the network, in any thread.

    None where a clip is to be heard in windows: they are prepared one after the other.
    Raises RequestError for what can't be asked, and for what can never fit.
    """
    if question.windowed and long_clip_index(question, runtime.model) is not None:
        return None
    return _build_checked(runtime, question)


def _build_checked(runtime: Runtime, question: Question) -> Prompt:
    prompt = build_prompt(
        runtime.model, _messages_with_choices(question, runtime.model.prompt_style)
    )
    _check_length(runtime, prompt, question)
    return prompt


def answer_question(
    runtime: Runtime, question: Question, prompt: Prompt | None
) -> Generator[Event, None, None]:
    """The events of one answer; without a prompt, of a clip heard in windows.

    Raises RequestError for what can't be done, when it comes to it.
    """
    if prompt is None:
        return answer_windows(
            runtime,
            question,
            lambda part: answer_once(runtime, part, _build_checked(runtime, part)),
        )
    return answer_once(runtime, question, prompt)


def answer_once(
    runtime: Runtime, question: Question, prompt: Prompt
) -> Generator[Event, None, None]:
    """The same for clips that fit the model's window, or are cut there."""
    model, profile = runtime.model, runtime.profile
    started = time.perf_counter()

    # 1. One pass over the prompt, with taps on the specialist heads.
    tapped = profile.heads if profile else ()
    layers = profile.layers if profile else ()
    heard = prefill(model, prompt, heads=tapped, layers=layers)
    after_prefill = time.perf_counter()

    # 2. The silence twin, where a live direction or its score is wanted.
    live = question.steer and question.direction == "request" and steering_refusal(runtime) is None
    twin: SilenceContrast | None = None
    if profile and live and question.contrast_clip is not None:
        index = _clip_index(question.contrast_clip, prompt)
        twin = contrast_clip(model, prompt, heard, index, heads=tapped, layers=layers)
    elif profile and (live or question.with_silence):
        twin = contrast_with_silence(
            model, prompt, heard, heads=tapped, layers=layers, prefixes=runtime.silence_cache
        )
    after_silence = time.perf_counter()

    # 3. Listening score, strength, plan.
    listening = _listening(runtime, prompt, heard, twin)
    plan, steering = _decide(runtime, question, heard, twin, listening)
    yield Started(listening, steering)

    # 4. The answer, and for comparison the bare and the silent one.
    reply = yield from generate_text(runtime, heard, plan, question)
    after_decode = time.perf_counter()
    unsteered = reply
    if question.with_unsteered and steering.applied:
        unsteered = yield from generate_text(runtime, heard, UNSTEERED, question, pieces=False)
    if question.with_clips and reply.text:
        likelihood = partial(_log_probability, model, question, reply.text)
        clips = with_influence(model, prompt, heard, listening.clips, likelihood)
        listening = replace(listening, clips=clips)
    silent: str | None = None
    if question.with_silence:
        twin_heard = prefill(model, silent_twin(model, prompt))
        reply_to_silence = yield from generate_text(
            runtime, twin_heard, UNSTEERED, question, pieces=False
        )
        silent = reply_to_silence.text if question.generate else None
    answer = Answer(
        id=question.id,
        text=reply.text,
        finish_reason=reply.finish_reason,
        probabilities=reply.probabilities,
        listening=listening,
        steering=steering,
        unsteered=unsteered.text if question.with_unsteered and question.generate else None,
        silent=silent,
        prompt=prompt,
        completion_tokens=reply.tokens,
        timings=Timings(
            prefill_seconds=after_prefill - started,
            silence_seconds=after_silence - after_prefill if twin else 0.0,
            decode_seconds=after_decode - after_silence,
            first_token_seconds=reply.first_token_at - started if reply.tokens else 0.0,
            silence_cache=("hit" if twin.from_cache else "miss") if twin else None,
            began_at=started,
        ),
    )
    yield Finished(answer)


def _messages_with_choices(question: Question, style: PromptStyle) -> tuple[Message, ...]:
    """The messages, with the choices written under the last text of the last turn."""
    if not question.choices and style is PLAIN:
        return question.messages
    *before, last = question.messages
    at = max((i for i, part in enumerate(last.parts) if isinstance(part, str)), default=None)
    if at is None and not question.choices:
        return question.messages
    if at is None:
        raise RequestError(
            "choices need a text to stand under: the last message has none", "messages"
        )
    parts = list(last.parts)
    parts[at] = with_choices(str(parts[at]), question.choices, style)
    return (*before, Message(last.role, tuple(parts)))


def _check_length(runtime: Runtime, prompt: Prompt, question: Question) -> None:
    """Nothing, if the prompt and the longest answer fit a row."""
    limit = runtime.slots.tokens
    answer = question.sampling.max_tokens if question.generate else 0
    if len(prompt.tokens) + answer > limit:
        raise RequestError(
            f"the prompt has {len(prompt.tokens)} tokens, {int(prompt.audio_mask.sum())} of them"
            " audio;"
            f" with max_tokens {answer} at most {limit - answer} fit here: shorten the text,"
            " send fewer or shorter clips, or lower max_tokens"
        )


def _clip_index(wanted: int, prompt: Prompt) -> int:
    if wanted >= len(prompt.clips):
        raise RequestError(
            f"steering.clip is {wanted}; clips count from 0, and {len(prompt.clips)} were sent",
            "steering.clip",
        )
    return wanted


def _log_probability(
    model: AudioModel, question: Question, text: str, heard: PrefillResult
) -> float:
    """Of an answer, by the bare model: among the choices, or a token's mean."""
    if question.choices:
        found = score_choices(model, heard, UNSTEERED, question.choices)
        return float(np.log(max(found[question.choices.index(text)], 1e-30)))
    return mean_log_probabilities(model, heard, UNSTEERED, [text])[0]


def _listening(
    runtime: Runtime, prompt: Prompt, heard: PrefillResult, twin: SilenceContrast | None
) -> Listening:
    profile, hop = runtime.profile, runtime.model.hop_seconds
    if profile is None:
        return Listening(None, None, "unknown", None, None, np.zeros(0, np.float32), hop, ())
    attention = heard.attention.cpu().numpy()
    score = heads.listening_score(attention)
    mass = heads.audio_mass(attention).tolist()
    silent = heads.listening_score(twin.silence_attention.cpu().numpy()) if twin else None
    return Listening(
        score=score,
        percentile=profile.percentile(score),
        verdict=profile.verdicts.of(score),
        threshold=profile.verdicts.listening,
        silence_score=silent,
        timeline=heads.timeline(attention),
        hop_seconds=hop,
        heads=tuple((la, h, m) for (la, h), m in zip(profile.heads, mass, strict=True)),
        clips=clip_scores(runtime.model, prompt, heads.timeline(attention)),
    )


def _decide(
    runtime: Runtime,
    question: Question,
    heard: PrefillResult,
    twin: SilenceContrast | None,
    found: Listening,
) -> tuple[SteeringPlan, Steering]:
    """How the answer is steered, and how that is reported."""
    profile = runtime.profile
    why = steering_refusal(runtime)
    if why is not None or profile is None:
        return UNSTEERED, Steering(False, reason=why)
    if not question.steer:
        return UNSTEERED, Steering(False, reason="steer is false")
    assert found.score is not None
    strength = question.strength
    if strength is None:
        strength = profile.gate.strength(found.score)
    if strength > profile.max_strength:
        raise RequestError(
            f"steering.strength {strength:g} is over this profile's max_strength"
            f' {profile.max_strength:g}; send a number from 0 to that, or "adaptive"',
            "steering.strength",
        )
    if strength == 0:
        return UNSTEERED, Steering(False, question.direction, reason="strength is 0")
    if question.direction == "calibrated":
        direction = profile.direction.to(runtime.model.device)
    else:
        assert twin is not None
        direction = pool(twin.differences, profile.intervention)
    size = relative_norm(heard.final, direction, strength, profile.intervention)
    return SteeringPlan(direction, strength, profile.intervention), Steering(
        True, question.direction, strength, size
    )
