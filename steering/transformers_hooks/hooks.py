"""Listening and steering for a plain transformers model, in its own `generate`.

    with listening(model, processor, "path/to/profile", steer=True) as ears:
        out = model.generate(**inputs, max_new_tokens=32)
    print(ears.score, ears.strength, ears.timeline)

Inside the block the model's own pass over the prompt is read by taps, the silent twin of each row
is run, and what the readout gets at the answer's tokens is steered, row by row. Keys and values
stay the bare model's. Leaving the block, by an exception too, leaves the model as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.attention.taps import ATTENTION, AnyTaps, ScoredHeads, ScoreTaps, Taps
from steering.decision import (
    Direction,
    SteeringRequest,
    decide,
    effect_bits,
    measure,
    needs_effect,
    strength_of,
    wants_silence,
)
from steering.errors import RequestError
from steering.heads import listening_score
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult
from steering.profile import Profile
from steering.profile import load as load_profile
from steering.prompt import Prompt
from steering.readout import steer
from steering.silence import SilenceContrast, contrast_with_silence, new_silence_cache
from steering.transformers_hooks.row_result import RowResult, row_result
from steering.transformers_hooks.wrapping import as_audio_model, prompts_of


@contextmanager
def listening(
    model: Any,
    processor: Any,
    profile: Profile | Path | str,
    *,
    steer: bool = False,
    strength: float | None = None,
    direction: Direction = "request",
    trust_profile: bool = False,
) -> Iterator[ListeningHooks]:
    """Listen and steer inside a transformers model; after the block it is as it was.

    Batches are padded on the left. Greedy decoding, sampling and beams work; more than one new
    token a step (assisted decoding) is refused. Source: arXiv 2603.06854, listening score and
    audio-silence direction.

    Args:
        model: a loaded model of a known family.
        processor: its processor.
        profile: a Profile or its folder, made for this checkpoint.
        steer: whether answers are steered.
        strength: from 0 to the profile's max_strength; None is adaptive.
        direction: "request" is the live one, clip minus silence, "calibrated" the profile's.
        trust_profile: skip the check that the profile was made for this checkpoint, if the place
            that the model was loaded from can't tell.

    Yields:
        The ears: score, strength, verdict and timeline of the newest prompt.

    Raises:
        ModelError: the model can't be steered.
        ProfileError: the profile is damaged or another checkpoint's.
        RequestError: the options or the model's inputs can't be served.
    """
    own_profile = profile if isinstance(profile, Profile) else load_profile(profile)
    request = _check_request(SteeringRequest(steer, strength, direction), own_profile)
    wrapped = as_audio_model(model, processor, own_profile, trust_profile)
    if any(isinstance(hook, _ForwardHook) for hook in model._forward_pre_hooks.values()):
        raise RequestError(
            "this model is in a `listening` block already: leave that one first, or use its ears"
        )
    ears = ListeningHooks(wrapped, own_profile, request)
    with ExitStack() as undo:
        _attach(ears, undo)
        yield ears


class ListeningHooks:
    """Results of the newest prompt, filled in by the model's own pass over it."""

    def __init__(self, model: AudioModel, profile: Profile, request: SteeringRequest) -> None:
        self.model, self.profile, self.request = model, profile, request
        self._rows: tuple[RowResult, ...] = ()
        self._silence_cache = new_silence_cache(model, profile.ladder)
        queries_a_key = model.num_heads // model.num_kv_heads
        self._scored = ScoredHeads.of(profile.heads, queries_a_key, model.device)
        self._prompts: tuple[Prompt, ...] = ()  # of the running prompt pass, one a row
        self._audio: Tensor | None = None  # (B, T) bool, audio tokens of the running pass
        self._taps: Taps | None = None  # of the running pass, if it is over a prompt
        self._score_taps: ScoreTaps | None = None  # if it is over a token of the answer
        self._token_scores: list[Tensor] = []  # (B,) of each token so far
        self._last_states: dict[
            int, Tensor
        ] = {}  # layer -> (B, D) last residual, of the prompt pass
        self._directions: Tensor | None = None  # (B, D) of the answers being written
        self._strengths: Tensor | None = None  # (B,) float32
        self._steered = False  # any of the rows
        self._step = 0  # answer tokens written so far
        self._twin_runs = False

    @property
    def rows(self) -> tuple[RowResult, ...]:
        """One entry for each row of the newest batch, as generate itself sees them: with beams or
        `num_return_sequences` each prompt comes that many times.
        """
        if not self._rows:
            raise RequestError(
                "nothing was heard yet: call model.generate(**inputs) inside the block, with audio"
            )
        return self._rows

    @property
    def score(self) -> float:
        """The listening score of the only prompt, in [0, 1]."""
        return self._only.score

    @property
    def percentile(self) -> float:
        """Where that score stands in the profile's calibration set."""
        return self._only.percentile

    @property
    def silence_score(self) -> float | None:
        """The score of the only prompt's silent twin; None where none was run."""
        return self._only.silence_score

    @property
    def token_scores(self) -> NDArray[np.float32]:
        """(B, T'): the listening score of each of the answers' T' tokens, as generate's rows are.

        A row that has ended goes on with padding. Beams change rows from token to token.
        """
        return torch.cat(self._token_scores).reshape(-1, len(self.rows)).T.cpu().numpy()

    @property
    def strength(self) -> float:
        """Strength of the only answer; 0 is bare."""
        return self._only.strength

    @property
    def timeline(self) -> NDArray[np.float32]:
        """(F,): attention of the specialist heads on each audio token; sums to the score."""
        return self._only.timeline

    @property
    def verdict(self) -> str:
        """listening, partly_listening or not_listening."""
        return self._only.verdict

    @property
    def reason(self) -> str | None:
        """Why the only answer is bare; None where it is steered."""
        return self._only.reason

    @property
    def effect_bits(self) -> float | None:
        """What the sound did to the bare answer's first token; None where no twin was run."""
        return self._only.effect_bits

    @property
    def _only(self) -> RowResult:
        rows = self.rows
        if len({id(row) for row in rows}) != 1:
            raise RequestError(
                f"the batch had {len(rows)} rows: read ears.rows, which has an entry for each"
            )
        return rows[0]

    # ---- called by the hooks, in the order of a pass

    def on_inputs(self, given: Mapping[str, Any]) -> None:
        """A pass begins: over a prompt, or over the answer's last token."""
        tokens = given.get("input_ids")
        if tokens is None:
            raise RequestError("`listening` needs input_ids: inputs_embeds hide where the audio is")
        cache = given.get("cache", given.get("past_key_values"))
        self._taps = self._score_taps = None
        kept = 0 if cache is None else int(cache.get_seq_length())
        if kept > 0:
            prompt = 0 if self._audio is None else self._audio.shape[1]
            if tokens.shape[1] != 1 or self._strengths is None or kept < prompt:
                raise RequestError(
                    f"a pass of {tokens.shape[1]} tokens came on top of {kept} kept ones; inside"
                    " `listening` a prompt comes whole, then its answer token by token: leave out"
                    " assistant_model, prompt_lookup_num_tokens, prefill_chunk_size and"
                    " past_key_values"
                )
            self._step += 1
            assert self._audio is not None
            self._score_taps = ScoreTaps(self._scored, self._audio.float())
            return
        if given.get("use_cache") is False:
            raise RequestError(
                "use_cache is False: every token would be taken for a new prompt. Leave it out"
            )
        self._step, self._rows, self._last_states, self._token_scores = 0, (), {}, []
        self._prompts, self._audio = prompts_of(self.model, given)
        self._taps = Taps.on(self.profile.heads, self._audio)

    def on_layer(self, layer: int, states: Tensor) -> None:
        """Keep the last residual (B, D) of a layer of the prompt pass; states (B, T, D)."""
        if self._taps is not None and not self._twin_runs:
            self._last_states[layer] = states[:, -1].detach()

    def on_readout(self, states: Tensor) -> Tensor:
        """(B, T, D) with the last position steered, from the states before or after the norm."""
        if self._twin_runs:  # to the effect, which is the bare model's
            return states
        if self._taps is not None:
            self._plan(self._taps, states[:, -1])
        assert self._strengths is not None
        if len(states) != len(self._strengths):
            raise RequestError(
                f"the answers have {len(states)} rows, their prompts had {len(self._strengths)}"
            )
        self._token_scores.append(
            self._score_taps.scores()
            if self._score_taps
            else torch.tensor([row.score for row in self._rows], device=states.device)
        )
        if not self._steered:
            return states
        assert self._directions is not None
        last = steer(
            states[:, -1], self._directions, self._strengths, self.profile.intervention, self._step
        )
        return torch.cat([states[:, :-1], last[:, None]], dim=1)

    def _plan(self, taps: Taps, final: Tensor) -> None:
        """Score every row, run its silent twin if needed, fix direction and strength.

        final (B, D): what the readout gets of the last token.
        """
        assert self._audio is not None
        with torch.no_grad():
            attention = taps.rows(self.profile.heads)  # (B, N, T)
            planned: dict[int, tuple[RowResult, Tensor]] = {}
            rows: list[tuple[RowResult, Tensor]] = []
            for row, prompt in enumerate(self._prompts):
                # rows that generate copied share their prompt, and so the twin
                if id(prompt) not in planned:
                    seen = attention[row][:, self._audio[row]]
                    planned[id(prompt)] = self._plan_row(row, prompt, seen, final[row])
                rows.append(planned[id(prompt)])
        self._rows = tuple(result for result, _ in rows)
        self._directions = torch.stack([direction for _, direction in rows])  # (B, D) float32
        strengths = [result.strength for result in self._rows]
        self._strengths = torch.tensor(strengths, device=self._directions.device)  # (B,)
        self._steered = any(strengths)

    def _plan_row(
        self, row: int, prompt: Prompt, attention: Tensor, final: Tensor
    ) -> tuple[RowResult, Tensor]:
        """Result of one row and its direction (D,); attention (N, F), final (D,)."""
        profile, request = self.profile, self.request
        score = listening_score(attention.cpu().numpy())
        contrast: SilenceContrast | None = None
        effect: float | None = None
        weighed = needs_effect(profile, request)
        if wants_silence(profile, request) and (weighed or strength_of(profile, request, score)):
            contrast, effect = self._contrast(row, prompt, attention)
        silence_attention = contrast.silence_attention if contrast else None
        listening = measure(self.model, profile, prompt, attention, silence_attention)
        listening = replace(listening, effect_bits=effect)
        differences = contrast.differences if contrast else None
        decision = decide(profile, request, score, final, differences, effect)
        direction = decision.plan.direction
        if direction is None:  # the readout leaves a row of strength 0 alone
            direction = profile.direction.to(attention.device)
        # a copy: out of inference mode
        return row_result(listening, decision.steering), direction.clone().float()

    def _contrast(
        self, row: int, prompt: Prompt, attention: Tensor
    ) -> tuple[SilenceContrast, float]:
        """One row's contrast with silence, as cheap as the server's, and its effect in bits."""
        profile = self.profile
        states = torch.stack([self._last_states[layer][row] for layer in profile.layers])
        final = self._last_states[self.model.num_layers - 1][row]
        no_cache: Any = None  # the twin reads none
        heard = PrefillResult(attention, states, final, no_cache, len(prompt.tokens), prompt.tokens)
        self._twin_runs = True
        try:
            contrast = contrast_with_silence(
                self.model,
                prompt,
                heard,
                heads=profile.heads,
                layers=profile.layers,
                silence_cache=self._silence_cache,
                to_readout=True,
            )
            assert contrast.silent is not None
            return contrast, effect_bits(self.model, heard, contrast.silent)
        finally:
            self._twin_runs = False


@dataclass(frozen=True, slots=True)
class _ForwardHook:
    """The hook at the model's own forward, by which a second block finds the first."""

    ears: ListeningHooks

    def __call__(self, module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind_partial(*args, **named)
        extra = next(
            (p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), ""
        )
        self.ears.on_inputs({**bound.arguments, **bound.arguments.get(extra, {})})


def _attach(ears: ListeningHooks, undo: ExitStack) -> None:
    """Put the hooks and the tapped attention on; `undo` takes them off when it closes."""
    network, decoder, profile = ears.model.network, ears.model.decoder, ears.profile

    def tapped(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        taps: AnyTaps | None = ears._taps or ears._score_taps
        return (args, named) if taps is None else (args, {**named, "taps": taps})

    def before_norm(module: Any, args: tuple[Tensor, ...]) -> Any:
        return (ears.on_readout(args[0]), *args[1:])

    def after_norm(module: Any, args: Any, states: Tensor) -> Tensor:
        return ears.on_readout(states)

    def after_layer(layer: int) -> Any:
        return lambda module, args, states: ears.on_layer(layer, states)

    configs = {id(m.config): m.config for m in network.modules() if hasattr(m, "config")}.values()
    undo.callback(_set_attention, [(config, config._attn_implementation) for config in configs])
    # the encoder on SDPA as well: the silent twin gives it a mask that eager attention can't read
    _set_attention([(config, "sdpa") for config in configs] + [(decoder.config, ATTENTION)])
    hook = network.register_forward_pre_hook(_ForwardHook(ears), with_kwargs=True)
    undo.callback(hook.remove)
    undo.callback(decoder.register_forward_pre_hook(tapped, with_kwargs=True).remove)
    for layer in {*profile.layers, ears.model.num_layers - 1}:  # the last one for the effect
        undo.callback(decoder.layers[layer].register_forward_hook(after_layer(layer)).remove)
    if profile.intervention.place == "before_norm":
        undo.callback(decoder.norm.register_forward_pre_hook(before_norm).remove)
    else:
        undo.callback(decoder.norm.register_forward_hook(after_norm).remove)


def _set_attention(attention: Sequence[tuple[Any, str | None]]) -> None:
    """Give each config its attention, the whole model's before its parts': it is passed on."""
    for config, name in attention:
        config._attn_implementation = name


def _check_request(request: SteeringRequest, profile: Profile) -> SteeringRequest:
    """The request; raises RequestError if it can't be fulfilled."""
    if request.direction not in ("request", "calibrated"):
        raise RequestError(
            f"direction {request.direction!r} is unknown; allowed: request, calibrated"
        )
    if request.strength is None:
        return request
    if not request.steer:
        raise RequestError(f"strength {request.strength:g} without steer=True would do nothing")
    if not 0 <= request.strength <= profile.max_strength:
        raise RequestError(
            f"strength {request.strength:g} is not in 0 to {profile.max_strength:g}, this profile's"
            " max_strength; None is adaptive"
        )
    return request
