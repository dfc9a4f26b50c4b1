"""Synthetic items from a seed: `allears demo-data`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from steering.synthetic import questions, speech, takes, world
from steering.synthetic.questions import ClipQuestion

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
    open_answers: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a number of items and their WAV files; returns the path of `out`/items.json, in MMAU's
    schema.

    Half of the items are neutral, half carry a cue, uniform over the four options. Two items share
    a clip. With `open_answers` none has options: the answer is a sentence, `facts` lists what it
    says and whether that can be heard, and no text suggests anything. The same split, seed and
    count give the same bytes; items.json comes last and whole.
    `progress` is called with the clips made and all clips.
    """
    folder = out / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    clips = -(-count // ITEMS_A_CLIP)
    for index in tqdm(range(clips), "clips", disable=None):
        rng = np.random.default_rng([SPLITS[split], seed, index])
        audio_id = f"audio/{split}-{seed}-{index:05d}.wav"
        clip = _write_clip(out / audio_id, split, index, rng)
        for k in range(min(ITEMS_A_CLIP, count - len(records))):
            question = _ask(clip.facts, rng, unseen_wordings, open_answers)
            records.append(_record(f"{split}-{seed}-{index:05d}-{k}", audio_id, clip, question))
        if progress:
            progress(index + 1, clips)
    path = out / "items.json"
    partial = out / ".items.json.partial"
    partial.write_text(json.dumps(records, indent=1) + "\n")
    partial.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class WrittenClip:
    """A clip as it was recorded."""

    facts: world.Facts
    events: tuple[tuple[float, float], ...]  # seconds
    take: takes.Take


def _write_clip(path: Path, split: str, index: int, rng: np.random.Generator) -> WrittenClip:
    """Record a clip to a 16-bit WAV file."""
    import soundfile  # here: the server imports this module and needs no such library

    voices = speech.TEST_VOICES if split == UNSEEN_VOICES else speech.TRAIN_VOICES
    facts = world.draw_facts(rng, DOMAINS[index % len(DOMAINS)])
    scene = world.synthesise(facts, voices, rng)
    take = takes.draw_take(rng)
    clip = takes.record(scene.samples, world.active(scene, facts), take, rng)
    soundfile.write(path, clip, world.SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    seconds = tuple(
        (round(a / world.SAMPLE_RATE_HZ, 3), round(b / world.SAMPLE_RATE_HZ, 3))
        for a, b in scene.events
    )
    return WrittenClip(facts, seconds, take)


def _ask(
    facts: world.Facts, rng: np.random.Generator, unseen: bool, open_answers: bool
) -> ClipQuestion:
    if open_answers:
        asked = questions.UNSEEN_DESCRIBE_QUESTIONS if unseen else questions.DESCRIBE_QUESTIONS
        return questions.ask_openly(facts, rng, asked, cued=False, sentence=True)
    return questions.ask(facts, rng, cues=questions.UNSEEN_CUES if unseen else questions.CUES)


def _record(
    name: str, audio_id: str, clip: WrittenClip, question: ClipQuestion
) -> dict[str, Any]:
    facts, clarity = clip.facts, clip.take.clarity
    source = facts.source(question.attribute)
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
        "familiarity": round(world.FAMILIARITY.get(source, 0.5), 4),
        "clarity": round(clarity, 4),
        "level_dbfs": round(clip.take.level_dbfs, 2),
        "alike": bool(
            question.rival and world.are_alike(facts, question.answer, question.rival)
        ),
        "events": [list(bounds) for bounds in clip.events],
        "facts": [
            {"attribute": attribute, "text": value, "audible": attribute in facts.audible}
            for attribute, value in facts.attributes.items()
        ],
    }
