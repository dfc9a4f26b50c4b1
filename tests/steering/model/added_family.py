"""A family that allears does not know, added as docs/families.md says: Audio Flamingo 3."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from steering.model.families import Family
from tests.steering import tiny


def _audio_tokens(config: Any, frames: int) -> int:
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _hear(network: Any, mels: Tensor, frames: Tensor) -> list[Tensor]:
    mask = (torch.arange(mels.shape[-1])[None] < frames[:, None]).to(mels.device)
    core = network.model
    heard = core.audio_tower(mels, input_features_mask=mask).last_hidden_state
    audio = core.multi_modal_projector(heard)
    return [audio[i, : _audio_tokens(None, int(count))] for i, count in enumerate(frames)]


AUDIO_FLAMINGO_3 = Family(
    name="audioflamingo3",
    network_class=lambda: transformers.AudioFlamingo3ForConditionalGeneration,
    processor_class=lambda: transformers.Qwen2AudioProcessor,  # its own takes one clip a text
    audio_tokens=_audio_tokens,
    hear=_hear,
)


def audio_flamingo_3() -> tuple[Any, Any]:
    """Network and processor of an Audio Flamingo 3."""
    words = tiny.tokenizer()
    config = transformers.AudioFlamingo3Config(
        audio_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "num_mel_bins": tiny.MEL_BINS,
            "max_source_positions": tiny.WINDOW_SECONDS * 50,
        },
        text_config=tiny.text_config(model_type="qwen2"),
        audio_token_id=tiny.token_id(words, "<|AUDIO|>"),
    )
    processor = transformers.Qwen2AudioProcessor(tiny.extractor(), words)
    return transformers.AudioFlamingo3ForConditionalGeneration(config), processor
