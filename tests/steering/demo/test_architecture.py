from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2AudioForConditionalGeneration

from steering.demo.architecture import (
    MEL_FRAMES,
    SPECIAL_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
)
from steering.model.audio_model import AudioModel
from steering.synthetic import world
from steering.synthetic.questions import describe
from steering.synthetic.synthesis import SAMPLE_RATE_HZ


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_an_answer_is_one_token_with_and_without_a_space(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    answers = {value for values in world.VALUES.values() for value in values} | {"silence"}
    for text in (text for answer in answers for text in (answer, f" {answer}")):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 1, text
        assert tokenizer.decode(ids) == text


def test_a_description_is_whole_words(tokenizer: PreTrainedTokenizerFast) -> None:
    random = np.random.default_rng(0)
    for domain in (*world.DOMAINS, "noise", "silence") * 12:
        sentence = describe(world.draw_facts(random, domain))
        assert len(tokenizer(sentence)["input_ids"]) == len(re.findall(r"\w+|[.,]", sentence))


def test_the_tokenizer_is_the_same_every_time(tokenizer: PreTrainedTokenizerFast) -> None:
    again = build_tokenizer()
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "text", ["Tschüß, 你好! 🎧\n\ttabs  and   spaces ", "\\ \" ' {}", "12345.678", "Zxqvlk", "\r\n"]
)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_control_token_is_one_token(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    assert tokenizer(f"dog{token}cow")["input_ids"] == [
        tokenizer("dog")["input_ids"][0],
        tokenizer.convert_tokens_to_ids(token),
        tokenizer("cow")["input_ids"][0],
    ]
    assert tokenizer.decode(tokenizer(token)["input_ids"], skip_special_tokens=True) == ""


def test_the_processor_hears_three_seconds() -> None:
    extractor = build_processor().feature_extractor
    assert (extractor.sampling_rate, extractor.feature_size) == (SAMPLE_RATE_HZ, 64)
    assert extractor.nb_max_frames == MEL_FRAMES == 300
    mels = extractor([np.zeros(16_000, np.float32)], sampling_rate=16_000)["input_features"]
    assert np.asarray(mels).shape == (1, 64, MEL_FRAMES)


def test_ids_and_sizes_of_the_model(tokenizer: PreTrainedTokenizerFast) -> None:
    network = build_model(tokenizer)
    config: Any = network.config
    assert config.audio_token_id == tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert network.generation_config.eos_token_id == tokenizer.eos_token_id
    assert network.generation_config.pad_token_id == tokenizer.pad_token_id
    assert config.text_config.vocab_size >= len(tokenizer)
    assert config.text_config.num_hidden_layers == 8
    assert sum(p.numel() for p in network.parameters()) < 6e6, "12 MB in float16"


def test_positions_of_the_encoder_are_sinusoids(tokenizer: PreTrainedTokenizerFast) -> None:
    table = build_model(tokenizer).model.audio_tower.embed_positions.weight
    positions, width = table.shape
    by_hand = torch.empty(positions, width)
    for k in range(width // 2):
        scale = 10_000 ** (-k / (width // 2 - 1))
        by_hand[:, k] = torch.sin(torch.arange(positions) * scale)
        by_hand[:, width // 2 + k] = torch.cos(torch.arange(positions) * scale)
    torch.testing.assert_close(table.detach(), by_hand, atol=1e-4, rtol=0)
    assert not table.requires_grad, "so they are not trained away"


def test_what_is_saved_is_what_is_loaded(checkpoint: Path, untrained: AudioModel) -> None:
    plain = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    for (name, saved), (_, loaded) in zip(
        plain.state_dict().items(), untrained.network.state_dict().items(), strict=True
    ):
        assert torch.equal(saved, loaded), name
    fresh = build_processor()
    assert untrained.processor.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    assert untrained.processor.chat_template == fresh.chat_template
    saved_config, built = (
        untrained.processor.feature_extractor.to_dict(),
        fresh.feature_extractor.to_dict(),
    )
    assert {
        key: saved_config[key] for key in ("feature_size", "hop_length", "chunk_length", "n_fft")
    } == {key: built[key] for key in ("feature_size", "hop_length", "chunk_length", "n_fft")}
