"""The start-up check: shapes, then the short form of `verify`, before the first request."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.errors import ModelError
from steering.generation import UNSTEERED, steered_logits
from steering.kv_slots import KVSlots
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import build_question
from steering.silence import contrast_with_silence
from steering.silence_cache import SilenceCache
from steering.verification.rows import (
    LIVE_SCORE,
    RAW,
    check_decode,
    check_rows,
    check_steering,
    tokens_needed,
)
from steering.verification.trial import ERRORS, QUESTION, Trial, check_prompt, noise

log = logging.getLogger("allears")


CUT_SILENCE = "cut_silence"  # silence of the clip's length, cut from a longer one
ONE_PASS = "one_pass"  # prompt and twin go through the layers together
SLOWER = {"cut silence": CUT_SILENCE, "one pass": ONE_PASS}  # findings of what has a slower way


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A start-up check that was passed: what was tried, and what is done in a slower, right way."""

    trial: Trial
    found_wrong: dict[str, str]  # features that must not be used, and how far off they are


def self_test(model: AudioModel) -> SelfTest:
    """Raise ModelError unless a second of noise goes through as it does in plain transformers.

    What is wrong and has a slower way is named in the result, and logged.
    """
    try:
        _test_shapes(model)
        trial = Trial.of(model)
        slots = KVSlots(model, 2, tokens_needed(trial), RAW)
    except ERRORS as error:
        raise ModelError(_remedy(model, f"{type(error).__name__}: {error}")) from error
    found_wrong: dict[str, str] = {}
    for finding in (*check_prompt(trial), check_decode(trial), check_steering(trial, slots)):
        if finding.ok:
            continue
        if finding.name not in SLOWER:
            raise ModelError(_remedy(model, f"other than plain transformers, {finding}"))
        log.warning("switched off for a slower way: other than plain transformers, %s", finding)
        found_wrong[SLOWER[finding.name]] = str(finding)
    return SelfTest(trial, found_wrong)


def check_slots(trial: Trial, slots: KVSlots) -> None:
    """Let the rows of free slots write side by side, and by recorded steps if they do.

    Recorded steps that are wrong are switched off: eager ones are slower, and right; so are wrong
    scores of tokens. Raises ModelError if anything else is wrong.
    """
    for finding in check_rows(trial, slots):
        if finding.ok:
            continue
        if finding.name == LIVE_SCORE:
            slots.score_nothing(str(finding))
            continue
        if finding.name != "recorded step":
            raise ModelError(_remedy(trial.model, f"other than alone, {finding}"))
        slots.record_no_steps(f"other than eager steps, {finding}")


def _test_shapes(model: AudioModel) -> None:
    """Raise ModelError, or what the model raises, unless all shapes are the family's."""
    prompt = build_question(model, [noise(model, 1.0)], QUESTION)
    heads = ((0, 0), (model.num_layers - 1, model.num_heads - 1))
    layers = (0, model.num_layers - 1)
    audio_tokens = sum(model.audio_tokens(int(frames)) for frames in prompt.mel_frames)
    _verify(model, "audio tokens of one second", prompt.audio_mask.nonzero(), (audio_tokens, 1))
    prefilled = prefill(model, prompt, heads=heads, layers=layers)
    twin = contrast_with_silence(
        model, prompt, prefilled, heads=heads, layers=layers, silence_cache=SilenceCache(0)
    )
    with torch.inference_mode():
        logits = steered_logits(model, prefilled.final[None], UNSTEERED, 0)
    _verify(model, "taps", prefilled.attention, (2, audio_tokens))
    _verify(model, "states", prefilled.states, (2, model.hidden_size))
    _verify(model, "differences from silence", twin.differences, (2, model.hidden_size))
    _verify(model, "taps on silence", twin.silence_attention, (2, audio_tokens))
    _verify(model, "logits", logits, (1, int(model.text_config.vocab_size)))


def _verify(model: AudioModel, name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ModelError(_remedy(model, f"{name} are {tuple(values.shape)}, not {shape}"))
    if not bool(torch.isfinite(values).all()):
        raise ModelError(_remedy(model, f"{name} are not finite: try --dtype float32"))


def _remedy(model: AudioModel, fault: str) -> str:
    return (
        f"{model.name} does not pass the start-up check of family {model.family.name}: {fault}."
        " `allears doctor --verify` shows every check. If its architecture was changed, describe"
        " it as a family of its own: docs/families.md"
    )
