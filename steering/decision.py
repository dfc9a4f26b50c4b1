"""The decision: attention becomes a score and a verdict, the score a strength, the strength a plan.

`measure` says how far the model listens, `effect_bits` what that did to its answer, `decide` how
the answer is steered or why it is not. The server's engine, the `listening` context manager and
evaluation decide here: what is evaluated is what is served. Source: arXiv 2603.06854, listening
score and intervention; verdict, percentile, effect and the strength after the score are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering import heads
from steering.clip_attribution import ClipAttribution, clip_scores, without_stretches
from steering.errors import RequestError
from steering.generation import UNSTEERED, SteeringPlan, score_choices_in_passes
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes, at_once
from steering.prefill import PrefillResult, run_layers
from steering.profile import Profile
from steering.prompt import Prompt, embed
from steering.readout import logits, pool, relative_norm
from steering.words.word import Word

Direction = Literal["request", "calibrated"]
_LEAST_PROBABILITY = 1e-30  # of a token that a distribution rules out: the effect stays finite


@dataclass(frozen=True, slots=True)
class SteeringRequest:
    """A request to steer an answer, or not to."""

    steer: bool = False
    strength: float | None = None  # None is adaptive: as much as the profile's gate says
    direction: Direction = "request"  # live, the clip minus its silence; or the profile's own


@dataclass(frozen=True, slots=True, eq=False)
class Listening:
    """Listening measurements of one answer; None without a profile to read it with, or audio."""

    score: float | None  # in [0, 1]
    percentile: float | None  # in the profile's calibration set
    verdict: str  # one of heads.VERDICTS, or unknown
    threshold: float | None  # score from which on the verdict is listening
    silence_score: float | None  # of the silent twin, where one was run
    timeline: NDArray[np.float32]  # (F,) sums to the score
    hop_seconds: float  # of the audio for each step of the timeline
    heads: tuple[tuple[int, int, float], ...]  # (layer, head, audio mass)
    clips: tuple[ClipAttribution, ...] = ()
    effect_bits: float | None = None  # of the sound on the bare answer, where a twin was run
    words: tuple[Word, ...] = ()  # of the answer, where they were asked for


@dataclass(frozen=True, slots=True)
class Steering:
    """Steering of one answer as reported; `reason` says why there was none."""

    applied: bool
    direction: str | None = None
    strength: float = 0.0
    relative_norm: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The plan of one answer's steering, and its report."""

    plan: SteeringPlan
    steering: Steering


def measure(
    model: AudioModel,
    profile: Profile | None,
    prompt: Prompt,
    attention: Tensor,
    silence_attention: Tensor | None,
) -> Listening:
    """Measure the listening of one prompt: score, percentile, verdict, timeline.

    Args:
        model: the model.
        profile: with the specialist heads; None gives the verdict `unknown` and no score.
        prompt: the prompt with its clips.
        attention: (N, F) of the profile's heads on the audio, from the last prompt token.
        silence_attention: (N, F) the same of the silent twin, None if it was not run.
    """
    if profile is None:
        nothing = np.zeros(0, np.float32)
        return Listening(None, None, "unknown", None, None, nothing, model.hop_seconds, ())
    seen = attention.cpu().numpy()
    score = heads.listening_score(seen)
    timeline = heads.timeline(seen)
    pairs = zip(profile.heads, heads.audio_mass(seen).tolist(), strict=True)
    return Listening(
        score=score,
        percentile=profile.percentile(score),
        verdict=profile.verdicts.of(score),
        threshold=profile.verdicts.listening,
        silence_score=None
        if silence_attention is None
        else heads.listening_score(silence_attention.cpu().numpy()),
        timeline=timeline,
        hop_seconds=model.hop_seconds,
        heads=tuple((layer, head, mass) for (layer, head), mass in pairs),
        clips=clip_scores(model, prompt, timeline),
    )


@torch.inference_mode()
def effect_bits(
    model: AudioModel, heard: PrefillResult, silent: PrefillResult, choices: Sequence[str] = ()
) -> float:
    """Measure what the sound did to the bare model's answer, in bits: KL(heard || silent) / ln 2.

    Args:
        model: the model.
        heard: the prompt's prefill.
        silent: that of its silent twin, through all layers.
        choices: texts that the answer may be. The distribution is then theirs, as `score_choices`
            gives it; without them that of the first answer token, over the vocabulary.

    Returns:
        0 where the sound changes nothing; below 100, since no probability counts as less than
        1e-30.
    """
    return at_once(effect_bits_in_passes(model, heard, silent, choices, None))


@torch.inference_mode()
def effect_bits_in_passes(
    model: AudioModel,
    heard: PrefillResult,
    silent: PrefillResult,
    choices: Sequence[str],
    limit: int | None,
) -> Passes[float]:
    """The same, the choices in passes of at most `limit` tokens."""
    if choices:
        shares: list[list[float]] = []
        for each in (heard, silent):
            read = score_choices_in_passes(model, each, UNSTEERED, choices, limit)
            shares.append((yield from read))
        log_probabilities = torch.tensor(shares, dtype=torch.float64).log()  # (2, choices)
    else:
        finals = torch.stack([heard.final, silent.final])
        log_probabilities = logits(model, finals).log_softmax(-1)  # (2, V)
    return float(divergence_bits(log_probabilities[0], log_probabilities[1]))


@torch.inference_mode()
def stretch_effects(
    model: AudioModel,
    prompt: Prompt,
    prefilled: PrefillResult,
    index: int,
    stretches: Sequence[tuple[float, float]],
) -> NDArray[np.float64]:
    """Measure what each stretch of a clip did to the next token of the bare model, in bits.

    Args:
        model: the model.
        prompt: the prompt with its clips.
        prefilled: its prefill.
        index: the clip.
        stretches: N of them, start and end in seconds; each alone is made silent.

    Returns:
        (N,) KL(whole clip || clip without the stretch) / ln 2, from one batched pass over all N.
    """
    prompts = without_stretches(model, prompt, index, stretches)
    states = torch.cat([embed(model, each) for each in prompts])  # (N, T, D)
    positions = torch.arange(states.shape[1], device=model.device).expand(len(states), -1)
    last, _ = run_layers(model, states, positions, None, None, wanted="last")  # (N, 1, D)
    finals = torch.cat([prefilled.final[None], last[:, 0]])
    log_probabilities = logits(model, finals).log_softmax(-1)  # (1 + N, V)
    return divergence_bits(log_probabilities[:1], log_probabilities[1:]).double().cpu().numpy()


def divergence_bits(heard: Tensor, silent: Tensor) -> Tensor:
    """(...) KL divergence in bits of natural log-probabilities (..., V): heard from silent."""
    least = float(np.log(_LEAST_PROBABILITY))
    heard, silent = heard.clamp_min(least), silent.clamp_min(least)
    nats = (heard.exp() * (heard - silent)).sum(-1)
    return nats.clamp_min(0.0) / float(np.log(2.0))  # rounding may leave less than 0


def refusal(profile: Profile) -> str | None:
    """Why this model is never steered, in plain words; None where it may be."""
    if profile.max_strength > 0:
        return None
    why = profile.refusal or "calibration found no gain from steering this model"
    return f"{why}: strength 0"


def wants_silence(profile: Profile, request: SteeringRequest) -> bool:
    """Whether the decision needs the silent twin: for the live direction, or for the effect."""
    if not request.steer or refusal(profile) is not None:
        return False
    return request.direction == "request" or needs_effect(profile, request)


def needs_effect(profile: Profile, request: SteeringRequest) -> bool:
    """Whether the strength is the effect's to say, and so the silent twin runs to the readout."""
    adaptive = request.steer and request.strength is None
    return adaptive and profile.gate.reads == "effect" and refusal(profile) is None


def strength_of(
    profile: Profile, request: SteeringRequest, score: float, effect: float | None = None
) -> float:
    """The strength asked for or, where none was, the one that the profile's gate says.

    Args:
        profile: of the model.
        request: the steering asked for.
        score: the prompt's listening score.
        effect: bits of the sound on the next token, over the vocabulary; needed where
            `needs_effect`.

    Raises:
        RequestError: it is over the profile's max_strength.
    """
    if request.strength is None:
        reading = score if profile.gate.reads == "score" else effect
        assert reading is not None, "the gate reads the effect"
        return profile.gate.strength(reading)
    if request.strength > profile.max_strength:
        raise RequestError(
            f"steering.strength {request.strength:g} is over this profile's max_strength"
            f' {profile.max_strength:g}; send a number from 0 to that, or "adaptive"',
            "steering.strength",
        )
    return request.strength


def decide(
    profile: Profile,
    request: SteeringRequest,
    score: float,
    final: Tensor,
    differences: Tensor | None,
    effect: float | None = None,
) -> Decision:
    """Decide how an answer is steered: refusal, then strength, then direction.

    Args:
        profile: of the model.
        request: the steering asked for.
        score: the prompt's listening score.
        final: (D,) residual of the last prompt token that the readout gets.
        differences: (K, D) clip minus silence of the profile's layers; needed where
            `wants_silence` and the strength is not 0.
        effect: as `strength_of` takes it.

    Returns:
        The plan, and its report with the reason if the answer is not steered.

    Raises:
        RequestError: the strength asked for is over the profile's max_strength.
    """
    why = refusal(profile)
    if why is not None:
        return unsteered(why)
    if not request.steer:
        return unsteered("steer is false")
    strength = strength_of(profile, request, score, effect)
    if strength == 0:
        return unsteered("strength is 0", request.direction)
    intervention = profile.intervention
    if request.direction == "calibrated":
        direction = profile.direction.to(final.device)  # (D,)
    else:
        assert differences is not None
        direction = pool(differences, intervention)
    size = relative_norm(final, direction, strength, intervention)
    return Decision(
        SteeringPlan(direction, strength, intervention),
        Steering(True, request.direction, strength, size),
    )


def unsteered(reason: str, direction: Direction | None = None) -> Decision:
    """The decision not to steer, with its reason."""
    return Decision(UNSTEERED, Steering(False, direction, reason=reason))
