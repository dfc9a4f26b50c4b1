"""What every family must do, the same tests for all, on tiny models of its true classes.

The last family is one that allears does not ship: tests/steering/model/added_family.py adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import AutoConfig

from steering.attention.taps import ATTENTION, Head
from steering.decision import effect_bits, effect_bits_in_passes
from steering.generation import (
    UNSTEERED,
    Sampling,
    SteeringPlan,
    generate,
    generate_scored,
    score_choices,
    steered_logits,
)
from steering.heads import Verdicts, listening_score
from steering.kv_slots import KVSlots, Row, sample_first
from steering.model import families as families
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.model.passes import at_once
from steering.prefill import PrefillResult, prefill
from steering.prompt import Message, Prompt, build_prompt, build_question, silent_twin
from steering.readout import Intervention, logits, pool, steer
from steering.silence import (
    contrast_with_silence,
    prefill_with_silence,
    prefill_with_silence_in_passes,
    silent_prefix,
    silent_prefix_in_passes,
)
from steering.silence_cache import Ladder, SilenceCache
from steering.words import effects
from steering.words.word import tokenize
from tests.steering import tiny
from tests.steering.examples import (
    QUESTION,
    clip,
    every_head,
    feature_mask,
    full_pass,
    hearing_silence,
    prompt,
)
from tests.steering.model.added_family import AUDIO_FLAMINGO_3, audio_flamingo_3

HEADS: tuple[Head, ...] = ((1, 3), (0, 2), (1, 0))
LAYERS = (1, 0)
HOW = Intervention(layers=LAYERS)
CHECKPOINTS = {**tiny.WHOLE, "r1-aqa": tiny.qwen2_audio, "audioflamingo3": audio_flamingo_3}
TRUE_CLASSES = {  # whole, with eyes: as transformers itself would load them
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "r1-aqa": "Qwen2AudioForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A family's model as we load it, and the same checkpoint in transformers alone."""

    model: AudioModel
    oracle: Any

    def full(self, example: Prompt, answer: list[int] | None = None) -> Any:
        """The oracle's pass over a prompt, eager, nothing cached."""
        added = self.model.family is AUDIO_FLAMINGO_3
        name = "input_features_mask" if added else "feature_attention_mask"
        return full_pass(self.oracle, example, answer, name)

    def generated(self, example: Prompt, count: int, **more: Any) -> list[int]:
        """So many greedy tokens by the oracle's own `generate`."""
        added = self.model.family is AUDIO_FLAMINGO_3
        mask = "input_features_mask" if added else "feature_attention_mask"
        features = {"input_features": example.log_mels, mask: feature_mask(example)}
        tokens = example.tokens[None]
        out = self.oracle.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            **features,
            **more,
        )
        ids: list[int] = out[0, tokens.shape[1] :].tolist()
        return ids


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    name = request.param
    folder = tiny.save(CHECKPOINTS[name], tmp_path_factory.mktemp("families") / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, AUDIO_FLAMINGO_3.name, AUDIO_FLAMINGO_3)
        model = load(str(folder), device="cpu")
        whole = AutoConfig.from_pretrained(folder)
        oracle = getattr(transformers, TRUE_CLASSES[name]).from_pretrained(
            folder, config=model.family.config(whole), attn_implementation="eager"
        )
        yield Case(model, oracle.eval().requires_grad_(False))


def conversation(model: AudioModel) -> Prompt:
    """Two clips with text before, between and after them."""
    return build_prompt(
        model,
        [
            Message("system", ("Be short.",)),
            Message("user", ("Listen first. ", clip(1.7, seed=3), QUESTION)),
            Message("assistant", ("dog",)),
            Message("user", ("And here?", clip(2.9, seed=4), "Which one is louder?")),
        ],
    )


def example_prompt(model: AudioModel, shape: str) -> Prompt:
    """A prompt by its shape."""
    shapes = {"short": (0.3,), "one": (1.6,), "longest": (float(tiny.WINDOW_SECONDS),)}
    if shape == "turns":
        return conversation(model)
    return prompt(model, *shapes.get(shape, (1.0, 2.3, 1.2)))


SHAPES = ["short", "one", "longest", "three", "turns"]


# ---- what is loaded


def test_weights_are_the_checkpoints_and_nothing_else_is_there(case: Case) -> None:
    ours = dict(case.model.network.named_parameters())
    theirs = dict(case.oracle.named_parameters())
    assert theirs.keys() - ours.keys() == {name for name in theirs if ".visual." in name}
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert case.model.decoder.layers[0].self_attn.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("shape", SHAPES)
def test_audio_tokens_stand_where_the_clips_do(case: Case, shape: str) -> None:
    example = example_prompt(case.model, shape)
    counts = [case.model.audio_tokens(int(frames)) for frames in example.mel_frames]
    assert int(example.audio_mask.sum()) == sum(counts)
    heard = case.model.family.hear(case.model.network, example.log_mels, example.mel_frames)
    assert [tuple(clip_audio.shape) for clip_audio in heard] == [
        (n, case.model.hidden_size) for n in counts
    ]
    for seconds, count in zip(example.heard_seconds, counts, strict=True):
        assert count * case.model.hop_seconds == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_are_one_after_the_other_on_every_axis(case: Case, shape: str) -> None:
    """So (B, T) positions are right for rotary embeddings of three axes as well."""
    if not hasattr(case.oracle, "get_rope_index"):
        return  # one axis
    example = example_prompt(case.model, shape)
    tokens = example.tokens[None]
    positions, delta = case.oracle.get_rope_index(
        tokens, attention_mask=torch.ones_like(tokens), audio_seqlens=example.mel_frames
    )
    assert torch.equal(positions.long(), torch.arange(len(example.tokens)).expand(3, 1, -1))
    assert int(delta) == 0


# ---- the method


@pytest.mark.parametrize("shape", SHAPES)
def test_taps_are_eager_attentions_and_states_the_residuals(case: Case, shape: str) -> None:
    model = case.model
    example = example_prompt(model, shape)
    heard = prefill(model, example, heads=every_head(model), layers=range(model.num_layers))
    full = case.full(example)
    eager = full.attention[:, :, -1].flatten(0, 1)[:, example.audio_mask]
    torch.testing.assert_close(heard.attention, eager, atol=1e-5, rtol=0)
    assert heard.attention.max() > 2 * heard.attention.median(), "the oracle has a shape to match"
    torch.testing.assert_close(heard.states, full.residuals[:, -1], atol=1e-4, rtol=1e-4)
    logits = steered_logits(model, heard.final[None], UNSTEERED, 0)[0]
    torch.testing.assert_close(logits, full.logits[-1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_silence_differences_are_those_of_two_full_passes(case: Case, shape: str) -> None:
    model, prefixes = case.model, SilenceCache(1 << 30, Ladder(0))
    example = example_prompt(model, shape)
    heard = prefill(model, example, layers=LAYERS)
    loud, quiet = case.full(example), case.full(silent_twin(model, example))
    difference = loud.residuals[list(LAYERS), -1] - quiet.residuals[list(LAYERS), -1]
    eager = torch.stack(
        [quiet.attention[layer, head, -1, example.audio_mask] for layer, head in HEADS]
    )
    for from_cache in (False, True):
        contrast = contrast_with_silence(
            model, example, heard, heads=HEADS, layers=LAYERS, silence_cache=prefixes
        )
        assert contrast.from_cache == from_cache
        torch.testing.assert_close(contrast.differences, difference, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(contrast.silence_attention, eager, atol=1e-5, rtol=0)
    assert difference.norm(dim=-1).min() > 0.01, "there is a difference to get right"


def log_probabilities(full: Any, ids: list[int]) -> Tensor:
    """(N,) of an answer's tokens in a pass over the prompt and them."""
    rows: Tensor = full.logits[-len(ids) - 1 : -1].log_softmax(-1)
    return rows[range(len(ids)), ids]


def bits_between(heard: Tensor, silent: Tensor) -> float:
    """KL(heard || silent) / ln 2 of two rows of logits, by torch's own function."""
    of_heard, of_silent = (row.double().log_softmax(-1) for row in (heard, silent))
    nats = kl_div(of_silent, of_heard, log_target=True, reduction="sum")
    return float(nats) / math.log(2)


@pytest.mark.parametrize("shape", ["one", "turns"])
@pytest.mark.parametrize("limit", [9, 60])  # the twin's question in passes of its own, or beside
def test_passes_over_a_prompt_and_its_twin_are_one(case: Case, shape: str, limit: int) -> None:
    model, example = case.model, example_prompt(case.model, shape)
    runs = []
    for most in (None, limit):
        prefixes = SilenceCache(1 << 30, Ladder(0))
        prefix = at_once(silent_prefix_in_passes(model, example, prefixes, model.num_layers, most))
        passes = prefill_with_silence_in_passes(
            model, example, prefix, most, heads=HEADS, layers=LAYERS
        )
        heard, contrast = at_once(passes)
        written = generate(model, heard, UNSTEERED, Sampling(max_tokens=8, ignore_end=True))
        assert contrast.silent is not None
        bits = at_once(effect_bits_in_passes(model, heard, contrast.silent, CHOICES, most and 2))
        runs.append((heard, contrast.silent, list(written), bits))
    (heard, silent, tokens, bits), (parts, silent_parts, tokens_of_parts, bits_of_parts) = runs
    assert tokens_of_parts == tokens
    assert bits_of_parts == pytest.approx(bits, rel=1e-3)
    assert bits > 0
    for whole, part in ((heard, parts), (silent, silent_parts)):
        for name in ("attention", "states", "final"):
            one, other = getattr(whole, name), getattr(part, name)
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5, msg=name)


CHOICES = ("dog", "a brown cow", "a brown hen", "rain")


@torch.inference_mode()
@pytest.mark.parametrize("shape", ["one", "turns"])
def test_the_effect_is_that_of_two_plain_passes_of_transformers(case: Case, shape: str) -> None:
    model, prefixes = case.model, SilenceCache(1 << 30, Ladder(0))
    example = example_prompt(model, shape)
    heard = prefill(model, example, layers=LAYERS)
    twin = silent_twin(model, example)
    expected = bits_between(case.full(example).logits[-1], case.full(twin).logits[-1])
    means: list[list[float]] = [[], []]
    for choice in CHOICES:
        ids = model.processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
        for each, spoken in zip(means, (example, twin), strict=True):
            each.append(float(log_probabilities(case.full(spoken, ids), ids).mean()))
    of_choices = bits_between(torch.tensor(means[0]), torch.tensor(means[1]))
    second = contrast_with_silence(
        model,
        example,
        heard,
        heads=HEADS,
        layers=LAYERS,
        silence_cache=prefixes,
        to_readout=True,
    )
    prefix = silent_prefix(model, example, prefixes, model.num_layers)
    beside, first = prefill_with_silence(model, example, prefix, heads=HEADS, layers=LAYERS)
    for clip_pass, contrast in ((heard, second), (beside, first)):
        assert contrast.silent is not None
        found = effect_bits(model, clip_pass, contrast.silent)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
        for _ in range(2):  # asked once and again: the twin's keys are only read
            found = effect_bits(model, clip_pass, contrast.silent, CHOICES)
            assert found == pytest.approx(of_choices, rel=2e-3, abs=1e-6)
    assert expected > 1e-6, "there is an effect to get right"


@torch.inference_mode()
@pytest.mark.parametrize("shape", ["one", "turns"])
@pytest.mark.parametrize("chunk_tokens", [5, 1000])
def test_the_effect_and_score_of_every_token_are_those_of_two_plain_passes(
    case: Case, shape: str, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "COMPARED_TOKENS", 3)
    model, example = case.model, example_prompt(case.model, shape)
    answer = tokenize(model, "A cow, lowing")
    loud = case.full(example, list(answer.ids[:-1]))
    quiet = case.full(silent_twin(model, example), list(answer.ids[:-1]))
    places = range(len(example.tokens) - 1, len(loud.logits))
    sharper = max(bits_between(loud.logits[i], quiet.logits[i]) for i in places) ** -0.5
    expected = [bits_between(sharper * loud.logits[i], sharper * quiet.logits[i]) for i in places]
    monkeypatch.setattr(effects, "logits", lambda *given: sharper * logits(*given))
    mass = torch.stack([loud.attention[layer, head] for layer, head in HEADS])  # (N, T, T)
    prefilled = prefill(model, example, heads=HEADS)
    prefix = silent_prefix(model, example, SilenceCache(1 << 30, Ladder(0)), model.num_layers)
    for _ in range(2):  # once and again: the prompt's keys are cropped, the silence's only read
        passes = effects.hear_in_passes(model, example, prefilled, answer.ids, HEADS, chunk_tokens)
        heard = at_once(passes)
        parts = list(effects.token_effects(model, example, prefix, heard, chunk_tokens))
        assert (len(parts) == 1) == (chunk_tokens > 5)
        found = [bits for part in parts for bits in part]
        assert found == pytest.approx(expected, abs=1e-3)
        scores = mass[:, -len(answer.ids) :, : len(example.tokens)][..., example.audio_mask]
        assert heard.scores == pytest.approx(scores.sum(-1).mean(0).tolist(), abs=1e-5)
    assert 0.2 < max(expected) < 5, "random weights have hardly an effect, or a huge one"


@pytest.mark.parametrize("shape", SHAPES)
def test_silence_cut_from_a_rung_is_a_full_pass_about_it(case: Case, shape: str) -> None:
    """By a second pass and beside the prompt, in one; windowed encoders included."""
    model, ladder = case.model, Ladder(1)
    example, prefixes = example_prompt(model, shape), SilenceCache(1 << 30, ladder)
    heard = prefill(model, example, heads=HEADS, layers=LAYERS)
    quiet = prefill(hearing_silence(model, ladder), example, heads=HEADS, layers=LAYERS)
    second = contrast_with_silence(
        model, example, heard, heads=HEADS, layers=LAYERS, silence_cache=prefixes
    )
    for depth in (2, model.num_layers):
        prefix = silent_prefix(model, example, prefixes, depth)
        beside, contrast = prefill_with_silence(model, example, prefix, heads=HEADS, layers=LAYERS)
        torch.testing.assert_close(beside.attention, heard.attention, atol=1e-5, rtol=0)
        torch.testing.assert_close(beside.final, heard.final, atol=1e-4, rtol=1e-4)
        for one in (second, contrast):
            expected = heard.states - quiet.states
            torch.testing.assert_close(one.differences, expected, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(one.silence_attention, quiet.attention, atol=1e-5, rtol=0)
    assert contrast.silent is not None
    torch.testing.assert_close(contrast.silent.final, quiet.final, atol=1e-4, rtol=1e-4)


def random_direction(model: AudioModel, seed: int = 3) -> Tensor:
    return torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_steered_minus_bare_is_strength_times_direction(case: Case) -> None:
    model = case.model
    heard = prefill(model, example_prompt(model, "one"))
    raw = Intervention(layers=LAYERS, scale="raw")
    direction, strength = random_direction(model), torch.tensor([1.7])
    finals = [heard.final[None]]
    ids = list(generate(model, heard, UNSTEERED, Sampling(max_tokens=3, ignore_end=True)))
    full = case.full(example_prompt(model, "one"), ids[:2])
    finals.append(full.residuals[-1, -1][None])  # of a token that was decoded
    for step, final in enumerate(finals):
        moved = steer(final, direction[None], strength, raw, step) - final
        torch.testing.assert_close(moved[0], 1.7 * direction, atol=1e-5, rtol=0)
        steered = steered_logits(model, final, SteeringPlan(direction, 1.7, raw), step)
        moved_states = case.oracle.model.language_model.norm(final + 1.7 * direction)
        torch.testing.assert_close(steered, case.oracle.lm_head(moved_states), atol=1e-4, rtol=1e-4)
        assert torch.equal(
            steered_logits(model, final, SteeringPlan(direction, 0.0, raw), step),
            steered_logits(model, final, UNSTEERED, step),
        )


@pytest.mark.parametrize("shape", ["one", "three", "turns"])
def test_cached_decode_is_uncached(case: Case, shape: str) -> None:
    model = case.model
    example = example_prompt(model, shape)
    sampling = Sampling(max_tokens=8, ignore_end=True)
    ids = list(generate(model, prefill(model, example), UNSTEERED, sampling))
    expected: list[int] = []
    for _ in range(sampling.max_tokens):
        expected.append(int(case.full(example, expected).logits[-1].argmax()))
    assert ids == expected
    assert len(set(ids)) > 1, "an answer that could be wrong"


# ---- rows beside each other


def plans(model: AudioModel, heards: list[PrefillResult]) -> list[SteeringPlan]:
    """Every second row is steered, each by its own direction."""
    return [
        SteeringPlan(random_direction(model, i), 0.4 * i, HOW) if i % 2 else UNSTEERED
        for i in range(len(heards))
    ]


def written_together(
    model: AudioModel, heards: list[PrefillResult], intervention: Sampling
) -> list[list[int]]:
    """Answers of rows that enter one by one and share every step after that."""
    slots = KVSlots(model, len(heards), 1024, HOW)
    rows = [Row(plan, intervention) for plan in plans(model, heards)]
    written: list[list[int]] = [[] for _ in rows]
    waiting = list(zip(rows, heards, strict=True))
    while waiting or slots.active:
        if waiting:
            row, heard = waiting.pop(0)
            row.token = int(steered_logits(model, heard.final[None], row.plan, 0)[0].argmax())
            slots.admit(row, heard)
        for row, ids in zip(rows, written, strict=True):
            if row.slot >= 0:
                ids.append(row.token)
                if len(ids) == intervention.max_tokens:
                    slots.release(row)
        if slots.active:
            slots.step()
    return written


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)], ids=["forward", "mixed"])
def test_a_row_among_others_is_the_row_alone(case: Case, order: tuple[int, ...]) -> None:
    model = case.model
    sampling = Sampling(max_tokens=10, ignore_end=True)
    prompts = [example_prompt(model, shape) for shape in ("short", "turns", "one", "longest")]
    heards = [prefill(model, prompts[i]) for i in order]
    together = written_together(model, heards, sampling)
    for heard, plan, ids in zip(heards, plans(model, heards), together, strict=True):
        assert ids == list(generate(model, heard, plan, sampling))


def test_every_token_is_scored_by_its_eager_attentions(case: Case) -> None:
    """Bare and steered, alone and beside others, one of which is not scored."""
    model, sampling = case.model, Sampling(max_tokens=6, ignore_end=True)
    prompts = [example_prompt(model, shape) for shape in ("short", "turns", "one")]
    heards = [prefill(model, each, heads=HEADS) for each in prompts]
    heards.append(prefill(model, prompts[2]))
    slots, rows = KVSlots(model, 4, 1024, HOW, HEADS), []
    for heard, plan in zip(heards, plans(model, heards), strict=True):
        row = Row(plan, sampling)
        sample_first(model, heard, row)
        slots.admit(row, heard)
        rows.append([(row.token, row.score)])
    for _ in range(5):
        slots.step()
        for written, row in zip(rows, slots.active, strict=True):
            written.append((row.token, row.score))
    assert all(score is None for _, score in rows.pop())
    for heard, plan, example, written in zip(
        heards[:3], plans(model, heards)[:3], prompts, rows, strict=True
    ):
        alone = list(generate_scored(model, heard, plan, sampling, HEADS))
        ids = [token for token, _ in written]
        scores = [score for _, score in written if score is not None]
        assert ids == [token for token, _ in alone]
        assert scores == pytest.approx([score for _, score in alone], abs=1e-6)
        full = case.full(example, ids[:-1]).attention[:, :, -6:, : len(example.tokens)]
        mass = torch.stack(
            [full[layer, head][:, example.audio_mask].sum(-1) for layer, head in HEADS]
        )
        assert scores == pytest.approx(mass.mean(0).tolist(), abs=1e-5)
        assert max(scores) - min(scores) > 1e-3, "the tokens differ"


PENALTIES = (1.1, 1.4, 1.0, 0.8)


def test_a_full_batch_with_penalties_is_generate_row_by_row(case: Case) -> None:
    """Qwen2-Audio's own penalty, a stronger one, none, and its opposite, side by side."""
    model, count = case.model, 7
    prompts = [prompt(model, 0.2 + 0.05 * i, text=f"{QUESTION} {i}?") for i in range(30)]
    rows = [
        Row(UNSTEERED, Sampling(count, repetition_penalty=PENALTIES[i % len(PENALTIES)]))
        for i in range(len(prompts))
    ]
    slots, written = KVSlots(model, len(rows), 256, HOW), []
    for row, example in zip(rows, prompts, strict=True):
        heard = prefill(model, example)
        sample_first(model, heard, row)
        slots.admit(row, heard)
        written.append([row.token])
    for _ in range(count - 1):
        slots.step()
        for row, ids in zip(rows, written, strict=True):
            ids.append(row.token)
    for row, example, ids in zip(rows, prompts, written, strict=True):
        assert ids == case.generated(example, count, repetition_penalty=row.sampling.penalty)
    plain = [case.generated(example, count) for example in prompts[:4]]
    assert plain[2] == written[2] and plain != written[:4], "penalties change answers"


def test_choices_side_by_side_are_the_choices_alone(case: Case) -> None:
    model = case.model
    example = example_prompt(model, "one")
    heard = prefill(model, example)
    choices = ("dog", "a brown cow", "rain")
    probabilities = score_choices(model, heard, UNSTEERED, choices)
    means = []
    for choice in choices:
        ids = model.processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
        means.append(float(log_probabilities(case.full(example, ids), ids).mean()))
    expected = torch.tensor(means).softmax(-1).tolist()
    assert probabilities == pytest.approx(expected, abs=1e-4)


# ---- no audio at all


@torch.inference_mode()
def test_a_conversation_without_audio_is_answered_as_transformers_does(case: Case) -> None:
    """`generate` of the whole model on the checkpoint's own template, text alone."""
    model = case.model
    messages = [Message("system", ("Be short.",)), Message("user", (QUESTION, " Say."))]
    example = build_prompt(model, messages)
    heard = prefill(model, example, heads=HEADS, layers=LAYERS)
    assert heard.attention.shape == (len(HEADS), 0)
    assert len(heard.states) == len(LAYERS)
    tokens = example.tokens[None]
    out = case.oracle.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=8,
        min_new_tokens=8,
    )
    sampling = Sampling(max_tokens=8, ignore_end=True)
    ids = list(generate(model, heard, UNSTEERED, sampling))
    assert ids == out[0, tokens.shape[1] :].tolist()
    contrast = contrast_with_silence(
        model, example, heard, heads=HEADS, layers=LAYERS, silence_cache=SilenceCache(1 << 20)
    )
    assert not contrast.differences.any()


# ---- audio that never arrives


@torch.inference_mode()
def test_dropped_audio_is_at_the_floor_and_the_verdict_says_so(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads and threshold come from some clips with and without their sound, the test from others.

    Without: what the encoder makes never arrives, as when a renamed argument is ignored.
    """
    model, heads = case.model, every_head(case.model)

    def mass(seeds: range) -> np.ndarray[Any, Any]:
        results = [
            prefill(model, build_question(model, [clip(1.5, seed=i)], QUESTION), heads=heads)
            for i in seeds
        ]
        return np.stack([result.attention.sum(-1).numpy() for result in results])  # (clips, L * H)

    def deaf(network: Any, mels: Tensor, frames: Tensor) -> list[Tensor]:
        return [torch.zeros_like(audio) for audio in family.hear(network, mels, frames)]

    family = model.family
    sound = mass(range(8))
    case = Case(replace(model, family=replace(family, hear=deaf)), case.oracle)
    model = case.model
    lost = mass(range(8))
    gap = (sound.min(0) - lost.max(0)).argsort()[::-1][:2]
    verdicts = Verdicts(
        *[float((sound[:, gap].mean(1).min() + lost[:, gap].mean(1).max()) / 2)] * 2
    )
    chosen = [heads[i] for i in gap]
    for seed in range(20, 26):
        example = build_question(model, [clip(1.5, seed=seed)], QUESTION)
        missing = listening_score(prefill(model, example, heads=chosen).attention.numpy())
        hearing = replace(model, family=family)
        there = listening_score(prefill(hearing, example, heads=chosen).attention.numpy())
        assert verdicts.of(missing) == "not_listening"
        assert verdicts.of(there) == "listening"
    nowhere = replace(
        example, audio_mask=torch.zeros_like(example.audio_mask)
    )  # not even its place in the text
    assert listening_score(np.zeros((2, int(nowhere.audio_mask.sum())), np.float32)) == 0.0


def test_a_whole_request_is_steered_by_its_own_contrast(case: Case) -> None:
    model, prefixes = case.model, SilenceCache(1 << 30)
    example = example_prompt(model, "one")
    heard = prefill(model, example, heads=HEADS, layers=LAYERS)
    contrast = contrast_with_silence(
        model, example, heard, heads=HEADS, layers=LAYERS, silence_cache=prefixes
    )
    plan = SteeringPlan(pool(contrast.differences, HOW), 0.8, HOW)
    steered = steered_logits(model, heard.final[None], plan, 0)
    assert not torch.allclose(steered, steered_logits(model, heard.final[None], UNSTEERED, 0))
    assert feature_mask(example).sum() == example.mel_frames.sum()


def test_features_padded_to_less_than_the_window_are_the_same(case: Case) -> None:
    """Padding every clip to Qwen2.5-Omni's window of minutes would cost more than hearing it."""
    model = case.model
    example = example_prompt(model, "three")
    tokens = model.processor.audio_token * 3
    waves = [clip.samples for clip in example.clips]
    whole = model.processor(
        text=tokens, audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True
    )["input_features"]
    assert example.log_mels.shape[-1] <= whole.shape[-1]
    for mel, expected, frames in zip(example.log_mels, whole, example.mel_frames, strict=True):
        assert torch.equal(mel[:, : int(frames)], expected[:, : int(frames)])
