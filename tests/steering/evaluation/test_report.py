from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steering.evaluation.evaluate import evaluate
from steering.evaluation.report import breakable, choice_matters, headline, pick_examples, signed
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from tests.steering.evaluation.judging import item, profile_of
from tests.steering.examples import write_items

HOSTILE = '<script>alert("x")</script> & $5^2$'


class Page(HTMLParser):
    """Images, links and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action")]


@pytest.fixture(scope="module")
def folder(grouped: AudioModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report about hostile items of all wordings."""
    root = tmp_path_factory.mktemp("report")
    data = write_items(root, 6)
    records: list[dict[str, Any]] = json.loads(data.read_text())
    for i, record in enumerate(records):
        record["question"] = f"{HOSTILE} Which?"
        record["task"] = f"{HOSTILE}{i % 2}"
        record["wording"] = ("neutral", "consistent", "conflict")[i % 3]
        record["cue"] = None if i % 3 == 0 else "weak"
        record["events"] = [[0.0, 0.2]]
    data.write_text(json.dumps(records))
    evaluate(grouped, profile_of(grouped), data, root, root / "out", mode="choices")
    return root / "out"


def test_the_report_is_one_file_that_asks_for_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.images
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text


def test_every_figure_has_words_and_a_file(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert all(len(str(image["alt"])) > 30 for image in page.images)
    embedded = {base64.b64decode(str(image["src"]).partition(",")[2]) for image in page.images}
    files = {path.read_bytes() for path in (folder / "figures").glob("*.png")}
    assert embedded == files
    assert all(picture.startswith(b"\x89PNG") for picture in embedded)
    assert {"gains.png", "scores.png", "parts.png", "strengths.png", "random.png"} <= {
        path.name for path in (folder / "figures").iterdir()
    }


def test_what_users_wrote_is_text(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_every_arm_is_in_the_table(folder: Path) -> None:
    text = (folder / "report.html").read_text().replace("<wbr>", "")
    arms = json.loads((folder / "results.json").read_text())["arms"]
    assert "oracle_fixed_natural" in arms
    assert all(f'<th scope="row">{arm}<small>' in text for arm in arms)


def test_meters_and_events_have_their_tables(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "more than a volume meter?" in text and "peak level" in text
    line = json.loads((folder / "results.json").read_text())["timeline"]
    assert line["words"] in text.replace("&#39;", "'")


# ---- words


def results(gain: list[float]) -> dict[str, Any]:
    bare = {"right_percent": 50.0}
    adaptive = {"right_percent": 50.0 + gain[0], "gain_over_bare": gain}
    return {"data": {"items": 200}, "arms": {"bare": bare, "adaptive": adaptive}}


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ([9.0, 5.0, 13.0], "a gain of 9.0 points (95 % interval +5.0 to +13.0)"),
        ([-9.0, -13.0, -5.0], "a loss of 9.0 points"),
        ([1.0, -1.0, 3.0], "no certain change"),
        ([0.0, 0.0, 0.0], "no certain change"),
    ],
)
def test_the_headline_says_what_was_found(
    grouped: AudioModel, gain: list[float], words: str
) -> None:
    assert words in headline(results(gain), profile_of(grouped))


def test_a_profile_that_refuses_to_steer_is_said_to(grouped: AudioModel) -> None:
    profile = profile_of(grouped)
    gate = replace(profile.gate, max_strength=0.0)
    refusing: Profile = replace(profile, gate=gate, fixed_strength=0.0)
    assert "does not steer" in headline(results([0.0, 0.0, 0.0]), refusing)


@pytest.mark.parametrize(
    ("above", "verdict"), [(1.0, "yes"), (0.95, "yes"), (0.7, "not shown"), (0.0, "no")]
)
def test_whether_the_choice_matters_is_answered_whichever_way_it_falls(
    above: float, verdict: str
) -> None:
    sets = {
        "sets": 24,
        "all": {
            "chosen_percent": 70.0,
            "mean_percent": 60.0,
            "sd_percent": 5.0,
            "chosen_above_share": above,
        },
    }
    score = {"auroc": 0.9, "above_random_share": above, "random_mean": 0.6, "random_sd": 0.1}
    sentences = choice_matters(
        {
            "listening": {"right_wrong_within_wording": score},
            "first_tokens": {"random_heads": sets, "random_layers": sets},
        }
    )
    assert len(sentences) == 3
    assert all(f": {verdict}. " in sentence for sentence in sentences)
    only = choice_matters(
        {
            "listening": {"right_wrong_within_wording": {**score, "above_random_share": None}},
            "first_tokens": {"reason": "no item's right answer is one token"},
        }
    )
    assert "not measurable" in only[0]
    assert "one token" in only[1]


def test_examples_are_of_unlike_tasks() -> None:
    items = [item(f"{i}", task=("sound", "sound", "music", "speech")[i % 4]) for i in range(12)]
    right = {"bare": np.zeros(12, bool), "adaptive": np.ones(12, bool)}
    right["bare"][0], right["adaptive"][0] = True, False
    examples = pick_examples(items, right)
    assert examples["broken"] == [0]
    assert {items[i].task for i in examples["repaired"]} == {"sound", "music", "speech"}


def test_points_are_signed() -> None:
    assert [signed(x) for x in (1.25, -0.04, 0.0, -3.0)] == [
        "+1.2",
        "0.0",
        "0.0",
        "\N{MINUS SIGN}3.0",
    ]


def test_names_break_after_underscores_and_stay_text() -> None:
    assert str(breakable("a_b")) == "a_<wbr>b"
    assert str(breakable("<i>_b")) == "&lt;i&gt;_<wbr>b"
