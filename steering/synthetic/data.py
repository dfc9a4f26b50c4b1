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
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng

SPLITS = {"train": 1, "calibration": 2, "test": 3}  # number: the split's own stream of randomness
DOMAINS = tuple(world.DOMAINS)  # in turn, clip by clip
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
    """Write items, two a clip, and their WAV files; the same arguments give the same bytes.

    Half of the items are neutral, half carry a cue, uniform over the four options. `facts` of an
    item lists what its clip holds and whether that can be heard, `events` where, in seconds.

    Args:
        out: folder for items.json, which comes last and whole, and audio/.
        split: a key of SPLITS; no training clip has the voices of "test".
        count: items.
        seed: any number from 0.
        unseen_wordings: cues, or questions of open items, in words that training never used.
        open_answers: no item has options or a cue, the answer is a sentence.
        progress: called with the clips made and all clips.

    Returns:
        The path of items.json, in MMAU's schema.
    """
    folder = out / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    clips = -(-count // ITEMS_A_CLIP)
    for index in tqdm(range(clips), "clips", disable=None):
        rng = np.random.default_rng([SPLITS[split], seed, index])
        name = f"{split}-{seed}-{index:05d}"
        clip = _write_clip(folder / f"{name}.wav", split, index, rng)
        for k in range(min(ITEMS_A_CLIP, count - len(records))):
            question = _ask(clip.facts, rng, unseen_wordings, open_answers)
            names = {"id": f"{name}-{k}", "audio_id": f"audio/{name}.wav", "split": split}
            records.append(names | _record(clip, question))
        if progress:
            progress(index + 1, clips)
    path = out / "items.json"
    partial = out / ".items.json.partial"
    partial.write_text(json.dumps(records, indent=1) + "\n")
    partial.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class WrittenClip:
    """A clip of the items, and how it was recorded."""

    facts: world.Facts
    events: tuple[tuple[float, float], ...]  # first and last second of each
    take: takes.Take


def _write_clip(path: Path, split: str, index: int, rng: Rng) -> WrittenClip:
    """Record a clip to a 16-bit WAV file."""
    import soundfile  # here: the server imports this module and needs no such library

    voices = speech.TEST_VOICES if split == UNSEEN_VOICES else speech.TRAIN_VOICES
    facts = world.draw_facts(rng, DOMAINS[index % len(DOMAINS)])
    scene = world.synthesise(facts, voices, rng)
    take = takes.draw_take(rng)
    clip = takes.record(scene.samples, world.active(scene, facts), take, rng)
    soundfile.write(path, clip, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    events = tuple(
        (round(start / SAMPLE_RATE_HZ, 3), round(stop / SAMPLE_RATE_HZ, 3))
        for start, stop in scene.events
    )
    return WrittenClip(facts, events, take)


def _ask(facts: world.Facts, rng: Rng, unseen_wordings: bool, open_answers: bool) -> ClipQuestion:
    cues = questions.UNSEEN_CUES if unseen_wordings else questions.CUES
    if open_answers:
        asked = (
            questions.UNSEEN_DESCRIBE_QUESTIONS if unseen_wordings else questions.DESCRIBE_QUESTIONS
        )
        return questions.ask_openly(facts, rng, asked, cued=False, sentence=True)
    return questions.ask(facts, rng, cues=cues)


def _record(clip: WrittenClip, question: ClipQuestion) -> dict[str, Any]:
    """An item but for its names."""
    facts, take = clip.facts, clip.take
    source = facts.source(question.attribute)
    alike = question.rival != "" and world.are_alike(facts, question.answer, question.rival)
    return {
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "dataset": "allears-demo",
        "task": facts.domain,
        "category": "perception",
        "sub-category": question.attribute,
        "difficulty": "easy" if question.wording != "conflict" else "hard",
        "wording": question.wording,
        "cue": question.cue,
        "suggested": question.suggested,
        "familiarity": round(world.FAMILIARITY.get(source, 0.5), 4),
        "clarity": round(take.clarity, 4),
        "level_dbfs": round(take.level_dbfs, 2),
        "alike": alike,
        "events": [list(bounds) for bounds in clip.events],
        "facts": [
            {"attribute": attribute, "text": value, "audible": attribute in facts.audible}
            for attribute, value in facts.attributes.items()
        ],
    }
