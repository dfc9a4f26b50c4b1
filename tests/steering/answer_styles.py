"""The embedded model made to answer in other styles, and items that all of them can answer.

A few channels are added to the residual stream. Nothing reads them but the readout: there the last
token says which piece of the answer comes next, so that a sentence is really generated, and steered
at every token. At the option's piece the readout ranks the options' own words as before, under
other tokens. A piece before the option takes the place of the line end that the prompt ends with,
and is heard by the layers as that: so the option is chosen as it is in the plain style.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import AddedToken
from torch import Tensor

from steering.model.audio_model import AudioModel
from steering.synthetic import questions, speech, takes, world
from steering.synthetic.synthesis import SAMPLE_RATE_HZ

CHOICES = ("siren", "rain", "dog", "bell")  # in this order: a letter is always the same word's
STYLES: dict[str, tuple[str, ...]] = {  # pieces of the answer, the option among them
    "capitalised": ("{Option}",),
    "sentence": ("The sound is a", " {option}", "."),
    "letter": ("{letter}",),
    "tags": ("<answer>", "{option}", "</answer>"),
    "chatty": (
        "Sure! I listened to the clip carefully,",
        " and I believe that this is a",
        " **",
        "{Option}",
        "**. Let me know if I can help!",
    ),
}
_FLAG = 1e-2  # in an added channel: too small to count in any norm
_CERTAIN = 1e6


def speaking(model: AudioModel, style: str) -> AudioModel:
    """The embedded model, answering in a style."""
    pieces = (*STYLES[style], "<|im_end|>")
    processor = copy.deepcopy(model.processor)
    network = _widened(model, len(pieces))
    tokenizer, width = processor.tokenizer, model.hidden_size
    known = len(tokenizer)
    before = [_ids(tokenizer, "\n")]  # the tokens that each piece follows
    option_at = next(n for n, piece in enumerate(pieces) if "{" in piece)
    embedding = network.model.language_model.embed_tokens.weight
    readout = network.lm_head.weight
    with torch.no_grad():
        line_end = embedding[before[0][0]].clone()
        for n, piece in enumerate(pieces):
            if n == option_at:
                before.append(_rename(tokenizer, piece, embedding, readout, width + n, known))
                continue
            token = _token(tokenizer, piece)
            if token >= known:
                embedding[token] = line_end
                readout[token, width + option_at] = -_CERTAIN
            readout[token, width + n] = _CERTAIN
            before.append([token])
        for n, tokens in enumerate(before[:-1]):
            embedding[tokens, width:] = 0.0
            embedding[tokens, width + n] = _FLAG
    for layer in network.model.language_model.layers:
        _hear_no_lead(network, layer, slice(width + 1, width + option_at + 1))
    return replace(model, network=network, processor=processor)


def _hear_no_lead(network: Any, layer: Any, flags: slice) -> None:
    """Let a token with one of these flags take the place of the token before it."""
    forward = layer.forward

    def transparent(states: Tensor, **context: Any) -> Any:
        if states.shape[1] == 1 and states[0, 0, flags].any():
            cache = context.get("cache") or context["past_key_values"]
            kept = cache.layers[layer.self_attn.layer_idx]
            kept.keys, kept.values = kept.keys[:, :, :-1], kept.values[:, :, :-1]
            positions = context["position_ids"] - 1
            rotary = network.model.language_model.rotary_emb(states, positions)
            context |= {"position_ids": positions, "position_embeddings": rotary}
        return forward(states, **context)

    layer.forward = transparent


def _rename(
    tokenizer: Any, piece: str, embedding: Tensor, readout: Tensor, channel: int, known: int
) -> list[int]:
    """Give the logits of the words to the tokens that stand for them; returns those tokens."""
    rows = readout.clone()
    renamed = []
    for word in sorted({value for values in world.VALUES.values() for value in values}):
        letter = chr(ord("A") + CHOICES.index(word)) if word in CHOICES else ""
        text = piece.format(option=word, Option=word.capitalize(), letter=letter)
        own = _ids(tokenizer, word)[0]
        if text:
            readout[own, channel] = -_CERTAIN
            token = _token(tokenizer, text)
            readout[token] = rows[own]
            if token >= known:
                embedding[token] = embedding[own]
            renamed.append(token)
    for token in renamed:
        readout[token, channel] = 0.0
    return renamed


def _token(tokenizer: Any, text: str) -> int:
    """The one token of a text, added where it was several."""
    ids = _ids(tokenizer, text)
    if len(ids) > 1:
        tokenizer.add_tokens([AddedToken(text, normalized=False)])
        ids = _ids(tokenizer, text)
    return ids[0]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


_SPARE = 256  # rows for added tokens


def _widened(model: AudioModel, channels: int) -> Any:
    """The same network with added channels, which every layer leaves alone, and spare tokens."""
    config = type(model.network.config).from_dict(model.network.config.to_dict())
    text = config.text_config
    width = text.hidden_size
    text.head_dim = width // text.num_attention_heads
    text.hidden_size = width + channels
    text.vocab_size += _SPARE
    network = type(model.network)._from_config(config, attn_implementation="sdpa")
    state = network.state_dict()
    for name, weight in model.network.state_dict().items():
        padded = torch.zeros_like(state[name])
        padded[tuple(slice(size) for size in weight.shape)] = weight
        if padded.dim() == 1 and padded.shape != weight.shape:  # a norm's, or a bias
            if "norm" in name:
                padded *= (width / (width + channels)) ** 0.5  # its mean is over more channels
            if name.endswith("language_model.norm.weight"):
                padded[width:] = 1.0
        state[name] = padded
    network.load_state_dict(state)
    network.generation_config = model.network.generation_config
    network.model.language_model.config._attn_implementation = (
        model.network.model.language_model.config._attn_implementation
    )
    return network.eval().requires_grad_(False)


def write_items(folder: Path, count: int, *, seed: int = 5) -> Path:
    """Items about four sounds, whose options always stand in the same order; two share a clip."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    records = []
    for clip in range(count // 2):
        rng = np.random.default_rng([seed, clip])
        answer = CHOICES[clip % 4]
        facts = world.Facts("sound", {"sound": answer})
        scene = world.synthesise(facts, speech.TRAIN_VOICES, rng)
        active = world.active(scene, facts)
        noisy = takes.record(scene.samples, active, takes.draw_take(rng), rng)
        audio = f"audio/{clip}.wav"
        soundfile.write(folder / audio, noisy, SAMPLE_RATE_HZ, subtype="PCM_16")
        records += [_record(f"{clip}-{k}", audio, answer, rng, cued=k == 1) for k in range(2)]
    path = folder / "items.json"
    path.write_text(json.dumps(records))
    return path


def _record(
    name: str, audio: str, answer: str, rng: np.random.Generator, *, cued: bool
) -> dict[str, Any]:
    question = str(rng.choice(questions.QUESTIONS["sound"]))
    wording, cue = "neutral", ""
    if cued:
        cue, suggested = str(rng.choice(list(questions.CUES))), str(rng.choice(CHOICES))
        template = str(rng.choice([c for c in questions.CUES[cue] if "{name}" not in c]))
        question = f"{template.format(x=suggested)} {question}"
        wording = "consistent" if suggested == answer else "conflict"
    return {
        "id": name,
        "audio_id": audio,
        "question": question,
        "choices": list(CHOICES),
        "answer": answer,
        "task": "sound",
        "wording": wording,
        "cue": cue,
    }
