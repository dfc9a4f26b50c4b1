"""docs/capacity.md is made from its figures; what they are made by runs, against a real server."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.capacity import comparison, measurements, stages, trial
from deploy.capacity.card import Host, Replica, Shares, replica
from deploy.capacity.costs import Shape
from deploy.capacity.markdown import table
from deploy.capacity.page import STAGES, TABLES, filled
from deploy.capacity.simulation import SimulatedReplicas, simulate
from deploy.capacity.traffic import Traffic, figures, requests
from server.bench.models import REAL, BenchModel, bench_model, random_model
from steering.profile import DEMO_PROFILE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PAGE, FIGURES = ROOT / "docs" / "capacity.md", ROOT / "docs" / "capacity.json"


@pytest.fixture(scope="module")
def demo() -> BenchModel:
    return bench_model("demo", torch.device("cpu"))


@pytest.fixture(scope="module")
def card() -> Replica:
    """The true sizes on an H100."""
    model = random_model("real", REAL, torch.device("meta"), torch.bfloat16)
    host = Host(
        {30.0: [0.003]}, {30.0: [0.001]}, {30.0: [0.016]}, layer_seconds=1e-4, row_seconds=0.0
    )
    return replica(Shape.of(model, 21), host, (20, 57), Shares())


def test_the_page_is_made_from_its_figures() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"<!-- made: (\w+) -->", page)) == set(TABLES)
    assert filled(page, json.loads(FIGURES.read_text())) == page
    assert PAGE.with_suffix(".png").stat().st_size < 100_000


def test_a_block_is_made_anew_and_the_text_around_it_stays() -> None:
    results = json.loads(FIGURES.read_text())
    page = "before\n<!-- made: shares -->\nold | text\n<!-- end -->\nafter\n"
    made = filled(page, results)
    assert made.startswith("before\n<!-- made: shares -->\nWith 0.35") and "old" not in made
    assert made.endswith("\n<!-- end -->\nafter\n")
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_every_stage_of_a_model_is_measured(demo: BenchModel) -> None:
    found = stages.measure(demo, (1.0,), 2)
    assert {stage for stage, _ in STAGES} < found["stages"].keys()
    for name, samples in found["stages"].items():
        assert samples["cpu"].keys() == samples["wall"].keys(), name
        assert all(one > 0 for each in samples["cpu"].values() for one in each), name
    took = {name: np.min(samples["cpu"].get("1", 0)) for name, samples in found["stages"].items()}
    assert took["twin hit"] < took["twin cold"] < took["enter cold"]
    assert took["encoder"] < took["prefill"] <= took["enter bare"] < took["enter hit"]
    assert np.median(found["stages"]["step"]["cpu"]["16"]) > took["step"]
    shape, sizes = Shape(**found["shape"]), found["prompts"]["1"]
    silence = shape.entry_bytes(sizes["prefix"]) + shape.feature_bytes(sizes["audio"])
    row = shape.row_bytes(sizes["tokens"])
    assert found["kept_bytes"] == {"1": {"silence": silence, "row": row}}
    assert measurements.layer_seconds(found) > 0


def test_a_real_server_hits_what_the_simulation_hits(demo: BenchModel) -> None:
    """Which silences are at hand depends on the order of requests alone."""
    traffic = Traffic(2.0, (1.8, 2.4, 3.0), (2, 5), steered=0.7)
    asked = [replace(one, at=0.7 * i) for i, one in enumerate(requests(traffic, 6, 0))]
    cache = 2_000_000  # two of the three
    words = ["--silence-cache-bytes", str(cache)]
    outcomes, strain = trial.run(demo, DEMO_PROFILE, asked, *words)
    model = json.loads(FIGURES.read_text())["models"]["demo"]
    course = simulate(
        asked, measurements.cpu_stages(model), SimulatedReplicas(silence_cache_bytes=cache)
    )
    assert [one.status for one in outcomes] == [200] * len(asked)
    assert [one.twin for one in outcomes] == [one.twin for one in course.outcomes]
    assert {one.twin for one in outcomes} == {"", "hit", "miss"}
    assert all(0 < one.first_token_seconds < one.seconds for one in outcomes)
    assert strain.torch_cpu > strain.other_cpu > 0
    assert strain.torch_dilation >= 1
    assert min(comparison.stretches(model, outcomes)) > 0
    assert figures(outcomes, 60.0)["answered_a_second"] == pytest.approx(len(asked) / 60, rel=1e-3)


def test_a_card_is_as_slow_as_its_passes(card: Replica) -> None:
    entering = [card.entering(30.0, twin) for twin in ("", "hit", "words", "cold")]
    assert entering == sorted(entering) and len(set(entering)) == 4
    operations = 13.13e12  # of a prefill of 827 tokens, counted by torch: test_costs.py
    assert card.entering(30.0, "") == pytest.approx(operations / (0.5 * 989e12), rel=0.01)
    weights = 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 156_032)  # no embedding
    step = (weights + 16 * 1024 * 524_288) / (0.6 * 3.35e12)
    assert card.round(16, 1024) == pytest.approx(step)
    assert card.rows(2048) == int((0.9 * 80e9 - card.shape.weight_bytes) / 2**30)


def test_what_waits_for_operators_to_start_is_no_faster_on_a_faster_card(card: Replica) -> None:
    slow_host = replace(card.host, layer_seconds=1e-3)
    bound = replace(card, machine=replace(card.machine, layer_seconds=1e-3), host=slow_host)
    faster = replace(bound.machine, operations_a_second=1e18, bytes_a_second=1e15)
    assert replace(bound, machine=faster).entering(30.0, "hit") == bound.entering(30.0, "hit")
    assert bound.entering(30.0, "") == pytest.approx(64e-3)  # 32 layers of each
    assert bound.round(1, 1024) == card.round(1, 1024)  # recorded
