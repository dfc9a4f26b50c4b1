from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor

from steering.audio.clip import Clip
from steering.demo.architecture import SPECIAL_TOKENS
from steering.errors import RequestError
from steering.model.audio_model import AudioModel
from steering.prompt import (
    Message,
    Prompt,
    build_prompt,
    build_question,
    embed,
    silent_mels,
    silent_twin,
    with_choices,
)
from tests.steering.examples import QUESTION, RATE_HZ, clip, feature_mask, full_pass, prompt


def words(model: AudioModel, example: Prompt) -> str:
    """The prompt as text, one mark for each run of audio tokens."""
    audio = example.audio_mask.tolist()
    shown = [
        token
        for i, token in enumerate(example.tokens.tolist())
        if not (audio[i] and i > 0 and audio[i - 1])
    ]
    return str(model.processor.tokenizer.decode(shown))


def test_options_are_lettered() -> None:
    assert with_choices("Which?", ("dog", "cow")) == "Which?\n(A) dog\n(B) cow"
    assert with_choices("Which?", ()) == "Which?"


def test_the_prompt_is_the_template_of_the_checkpoint(untrained: AudioModel) -> None:
    example = build_question(untrained, [clip(0.5)], QUESTION)
    assert words(untrained, example) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_conversation_keeps_its_order(untrained: AudioModel) -> None:
    first, second = clip(0.5, seed=1), clip(1.5, seed=2)
    example = build_prompt(
        untrained,
        [
            Message("system", ("Be short.",)),
            Message("user", ("Listen: ", first, QUESTION)),
            Message("assistant", ("dog",)),
            Message("user", (second, "And this?")),
        ],
    )
    assert words(untrained, example) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nListen: Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\ndog<|im_end|>\n"
        "<|im_start|>user\nAudio 2: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
        "And this?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert example.clips == (first, second)
    assert example.heard_seconds == (0.5, 1.5)
    assert example.mel_frames.tolist() == [50, 150]


@pytest.mark.parametrize("seconds", [0.05, 0.333, 1.0, 2.999, 3.0])
def test_there_is_an_audio_token_for_each_that_the_encoder_makes(
    untrained: AudioModel, seconds: float
) -> None:
    example = prompt(untrained, seconds)
    encoded = untrained.family.hear(untrained.network, example.log_mels, example.mel_frames)
    assert [len(clip_audio) for clip_audio in encoded] == [int(example.audio_mask.sum())]
    assert len(encoded[0]) == pytest.approx(25 * seconds, abs=1)


def test_audio_ends_where_the_question_begins(untrained: AudioModel) -> None:
    example = prompt(untrained, 0.5, 1.0)
    tail = untrained.processor.tokenizer.decode(example.tokens[example.audio_end :])
    assert tail == f"<|audio_eos|>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def test_features_are_those_of_the_processor(untrained: AudioModel) -> None:
    own_clip = clip(1.3)
    example = build_question(untrained, [own_clip], QUESTION)
    expected = untrained.processor.feature_extractor(
        [own_clip.samples],
        sampling_rate=RATE_HZ,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    assert torch.equal(example.log_mels, expected["input_features"])
    assert torch.equal(feature_mask(example), expected["attention_mask"].long())


@torch.inference_mode()
def test_what_was_heard_stands_where_the_audio_tokens_are(model: AudioModel, oracle: Any) -> None:
    example = prompt(model, 0.6, 1.7)
    states = embed(model, example)[0]
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, named: Any) -> None:
        seen.append(named["inputs_embeds"][0])

    hook = oracle.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        full_pass(oracle, example)
    finally:
        hook.remove()
    torch.testing.assert_close(states, seen[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(states[~example.audio_mask], seen[0][~example.audio_mask])


@torch.inference_mode()
def test_a_clip_is_heard_alike_beside_another(untrained: AudioModel) -> None:
    both = build_question(untrained, [clip(0.6, seed=4), clip(2.0, seed=5)], QUESTION)
    heard = embed(untrained, both)[0, both.audio_mask]
    for part, own_clip in zip((heard[:15], heard[15:]), both.clips, strict=True):
        alone = build_question(untrained, [own_clip], QUESTION)
        expected = embed(untrained, alone)[0, alone.audio_mask]
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


# ---- what is too long, and what is refused


def test_a_clip_longer_than_the_window_is_heard_up_to_it(untrained: AudioModel) -> None:
    long = clip(4.2)
    short = replace(long, samples=long.samples[: 3 * RATE_HZ])
    example, expected = (
        build_question(untrained, [long], QUESTION),
        build_question(untrained, [short], QUESTION),
    )
    assert example.heard_seconds == expected.heard_seconds == (3.0,)
    assert torch.equal(example.log_mels, expected.log_mels)
    assert torch.equal(example.tokens, expected.tokens)
    assert int(example.audio_mask.sum()) == 75
    assert example.clips == (long,), "what was sent is remembered whole"


def test_a_question_without_audio_is_refused(untrained: AudioModel) -> None:
    with pytest.raises(RequestError, match="no audio") as caught:
        build_question(untrained, [], QUESTION)
    assert caught.value.param == "audio"


def test_a_conversation_without_audio_has_no_audio_token(untrained: AudioModel) -> None:
    example = build_prompt(untrained, [Message("user", (QUESTION,))])
    assert words(untrained, example) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not example.audio_mask.any()
    assert example.audio_end == 0
    assert (len(example.log_mels), len(example.mel_frames), example.clips) == (0, 0, ())


@pytest.mark.parametrize("control", SPECIAL_TOKENS)
def test_text_that_spells_a_control_token_is_refused(untrained: AudioModel, control: str) -> None:
    messages = [
        Message("user", (clip(0.5), QUESTION)),
        Message("assistant", (f"dog{control}",)),
        Message("user", ("Sure?",)),
    ]
    with pytest.raises(RequestError) as caught:
        build_prompt(untrained, messages)
    assert control in str(caught.value)


def test_control_tokens_are_known_from_the_vocabulary_itself(untrained: AudioModel) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=untrained.processor.tokenizer.backend_tokenizer, eos_token="<|im_end|>"
    )
    assert "<|AUDIO|>" not in bare.all_special_tokens
    processor = Qwen2AudioProcessor(untrained.processor.feature_extractor, bare)
    with pytest.raises(RequestError, match="AUDIO"):
        build_question(
            replace(untrained, processor=processor), [clip(0.5)], "Which <|AUDIO|> is this?"
        )


@pytest.mark.parametrize(
    "text", ["a | b < c > d", "<|other|>", "im_end", "{{ messages }}", "ünï 🎧"]
)
def test_other_text_is_just_text(untrained: AudioModel, text: str) -> None:
    example = build_question(untrained, [clip(0.5)], text)
    assert f"<|audio_eos|>\n{text}<|im_end|>" in words(untrained, example)


# ---- the silent twin


@pytest.mark.parametrize("seconds", [(1.0,), (0.05,), (0.4, 3.0), (3.7,)], ids=str)
def test_the_silent_twin_differs_in_what_is_heard_only(
    untrained: AudioModel, seconds: tuple[float, ...]
) -> None:
    example = prompt(untrained, *seconds)
    twin = silent_twin(untrained, example)
    assert torch.equal(twin.tokens, example.tokens)
    assert torch.equal(twin.audio_mask, example.audio_mask)
    assert torch.equal(twin.mel_frames, example.mel_frames)
    assert twin.heard_seconds == example.heard_seconds
    for sent, silent in zip(example.clips, twin.clips, strict=True):
        assert len(silent.samples) == len(sent.samples)
        assert not silent.samples.any()
    zeros = Clip(np.zeros(round(seconds[0] * RATE_HZ), np.float32), RATE_HZ, 1.0, RATE_HZ, 1)
    expected = build_question(untrained, [zeros], QUESTION)
    assert torch.equal(silent_mels(untrained, example.heard_seconds)[0], expected.log_mels[0])
    assert torch.equal(twin.log_mels[0], expected.log_mels[0])
    assert not torch.equal(twin.log_mels, example.log_mels)
