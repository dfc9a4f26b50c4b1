from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe

from steering.errors import ModelError
from steering.model.audio_model import AudioModel
from steering.model.families import FAMILIES, QWEN2_AUDIO, family_of
from steering.model.omni import qwen3_audio_tokens


def test_a_family_is_found_by_its_model_type() -> None:
    assert family_of("qwen2_audio") is QWEN2_AUDIO


@pytest.mark.parametrize("model_type", ["llama", "Qwen2_Audio", ""])
def test_an_unknown_family_is_refused_with_the_known_ones(model_type: str) -> None:
    with pytest.raises(ModelError, match="qwen2_audio") as caught:
        family_of(model_type)
    assert repr(model_type) in str(caught.value)


def test_a_thinker_saved_by_itself_is_of_its_family() -> None:
    for name in ("qwen2_5_omni", "qwen3_omni_moe"):
        assert family_of(f"{name}_thinker") is family_of(name) is FAMILIES[name]


def test_a_family_knows_the_parts_of_its_network(untrained: AudioModel) -> None:
    family = untrained.family
    for part in ("embed_tokens", "layers", "rotary_emb", "norm"):
        assert hasattr(untrained.decoder, part)
    assert family.readout(untrained.network).out_features >= len(untrained.processor.tokenizer)
    token = family.audio_token_id(untrained.network.config)
    assert untrained.processor.tokenizer.convert_ids_to_tokens(token) == "<|AUDIO|>"


def test_qwen3_counts_audio_tokens_as_transformers_does() -> None:
    config: Any = transformers.Qwen3OmniMoeConfig().thinker_config
    counted: Any = modeling_qwen3_omni_moe._get_feat_extract_output_lengths
    for frames in range(1, 701):
        assert qwen3_audio_tokens(config, frames) == counted(frames, config.audio_config.n_window)


@torch.inference_mode()
def test_the_encoder_makes_as_many_tokens_as_it_is_said_to(untrained: AudioModel) -> None:
    counted = untrained.network.model.audio_tower._get_feat_extract_output_lengths
    mels = torch.randn(4, 64, 300, generator=torch.Generator().manual_seed(0))
    for first in range(5, 300, 37):
        frames = torch.tensor([first, first + 1, first + 2, 300])
        encoded = QWEN2_AUDIO.hear(untrained.network, mels, frames)
        assert [len(clip_audio) for clip_audio in encoded] == [
            untrained.audio_tokens(int(n)) for n in frames
        ]
        assert [len(clip_audio) for clip_audio in encoded] == counted(frames)[1].tolist()
    assert untrained.audio_tokens(3000) == 750


@torch.inference_mode()
def test_what_pads_a_clip_is_not_heard(untrained: AudioModel) -> None:
    mels = torch.randn(1, 64, 300, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([120])
    other = mels.clone()
    other[:, :, 122:] = 9.0  # the encoder's first convolution sees one frame beyond
    first, second = (QWEN2_AUDIO.hear(untrained.network, m, frames)[0] for m in (mels, other))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [[5], [8, 9], [101, 300, 40], [299], [300, 300]])
def test_clips_are_heard_as_by_the_whole_encoder(untrained: AudioModel, frames: list[int]) -> None:
    shape = (len(frames), 64, 300)
    mels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor(frames)
    core = untrained.network.model
    mask = (torch.arange(150) < ((counts - 1) // 2 + 1)[:, None])[:, None, None]
    whole = core.multi_modal_projector(
        core.audio_tower(mels, attention_mask=mask).last_hidden_state
    )
    for i, made in enumerate(QWEN2_AUDIO.hear(untrained.network, mels, counts)):
        torch.testing.assert_close(made, whole[i, : len(made)], atol=1e-5, rtol=0)
