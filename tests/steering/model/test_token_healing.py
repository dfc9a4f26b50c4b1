"""Choices behind R1-AQA's `<answer>`, whose last character BPE joins with some of them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2AudioForConditionalGeneration

from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    generate,
    log_probabilities_in_passes,
    score_choices,
    steered_logits,
)
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.model.passes import at_once
from steering.model.prompt_style import PLAIN, R1_AQA
from steering.model.token_healing import Continuations, continuations
from steering.prefill import prefill
from steering.prompt import Message, Prompt, build_prompt
from steering.readout import Intervention
from tests.steering import tiny
from tests.steering.examples import full_pass, plan_for, prompt

# As Qwen's: a word takes the mark before it along.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
MERGES = ["o g", "> D", "> C", "V i", "o l", "ol i", "oli n"]
CHOICES = ("Dog", "Violin", "Cat", "7", "a bell")  # two join the mark
EVERY = Intervention(layers=(1,), scale="raw")
FIRST = Intervention(layers=(1,), scale="raw", tokens="first")


def joining(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with some merges, one of them over the end of `<answer>`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for merge in MERGES:
        vocabulary[merge.replace(" ", "")] = len(vocabulary)
    state["model"]["merges"] = [merge.split() for merge in MERGES]
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    bytes_only = {**state["pre_tokenizer"], "use_regex": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_only]}
    own = copy.deepcopy(tokenizer)
    own._tokenizer = Tokenizer.from_str(json.dumps(state))
    return own  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.qwen2_audio, tmp_path_factory.mktemp("r1") / "r1-aqa")


@pytest.fixture
def model(folder: Path) -> AudioModel:
    loaded = load(str(folder), device="cpu")
    assert loaded.prompt_style is R1_AQA
    loaded.processor.tokenizer = joining(loaded.processor.tokenizer)
    return loaded


@pytest.fixture
def oracle(folder: Path) -> Any:
    network = Qwen2AudioForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager"
    )
    return network.eval().requires_grad_(False)


def words(model: AudioModel, ids: list[int]) -> list[str]:
    return [str(model.processor.tokenizer.decode([id])) for id in ids]


def test_what_some_text_joins_is_taken_back_for_all(model: AudioModel) -> None:
    texts = continuations(model, CHOICES)
    assert words(model, texts.removed) == [">"]
    written = [words(model, ids) for ids in texts.tokens]
    assert written[:3] == [[">D", "og"], [">", "Vi", "olin"], [">C", "a", "t"]]
    assert written[3] == [">", "7"]
    assert texts.forced == [0, 1, 0, 1, 1]
    assert texts.lengths() == [2, 2, 3, 1, 6]
    for style, choices in ((R1_AQA, ("Violin", "7")), (PLAIN, CHOICES)):
        own = continuations(replace(model, prompt_style=style), choices)
        assert not own.removed
        assert own.tokens == [model.processor.tokenizer(c)["input_ids"] for c in choices]


def naive_mean(
    model: AudioModel, oracle: Any, asked: Prompt, plan: SteeringPlan, texts: Continuations, c: int
) -> float:
    """One choice in a pass of its own over the prompt without its last token."""
    ids, forced = texts.tokens[c], texts.forced[c]
    shorter = replace(asked, tokens=asked.tokens[:-1], audio_mask=asked.audio_mask[:-1])
    states = full_pass(oracle, shorter, ids[:-1]).residuals[-1, -len(ids) :]  # (K, D)
    total = 0.0
    for k, (state, id) in enumerate(zip(states, ids, strict=True)):
        row = steered_logits(model, state[None], plan, max(0, k - forced))[0]
        if k == 0:
            row = among_openings(model, row)
        total += float(row.log_softmax(-1)[id])
    return total / (len(ids) - forced)


def among_openings(model: AudioModel, row: Tensor) -> Tensor:
    """Logits (V,) of the tokens that begin with `>`."""
    vocabulary = model.processor.tokenizer.get_vocab().items()
    opening = [id for token, id in vocabulary if token.startswith(">")]
    assert len(opening) == 3
    return torch.full_like(row, -torch.inf).index_copy(0, torch.tensor(opening), row[opening])


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("intervention", [None, EVERY, FIRST], ids=["bare", "every", "first"])
@torch.inference_mode()
def test_choices_are_scored_from_the_open_end_on(
    model: AudioModel, oracle: Any, intervention: Intervention | None, limit: int | None
) -> None:
    asked = prompt(model, 0.6)
    heard = prefill(model, asked)
    plan = plan_for(model, heard, 0.9, intervention) if intervention else UNSTEERED
    texts = continuations(model, CHOICES)
    means = [naive_mean(model, oracle, asked, plan, texts, c) for c in range(len(CHOICES))]
    passes = log_probabilities_in_passes(model, heard, plan, CHOICES, limit)
    assert at_once(passes) == pytest.approx(means, abs=1e-4)
    before = list(generate(model, prefill(model, asked), plan, Sampling(6)))
    assert list(generate(model, heard, plan, Sampling(6))) == before, "the prompt is whole again"


def taught(model: AudioModel, asked: Prompt, answers: list[str]) -> AudioModel:
    """The model after a few steps on a prompt with each of the answers, as BPE writes the whole."""
    network = copy.deepcopy(model.network).requires_grad_(True)
    tokenizer = model.processor.tokenizer
    start = asked.tokens[: -len(tokenizer("<answer>")["input_ids"])]
    whole = [tokenizer(f"<answer>{answer}<|im_end|>")["input_ids"] for answer in answers]
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        loss = torch.zeros(())
        for ids in whole:
            tokens = torch.cat([start, torch.tensor(ids)])[None]
            loss = loss + network(input_ids=tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return replace(model, network=network.eval().requires_grad_(False))


def test_words_that_join_the_mark_and_words_that_do_not_are_equals(model: AudioModel) -> None:
    """Of two answers that a model was taught alike, neither wins by its spelling."""
    choices = ["Dog", "Violin"]
    asked = build_prompt(model, [Message("user", ("Which?",))])
    knowing = taught(model, asked, choices)
    heard = prefill(knowing, asked)
    dog, violin = score_choices(knowing, heard, UNSTEERED, choices)
    assert abs(dog - violin) < 0.3
    closed = replace(knowing, prompt_style=PLAIN)  # scored behind a `>` of its own
    assert score_choices(closed, heard, UNSTEERED, choices)[1] > 0.98
