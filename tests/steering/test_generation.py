from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    generate,
    sample,
    score_choices,
    steered_logits,
    token_probabilities,
)
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.prompt import Prompt
from steering.readout import Intervention, steer
from tests.steering.examples import full_pass, generated, keys_and_values, plan_for, prompt

LENGTH = 12
GREEDY = Sampling(max_tokens=LENGTH)
RAW = Intervention(layers=(1,), scale="raw", place="before_norm", tokens="every")
FIRST = Intervention(layers=(1,), scale="norm", place="after_norm", tokens="first")
CHOICES = ("dog", "a glass kaleidoscope", "glass", "a glass bell", "§")


@contextmanager
def ending_at(model: AudioModel, token: int) -> Iterator[None]:
    """The model with one more token that ends an answer."""
    config = model.network.generation_config
    before = config.eos_token_id
    config.eos_token_id = [before, token]
    try:
        yield
    finally:
        config.eos_token_id = before


@contextmanager
def readouts(model: AudioModel) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Last-token residuals (D,) of every pass, and what the final norm was given after it."""
    residuals: list[Tensor] = []
    normed: list[Tensor] = []
    hooks = [
        model.decoder.layers[-1].register_forward_hook(
            lambda module, inputs, output: residuals.append(output[0, -1])
        ),
        model.decoder.norm.register_forward_pre_hook(
            lambda module, inputs: normed.append(inputs[0][0])
        ),
    ]
    try:
        yield residuals, normed
    finally:
        for hook in hooks:
            hook.remove()


# ---- greedy


@pytest.mark.parametrize("seconds", [(1.0,), (0.5, 2.2)], ids=str)
def test_greedy_is_the_generate_of_transformers(
    model: AudioModel, oracle: Any, seconds: tuple[float, ...]
) -> None:
    asked = prompt(model, *seconds)
    expected = generated(oracle, asked, LENGTH)
    heard = prefill(model, asked)
    assert list(generate(model, heard, UNSTEERED, GREEDY)) == expected
    assert len(set(expected)) > 2, "the oracle says something"


def test_a_second_answer_to_what_was_heard_is_the_first_again(
    model: AudioModel, oracle: Any
) -> None:
    asked = prompt(model)
    heard = prefill(model, asked)
    expected = generated(oracle, asked, LENGTH)
    list(generate(model, heard, plan_for(model, heard, 2.0, RAW), GREEDY))
    assert list(generate(model, heard, UNSTEERED, GREEDY)) == expected
    stopped = generate(model, heard, UNSTEERED, GREEDY)  # in the middle
    assert [next(stopped) for _ in range(3)] == expected[:3]
    del stopped
    assert list(generate(model, heard, UNSTEERED, GREEDY)) == expected
    score_choices(model, heard, UNSTEERED, CHOICES)
    assert list(generate(model, heard, UNSTEERED, GREEDY)) == expected


def test_an_answer_ends_with_an_end_token(model: AudioModel, oracle: Any) -> None:
    asked = prompt(model)
    expected = generated(oracle, asked, LENGTH)
    end = next(token for token in expected if token != expected[0])
    with ending_at(model, end):
        tokens = list(generate(model, prefill(model, asked), UNSTEERED, GREEDY))
        assert tokens == generated(oracle, asked, LENGTH)
    assert tokens == expected[: expected.index(end) + 1]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_max_tokens_is_how_many_there_are(untrained: AudioModel, count: int) -> None:
    heard = prefill(untrained, prompt(untrained))
    assert len(list(generate(untrained, heard, UNSTEERED, Sampling(max_tokens=count)))) == count
    assert heard.cache.get_seq_length() == heard.length + count - 1, "the last is not run"


# ---- steered


@pytest.mark.parametrize("intervention", [RAW, FIRST], ids=["every", "first"])
def test_strength_zero_is_the_bare_model_bit_for_bit(
    model: AudioModel, intervention: Intervention
) -> None:
    heard = prefill(model, prompt(model))
    nothing = plan_for(model, heard, 0.0, intervention)
    bare = list(generate(model, heard, UNSTEERED, GREEDY))
    assert list(generate(model, heard, nothing, GREEDY)) == bare
    for step in (0, 1):
        with torch.inference_mode():
            assert torch.equal(
                steered_logits(model, heard.final[None], nothing, step),
                steered_logits(model, heard.final[None], UNSTEERED, step),
            )
    assert score_choices(model, heard, nothing, CHOICES) == score_choices(
        model, heard, UNSTEERED, CHOICES
    )


def test_steered_minus_bare_is_strength_times_direction_before_the_readout(
    model: AudioModel,
) -> None:
    heard = prefill(model, prompt(model))
    plan = plan_for(model, heard, 0.8, RAW)
    assert plan.direction is not None
    with readouts(model) as (residuals, normed):
        tokens = list(generate(model, heard, plan, GREEDY))
    residuals.insert(0, heard.final)  # the prefill's own pass, then one for each token but the last
    assert len(residuals) == len(normed) == len(tokens) == LENGTH
    for bare, steered in zip(residuals, normed, strict=True):
        torch.testing.assert_close(steered - bare, 0.8 * plan.direction, atol=1e-5, rtol=1e-5)


def test_steering_the_first_token_leaves_the_others_bare(model: AudioModel) -> None:
    heard = prefill(model, prompt(model))
    intervention = Intervention(layers=(1,), scale="raw", tokens="first")
    plan = plan_for(model, heard, 3.0, intervention)
    assert plan.direction is not None
    with readouts(model) as (residuals, normed):
        list(generate(model, heard, plan, GREEDY))
    residuals.insert(0, heard.final)
    difference = normed[0] - residuals[0]
    torch.testing.assert_close(difference, 3.0 * plan.direction, atol=1e-5, rtol=1e-5)
    for bare, steered in zip(residuals[1:], normed[1:], strict=True):
        assert torch.equal(steered, bare)


def test_steering_leaves_keys_and_values_the_bare_models(model: AudioModel) -> None:
    asked = prompt(model)
    bare, steered = prefill(model, asked), prefill(model, asked)
    list(generate(model, steered, plan_for(model, steered, 3.0, RAW), GREEDY))
    pairs = zip(keys_and_values(bare), keys_and_values(steered), strict=True)
    for (keys, values), (steered_keys, steered_values) in pairs:
        assert torch.equal(keys, steered_keys[:, :, : bare.length])
        assert torch.equal(values, steered_values[:, :, : bare.length])


@pytest.mark.parametrize("intervention", [RAW, FIRST], ids=["every", "first"])
def test_a_steered_answer_is_the_naive_one(
    model: AudioModel, oracle: Any, intervention: Intervention
) -> None:
    asked = prompt(model)
    heard = prefill(model, asked)
    plan = plan_for(model, heard, 1.5, intervention)
    naive: list[int] = []
    for step in range(6):
        last = naive_logits(oracle, asked, naive, plan, [step])[-1]
        naive.append(int(last.argmax()))
    assert list(generate(model, heard, plan, Sampling(max_tokens=6))) == naive
    assert naive != generated(oracle, asked, 6), "the plan changes the answer"


@pytest.mark.parametrize("intervention", [None, RAW, FIRST], ids=["bare", "every", "first"])
def test_a_penalty_acts_on_steered_logits_as_on_bare_ones(
    model: AudioModel, oracle: Any, intervention: Intervention | None
) -> None:
    asked = prompt(model)
    heard = prefill(model, asked)
    plan = plan_for(model, heard, 1.5, intervention) if intervention else UNSTEERED
    penalise = RepetitionPenaltyLogitsProcessor(1.4)
    naive: list[int] = []
    for step in range(LENGTH):
        last = naive_logits(oracle, asked, naive, plan, [step])
        ids = torch.cat([asked.tokens, torch.tensor(naive, dtype=torch.int64)])[None]
        naive.append(int(penalise(ids, last).argmax()))
    sampling = Sampling(max_tokens=LENGTH, repetition_penalty=1.4)
    assert list(generate(model, heard, plan, sampling)) == naive
    assert list(generate(model, heard, plan, GREEDY)) != naive, "the penalty changes the answer"


@torch.inference_mode()
def naive_logits(
    network: Any, asked: Prompt, answer: Sequence[int], plan: SteeringPlan, steps: Sequence[int]
) -> Tensor:
    """(len(steps), V) logits at answer tokens: one uncached pass, steered by hand."""
    full = full_pass(network, asked, list(answer))
    at = [len(asked.tokens) - 1 + step for step in steps]
    states, norm = full.residuals[-1, at], network.model.language_model.norm
    if plan.direction is None or plan.intervention is None:
        return network.lm_head(norm(states))  # type: ignore[no-any-return]
    if plan.intervention.place == "after_norm":
        states = norm(states)
    steered_rows = []
    for step, state in zip(steps, states, strict=True):
        strength = torch.tensor([plan.strength])
        steered_rows.append(
            steer(state[None], plan.direction[None], strength, plan.intervention, step)[0]
        )
    steered = torch.stack(steered_rows)
    if plan.intervention.place == "before_norm":
        steered = norm(steered)
    return network.lm_head(steered)  # type: ignore[no-any-return]


# ---- drawn


def test_a_seed_gives_the_same_answer_again(untrained: AudioModel) -> None:
    heard = prefill(untrained, prompt(untrained))

    def answer(seed: int) -> list[int]:
        sampling = Sampling(max_tokens=LENGTH, temperature=1.5, seed=seed)
        return list(generate(untrained, heard, UNSTEERED, sampling))

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_without_a_seed_answers_differ(untrained: AudioModel) -> None:
    heard = prefill(untrained, prompt(untrained))
    sampling = Sampling(max_tokens=LENGTH, temperature=2.0)
    answers = {tuple(generate(untrained, heard, UNSTEERED, sampling)) for _ in range(3)}
    assert len(answers) == 3


def test_drawing_leaves_the_global_generator_alone(untrained: AudioModel) -> None:
    heard = prefill(untrained, prompt(untrained))
    before = torch.get_rng_state()
    list(generate(untrained, heard, UNSTEERED, Sampling(max_tokens=3, temperature=1.0, seed=5)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=LENGTH, temperature=1.3, top_p=1e-6, seed=1),
        Sampling(max_tokens=LENGTH, temperature=1e-4, seed=1),
        Sampling(max_tokens=LENGTH, temperature=1e-320, seed=1),
    ],
    ids=["tiny top_p", "tiny temperature", "hardly a temperature"],
)
def test_sharp_sampling_is_greedy(model: AudioModel, sampling: Sampling) -> None:
    heard = prefill(model, prompt(model))
    greedy = list(generate(model, heard, UNSTEERED, GREEDY))
    assert list(generate(model, heard, UNSTEERED, sampling)) == greedy


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    row = torch.tensor([0.0, 1.0, 2.0, -1.0])
    random = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=2.0)
    drawn = torch.tensor(sample(row.expand(4000, -1), [sampling] * 4000, [random] * 4000))
    expected = (row / 2.0).softmax(-1)
    torch.testing.assert_close(drawn.bincount(minlength=4) / 4000, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.49, {2}), (0.51, {2, 0}), (0.79, {2, 0}), (0.81, {2, 0, 3}), (1.0, {2, 0, 3, 1})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    row = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()
    random = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=1.0, top_p=top_p)
    assert set(sample(row.expand(400, -1), [sampling] * 400, [random] * 400)) == kept


FILTERS = (
    Sampling(temperature=0.7, top_p=0.5, top_k=20),  # as Qwen2-Audio's generation_config.json
    Sampling(temperature=1.3, top_k=3),
    Sampling(temperature=0.9, top_k=7, min_p=0.3),
    Sampling(temperature=0.5, top_k=400, top_p=0.9, min_p=0.02),
    Sampling(temperature=1.0, top_k=10_000),
    Sampling(temperature=1.7, min_p=0.1),
    Sampling(temperature=1.2, top_p=0.4),
    Sampling(temperature=2.0, top_k=-1),
)


def by_transformers(model: AudioModel, row: Tensor, sampling: Sampling) -> Tensor:
    """(V,) probabilities after the processors that `generate` makes of the same settings."""
    config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=max(0, sampling.top_k or 0),
        top_p=sampling.top_p or 1.0,
        min_p=sampling.min_p,
    )
    processors = model.network._get_logits_processor(config, input_ids_seq_length=1)
    return processors(torch.zeros(1, 1, dtype=torch.int64), row[None]).softmax(-1)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["exact", "with ties"])
@pytest.mark.parametrize("chosen", [FILTERS, FILTERS[:4]], ids=["all", "few are left"])
def test_tokens_are_drawn_from_what_the_filters_of_transformers_leave(
    untrained: AudioModel, chosen: Sequence[Sampling], dtype: torch.dtype
) -> None:
    logits = torch.randn(len(chosen), 3000, generator=torch.Generator().manual_seed(1))
    rows = (3 * logits).to(dtype).float()
    shares, tokens = token_probabilities(rows, chosen)
    assert (shares.shape[-1] < 3000) == (chosen is not FILTERS), "no more is sorted than is needed"
    found = torch.zeros(rows.shape, dtype=torch.float64).scatter(-1, tokens, shares)
    expected = [by_transformers(untrained, row, s) for row, s in zip(rows, chosen, strict=True)]
    for row, oracle_row in zip(found / found.sum(-1, keepdim=True), expected, strict=True):
        assert torch.equal(row > 0, oracle_row > 0)
        torch.testing.assert_close(row.float(), oracle_row, atol=1e-6, rtol=1e-4)


def test_what_a_drawn_answer_leaves_open_is_the_checkpoints_own(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"temperature": 0.7, "top_p": 0.5, "top_k": 20, "repetition_penalty": 1.1}
    config = GenerationConfig(**own)
    monkeypatch.setattr(untrained.network, "generation_config", config)
    assert untrained.generation_defaults == own
    neutral = Sampling(top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    assert Sampling().of(untrained) == neutral, "greedy is plain argmax"
    drawn = Sampling(temperature=1.0, top_p=0.9).of(untrained)
    assert drawn == Sampling(
        temperature=1.0, top_p=0.9, top_k=20, min_p=0.0, repetition_penalty=1.1
    )


# ---- choices


def naive_choices(
    network: Any, model: AudioModel, asked: Prompt, plan: SteeringPlan, choices: Sequence[str]
) -> list[float]:
    """Each choice in its own uncached pass through transformers."""
    means = []
    for choice in choices:
        tokens = model.processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
        rows = naive_logits(network, asked, tokens[:-1], plan, range(len(tokens))).log_softmax(-1)
        means.append(float(torch.stack([rows[k, t] for k, t in enumerate(tokens)]).mean()))
    shares: list[float] = torch.tensor(means, dtype=torch.float64).softmax(-1).tolist()
    return shares


@pytest.mark.parametrize("intervention", [None, RAW, FIRST], ids=["bare", "every", "first"])
def test_choices_side_by_side_score_as_each_alone(
    model: AudioModel, oracle: Any, intervention: Intervention | None
) -> None:
    asked = prompt(model, 0.5, 1.2)
    heard = prefill(model, asked)
    plan = plan_for(model, heard, 0.7, intervention) if intervention else UNSTEERED
    tokenizer = model.processor.tokenizer
    lengths = [len(tokenizer(c, add_special_tokens=False)["input_ids"]) for c in CHOICES]
    assert min(lengths) == 1 and max(lengths) > 4, "choices of one token and of many"
    probabilities = score_choices(model, heard, plan, CHOICES)
    assert sum(probabilities) == pytest.approx(1.0)
    assert probabilities == pytest.approx(
        naive_choices(oracle, model, asked, plan, CHOICES), abs=1e-5
    )
    if intervention:
        assert probabilities != pytest.approx(
            score_choices(model, heard, UNSTEERED, CHOICES), abs=1e-3
        )


def test_the_order_of_the_choices_does_not_matter(model: AudioModel) -> None:
    heard = prefill(model, prompt(model))
    forward = score_choices(model, heard, UNSTEERED, CHOICES)
    backward = score_choices(model, heard, UNSTEERED, CHOICES[::-1])
    assert forward == pytest.approx(backward[::-1], abs=1e-6)


def test_choices_of_one_token_need_no_pass(untrained: AudioModel) -> None:
    heard = prefill(untrained, prompt(untrained))
    probabilities = score_choices(untrained, heard, UNSTEERED, ("dog", "cow", "bird"))
    ids = untrained.processor.tokenizer(["dog", "cow", "bird"])["input_ids"]
    with torch.inference_mode():
        row = steered_logits(untrained, heard.final[None], UNSTEERED, 0)[0]
    assert probabilities == pytest.approx(
        row[[i[0] for i in ids]].double().softmax(-1).tolist(), abs=1e-6
    )
    assert heard.cache.get_seq_length() == heard.length


def test_choices_after_an_answer_score_as_before(model: AudioModel) -> None:
    heard: PrefillResult = prefill(model, prompt(model))
    before = score_choices(model, heard, UNSTEERED, CHOICES)
    list(generate(model, heard, UNSTEERED, GREEDY))
    assert score_choices(model, heard, UNSTEERED, CHOICES) == before
    assert score_choices(model, heard, UNSTEERED, CHOICES) == before
