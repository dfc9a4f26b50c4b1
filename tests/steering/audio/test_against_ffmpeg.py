"""Heard lengths against an independent decoder: ffmpeg, which need not be right.

Nothing may be lost in silence: a clip is as long as ffmpeg's, or longer, or says what it left out;
or the file is refused, and that is true. The counts of a run are in docs/reliability.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.errors import AudioError, UnsupportedAudio
from tests.steering.audio.generated_files import (
    FAULTS,
    HEADER_FAULTS,
    SECONDS,
    Sample,
    whole_files,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

AT_ONCE = 24  # files that one ffmpeg decodes
TOLERANCE_SECONDS = 0.05
PADDING_SECONDS = 0.2  # that encoders add
DAMAGING = ("cut short", "a hole", "overwritten")
RESULTS = ("same", "longer", "told", "refused", "lost")
Counts = dict[str, Counter[str]]
ROWS = {  # of the table, and the kinds and faults in each
    "WAV, RF64, W64": ("WAV", "WAV, other codecs", "WAV to a pipe", "RF64", "W64"),
    "AIFF, AU, CAF": ("AIFF", "AU", "CAF"),
    "FLAC, also in OGG": ("FLAC", "FLAC to a pipe", "FLAC in OGG"),
    "Vorbis, Opus": ("Vorbis", "Opus"),
    "MP3, MP2": ("MP3, CBR", "MP3, VBR", "MP3, no Xing", "MP2"),
    "M4A, MP4, AAC, WebM": ("M4A", "MP4, MOV, 3GP", "WebM", "Matroska", "AAC"),
    "other codecs": ("WAV, unsupported", "OGG, unsupported", "others, unsupported"),
    "damaged": DAMAGING,
    "tags, zeros, noise": (
        "behind an ID3 tag",
        "behind marks in a tag",
        "zeros behind",
        "ID3v1 behind",
        "noise behind",
    ),
    "two in one": ("twice",),
    "wrong sizes": tuple(fault for fault in HEADER_FAULTS if "size" in fault),
    "wrong lengths": (
        "AIFF of a wrong count",
        "FLAC of unknown length",
        "FLAC of a wrong length",
        "MP3 of a wrong count",
    ),
    "MP3 joined late": ("MP3 joined in the middle", "MP3 behind a tag and zeros"),
    "OGG positions, pages": tuple(f for f in HEADER_FAULTS if f.startswith("OGG")),
}


def ffmpeg_seconds(files: Sequence[Path]) -> list[float]:
    """The lengths of what ffmpeg decodes, 0 for what it refuses.

    ffmpeg starts for longer than it decodes, so it gets many files; where it stops, half of them.
    """
    words, decoded = ["ffmpeg", "-v", "quiet", "-y"], [Path(f"{file}.raw") for file in files]
    for file in files:
        words += ["-i", str(file)]
    for number, raw in enumerate(decoded):
        words += ["-map", f"{number}:a:0", "-ac", "1", "-ar", "16000", "-f", "s16le", str(raw)]
    done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL)
    if done.returncode and len(files) > 1:
        half = len(files) // 2
        return ffmpeg_seconds(files[:half]) + ffmpeg_seconds(files[half:])
    return [raw.stat().st_size / 2 / 16_000 if raw.is_file() else 0.0 for raw in decoded]


def all_ffmpeg_seconds(samples: Sequence[Sample], folder: Path) -> Iterator[float]:
    for first in range(0, len(samples), AT_ONCE):
        files = []
        for number, sample in enumerate(samples[first : first + AT_ONCE], first):
            files.append(folder / f"compared {number}")
            files[-1].write_bytes(sample.data)
        yield from ffmpeg_seconds(files)


def compared(sample: Sample, fault: str, theirs: float) -> tuple[str, str]:
    """One of RESULTS, and what was seen."""
    try:
        clip = decode(sample.data, rate_hz=16_000, limits=AudioLimits(max_seconds=60.0))
    except AudioError as error:
        return ("refused" if is_true(error, sample, fault) else "lost"), str(error)
    ours, seen = clip.submitted_seconds, f"{clip.submitted_seconds:.3f} s of {theirs:.3f} s"
    if clip.warnings:
        return "told", f"{seen}: {clip.warnings}"
    if ours > theirs + TOLERANCE_SECONDS:
        too_long = fault != "twice" and ours > SECONDS + PADDING_SECONDS
        return ("lost" if too_long else "longer"), seen
    sound = theirs if fault in ("", "twice") else min(theirs, SECONDS)  # not zeros and the like
    return ("lost" if ours < sound - TOLERANCE_SECONDS else "same"), seen


def is_true(error: AudioError, sample: Sample, fault: str) -> bool:
    """Whether a refusal is for what is wrong with the file."""
    if sample.refusable:
        return isinstance(error, UnsupportedAudio) and "not supported" in str(error)
    if fault in DAMAGING:
        return re.search("damaged|cut short|not finite|missing", str(error)) is not None
    return "wrong size" in fault and re.search("damaged|were not read", str(error)) is not None


def faulty_files(whole: list[Sample]) -> Iterator[tuple[str, Sample]]:
    """Each fault, done to a file of each kind that can have it."""
    rng = np.random.default_rng(1)
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in whole:
        if not sample.refusable:
            by_kind[sample.kind].append(sample)
    plan = [(fault, kind, change) for fault, change in FAULTS.items() for kind in by_kind]
    for fault, (kinds, change) in HEADER_FAULTS.items():
        plan += [(fault, kind, change) for kind in kinds for _ in range(3)]
    for fault, kind, change in plan:
        sample = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
        yield fault, sample._replace(data=change(sample.data, rng))


def table(counts: Counts) -> str:
    """The counts by rows of several kinds, for docs/reliability.md."""
    rows = {row: sum((counts[kind] for kind in kinds), Counter()) for row, kinds in ROWS.items()}
    rows["all"] = sum(rows.values(), Counter())
    lines = [f"|file|{'|'.join(RESULTS)}|", "|---|" + "---:|" * len(RESULTS)]
    for row, results in rows.items():
        lines.append(f"|{row}|{'|'.join(str(results[result]) for result in RESULTS)}|")
    return "\n".join(lines)


def test_nothing_is_lost_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is missing; .ci/run installs it")
    counts: Counts = defaultdict(Counter)
    lost = []
    whole = list(whole_files(tmp_path))
    files = [*(("", sample) for sample in whole), *faulty_files(whole)]
    lengths = all_ffmpeg_seconds([sample for _, sample in files], tmp_path)
    for (fault, sample), theirs in zip(files, lengths, strict=True):
        result, seen = compared(sample, fault, theirs)
        counts[fault or sample.kind][result] += 1
        if result == "lost":
            lost.append(f"{fault} {sample.name}: {seen}")
    assert {kind for kinds in ROWS.values() for kind in kinds} == set(counts)
    with capsys.disabled():
        print(f"\n{table(counts)}")
    assert sum(sum(results.values()) for results in counts.values()) > 500
    assert not lost
    refused = {kind for kind, results in counts.items() if results["refused"]}
    unsupported = {sample.kind for sample in whole if sample.refusable}
    assert refused <= unsupported | set(DAMAGING) | {f for f in HEADER_FAULTS if "size" in f}
