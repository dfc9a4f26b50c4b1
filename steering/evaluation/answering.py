"""Answers of every arm: one prefill of an item's clip, then only its text is run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from steering.attention.taps import KVPairs
from steering.audio.clip import Clip
from steering.calibration.activations import (
    ANSWER,
    Activations,
    build_item_prompt,
    decode_answer,
    load_item_clip,
)
from steering.decision import SteeringRequest, decide, effect_bits
from steering.errors import DataError
from steering.evaluation.arms import ARMS, ArmStrengths, Differences, another_clip, permuted, plans
from steering.evaluation.baselines import (
    LISTEN_CAREFULLY,
    audio_aware_choices,
    audio_aware_decoding,
    text_only_direction,
)
from steering.evaluation.journal import Journal
from steering.evaluation.shared_audio import copy_kv_prefix, prefill_on_prefix
from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    choice_probabilities,
    read_choices,
    steered_logits,
)
from steering.items import Item
from steering.kv_slots import KVSlots, generate_batch
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.profile import Profile
from steering.prompt import Prompt
from steering.silence import new_silence_cache, silent_prefix

_SLOT_BYTES = 4_000_000_000  # for those of the answers being written
_SPARE_TOKENS = 64  # so that a slightly longer prompt fits the same slots
MODES = ("generate", "choices")
OPEN_QUESTION = "Describe what you hear."


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Settings of the answers."""

    mode: str = "generate"  # one of MODES: written freely, or the likeliest option
    seed: int = 0  # of everything random
    max_tokens: int = ANSWER.max_tokens  # of an answer that is written
    open_question: str = OPEN_QUESTION  # asked of every clip, for the effect on each token

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DataError(f"mode {self.mode!r} is unknown; allowed: {', '.join(MODES)}")

    @property
    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(max_tokens=self.max_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class ItemPasses:
    """The forward passes of one item that all arms share."""

    item: Item
    permuted: Item
    heard: PrefillResult
    silent: PrefillResult  # of the clip's silence
    permuted_heard: PrefillResult  # options in another order
    permuted_plan: SteeringPlan  # adaptive, by that prompt's own score and direction
    differences: Differences


class ArmRunner:
    """Answers items by all arms; keeps the silence cache and the KV slots between items."""

    def __init__(
        self,
        model: AudioModel,
        profile: Profile,
        items: Sequence[Item],
        activations: Activations,
        arm_strengths: ArmStrengths,
        options: AnswerOptions,
    ) -> None:
        self.model, self.profile, self.items = model, profile, items
        self.activations, self.arm_strengths, self.options = activations, arm_strengths, options
        self.silence_cache = new_silence_cache(model, profile.ladder)
        self._slots: KVSlots | None = None

    def run(self, journal: Journal) -> dict[str, list[str]]:
        """The answers of each arm to all items; those in the journal are not repeated."""
        for i, item in enumerate(tqdm(self.items, "answering", disable=None)):
            if item.id not in journal.answers:
                journal.add(item.id, self.answers(i))
        rows = [journal.answers[item.id] for item in self.items]
        return {arm: [row[arm] for row in rows] for arm in ARMS if arm in rows[0]}

    def answers(self, i: int) -> dict[str, str]:
        """The answers of all arms to item i."""
        passes = self._run_passes(i)
        if self.options.mode == "choices":
            return self._choose_options(i, passes)
        return self._generate_answers(i, passes)

    def _run_passes(self, i: int) -> ItemPasses:
        """All passes over item i: one over the whole clip, the rest over text only."""
        model, item, layers = self.model, self.items[i], range(self.model.num_layers)
        clip = load_item_clip(model, item)
        prompt = self._prompt(item, clip)
        silence = silent_prefix(model, prompt, self.silence_cache, model.num_layers).pairs
        heard = prefill(model, prompt, layers=layers)
        silent = prefill_on_prefix(model, prompt, silence, layers=layers)
        instructed = self._prompt(item, clip, LISTEN_CAREFULLY)
        text_only = text_only_direction(model, silent, instructed, silence, layers)
        of_clip = heard.states - silent.states  # (L, D)
        other = np.array(self.activations.differences[another_clip(self.items, i)])
        differences = Differences(of_clip, torch.from_numpy(other).to(of_clip), text_only)
        other_order = permuted(item, self.options.seed)
        pairs = copy_kv_prefix(heard, prompt.audio_end)
        permuted_heard, plan = self._permuted(self._prompt(other_order, clip), pairs, silence)
        return ItemPasses(item, other_order, heard, silent, permuted_heard, plan, differences)

    def _prompt(self, item: Item, clip: Clip, preface: str = "") -> Prompt:
        return build_item_prompt(self.model, item, clip, preface)

    def _permuted(
        self, prompt: Prompt, pairs: KVPairs, silence: KVPairs
    ) -> tuple[PrefillResult, SteeringPlan]:
        """A prompt over the clip's own keys, and its adaptive plan."""
        model, profile = self.model, self.profile
        heard = prefill_on_prefix(model, prompt, pairs, heads=profile.heads, layers=profile.layers)
        silent = prefill_on_prefix(model, prompt, silence, layers=profile.layers)
        score = float(heard.attention.sum(-1).mean())
        effect, differences = effect_bits(model, heard, silent), heard.states - silent.states
        request = SteeringRequest(steer=True)
        return heard, decide(profile, request, score, heard.final, differences, effect).plan

    def _jobs(self, i: int, passes: ItemPasses) -> dict[str, tuple[PrefillResult, SteeringPlan]]:
        """Prompt and plan of every arm whose answer is one row."""
        jobs = {
            arm: (passes.heard, plan)
            for arm, plan in plans(self.profile, self.arm_strengths, i, passes.differences).items()
        }
        jobs["no_audio"] = (passes.silent, UNSTEERED)
        jobs["permuted_bare"] = (passes.permuted_heard, UNSTEERED)
        jobs["permuted_adaptive"] = (passes.permuted_heard, passes.permuted_plan)
        return jobs

    def _generate_answers(self, i: int, passes: ItemPasses) -> dict[str, str]:
        """Generated answers, as many at a time as there are slots."""
        model, sampling = self.model, self.options.sampling
        jobs = self._jobs(i, passes)
        longest = max(heard.length for heard, _ in jobs.values()) + sampling.max_tokens
        slots = self._slots_for(len(jobs), longest)
        texts: dict[str, str] = {}
        arms = list(jobs)
        for start in range(0, len(arms), slots.rows):
            batch = arms[start : start + slots.rows]
            token_ids = generate_batch(slots, [jobs[arm] for arm in batch], sampling)
            texts |= {
                arm: decode_answer(model, ids) for arm, ids in zip(batch, token_ids, strict=True)
            }
        aware = audio_aware_decoding(model, passes.heard, passes.silent, sampling)
        return texts | {"aad": decode_answer(model, list(aware))}

    def _slots_for(self, rows: int, tokens: int) -> KVSlots:
        """Slots for answers of a length, fewer rows if memory is short."""
        if self._slots is None or self._slots.tokens < tokens:
            tokens += _SPARE_TOKENS
            rows = min(rows, max(1, _SLOT_BYTES // KVSlots.bytes_of(self.model, 1, tokens)))
            self._slots = KVSlots(self.model, rows, tokens, self.profile.intervention)
        return self._slots

    def _choose_options(self, i: int, passes: ItemPasses) -> dict[str, str]:
        """The likeliest option of each arm; the tokens of the options are run once for all arms."""
        model = self.model
        prompts = (
            (passes.heard, passes.item),
            (passes.silent, passes.item),
            (passes.permuted_heard, passes.permuted),
        )
        states_of = {
            id(heard): (read_choices(model, heard, item.choices), item) for heard, item in prompts
        }
        likeliest = {}
        for arm, (heard, plan) in self._jobs(i, passes).items():
            states, item = states_of[id(heard)]
            likeliest[arm] = _likeliest(choice_probabilities(states, _by(model, plan)), item)
        aware = audio_aware_choices(model, passes.heard, passes.silent, passes.item.choices)
        return likeliest | {"aad": _likeliest(aware, passes.item)}


def _by(model: AudioModel, plan: SteeringPlan) -> Callable[[Tensor, int], Tensor]:
    """Logits of states at a step, steered by the plan."""
    return lambda states, step: steered_logits(model, states, plan, step)


def _likeliest(probabilities: Sequence[float], item: Item) -> str:
    return item.choices[int(np.argmax(probabilities))]
