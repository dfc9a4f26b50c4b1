"""A PrefillResult and a SteeringPlan become an answer: token by token, or the likeliest choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, next_state, run_layers
from steering.readout import Intervention, logits


@dataclass(frozen=True, slots=True, eq=False)
class SteeringPlan:
    """Direction and strength of one answer; UNSTEERED has none."""

    direction: Tensor | None = None  # (D,)
    strength: float = 0.0
    intervention: Intervention | None = None


UNSTEERED = SteeringPlan()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Options of sampling: temperature 0 is greedy, whatever the checkpoint's own default is."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    ignore_end: bool = False  # go on past end tokens, to measure answers of one length

    def is_end(self, token: int, model: AudioModel) -> bool:
        """Whether a token is the end of the answer."""
        return not self.ignore_end and token in model.eos_token_ids


def steered_logits(model: AudioModel, final: Tensor, plan: SteeringPlan, step: int) -> Tensor:
    """(B, V) float32 from final residuals (B, D), every row steered by the same plan."""
    if plan.direction is None or plan.strength == 0:
        return logits(model, final)
    direction = plan.direction.expand(len(final), -1)
    strength = torch.full((len(final),), plan.strength, device=final.device)
    return logits(model, final, direction, strength, plan.intervention, step)


@torch.inference_mode()
def generate(
    model: AudioModel, prefilled: PrefillResult, plan: SteeringPlan, sampling: Sampling
) -> Iterator[int]:
    """Generate one answer, token by token.

    Args:
        model: the model.
        prefilled: the prompt's prefill. The answer's keys and values join its cache and stay there
            until the next generation: start one at a time.
        plan: how the readout is steered.
        sampling: how tokens are sampled.

    Returns:
        Token ids, an end token included if one comes within `max_tokens`.
    """
    crop_to_prompt(prefilled)
    random = torch.Generator(device="cpu")
    random.manual_seed(sampling.seed) if sampling.seed is not None else random.seed()
    final = prefilled.final
    for step in range(sampling.max_tokens):
        token = sample(steered_logits(model, final[None], plan, step)[0], sampling, random)
        yield token
        if sampling.is_end(token, model) or step + 1 == sampling.max_tokens:
            return
        final = next_state(model, prefilled, token)


def crop_to_prompt(prefilled: PrefillResult) -> None:
    """Take what earlier answers added off the cache."""
    added = prefilled.cache.get_seq_length() - prefilled.length
    if added:
        prefilled.cache.crop(-added)


def sample(row: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """A token from logits (V,): the largest, or by temperature from the smallest set of top_p."""
    if sampling.temperature == 0:
        return int(row.argmax())
    below = (row - row.max()).cpu().double()  # at most 0: no temperature is too small to divide by
    ordered, tokens = (below / sampling.temperature).softmax(-1).sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered * (before < sampling.top_p)  # the first always stays
    return int(tokens[torch.multinomial(kept, 1, generator=random)])


@torch.inference_mode()
def score_choices(
    model: AudioModel, prefilled: PrefillResult, plan: SteeringPlan, choices: Sequence[str]
) -> list[float]:
    """Score the choices as answers: softmax of the mean log-probability of their tokens.

    The end token is left out. All choices run in one pass over the prompt's keys and values, side
    by side, each seeing the prompt and itself.

    Args:
        model: the model.
        prefilled: the prompt's prefill.
        plan: how the readout is steered.
        choices: texts that the answer may be.

    Returns:
        A probability for each choice; they sum to 1.
    """
    read = read_choices(model, prefilled, choices)
    return choice_probabilities(
        read, lambda states, step: steered_logits(model, states, plan, step)
    )


@dataclass(frozen=True, slots=True, eq=False)
class ChoiceStates:
    """Final residuals that the choices' tokens are read from, the same however they are steered."""

    tokens: list[list[int]]  # of each choice
    states: list[Tensor]  # (K, D) of each choice: final residuals that its K tokens follow


@torch.inference_mode()
def read_choices(
    model: AudioModel, prefilled: PrefillResult, choices: Sequence[str]
) -> ChoiceStates:
    """The states that every token of the choices is read from, in one pass at most."""
    tokenizer = model.processor.tokenizer
    tokens = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in choices]
    states = [[prefilled.final] for _ in tokens]
    rest = [(c, k) for c, ids in enumerate(tokens) for k in range(len(ids) - 1)]  # inputs
    if rest:
        finals = _side_by_side(model, prefilled, tokens, rest)
        for (choice, _), final in zip(rest, finals, strict=True):
            states[choice].append(final)
    return ChoiceStates(tokens, [torch.stack(each) for each in states])


@torch.inference_mode()
def choice_probabilities(
    read: ChoiceStates, logits_at: Callable[[Tensor, int], Tensor]
) -> list[float]:
    """The choices' probabilities; `logits_at` makes (B, V) of states (B, D) and their step."""
    means = torch.tensor(_means(read, logits_at), dtype=torch.float64)
    probabilities: list[float] = means.softmax(-1).tolist()
    return probabilities


@torch.inference_mode()
def mean_log_probabilities(
    model: AudioModel, prefilled: PrefillResult, plan: SteeringPlan, answers: Sequence[str]
) -> list[float]:
    """Mean log-probability of each answer's tokens, its end token left out."""
    read = read_choices(model, prefilled, answers)
    return _means(read, lambda states, step: steered_logits(model, states, plan, step))


def _means(read: ChoiceStates, logits_at: Callable[[Tensor, int], Tensor]) -> list[float]:
    """Mean log-probability of each choice's tokens."""
    sums = [0.0] * len(read.tokens)
    for step in range(max(map(len, read.tokens))):
        rows = [c for c, ids in enumerate(read.tokens) if len(ids) > step]
        states = torch.stack([read.states[c][step] for c in rows])
        log_probabilities = logits_at(states, step).log_softmax(-1)
        for row, choice in enumerate(rows):
            sums[choice] += float(log_probabilities[row, read.tokens[choice][step]])
    return [total / len(ids) for total, ids in zip(sums, read.tokens, strict=True)]


def _side_by_side(
    model: AudioModel,
    prefilled: PrefillResult,
    tokens: Sequence[Sequence[int]],
    rest: list[tuple[int, int]],
) -> Tensor:
    """(N, D) final residuals at token k of choice c, for each (c, k) of `rest`."""
    crop_to_prompt(prefilled)
    device = model.device
    choice = torch.tensor([c for c, _ in rest], device=device)  # (N,)
    offset = torch.tensor([k for _, k in rest], device=device)  # (N,) in its choice
    inputs = torch.tensor([[tokens[c][k] for c, k in rest]], device=device)
    own = (choice[:, None] == choice[None]) & (offset[:, None] >= offset[None])  # (N, N)
    prompt = torch.ones(len(rest), prefilled.length, dtype=torch.bool, device=device)
    mask = torch.cat([prompt, own], dim=1)[None, None]
    states = model.decoder.embed_tokens(inputs)
    positions = (prefilled.length + offset)[None]
    return run_layers(model, states, positions, mask, prefilled.cache)[0][0]
