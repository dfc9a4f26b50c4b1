"""Which of three clips decided, and a minute in windows, on the embedded model over HTTP."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from server.app import create_app
from server.loading import load_runtime
from server.settings import Settings
from steering.items import Item, read
from steering.synthetic.data import DOMAINS, write_items
from tests.server.conftest import Server

pytestmark = pytest.mark.slow

ASKED = 50
SEED = 4_711


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    settings = Settings(device="cpu")
    with Server(create_app(settings, load_runtime(settings, print))).started() as server:
        yield server


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Item]]:
    """Fresh neutral items of each domain about clips of one event: the sound alone answers them."""
    folder = tmp_path_factory.mktemp("items")
    every_item = read(write_items(folder, split="test", count=300, seed=SEED), folder).items
    plain = [i for i in every_item if i.wording == "neutral" and len(i.record["events"]) == 1]
    neutral = [i for i in plain if i.record["sub-category"] != "count"]  # of which clip?
    return {domain: [i for i in neutral if i.task == domain] for domain in DOMAINS}


def encoded(path: Path) -> dict[str, str]:
    return {"data": base64.b64encode(path.read_bytes()).decode()}


def test_the_clip_that_the_question_is_about_ranks_first(
    demo: Server, items: dict[str, list[Item]]
) -> None:
    """One clip of each domain, in every order; the question is about one of them."""
    first, right, alone, places = 0, 0, 0, Counter[int]()
    rng = np.random.default_rng(0)
    for k in range(ASKED):
        domain, place = DOMAINS[k % 3], (k // 3) % 3
        drawn = {d: items[d][int(rng.integers(len(items[d])))] for d in DOMAINS}
        others = [drawn[d] for d in DOMAINS if d != domain]
        rng.shuffle(others)
        order = [*others[:place], drawn[domain], *others[place:]]
        response = demo.chat(
            audio=[encoded(item.audio) for item in order],
            question=drawn[domain].question,
            choices=drawn[domain].choices,
            include=["clips"],
        )
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        clips = body["listening"]["clips"]
        assert len(clips) == 3
        assert all(0 <= clip["score"] <= 1 for clip in clips)
        decisive = clips[place]["rank"] == 1
        first += decisive
        places[place] += decisive
        right += body["answer"] == drawn[domain].answer
        alone += decisive and body["answer"] == drawn[domain].answer
    print(
        f"decisive clip first {first}/{ASKED} {dict(places)}, answers right {right}, both {alone}"
    )
    assert first >= 0.85 * ASKED
    assert alone >= 0.85 * right
    assert min(places.values()) >= 8, "in every place"


def test_a_minute_is_heard_where_something_sounds(
    demo: Server, items: dict[str, list[Item]]
) -> None:
    """60 s of faint noise with one spoken word in it: that window's answer counts."""
    item = next(i for i in items["speech"] if "word" in i.question)
    sound, rate_hz = soundfile.read(item.audio, dtype="float32")
    minute = (np.random.default_rng(1).standard_normal(60 * rate_hz) * 0.001).astype(np.float32)
    minute[30 * rate_hz : 30 * rate_hz + len(sound)] = sound
    file = io.BytesIO()
    soundfile.write(file, minute, rate_hz, format="WAV")
    audio = {"data": base64.b64encode(file.getvalue()).decode()}
    cut = demo.chat(audio=audio, question=item.question, choices=item.choices).json()
    assert cut["audio"][0]["truncated"]
    assert cut["audio"][0]["heard_seconds"] == 3
    response = demo.chat(
        audio=audio, question=item.question, choices=item.choices, long_audio="window"
    )
    assert response.status_code == 200, response.text
    body = response.json()
    whole = [w for w in body["windows"] if w["start_seconds"] <= 30 <= 30.5 <= w["end_seconds"]]
    print(len(body["windows"]), body["answer"], item.answer, [w["answer"] for w in whole])
    assert item.answer in {window["answer"] for window in whole}
    assert body["windows"][-1]["end_seconds"] == 60
    assert body["audio"][0]["heard_seconds"] == 60
