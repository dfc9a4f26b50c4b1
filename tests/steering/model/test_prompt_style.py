from __future__ import annotations

from dataclasses import replace

import pytest

from steering.calibration.activations import decode_answer
from steering.errors import ModelError
from steering.model.audio_model import AudioModel
from steering.model.prompt_style import PLAIN, R1_AQA, style_of
from steering.prompt import build_question, with_choices
from tests.steering.examples import clip


@pytest.mark.parametrize(
    ("wanted", "name", "style"),
    [
        ("auto", "mispeech/r1-aqa", R1_AQA),
        ("auto", "/models/R1_AQA/", R1_AQA),
        ("auto", "Qwen/Qwen2-Audio-7B-Instruct", PLAIN),
        ("plain", "mispeech/r1-aqa", PLAIN),
        ("r1_aqa", "my-tune", R1_AQA),
    ],
)
def test_the_style_goes_by_the_name_unless_one_is_asked_for(
    wanted: str, name: str, style: object
) -> None:
    assert style_of(wanted, name) is style


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="plain, r1_aqa"):
        style_of("loud", "x")


def test_r1_aqa_is_asked_as_it_was_trained(untrained: AudioModel) -> None:
    text = with_choices("Which?", ("dog", "cow"), R1_AQA)
    assert text == (
        "Which? Please choose the answer from the following options: ['dog', 'cow']."
        " Output the final answer in <answer> </answer>."
    )
    assert "options" not in with_choices("Which?", (), R1_AQA)
    model = replace(untrained, prompt_style=R1_AQA)
    tokens = build_question(model, [clip(0.5)], text).tokens
    assert model.processor.tokenizer.decode(tokens).endswith("assistant\n<answer>")


def test_an_answer_ends_at_its_tag(untrained: AudioModel) -> None:
    ids = untrained.processor.tokenizer("a dog</answer> and more", add_special_tokens=False)
    assert decode_answer(replace(untrained, prompt_style=R1_AQA), ids["input_ids"]) == "a dog"
    assert decode_answer(untrained, ids["input_ids"]) == "a dog</answer> and more"
