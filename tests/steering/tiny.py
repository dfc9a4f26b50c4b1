"""Tiny checkpoints of every family, of transformers' own classes, with weights never trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

MEL_BINS = 32
WINDOW_SECONDS = 6
VOCABULARY = 320  # the bytes, and room for the special tokens

# The names that each tokenizer gives to the tokens of its template.
OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
}
SPECIAL = 3 + len(OMNI_TOKENS)
OMNI_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, and the special tokens of the Qwen audio families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *OMNI_TOKENS.values()]
    words = {token: i for i, token in enumerate([*special, *alphabet])}
    bpe = Tokenizer(models.BPE(vocab=words, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"turn_token": "<|im_start|>", **OMNI_TOKENS},
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(
        feature_size=MEL_BINS,
        sampling_rate=16_000,
        hop_length=160,
        chunk_length=WINDOW_SECONDS,
        n_fft=400,
        return_attention_mask=True,
    )


def token_id(words: PreTrainedTokenizerFast, token: str) -> int:
    token_number = words.convert_tokens_to_ids(token)
    assert isinstance(token_number, int)
    return token_number


def _ids(words: PreTrainedTokenizerFast) -> dict[str, int]:
    return {name: token_id(words, token) for name, token in OMNI_TOKENS.items()}


def text_config(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.08,
        **more,
    }


def _audio(**more: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "num_mel_bins": MEL_BINS,
        "max_source_positions": WINDOW_SECONDS * 50,
        "initializer_range": 0.1,
        **more,
    }


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(sections)}


def qwen2_audio() -> tuple[Any, Any]:
    """Network and processor of a Qwen2-Audio."""
    words = tokenizer()
    config = transformers.Qwen2AudioConfig(
        audio_config=_audio(),
        text_config=text_config(model_type="qwen2", num_key_value_heads=4),
        audio_token_index=_ids(words)["audio_token"],
    )
    processor = transformers.Qwen2AudioProcessor(feature_extractor=extractor(), tokenizer=words)
    return transformers.Qwen2AudioForConditionalGeneration(config), processor


def _thinker_ids(words: PreTrainedTokenizerFast) -> dict[str, int]:
    ids = _ids(words)
    return {
        "audio_start_token_id": ids["audio_bos_token"],
        "vision_start_token_id": ids["vision_bos_token"],
    }


def qwen2_5_omni() -> tuple[Any, Any]:
    """A whole Qwen2.5-Omni: thinker with ears and eyes, talker and vocoder; and a processor."""
    words = tokenizer()
    ids = _ids(words)
    indices = {f"{kind}_token_index": ids[f"{kind}_token"] for kind in ("audio", "image", "video")}
    thinker = {
        "audio_config": _audio(n_window=50, output_dim=64),
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "patch_size": 4,
        },
        "text_config": text_config(rope_parameters=_rope(2, 3, 3), tie_word_embeddings=False),
        **indices,
        **_thinker_ids(words),
    }
    talker = text_config(embedding_size=64, head_dim=16, num_hidden_layers=1) | indices
    small = {
        "dit_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
            "emb_dim": 16,
            "num_embeds": 65,
            "mel_dim": 8,
            "enc_emb_dim": 8,
            "enc_dim": 8,
            "enc_channels": [8, 8, 8, 8, 24],
            "enc_attention_channels": 4,
            "enc_se_channels": 4,
            "block_size": 4,
            "look_ahead_layers": [0],
            "look_backward_layers": [0],
        },
        "bigvgan_config": {"mel_dim": 8, "upsample_initial_channel": 64},
    }
    config = transformers.Qwen2_5OmniConfig(
        thinker_config=thinker, talker_config=talker, token2wav_config=small
    )
    return transformers.Qwen2_5OmniForConditionalGeneration(config), _Parts(words)


def qwen3_omni() -> tuple[Any, Any]:
    """A whole Qwen3-Omni-MoE: thinker of 4 experts with ears and eyes, talker and vocoder."""
    words = tokenizer()
    ids = _ids(words)
    tokens = {f"{kind}_token_id": ids[f"{kind}_token"] for kind in ("audio", "image", "video")}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    thinker = {
        "audio_config": _audio(
            n_window=50, n_window_infer=200, output_dim=64, downsample_hidden_size=8
        ),
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        "text_config": text_config(head_dim=24, rope_parameters=_rope(4, 4, 4), **experts)
        | {"sliding_window": 32768, "use_sliding_window": False},  # as the hub has it
        **tokens,
        **_thinker_ids(words),
    }
    talker = {
        "text_config": text_config(num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=2)
        | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        "code_predictor_config": text_config(num_hidden_layers=1, head_dim=16, num_code_groups=4),
        "thinker_hidden_size": 64,
        "num_code_groups": 4,
        "spatial_merge_size": 2,
    }
    code2wav = {
        "codebook_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_quantizers": 4,
        "decoder_dim": 32,
    }
    config = transformers.Qwen3OmniMoeConfig(
        thinker_config=thinker, talker_config=talker, code2wav_config=code2wav
    )
    return transformers.Qwen3OmniMoeForConditionalGeneration(config), _Parts(words)


class _Parts:
    """What of an Omni processor is for ears: the files of its whole processor but for images."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self.words = words

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer, feature extractor and template as Omni checkpoints have them."""
        self.words.save_pretrained(folder)
        extractor().save_pretrained(folder)
        file = folder / "preprocessor_config.json"  # for eyes and ears, as theirs is
        eyes = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
        file.write_text(json.dumps(json.loads(file.read_text()) | eyes))
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": OMNI_TEMPLATE}))


WHOLE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_audio": qwen2_audio,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni_moe": qwen3_omni,
}


def save(build: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """The folder of a checkpoint: its attention looks somewhere, its answers are of bytes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, processor = build()
        thinker = getattr(network, "thinker", network)
        thinker.lm_head.weight.data[:SPECIAL] = 0.0  # no control token is the likeliest
        for layer in thinker.model.language_model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                part.weight.data.mul_(3.0)
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
