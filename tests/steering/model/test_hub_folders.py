"""Folders as the hub has them: what is loaded, and that it answers as plain transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from jinja2 import Environment
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, Qwen2AudioProcessor, WhisperFeatureExtractor

from steering.audio.clip import Clip
from steering.generation import UNSTEERED, Sampling, generate
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.prefill import prefill
from steering.prompt import build_question
from steering.readout import logits
from tests.steering.hub_folders import HUB_FOLDERS

pytestmark = [pytest.mark.slow, pytest.mark.system]

QUESTION = "What do you hear? 你听到什么"
TRUE_CLASSES = {
    "Qwen2-Audio-7B-Instruct": "Qwen2AudioForConditionalGeneration",
    "r1-aqa": "Qwen2AudioForConditionalGeneration",
    "Qwen2.5-Omni-7B": "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3-Omni-30B-A3B-Instruct": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
EOS_TOKENS = [151643, 151645]


@dataclass(frozen=True, slots=True)
class Case:
    """A folder, the model that we load from it, and transformers' own."""

    folder: Path
    model: AudioModel
    plain: Any


@pytest.fixture(scope="module", params=HUB_FOLDERS)
def case(request: pytest.FixtureRequest, hub_folder: Callable[[str], Path]) -> Case:
    folder = hub_folder(request.param)
    model = load(str(folder), device="cpu", dtype="float32")
    part = model.family.config(AutoConfig.from_pretrained(folder))
    plain = getattr(transformers, TRUE_CLASSES[request.param]).from_pretrained(
        folder, config=part, dtype=torch.float32
    )
    return Case(folder, model, plain.eval())


def audio_tokens(case: Case, frames: int) -> int:
    """Audio tokens of a clip, by the encoder's convolutions: three of them, or one and a pool."""
    if "Qwen3" not in case.folder.name:
        return ((frames - 1) // 2 + 1 - 2) // 2 + 1
    tokens, rest = divmod(frames, 100)
    for _ in range(3):
        rest = (rest + 1) // 2
    return 13 * tokens + rest


def plain_inputs(case: Case, wave: NDArray[np.float32]) -> dict[str, Tensor]:
    """Ids and features of a question about a clip, made of the folder's files alone."""
    template = case.folder / "chat_template.json"
    text = (
        json.loads(template.read_text())["chat_template"]
        if template.exists()
        else vars(Qwen2AudioProcessor)["default_chat_template"].fget(None)
    )
    parts = [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": parts}]
    joined = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    words = joined.render(messages=chat, add_generation_prompt=True)
    words += case.model.prompt_style.before
    extractor = WhisperFeatureExtractor.from_pretrained(case.folder)
    options: dict[str, Any] = {"padding": "max_length"}
    if "Qwen3" in case.folder.name:
        options = {"padding": True, "truncation": False}
    features = extractor(
        [wave],
        sampling_rate=16_000,
        return_tensors="pt",
        return_attention_mask=True,
        **options,
    )
    frames = int(features["attention_mask"].sum())
    token = "<|audio_pad|>" if "Qwen3" in case.folder.name else "<|AUDIO|>"
    words = words.replace(token, token * audio_tokens(case, frames))
    encoded = Tokenizer.from_file(str(case.folder / "tokenizer.json")).encode(
        words, add_special_tokens=False
    )
    ids = torch.tensor([encoded.ids])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": features["input_features"],
        "feature_attention_mask": features["attention_mask"],
    }


@pytest.mark.parametrize("seconds", [0.1, 2.999, 30.0])
def test_a_question_is_answered_as_by_plain_transformers(case: Case, seconds: float) -> None:
    rng = np.random.default_rng(1)
    wave = (0.05 * rng.standard_normal(round(seconds * 16_000))).astype(np.float32)
    given = plain_inputs(case, wave)
    asked = build_question(case.model, [Clip(wave, 16_000, seconds, 16_000, 1)], QUESTION)
    assert asked.tokens.tolist() == given["input_ids"][0].tolist()
    frames = int(given["feature_attention_mask"].sum())
    assert int(asked.mel_frames[0]) == frames
    assert torch.equal(asked.log_mels[0, :, :frames], given["input_features"][0, :, :frames])
    heard = prefill(case.model, asked)
    with torch.inference_mode():
        ours = logits(case.model, heard.final[None])[0]
        theirs = case.plain(**given).logits[0, -1].float()
        greedy = case.plain.generate(
            **given,
            do_sample=False,
            max_new_tokens=8,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=EOS_TOKENS,
            pad_token_id=EOS_TOKENS[0],
        )
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)
    assert list(generate(case.model, heard, UNSTEERED, Sampling(max_tokens=8))) == (
        greedy[0, given["input_ids"].shape[1] :].tolist()
    )


def test_what_is_loaded_and_what_ends_an_answer(case: Case) -> None:
    names = {name for name, _ in case.model.network.named_parameters()}
    assert not [n for n in names if n.startswith(("talker", "token2wav", "code2wav"))]
    assert not [n for n in names if ".visual." in n]
    index = json.loads((case.folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    ends = {"Qwen2-Audio-7B-Instruct": {151643, 151645}, "r1-aqa": {151643, 151645}}
    assert case.model.eos_token_ids == ends.get(case.folder.name, {151645})
