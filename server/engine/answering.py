"""One question's answer, in order: prompt, silence, prefill, decision, steered readout, text.

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
import torch
from transformers import DynamicCache

from server.engine.clip_room import (
    answer_tokens,
    clips_of,
    cut_clips,
    fits_row,
    may_be_whole,
    measure_room,
    refuse_shortened,
    replace_clips,
)
from server.engine.events import Event, Finished, NeedsTurn, Started, in_turns
from server.engine.long_audio import answer_windows, long_clip
from server.engine.messages import Answer, Question, Timings
from server.engine.runtime import NO_AUDIO, Runtime
from server.engine.text_generation import GeneratedText, generate_text, seat_for
from steering.clip_attribution import contrast_clip, with_influence
from steering.decision import (
    Decision,
    Listening,
    decide,
    effect_bits,
    effect_bits_in_passes,
    measure,
    needs_effect,
    unsteered,
    wants_silence,
)
from steering.errors import RequestError
from steering.generation import (
    UNSTEERED,
    log_probabilities_in_passes,
    score_choices_in_passes,
)
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes
from steering.model.prompt_style import PLAIN, PromptStyle
from steering.prefill import PrefillResult, prefill_in_passes
from steering.prompt import (
    Message,
    Prompt,
    build_prompt,
    refuse_control_tokens,
    silent_twin,
    with_choices,
)
from steering.silence import (
    SilenceContrast,
    SilentPrefix,
    prefill_with_silence_in_passes,
    silent_prefix_in_passes,
)
from steering.verification.self_test import ONE_PASS
from steering.words.effects import CHUNK_TOKENS, HeardAnswer, hear_in_passes, token_effects
from steering.words.word import TokenizedText, Word, placed, tokenize, words_of

_BLIP_SAMPLES = 1_600  # of a clip, where only its text counts


def prepare_prompt(runtime: Runtime, question: Question) -> Prompt | None:
    """Prepare the question's prompt: tokens and features, without the network, in any thread.

    Clips that are longer than their room are cut. None if one is heard in windows: their prompts
    are prepared one after the other. Raises RequestError for a question that can't be asked or can
    never fit, AudioTooLarge for clips that are to be refused.
    """
    if may_be_whole(runtime, question):  # as a rule
        prompt = _build(runtime, question)
        if fits_row(runtime, question, prompt):
            return prompt
    room = measure_room(runtime, question, _text_tokens(runtime, question))
    if question.long_audio == "window" and long_clip(room) is not None:
        return None
    if question.long_audio == "refuse" and room.shortened:
        refuse_shortened(room, question)
    return _build(runtime, cut_clips(room, question))


def _build(runtime: Runtime, question: Question) -> Prompt:
    choices = {f"choices.{i}": choice for i, choice in enumerate(question.choices)}
    refuse_control_tokens(runtime.model, {**choices, "answer": question.given_answer})
    _refuse_long_answer(runtime, question)
    return build_prompt(runtime.model, _messages_with_choices(question, runtime.model.prompt_style))


def _refuse_long_answer(runtime: Runtime, question: Question) -> None:
    """Raise RequestError for an answer of more tokens than one may have."""
    count, limit = answer_tokens(runtime, question), question.sampling.max_tokens
    if question.given_answer and count > limit:
        raise RequestError(
            f"the answer has {count:,} tokens; at most {limit:,} are weighed here"
            " (ALLEARS_MAX_TOKENS): send it in parts",
            "answer",
        )


def _text_tokens(runtime: Runtime, question: Question) -> int:
    """Tokens of the prompt beside those of its clips."""
    blips = {
        clip: replace(clip, samples=clip.samples[:_BLIP_SAMPLES]) for clip in clips_of(question)
    }
    prompt = _build(runtime, replace_clips(question, blips))
    return len(prompt.tokens) - int(prompt.audio_mask.sum())


def answer_question(
    runtime: Runtime, question: Question, prompt: Prompt | None
) -> Generator[Event, None, None]:
    """The events of one answer; without a prompt, of a clip heard in windows.

    Raises RequestError for what can't be done, when it comes to it.
    """
    if prompt is None:
        return answer_windows(
            question,
            measure_room(runtime, question, _text_tokens(runtime, question)),
            lambda part: answer_once(runtime, part, _build(runtime, part)),
        )
    return answer_once(runtime, question, prompt)


def answer_once(
    runtime: Runtime, question: Question, prompt: Prompt
) -> Generator[Event, None, None]:
    """The same for clips that fit the model's window, or are cut there."""
    model, profile = runtime.model, runtime.profile
    began_at = time.perf_counter()

    # 1. Silence up to the question, mostly kept, where a live direction, its score or the effect is
    # wanted.
    measured = profile if prompt.clips else None  # without audio nothing is listened to
    silence = yield from _silence(runtime, question, prompt)
    after_silence = time.perf_counter()

    # 2. The prompt, in one pass or in chunks between the tokens of other answers, with taps on the
    # specialist heads, the twin's question beside it.
    prefilled, contrast = yield from _prefill(runtime, question, prompt, silence)
    if contrast and contrast.silent and not question.choices:  # nothing is read behind the twin
        contrast = replace(contrast, silent=replace(contrast.silent, cache=DynamicCache()))
    after_prefill = time.perf_counter()

    # 3. Listening score, strength, plan.
    silence_attention = contrast.silence_attention if contrast else None
    listening = measure(model, measured, prompt, prefilled.attention, silence_attention)
    decision = _decide(runtime, question, prompt, prefilled, contrast, listening)
    steering = decision.steering
    yield Started(listening, steering)

    # 4. The answer, and for comparison the unsteered one, in the same row.
    with seat_for(runtime.slots, prefilled) as seat:
        reply = unsteered = yield from generate_text(runtime, seat, decision.plan, question)
        after_decode = time.perf_counter()
        heard = yield from _heard_answer(runtime, question, prompt, prefilled, reply)
        if question.with_unsteered and steering.applied:
            unsteered = yield from generate_text(runtime, seat, UNSTEERED, question, pieces=False)

    # 5. For comparison the effect, also on each word, and the answers about each clip's silence and
    # about all silence. None of it makes the answer's first piece wait.
    if contrast and contrast.silent:
        bits = effect_bits_in_passes(
            model, prefilled, contrast.silent, question.choices, runtime.pass_limit
        )
        effect = yield from in_turns(bits)
        listening = replace(listening, effect_bits=effect)
        contrast = replace(contrast, silent=None)  # which may hold the twin's keys and values
    if question.with_clips and reply.text:
        if not prefilled.has_cache:
            prefilled = yield from in_turns(prefill_in_passes(model, prompt, runtime.pass_limit))
        limit = runtime.pass_limit
        likelihood = partial(_log_probability, model, question, reply.text, limit)
        clips = yield from in_turns(
            with_influence(model, prompt, prefilled, listening.clips, likelihood, limit)
        )
        listening = replace(listening, clips=clips)
    prefilled.free_cache()
    if heard is not None:
        words = yield from _weigh_words(runtime, prompt, *heard)
        listening = replace(listening, words=words)
    silent: str | None = None
    if question.with_silence and prompt.clips:
        twin = silent_twin(model, prompt)
        prefilled = yield from in_turns(prefill_in_passes(model, twin, runtime.pass_limit))
        with seat_for(runtime.slots, prefilled) as seat:
            about_silence = yield from generate_text(
                runtime, seat, UNSTEERED, question, pieces=False
            )
        silent = about_silence.text if question.generate else None
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
        token_ids=tuple(reply.token_ids),
        token_scores=tuple(reply.token_scores),
        timings=Timings(
            queue_seconds=0.0,  # the engine knows
            prefill_seconds=after_prefill - after_silence,
            silence_seconds=after_silence - began_at if silence else 0.0,
            decode_seconds=after_decode - after_prefill,
            silence_cache=("hit" if contrast.from_cache else "miss") if contrast else None,
        ),
        began_at=began_at,
        first_token_seconds=reply.first_token_at - began_at if reply.tokens else 0.0,
    )
    yield Finished(answer)


def _silence(
    runtime: Runtime, question: Question, prompt: Prompt
) -> Generator[NeedsTurn, None, SilentPrefix | None]:
    """The prompt's silent prefix, if steering or the question wants a twin of all clips."""
    live = runtime.profile is not None and wants_silence(runtime.profile, question.steering)
    wanted = live or question.with_silence or _to_the_end(question)
    if not prompt.clips or not wanted or (live and question.contrast_clip is not None):
        return None
    depth = runtime.twin_depth(effect=_to_the_end(question))
    kept, limit = runtime.silence_cache, runtime.pass_limit
    passes = silent_prefix_in_passes(runtime.model, prompt, kept, depth, limit)
    return (yield from in_turns(passes))


def _prefill(
    runtime: Runtime, question: Question, prompt: Prompt, silence: SilentPrefix | None
) -> Generator[NeedsTurn, None, tuple[PrefillResult, SilenceContrast | None]]:
    """The passes over the prompt, and its contrast with silence, if one is wanted."""
    model, profile, limit = runtime.model, runtime.profile, runtime.pass_limit
    heads, layers = (profile.heads, profile.layers) if profile and prompt.clips else ((), ())
    if silence is not None:
        # Beside a twin the last digits may be others: strength 0 is exactly the bare answer, whose
        # pass has a twin only where the question asks for one.
        asked = question.with_silence or _to_the_end(question)
        bare = question.steering.strength == 0 and not asked
        one_pass = ONE_PASS not in runtime.found_wrong and not bare
        both = prefill_with_silence_in_passes(
            model, prompt, silence, limit, heads=heads, layers=layers, one_pass=one_pass
        )
        return (yield from in_turns(both))
    passes = prefill_in_passes(model, prompt, limit, heads=heads, layers=layers)
    prefilled = yield from in_turns(passes)
    if profile is None or not prompt.clips or question.contrast_clip is None:
        return prefilled, None
    if not wants_silence(profile, question.steering):
        return prefilled, None
    _check_clip_index(question.contrast_clip, prompt)
    index = question.contrast_clip
    again = contrast_clip(model, prompt, prefilled, index, limit, heads=heads, layers=layers)
    return prefilled, (yield from in_turns(again))


def _to_the_end(question: Question) -> bool:
    """Whether the twin is run through all layers, for what its next token would be."""
    return question.with_effect or question.with_words


def _heard_answer(
    runtime: Runtime,
    question: Question,
    prompt: Prompt,
    prefilled: PrefillResult,
    reply: GeneratedText,
) -> Generator[NeedsTurn, None, tuple[TokenizedText, HeardAnswer] | None]:
    """The answer whose words are to be weighed: as it was generated, or as it is given."""
    if not question.with_words or not prompt.clips:
        return None
    model, states, scores = runtime.model, reply.states, reply.token_scores
    if states:
        answer = placed(model, reply.token_ids, reply.text)
    else:
        answer = tokenize(model, question.given_answer or reply.text)
    count = len(answer.ids)
    if not count:  # it ended at once
        return None
    if not states:
        chunk = _words_chunk(runtime)
        passes = hear_in_passes(model, prompt, prefilled, answer.ids, runtime.heads, chunk)
        return answer, (yield from in_turns(passes))
    mass = torch.tensor(scores[:count])[:, None]  # (T, 1), or (0, 1) where nothing was tapped
    return answer, HeardAnswer(answer.ids, torch.stack(states[:count]), mass)


def _weigh_words(
    runtime: Runtime, prompt: Prompt, answer: TokenizedText, heard: HeardAnswer
) -> Generator[NeedsTurn, None, tuple[Word, ...]]:
    """The answer's words, each pass over them in its turn."""
    model, chunk = runtime.model, _words_chunk(runtime)
    yield NeedsTurn(chunk, lets_pass=True)
    prefix = yield from in_turns(
        silent_prefix_in_passes(
            model, prompt, runtime.silence_cache, model.num_layers, runtime.pass_limit
        )
    )
    effects: list[float] = []
    for bits in token_effects(model, prompt, prefix, heard, chunk):
        effects += bits
        if len(effects) < len(answer.ids):
            yield NeedsTurn(chunk)
    return words_of(answer, heard.scores, effects)


def _words_chunk(runtime: Runtime) -> int:
    """The most tokens of a pass over an answer whose words are weighed."""
    return min(CHUNK_TOKENS, runtime.chunk_tokens)


def _decide(
    runtime: Runtime,
    question: Question,
    prompt: Prompt,
    prefilled: PrefillResult,
    contrast: SilenceContrast | None,
    listening: Listening,
) -> Decision:
    if not prompt.clips:
        return unsteered(NO_AUDIO)
    if runtime.profile is None or listening.score is None:
        return unsteered(runtime.no_profile_reason)
    profile, request = runtime.profile, question.steering
    effect: float | None = None
    if needs_effect(profile, request):
        assert contrast is not None and contrast.silent is not None
        effect = effect_bits(runtime.model, prefilled, contrast.silent)
    differences = contrast.differences if contrast else None
    return decide(profile, request, listening.score, prefilled.final, differences, effect)


def _messages_with_choices(question: Question, style: PromptStyle) -> tuple[Message, ...]:
    """The messages, with the choices written under the last text of the last turn."""
    if not question.choices and style is PLAIN:
        return question.messages
    *before, last = question.messages
    text_index = max(
        (i for i, part in enumerate(last.parts) if isinstance(part, str)), default=None
    )
    if text_index is None and not question.choices:
        return question.messages
    if text_index is None:
        raise RequestError(
            "choices need a text to stand under: the last message has none", "messages"
        )
    parts = list(last.parts)
    parts[text_index] = with_choices(str(parts[text_index]), question.choices, style)
    return (*before, replace(last, parts=tuple(parts)))


def _check_clip_index(index: int, prompt: Prompt) -> None:
    if index >= len(prompt.clips):
        raise RequestError(
            f"steering.clip is {index}; clips count from 0, and {len(prompt.clips)} were sent",
            "steering.clip",
        )


def _log_probability(
    model: AudioModel, question: Question, text: str, limit: int | None, prefilled: PrefillResult
) -> Passes[float]:
    """Log-probability of an answer without steering: among the choices, or its tokens' mean."""
    if question.choices:
        probabilities = yield from score_choices_in_passes(
            model, prefilled, UNSTEERED, question.choices, limit
        )
        return float(np.log(max(probabilities[question.choices.index(text)], 1e-30)))
    (mean,) = yield from log_probabilities_in_passes(model, prefilled, UNSTEERED, [text], limit)
    return mean
