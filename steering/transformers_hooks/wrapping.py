"""A transformers model that its user loaded: as an AudioModel, and its inputs as Prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from steering.errors import ModelError, RequestError
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import fingerprint
from steering.model.families import family_of
from steering.profile import Profile, check_fits
from steering.prompt import Prompt


def as_audio_model(model: Any, processor: Any, profile: Profile, trusted: bool) -> AudioModel:
    """Wrap a loaded network; ProfileError if the profile is another checkpoint's."""
    config = getattr(model, "config", None)
    family = family_of(str(getattr(config, "model_type", type(model).__name__)))
    name = str(config._name_or_path) if config is not None else ""
    folder = None if trusted else _folder(name, getattr(config, "_commit_hash", None))
    own_fingerprint = profile.fingerprint if folder is None else fingerprint(folder)
    wrapped = AudioModel(
        name=name or type(model).__name__,
        folder=folder or Path(),
        revision=getattr(config, "_commit_hash", None),
        fingerprint=own_fingerprint,
        family=family,
        network=model,
        processor=processor,
        device=model.device,
        dtype=model.dtype,
    )
    check_fits(profile, wrapped)
    deepest, widest = (max(values) for values in zip(*profile.heads, strict=True))
    if max(deepest, *profile.layers) >= wrapped.num_layers or widest >= wrapped.num_heads:
        raise ModelError(
            f"profile {profile.name!r} names head {deepest}.{widest} or a layer that"
            f" {wrapped.name} with {wrapped.num_layers} layers of {wrapped.num_heads} heads does"
            " not have"
        )
    return wrapped


def _folder(name: str, commit: str | None) -> Path:
    """The folder that a model's weights came from: its own, or its snapshot of the hub."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if name:
        try:
            return Path(snapshot_download(name, revision=commit, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass  # said below
    raise ModelError(
        f"the model was loaded from {name or 'nowhere'!r}, where no checkpoint is found, so nothing"
        " tells whether the profile was made for it. If it was, say trust_profile=True"
    )


def prompts_of(model: AudioModel, given: Mapping[str, Any]) -> tuple[tuple[Prompt, ...], Tensor]:
    """The prompt of each row without its padding, and where the batch's audio tokens are (B, T)."""
    tokens, mels = given["input_ids"], given.get("input_features")
    mask = given.get("attention_mask")
    mask = torch.ones_like(tokens) if mask is None else mask
    if mask.shape != tokens.shape or not mask[:, -1].all():
        raise RequestError(
            "a row ends in padding; pad on the left: processor.tokenizer.padding_side = 'left'"
        )
    audio = tokens == model.audio_token_id
    if mels is None or not audio.any(dim=1).all():
        raise RequestError(
            "a prompt has no audio: give each a clip, and its features to generate as the"
            " processor made them (`audio=`, not `audios=`)"
        )
    frames = given["feature_attention_mask"].sum(-1).cpu()  # (C,)
    counts = [model.audio_tokens(int(count)) for count in frames]
    rows: list[Prompt] = []
    first = 0
    for row in range(len(tokens)):
        seen, end = mask[row].bool(), first
        audio_tokens = int(audio[row].sum())
        while end < len(counts) and sum(counts[first:end]) < audio_tokens:
            end += 1
        if (from_clips := sum(counts[first:end])) != audio_tokens:
            raise RequestError(
                f"row {row} has {audio_tokens} audio tokens, its clips make {from_clips}:"
                " give generate what one call of the processor made"
            )
        rows.append(_prompt(model, tokens[row][seen], mels[first:end], frames[first:end]))
        first = end
    return _merge_copies(rows), audio


def _prompt(model: AudioModel, tokens: Tensor, mels: Tensor, frames: Tensor) -> Prompt:
    """One row as our own passes take it: tokens (T,), mels (C, M, N), frames (C,)."""
    tokens = tokens.cpu()
    hop_seconds = model.processor.feature_extractor.hop_length / model.sample_rate_hz
    return Prompt(
        tokens=tokens,
        log_mels=mels,
        mel_frames=frames,
        clips=(),  # the waveforms are not among generate's inputs
        heard_seconds=tuple(float(count) * hop_seconds for count in frames),
        audio_mask=tokens == model.audio_token_id,
    )


def _merge_copies(rows: list[Prompt]) -> tuple[Prompt, ...]:
    """The rows; equal neighbours become the same object."""
    merged: list[Prompt] = []
    for row in rows:
        before = merged[-1] if merged else None
        same = (
            before is not None
            and torch.equal(before.tokens, row.tokens)
            and torch.equal(before.log_mels, row.log_mels)
        )
        merged.append(before if same and before is not None else row)
    return tuple(merged)
