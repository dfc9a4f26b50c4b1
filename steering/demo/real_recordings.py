"""A model on real recordings out of Debian packages, asked as about the synthetic world's clips.

    python -m steering.demo.real_recordings --out build/real

`real_recordings.toml` says what the packages' files hold. Those that are installed are used, the
others named. OUT/items.json is of MMAU's form: `allears evaluate` and `calibrate` read it too.
"""

import argparse
import json
import sys
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from steering.audio.decode import decode
from steering.calibration.activations import build_item_prompt, greedy_answer, load_item_clip
from steering.calibration.data_checks import FILE_LIMITS
from steering.calibration.option_mentions import answered_right
from steering.decision import SteeringRequest, decide, effect_bits
from steering.demo.sound_bundles import recordings_in
from steering.errors import AllEarsError, AudioError, DataError, ProfileError
from steering.generation import UNSTEERED
from steering.heads import listening_score
from steering.items import Item, read
from steering.measures import wilson
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.model.one_thread import one_thread
from steering.prefill import prefill
from steering.profile import Profile, find
from steering.silence import contrast_with_silence, new_silence_cache
from steering.silence_cache import SilenceCache
from steering.synthetic import questions, world
from steering.synthetic.synthesis import SAMPLE_RATE_HZ

PACKAGES: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
DOMAINS = {kind: domain for domain, kind in world.DOMAINS.items()}
LONGEST = int(world.MAX_SECONDS * SAMPLE_RATE_HZ)
WORDINGS = ("neutral", "conflict")
CUE = "medium"


@dataclass(frozen=True, slots=True)
class RealRecording:
    """A recording of a known thing."""

    kind: str  # sound, instrument, word
    value: str
    source: str  # package, and file in it
    data: bytes  # an audio file


@dataclass(frozen=True, slots=True)
class Hearing:
    """The bare answer about a recording, whether it and the steered one are right, and why."""

    id: str
    answer: str
    bare: bool
    adaptive: bool
    score: float
    effect_bits: float


def find_recordings(shares: Path) -> Iterator[RealRecording]:
    """The recordings of the mapped packages below a folder such as /usr/share."""
    for package, mapped in PACKAGES.items():
        folder = shares / str(mapped["folder"])
        for kind in world.SOURCES:
            for value, patterns in mapped.get(kind, {}).items():
                for file, _, inner in (pattern.partition(":") for pattern in patterns):
                    for path in sorted(folder.glob(file)):
                        for name, data in recordings_in(path):
                            if fnmatchcase(name, inner or "*"):
                                source = f"{package}/{path.relative_to(folder)}:{name}"
                                yield RealRecording(kind, value, source, data)


def loudest(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(S,) the 3 s that hold the most energy, in steps of 10 ms; all of a clip that is shorter."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    starts = np.arange(0, max(1, samples.size - LONGEST + 1), SAMPLE_RATE_HZ // 100)
    held = energy[np.minimum(starts + LONGEST, samples.size)] - energy[starts]
    return samples[starts[held.argmax()] :][:LONGEST]


def ask(recording: RealRecording, wording: str, seed: int) -> questions.ClipQuestion:
    """The world's question about a recording: the same whatever else is installed."""
    source = zlib.crc32(recording.source.encode())
    rng = np.random.default_rng([seed, source, WORDINGS.index(wording)])
    facts = world.Facts(DOMAINS[recording.kind], {recording.kind: recording.value})
    while True:
        question = questions.ask(facts, rng, recording.kind, cued=wording != "neutral")
        if question.wording == wording and question.cue in (None, CUE):
            return question


def write_clips(recordings: Sequence[RealRecording], out: Path, seed: int) -> Path:
    """Write the clips and `out`/items.json, with a neutral and a conflict item for each."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for index, recording in enumerate(recordings):
        try:
            clip = decode(recording.data, rate_hz=SAMPLE_RATE_HZ, limits=FILE_LIMITS)
        except AudioError as error:
            raise DataError(f"{recording.source}: {error}") from error
        audio = f"audio/{index:04d}.wav"
        soundfile.write(out / audio, loudest(clip.samples), SAMPLE_RATE_HZ, "FLOAT")
        for wording in WORDINGS:
            asked = ask(recording, wording, seed)
            records.append({
                "id": f"{index:04d}-{wording}", "audio_id": audio, "source": recording.source,
                "question": asked.text, "choices": list(asked.choices), "answer": asked.answer,
                "task": DOMAINS[recording.kind], "sub-category": recording.kind,
                "wording": wording, "cue": asked.cue, "suggested": asked.suggested,
            })  # fmt: skip
    path = out / "items.json"
    path.write_text(json.dumps(records, indent=1) + "\n")
    return path


def hear(model: AudioModel, profile: Profile, item: Item, silences: SilenceCache) -> Hearing:
    """Answer an item bare and by adaptive steering."""
    heads, layers = profile.heads, profile.layers
    with one_thread(model):
        prompt = build_item_prompt(model, item, load_item_clip(model, item))
        heard = prefill(model, prompt, heads=heads, layers=layers)
        twin = contrast_with_silence(
            model, prompt, heard, heads=heads, layers=layers, silence_cache=silences,
            to_readout=True,
        )  # fmt: skip
        assert twin.silent is not None
        effect = effect_bits(model, heard, twin.silent)
        score = listening_score(heard.attention.cpu().numpy())
        request = SteeringRequest(steer=True)
        adaptive = decide(profile, request, score, heard.final, twin.differences).plan
        answers = [greedy_answer(model, heard, plan) for plan in (UNSTEERED, adaptive)]
    lettered = model.prompt_style.lettered
    bare, steered = (answered_right(answer, item, lettered=lettered) for answer in answers)
    return Hearing(item.id, answers[0], bare, steered, score, effect)


def table(items: Sequence[Item], hearings: Sequence[Hearing]) -> list[dict[str, Any]]:
    """A row for each kind of recording and wording: shares right with 95 % intervals, means."""
    rows: list[dict[str, Any]] = []
    for task in (*world.DOMAINS, ""):
        for wording in WORDINGS:
            part = [
                (item, hearing)
                for item, hearing in zip(items, hearings, strict=True)
                if task in ("", item.task) and item.wording == wording
            ]
            if part:
                count, right = len(part), {"bare": 0, "adaptive": 0}
                for arm in right:
                    right[arm] = sum(getattr(hearing, arm) for _, hearing in part)
                rows.append({
                    "recordings": world.DOMAINS.get(task, "all"), "question": wording,
                    "clips": count, "labels": len({item.answer for item, _ in part}),
                    "chance": float(np.mean([1 / len(item.choices) for item, _ in part])),
                    **{arm: (n / count, *wilson(n, count)) for arm, n in right.items()},
                    "score": float(np.mean([hearing.score for _, hearing in part])),
                    "effect, bits": float(np.mean([hearing.effect_bits for _, hearing in part])),
                })  # fmt: skip
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table; shares in percent."""
    cells = [
        [
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * share for share in value))
            if isinstance(value, tuple | list)
            else f"{value:.3g}" if isinstance(value, float) else str(value)
            for value in row.values()
        ]
        for row in rows
    ]  # fmt: skip
    return "\n".join(
        f"| {' | '.join(line)} |" for line in ([*rows[0]], ["---"] * len(rows[0]), *cells)
    )


def report(given: argparse.Namespace) -> str:
    """Collect the recordings, ask about them, and word the result."""
    recordings = list(find_recordings(given.shares))
    missing = sorted(set(PACKAGES) - {each.source.partition("/")[0] for each in recordings})
    advice = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if not recordings:
        raise DataError(f"{given.shares} holds no recordings that are mapped; {advice}")
    if missing:
        print(f"more recordings: {advice}", file=sys.stderr)
    model = load(given.model, device=given.device, dtype=given.dtype)
    profile = find(given.profile, model)
    if profile is None:
        raise ProfileError("the report needs a profile; `none` is for serving only")
    items = read(write_clips(recordings, given.out, given.seed), given.out).items
    silences = new_silence_cache(model, profile.ladder)
    hearings = [hear(model, profile, item, silences) for item in tqdm(items, "listening")]
    rows = table(items, hearings)
    if given.json:
        return json.dumps({"rows": rows, "answers": [asdict(each) for each in hearings]}, indent=1)
    return markdown(rows)


def main() -> None:
    """Command line of the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo", help="`demo`, a hub id, or a folder")
    parser.add_argument("--profile", help="folder or hub id of a profile")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--shares", type=Path, default=Path("/usr/share"))
    parser.add_argument("--out", type=Path, default=Path("build/real"))
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    parser.add_argument("--json", action="store_true", help="print JSON, with every answer")
    try:
        print(report(parser.parse_args()))
    except AllEarsError as error:
        sys.exit(f"real_recordings: {error}")


if __name__ == "__main__":
    main()
