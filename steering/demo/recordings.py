"""Training clips: synthesised once, recorded afresh for every batch."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import Qwen2AudioProcessor

from steering.synthetic import sounds, speech, world

MIX = {"sound": 0.31, "music": 0.35, "speech": 0.28, "noise": 0.04, "silence": 0.02}
MAX_SAMPLES = int(world.MAX_SECONDS * world.SAMPLE_RATE_HZ)


@dataclass(frozen=True, slots=True)
class ClipBank:
    """Clean training sounds and the facts about them."""

    samples: NDArray[np.int16]  # (N, S) full scale 32767, zeros after the end
    lengths: NDArray[np.int64]  # (N,) samples
    facts: list[world.Facts]


def _clean_clip(task: tuple[int, int, str]) -> tuple[NDArray[np.int16], world.Facts]:
    seed, index, domain = task
    rng = np.random.default_rng([seed, 0, index])
    facts = world.draw_facts(rng, domain)
    clean = world.synthesise(facts, speech.TRAIN_VOICES, rng)
    return (clean * 32767).astype(np.int16), facts


def make_clips(folder: Path, count: int, seed: int) -> ClipBank:
    """The clip bank of a seed, made by all cores and kept in `folder`."""
    samples_file, facts_file = folder / "clips.npy", folder / "clips.json"
    if not facts_file.exists():
        domains = np.random.default_rng([seed, 1]).choice(list(MIX), count, p=list(MIX.values()))
        tasks = [(seed, i, str(domain)) for i, domain in enumerate(domains)]
        bank = np.zeros((count, MAX_SAMPLES), np.int16)
        records = []
        with ProcessPoolExecutor() as pool:
            clips = pool.map(_clean_clip, tasks, chunksize=64)
            for i, (samples, facts) in enumerate(tqdm(clips, "clips", count)):
                bank[i, : len(samples)] = samples
                records.append([len(samples), facts.domain, dict(facts.attributes)])
        np.save(samples_file, bank)
        partial = facts_file.with_suffix(".partial")
        partial.write_text(json.dumps(records))
        partial.replace(facts_file)  # last and whole: its being there says that all is
    records = json.loads(facts_file.read_text())
    facts = [world.Facts(domain, attributes) for _, domain, attributes in records]
    lengths = np.array([length for length, *_ in records])
    return ClipBank(np.load(samples_file, mmap_mode="r"), lengths, facts)


def record_clips(
    bank: ClipBank, indices: Sequence[int], processor: Qwen2AudioProcessor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Clips recorded afresh: log-mels (B, 64, 300), mel frames (B,), trust (B,) in [0, 1]."""
    trusts = rng.random(len(indices))
    recorded = []
    for i, trust in zip(indices, trusts, strict=True):
        clean = bank.samples[i, : bank.lengths[i]].astype(np.float32) / np.float32(32767)
        background = sounds.noise(rng)
        recorded.append(world.record(clean, background, world.draw_snr_db(rng), float(trust)))
    features = processor.feature_extractor(
        recorded,
        sampling_rate=world.SAMPLE_RATE_HZ,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    return features["input_features"], features["attention_mask"].sum(-1), trusts
