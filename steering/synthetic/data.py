"""Synthetic items from a seed: `allears demo-data`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from steering.synthetic import sounds, speech, world

SPLITS = {"train": 1, "calibration": 2, "test": 3}  # number: the split's own stream of randomness
DOMAINS = ("sound", "music", "speech")
ITEMS_A_CLIP = 2
UNSEEN_VOICES = "test"  # the split whose voices no training clip has


def write_items(
    out: Path,
    *,
    split: str,
    count: int,
    seed: int,
    unseen_wordings: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a number of items and their WAV files; returns the path of `out`/items.json, in MMAU's
    schema.

    Half of the items are neutral, half carry a cue, uniform over the four options. Two items share
    a clip. The same split, seed and count give the same bytes; items.json comes last and whole.
    `progress` is called with the clips made and all clips.
    """
    folder = out / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    clips = -(-count // ITEMS_A_CLIP)
    for index in tqdm(range(clips), "clips", disable=None):
        rng = np.random.default_rng([SPLITS[split], seed, index])
        audio_id = f"audio/{split}-{seed}-{index:05d}.wav"
        facts, trust = _write_clip(out / audio_id, split, index, rng)
        for k in range(min(ITEMS_A_CLIP, count - len(records))):
            cues = world.UNSEEN_CUES if unseen_wordings else world.CUES
            question = world.ask(facts, rng, cues=cues)
            records.append(
                _record(f"{split}-{seed}-{index:05d}-{k}", audio_id, facts, question, trust)
            )
        if progress:
            progress(index + 1, clips)
    path = out / "items.json"
    partial = out / ".items.json.partial"
    partial.write_text(json.dumps(records, indent=1) + "\n")
    partial.replace(path)
    return path


def _write_clip(
    path: Path, split: str, index: int, rng: np.random.Generator
) -> tuple[world.Facts, float]:
    """Record a clip to a 16-bit WAV file; returns its facts and trust."""
    import soundfile  # here: the server imports this module and needs no such library

    voices = speech.TEST_VOICES if split == UNSEEN_VOICES else speech.TRAIN_VOICES
    facts = world.draw_facts(rng, DOMAINS[index % len(DOMAINS)])
    clean = world.synthesise(facts, voices, rng)
    trust = float(rng.random())
    clip = world.record(clean, sounds.noise(rng), world.draw_snr_db(rng), trust)
    soundfile.write(path, clip, world.SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    return facts, trust


def _record(
    name: str, audio_id: str, facts: world.Facts, question: world.ClipQuestion, trust: float
) -> dict[str, Any]:
    return {
        "id": name,
        "audio_id": audio_id,
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "dataset": "allears-demo",
        "task": facts.domain,
        "split": name.split("-")[0],
        "category": "perception",
        "sub-category": question.attribute,
        "difficulty": "easy" if question.wording != "conflict" else "hard",
        "wording": question.wording,
        "cue": question.cue,
        "suggested": question.suggested,
        "trust": round(trust, 4),
    }
