from __future__ import annotations

from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steering.calibration import activations as activations_module
from steering.calibration.activations import (
    Activations,
    all_heads,
    build_item_prompt,
    greedy_answer,
    head_columns,
    load_item_clip,
    record,
)
from steering.errors import AudioError
from steering.generation import Sampling
from steering.items import Item, is_right, read
from steering.meters.waveform import read_meters
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import silent_twin, with_choices
from steering.readout import logits
from steering.silence_cache import Ladder
from tests.steering.examples import hearing_silence, write_items


@pytest.fixture
def items(tmp_path: Path) -> tuple[Item, ...]:
    return read(write_items(tmp_path, 3), tmp_path).items


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations_module, "ANSWER", Sampling(max_tokens=3))


@pytest.fixture
def one_thread() -> Generator[None, None, None]:
    """As evidence is gathered: products in two threads add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_heads_stand_layer_by_layer(model: AudioModel) -> None:
    heads = all_heads(model)
    assert len(heads) == model.num_layers * model.num_heads
    assert head_columns(heads, model.num_heads) == list(range(len(heads)))
    assert head_columns([(2, 1), (0, 5)], heads_a_layer=8) == [17, 5]


def test_the_prompt_is_the_question_over_its_options(
    untrained: AudioModel, items: tuple[Item, ...]
) -> None:
    item = items[0]
    prompt = build_item_prompt(untrained, item, load_item_clip(untrained, item), "Listen. ")
    text = untrained.processor.tokenizer.decode(prompt.tokens[prompt.audio_end :])
    assert "Listen. " + with_choices(item.question, item.choices) in text
    assert prompt.clips[0].sample_rate_hz == untrained.sample_rate_hz


def test_evidence_is_what_two_passes_say(
    model: AudioModel, items: tuple[Item, ...], one_thread: None
) -> None:
    items = (replace(items[0], events=((0.1, 0.25),)), *items[1:])
    recorded = record(model, items)
    heads, layers = all_heads(model), range(model.num_layers)
    for i, item in enumerate(items):
        prompt = build_item_prompt(model, item, load_item_clip(model, item))
        heard = prefill(model, prompt, heads=heads, layers=layers)
        silent = prefill(model, silent_twin(model, prompt), heads=heads, layers=layers)
        assert recorded.exact_differences is not None and recorded.exact_mass is not None
        exact = heard.states - silent.states
        np.testing.assert_array_equal(recorded.exact_mass[i], silent.attention.sum(-1).numpy())
        np.testing.assert_array_equal(recorded.exact_differences[i], exact)
        assert recorded.seconds is not None
        assert recorded.seconds[i] == pytest.approx(prompt.heard_seconds[0])
        samples = prompt.clips[0].samples
        assert recorded.meters is not None
        np.testing.assert_array_equal(recorded.meters[i], read_meters(samples, 16_000))
        assert recorded.event_mass is not None and recorded.event_share is not None
        inside = np.zeros(heard.attention.shape[1])
        inside[2:7] = np.array([0.5, 1, 1, 1, 0.25]) * bool(item.events)
        np.testing.assert_allclose(
            recorded.event_mass[i], (heard.attention.numpy() * inside).sum(-1), atol=1e-6
        )
        share = inside.mean() if item.events else np.nan
        assert recorded.event_share[i] == pytest.approx(share, nan_ok=True)
        cut = prefill(hearing_silence(model, Ladder()), prompt, heads=heads, layers=layers)
        silent_mass, differences = recorded.silent_mass[i], recorded.differences[i]
        np.testing.assert_allclose(silent_mass, cut.attention.sum(-1).numpy(), atol=1e-5)
        np.testing.assert_allclose(differences, heard.states - cut.states, atol=1e-4)
        np.testing.assert_array_equal(recorded.mass[i], heard.attention.sum(-1).numpy())
        np.testing.assert_array_equal(recorded.final[i], heard.final)
        with torch.inference_mode():
            deciding = torch.from_numpy(recorded.deciding[i])
            first = logits(model, deciding[None])[0].softmax(-1)
        judged = int(first.argmax()) in recorded.right_tokens[i]
        assert judged == recorded.right[i], "the decisive token says what the answer says"
        assert recorded.top_probability[i] == pytest.approx(float(first.max()))
        tokens = recorded.right_tokens[i]
        texts = {model.processor.tokenizer.decode([token]) for token in tokens[tokens >= 0]}
        assert {item.answer, f" {item.answer}"} <= texts, "words of the world"
        assert recorded.right[i] == is_right(greedy_answer(model, heard), item.answer, item.choices)
    assert recorded.mass.shape == (3, model.num_layers * model.num_heads)
    assert recorded.differences.shape == (3, model.num_layers, model.hidden_size)
    assert (recorded.mass >= 0).all() and (recorded.mass <= 1).all()


def test_right_is_mmaus_rule_on_the_whole_answer(
    untrained: AudioModel, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["Dog!", "the dog", "rain bell"])
    tokenizer = untrained.processor.tokenizer

    def said(*_: object) -> list[int]:
        return list(tokenizer(next(answers), add_special_tokens=False)["input_ids"])

    monkeypatch.setattr(activations_module, "generate", said)
    assert record(untrained, items).right.tolist() == [True, False, False]


def test_some_items_and_the_scores_of_some_heads() -> None:
    rng = np.random.default_rng(0)
    whole = Activations(
        mass=rng.random((5, 6)).astype(np.float32),
        silent_mass=rng.random((5, 6)).astype(np.float32),
        differences=rng.random((5, 3, 4)).astype(np.float32),
        final=rng.random((5, 4)).astype(np.float32),
        deciding=rng.random((5, 4)).astype(np.float32),
        right_tokens=np.arange(10).reshape(5, 2),
        right=np.array([True, False, True, True, False]),
        form=np.arange(5),
        top_probability=rng.random(5).astype(np.float32),
    )
    for rows in (np.array([3, 0]), np.array([True, False, False, True, False])):
        some = whole.select(rows)
        for field in fields(Activations):
            if field.default is None:  # exact twins, of all items
                continue
            expected = getattr(whole, field.name)[rows]
            if field.name == "differences":  # stay where they are, they are large
                expected = expected[:0]
            np.testing.assert_array_equal(getattr(some, field.name), expected)
    heads = [(1, 0), (2, 1)]
    np.testing.assert_allclose(
        whole.scores(heads, 2), (whole.mass[:, 2] + whole.mass[:, 5]) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        whole.silent_scores(heads, 2),
        (whole.silent_mass[:, 2] + whole.silent_mass[:, 5]) / 2,
        rtol=1e-6,
    )


def test_a_clip_that_can_not_be_used_is_named(
    untrained: AudioModel, items: tuple[Item, ...], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, or so it says")
    with pytest.raises(AudioError, match=r"broken\.wav"):
        record(untrained, [items[0], replace(items[1], audio=broken)])
