"""A PrefillResult and a SteeringPlan become an answer: token by token, or the likeliest choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steering.attention.taps import Head, ScoredHeads, ScoreTaps
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes, at_once, cuts
from steering.model.token_healing import Continuations, continuations
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
    """How the tokens of an answer are chosen.

    Temperature 0, the default, is greedy. What is None is the checkpoint's own value if tokens are
    drawn; a greedy answer is plain argmax, as calibration measures it, unless a penalty is given.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    ignore_end: bool = False  # go on past end tokens, to measure answers of one length
    top_k: int | None = None  # 0: all
    min_p: float | None = None
    repetition_penalty: float | None = None

    def of(self, model: AudioModel) -> Sampling:
        """The same with numbers in the place of None."""
        own = model.generation_defaults if self.temperature > 0 else {}
        missing = {k: own.get(k, x) for k, x in _NO_EFFECT.items() if getattr(self, k) is None}
        return replace(self, **missing)

    @property
    def penalty(self) -> float:
        """The repetition penalty; 1, which changes nothing, without one."""
        return self.repetition_penalty or 1.0

    def is_end(self, token: int, model: AudioModel) -> bool:
        """Whether a token is the end of the answer."""
        return not self.ignore_end and token in model.eos_token_ids


_NO_EFFECT: dict[str, Any] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


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
    for token, _ in generate_scored(model, prefilled, plan, sampling, ()):
        yield token


@torch.inference_mode()
def generate_scored(
    model: AudioModel,
    prefilled: PrefillResult,
    plan: SteeringPlan,
    sampling: Sampling,
    heads: Sequence[Head],
) -> Iterator[tuple[int, float | None]]:
    """Generate one answer as `generate` does, each token with its listening score.

    Args:
        model: the model.
        prefilled: the prompt's prefill, tapped at `heads`.
        plan: how the readout is steered, which no score depends on but by the tokens it chooses.
        sampling: how tokens are sampled.
        heads: the specialist heads.

    Returns:
        Token ids and scores in [0, 1]; None without heads, or without audio. A token's score is the
        mean audio attention of the heads from the token before it, whose logits it was drawn from.
        Source: arXiv 2603.06854, listening score; for every token: ours.
    """
    crop_to_prompt(prefilled)
    sampling = sampling.of(model)
    random = torch.Generator(device="cpu")
    random.manual_seed(sampling.seed) if sampling.seed is not None else random.seed()
    final, written = prefilled.final, prefilled.tokens
    score = prefilled.score if heads else None
    scored = ScoredHeads.of(heads, model.num_heads // model.num_kv_heads, model.device)
    audio = (written == model.audio_token_id).to(model.device, torch.float32)[None]  # (1, T)
    for step in range(sampling.max_tokens):
        row = steered_logits(model, final[None], plan, step)
        (token,) = sample(penalised_after(row, written, sampling), [sampling], [random])
        yield token, score
        written = torch.cat([written, torch.tensor([token])])
        if sampling.is_end(token, model) or step + 1 == sampling.max_tokens:
            return
        taps = None if score is None else ScoreTaps(scored, audio)
        final = next_state(model, prefilled, token, taps)
        score = float(taps.scores()) if taps else None


def crop_to_prompt(prefilled: PrefillResult) -> None:
    """Take what earlier answers added off the cache."""
    added = prefilled.cache.get_seq_length() - prefilled.length
    if added:
        prefilled.cache.crop(-added)


@torch.inference_mode()
def sample(
    rows: Tensor, samplings: Sequence[Sampling], randoms: Sequence[torch.Generator]
) -> list[int]:
    """A token for each row of logits (B, V): the likeliest, or one drawn by its own generator."""
    tokens = rows.argmax(-1)
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        shares, among = token_probabilities(rows[drawn], [samplings[i] for i in drawn])
        seeds = [torch.randint(1 << 62, (1,), generator=randoms[i]) for i in drawn]
        noise = _noise(torch.stack(seeds).to(rows.device), among)
        first = (shares / noise).argmax(-1, keepdim=True)  # (N, 1)
        tokens[drawn] = among.gather(-1, first)[:, 0]
    ids: list[int] = tokens.tolist()
    return ids


def _noise(seeds: Tensor, tokens: Tensor) -> Tensor:
    """(B, W) float64 exponential noise of each token (B, W) by its row's seed (B, 1) int64.

    The first of a race at the tokens' shares is drawn by them. A token's noise is its own, so that
    a row that a batch rounds otherwise, or sorts otherwise, draws the same. Source: SplitMix64.
    """
    x = seeds + tokens * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ (x >> shift) & ((1 << 64 - shift) - 1)) * factor
    uniform = ((x >> 11) & ((1 << 53) - 1)).double().add(0.5) * 2.0**-53  # in (0, 1)
    return -uniform.log()


def token_probabilities(rows: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """What tokens are drawn from: temperature, then top_k, top_p and min_p, each of what is left.

    Args:
        rows: (B, V) logits.
        samplings: of each row, none of them greedy.

    Returns:
        (B, W) float64 shares in ascending order, and the (B, W) int64 tokens that have them; W is
        as many as any row's top_k leaves. Tokens that are as likely as the last of top_k stay.
        Source: the order and the definitions of transformers' `generate`.
    """
    columns = [[s.temperature, 1 - (s.top_p or 1.0), s.min_p or 0.0] for s in samplings]
    values = torch.tensor(columns, dtype=torch.float64, device=rows.device)  # (B, 3)
    temperature, tail, floor = values.split(1, dim=-1)
    ordered, tokens = _likeliest(rows, [s.top_k or 0 for s in samplings])
    below = (ordered - ordered[:, -1:]).double()  # at most 0: any temperature divides it
    shares = (below / temperature).softmax(-1)
    kept = shares.cumsum(-1) > tail
    kept[:, -1] = True  # the likeliest always stays
    return shares * (kept & (shares >= floor * shares[:, -1:])), tokens


def _likeliest(scores: Tensor, limits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits (B, V) in ascending order, -inf below each row's limit (0: none), and their tokens.

    Only as many columns as the largest limit needs are sorted.
    """
    size = scores.shape[-1]
    counts = [min(limit, size) if limit > 0 else size for limit in limits]
    tokens = torch.arange(size, device=scores.device).expand_as(scores)
    if (most := max(counts)) < size:
        last = scores.topk(most).values[:, -1:]
        width = int((scores >= last).sum(-1).max())  # more than `most` where some are equal
        tokens = scores.topk(width).indices.sort(-1).values
        scores = scores.gather(-1, tokens)
    ordered, order = scores.sort(stable=True)
    firsts = torch.tensor(counts, device=scores.device)[:, None]
    last = ordered.gather(-1, ordered.shape[-1] - firsts)  # (B, 1) the least that stays
    return ordered.masked_fill(ordered < last, float("-inf")), tokens.gather(-1, order)


def penalised(rows: Tensor, seen: Tensor, penalties: Tensor) -> Tensor:
    """Logits (B, V), less likely by penalties (B,) where a token is `seen` (B, V) bool.

    Source: arXiv 1909.05858, section 4.1, as transformers has it: negative logits are multiplied.
    """
    by = penalties[:, None]
    return torch.where(seen, torch.where(rows < 0, rows * by, rows / by), rows)


def penalised_after(row: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    """Logits (1, V) of one answer, by its penalty on the tokens (T,) of its prompt and itself."""
    if sampling.penalty == 1.0:
        return row
    penalties = torch.tensor([sampling.penalty], device=row.device)
    return penalised(row, seen(tokens, row.shape[-1]).to(row.device)[None], penalties)


def seen(tokens: Tensor, size: int) -> Tensor:
    """(V,) bool: which of a vocabulary are among tokens (T,), also those of audio."""
    marks = torch.zeros(size, dtype=torch.bool)
    marks[tokens[tokens < size]] = True
    return marks


@torch.inference_mode()
def score_choices(
    model: AudioModel, prefilled: PrefillResult, plan: SteeringPlan, choices: Sequence[str]
) -> list[float]:
    """Score the choices as answers: softmax of the mean log-probability of their tokens.

    The end token is left out, and sampling takes no part. All choices run in one pass over the
    prompt's keys and values, side by side, each seeing the prompt and itself.

    Args:
        model: the model.
        prefilled: the prompt's prefill.
        plan: how the readout is steered.
        choices: texts that the answer may be.

    Returns:
        A probability for each choice; they sum to 1.
    """
    return at_once(score_choices_in_passes(model, prefilled, plan, choices, None))


@torch.inference_mode()
def score_choices_in_passes(
    model: AudioModel,
    prefilled: PrefillResult,
    plan: SteeringPlan,
    choices: Sequence[str],
    limit: int | None,
) -> Passes[list[float]]:
    """The same in passes of at most `limit` tokens, and readouts between them."""
    means = yield from log_probabilities_in_passes(model, prefilled, plan, choices, limit)
    return _shares(means)


@dataclass(frozen=True, slots=True, eq=False)
class ChoiceStates:
    """Final residuals that the choices' tokens are read from, the same however they are steered."""

    texts: Continuations  # the choices
    states: list[Tensor]  # (K, D) of each choice: final residuals that its K tokens follow


@torch.inference_mode()
def read_choices(
    model: AudioModel, prefilled: PrefillResult, choices: Sequence[str]
) -> ChoiceStates:
    """The states that every token of the choices is read from, in one pass at most."""
    return at_once(_read_in_passes(model, prefilled, choices, None))


def _read_in_passes(
    model: AudioModel, prefilled: PrefillResult, choices: Sequence[str], limit: int | None
) -> Passes[ChoiceStates]:
    texts = continuations(model, choices)
    kept = prefilled.length - len(texts.removed)
    assert prefilled.tokens[kept:].tolist() == texts.removed, "the prompt is of another style"
    last = [(-1, 0, int(prefilled.tokens[kept - 1]))] if texts.removed else []
    inputs = [(c, k + 1, id) for c, ids in enumerate(texts.tokens) for k, id in enumerate(ids[:-1])]
    finals = list((yield from _side_by_side(model, prefilled, kept, last + inputs, limit)))
    first = finals.pop(0) if texts.removed else prefilled.final
    states = [[first] for _ in choices]
    for (choice, _, _), final in zip(inputs, finals, strict=True):
        states[choice].append(final)
    return ChoiceStates(texts, [torch.stack(each) for each in states])


@torch.inference_mode()
def choice_probabilities(
    read: ChoiceStates, logits_at: Callable[[Tensor, int], Tensor]
) -> list[float]:
    """The choices' probabilities; `logits_at` makes (B, V) of states (B, D) and their step."""
    return _shares(at_once(_means(read, logits_at)))


def _shares(means: list[float]) -> list[float]:
    shares: list[float] = torch.tensor(means, dtype=torch.float64).softmax(-1).tolist()
    return shares


@torch.inference_mode()
def log_probabilities_in_passes(
    model: AudioModel,
    prefilled: PrefillResult,
    plan: SteeringPlan,
    answers: Sequence[str],
    limit: int | None,
) -> Passes[list[float]]:
    """Mean log-probability of each answer's tokens, its end token left out."""
    read = yield from _read_in_passes(model, prefilled, answers, limit)
    return (yield from _means(read, lambda states, step: steered_logits(model, states, plan, step)))


def _means(read: ChoiceStates, logits_at: Callable[[Tensor, int], Tensor]) -> Passes[list[float]]:
    """Mean log-probability of each choice's tokens; those of the prompt's end add to the first."""
    texts = read.texts
    sums = [0.0] * len(texts.tokens)
    steps: dict[int, list[tuple[int, int]]] = {}  # choices and their tokens
    for choice, (ids, forced) in enumerate(zip(texts.tokens, texts.forced, strict=True)):
        for k in range(len(ids)):
            steps.setdefault(max(0, k - forced), []).append((choice, k))
    for step, places in steps.items():
        yield len(places)
        rows = logits_at(torch.stack([read.states[c][k] for c, k in places]), step)
        log_probabilities = texts.open_boundary(rows, places).log_softmax(-1)
        for row, (choice, k) in enumerate(places):
            sums[choice] += float(log_probabilities[row, texts.tokens[choice][k]])
    return [total / length for total, length in zip(sums, texts.lengths(), strict=True)]


def _side_by_side(
    model: AudioModel,
    prefilled: PrefillResult,
    kept: int,
    inputs: list[tuple[int, int, int]],
    limit: int | None,
) -> Passes[Tensor]:
    """(N, D) final residuals at tokens behind the first `kept` ones of a prompt.

    An input is a choice, its token's distance from the last kept token, and the token. Choice -1 is
    that last token itself, run again where others behind it are taken back; all choices see it.
    None sees an input behind its own, so that a pass needs only those before.
    """
    if not inputs:
        return prefilled.final.new_empty(0, model.hidden_size)
    crop_to_prompt(prefilled)
    device = model.device
    choice, offset, tokens = torch.tensor(inputs, device=device).unbind(-1)  # (N,) each
    again = choice == -1
    own = ((choice[:, None] == choice) | again) & (offset[:, None] >= offset)  # (N, N)
    seen_tokens = torch.arange(prefilled.length, device=device) < kept - int(again.any())
    mask = torch.cat([seen_tokens.expand(len(inputs), -1), own], dim=1)[None, None]
    states = model.decoder.embed_tokens(tokens[None])
    positions = (kept - 1 + offset)[None]
    finals: list[Tensor] = []
    for start, end in pairwise([*cuts(len(inputs), limit), len(inputs)]):
        yield end - start
        seen_here = mask[..., start:end, : prefilled.length + end]
        part, where = states[:, start:end], positions[:, start:end]
        finals.append(run_layers(model, part, where, seen_here, prefilled.cache)[0][0])
    return torch.cat(finals)
