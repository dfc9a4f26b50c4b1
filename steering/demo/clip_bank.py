"""The training clips: synthesised once, recorded afresh for every batch."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import Qwen2AudioProcessor

from steering.synthetic import speech, takes, world
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng

MIX = {"sound": 0.30, "music": 0.31, "speech": 0.29, "noise": 0.05, "silence": 0.05}
MAX_SAMPLES = int(world.MAX_SECONDS * SAMPLE_RATE_HZ)
FULL_SCALE = 32767
MAX_EVENTS = 2
PAIR_SHARE = 0.45  # of the bank's clips: the encoder learns from every event
EASY_SNR_DB = 25.0  # at least, at the very beginning of the training
SAMPLES_FILE, FACTS_FILE = "clips.npy", "clips.json"
TRAINING_VOICES = speech.TRAIN_VOICES + speech.EXTRA_TRAIN_VOICES


@dataclass(frozen=True, slots=True)
class ClipBank:
    """Clean training clips, N of them with up to E events, and the facts about them."""

    samples: NDArray[np.int16]  # (N, S) peak at FULL_SCALE, zeros after the end
    lengths: NDArray[np.int64]  # (N,) samples
    events: NDArray[np.int64]  # (N, E, 2) first sample and the one after the last; -1 for none
    facts: list[world.Facts]
    shares: NDArray[np.float64]  # (N,) of the questions: rare sources and two events less

    def scene(self, index: int) -> world.Scene:
        """A clean clip of the bank."""
        clean = self.samples[index, : self.lengths[index]].astype(np.float32) / np.float32(
            FULL_SCALE
        )
        events = tuple((int(a), int(b)) for a, b in self.events[index] if a >= 0)
        return world.Scene(clean, events)


@dataclass(frozen=True, slots=True)
class RecordedClips:
    """Clips as a batch hears them."""

    log_mels: Tensor  # (B, 64, 300) float32
    mel_frames: Tensor  # (B,) int64, before the padding
    clarity: NDArray[np.float64]  # (B,) in [0, 1]


def _clean_clip(task: tuple[int, int, str]) -> tuple[world.Scene, world.Facts]:
    seed, index, domain = task
    rng = np.random.default_rng([seed, 0, index])
    facts = world.draw_facts(rng, domain, PAIR_SHARE)
    return world.synthesise(facts, TRAINING_VOICES, rng), facts


def make_clips(folder: Path, count: int, seed: int) -> ClipBank:
    """The clip bank of a seed, made by all cores and kept in `folder`.

    Raises:
        RuntimeError: A voice's synthesiser is not installed.
    """
    if not (folder / FACTS_FILE).exists():
        speech.require_synthesisers(TRAINING_VOICES)
        domains = np.random.default_rng([seed, 1]).choice(list(MIX), count, p=list(MIX.values()))
        tasks = [(seed, i, str(domain)) for i, domain in enumerate(domains)]
        with ProcessPoolExecutor() as pool:
            clips = pool.map(_clean_clip, tasks, chunksize=64)
            write_clips(folder, tqdm(clips, "clips", count), count)
    return _read_clips(folder)


def write_clips(folder: Path, clips: Iterable[tuple[world.Scene, world.Facts]], count: int) -> None:
    """Keep so many clean clips in `folder`."""
    samples = np.zeros((count, MAX_SAMPLES), np.int16)
    records: list[dict[str, Any]] = []
    for row, (scene, facts) in zip(samples, clips, strict=True):
        size = scene.samples.size
        row[:size] = (scene.samples * FULL_SCALE).astype(np.int16)
        records.append({"samples": size, "events": scene.events, "facts": asdict(facts)})
    np.save(folder / SAMPLES_FILE, samples)
    partial = folder / f"{FACTS_FILE}.partial"
    partial.write_text(json.dumps(records))
    partial.replace(folder / FACTS_FILE)  # last and whole: its being there says that all is


def _read_clips(folder: Path) -> ClipBank:
    records = json.loads((folder / FACTS_FILE).read_text())
    facts = [world.Facts(**record["facts"]) for record in records]
    events = np.full((len(records), MAX_EVENTS, 2), -1)
    for i, record in enumerate(records):
        for k, bounds in enumerate(record["events"]):
            events[i, k] = bounds
    shares = np.array([_share(clip_facts) for clip_facts in facts])
    return ClipBank(
        np.load(folder / SAMPLES_FILE, mmap_mode="r"),
        np.array([record["samples"] for record in records]),
        events,
        facts,
        shares / shares.sum(),
    )


def _share(facts: world.Facts) -> float:
    """How often a clip is asked about: more where it is familiar, half where it has two events."""
    values = facts.attributes.values()
    familiar = [world.FAMILIARITY[value] for value in values if value in world.FAMILIARITY]
    share = 1.0 + 2.0 * float(np.mean(familiar or [0.5]))
    return share / 2 if "first" in facts.attributes else share


def record_clips(
    bank: ClipBank,
    indices: Sequence[int],
    processor: Qwen2AudioProcessor,
    rng: Rng,
    ease: float = 0.0,
) -> RecordedClips:
    """Clips recorded afresh, each in its own room, on its own microphone, at its own level.

    At an `ease` of 1 no background is louder than 25 dB below the events, at 0 it is as drawn.
    """
    recorded, clarity = [], []
    for index in indices:
        scene, take = bank.scene(index), takes.draw_take(rng)
        if ease > 0:
            take = replace(take, snr_db=max(take.snr_db, EASY_SNR_DB * ease))
        active = world.active(scene, bank.facts[index])
        recorded.append(takes.record(scene.samples, active, take, rng))
        clarity.append(take.clarity)
    features = processor.feature_extractor(
        recorded,
        sampling_rate=SAMPLE_RATE_HZ,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    frames = features["attention_mask"].sum(-1)
    return RecordedClips(features["input_features"], frames, np.array(clarity))


def event_tokens(bank: ClipBank, indices: Sequence[int]) -> Tensor:
    """(B, E, F) bool: the audio tokens in which each event sounds, 40 ms each."""
    samples_a_token = SAMPLE_RATE_HZ / world.AUDIO_TOKENS_A_SECOND
    bounds = torch.from_numpy(bank.events[list(indices)]) / samples_a_token
    middles = torch.arange(world.AUDIO_TOKENS) + 0.5
    return (middles >= bounds[..., :1].floor()) & (middles <= bounds[..., 1:].ceil())
