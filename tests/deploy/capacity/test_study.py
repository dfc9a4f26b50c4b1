"""docs/capacity.md is made from its figures; measurement, trial and forecast run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploy.capacity import stage_measurement, stage_times
from deploy.capacity.__main__ import FIGURES, to_json
from deploy.capacity.costs import ModelSizes
from deploy.capacity.forecast import AssumedShares, CardReplica, Host, h100_replica
from deploy.capacity.page import STAGES, TABLES, filled, ms, table
from deploy.capacity.simulation import FleetSettings, simulate
from deploy.capacity.traffic import Traffic, requests, summary
from deploy.capacity.trial import run_server, slowdowns
from server.bench.models import REAL, BenchModel, bench_model, random_model
from steering.profile import DEMO_PROFILE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "capacity.md"


@pytest.fixture(scope="module")
def demo() -> BenchModel:
    return bench_model("demo", torch.device("cpu"))


@pytest.fixture(scope="module")
def card() -> CardReplica:
    """The true sizes on an H100."""
    model = random_model("real", REAL, torch.device("meta"), torch.bfloat16)
    host = Host(
        {30.0: [0.003]}, {30.0: [0.001]}, {30.0: [0.016]}, layer_seconds=1e-4, row_seconds=0.0
    )
    return h100_replica(ModelSizes.of(model, 21), host, (20, 57), AssumedShares())


def test_the_page_is_made_from_its_figures() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"<!-- made: (\w+) -->", page)) == set(TABLES)
    assert filled(page, json.loads(FIGURES.read_text())) == page
    assert len(page.split()) <= 1500
    assert PAGE.with_suffix(".png").stat().st_size < 100_000


def test_the_figures_are_compact() -> None:
    text = FIGURES.read_text()
    assert text == to_json(json.loads(text))
    assert len(text.splitlines()) <= 300


def test_a_block_is_made_anew_and_the_text_around_it_stays() -> None:
    figures = json.loads(FIGURES.read_text())
    page = "before\n<!-- made: shares -->\nold | text\n<!-- end -->\nafter\n"
    made = filled(page, figures)
    assert made.startswith("before\n<!-- made: shares -->\nWith 0.35") and "old" not in made
    assert made.endswith("\n<!-- end -->\nafter\n")
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    assert [ms(seconds) for seconds in (0.00012345, 0.0431, 1.6912)] == ["0.123", "43.1", "1690"]


def test_every_stage_of_a_model_is_measured(demo: BenchModel) -> None:
    model = stage_measurement.measure(demo, (1.0,), 6)
    stages = model["stages"]
    assert {stage for stage, _ in STAGES} | {"step", "round"} < stages.keys()
    for name, by_size in stages.items():
        for deciles in by_size.values():
            assert len(deciles) == 11 and deciles == sorted(deciles), name
            assert deciles[0] > 0, name
    least = {name: by_size["1"][0] for name, by_size in stages.items()}
    assert least["twin hit"] < least["twin cold"] < least["enter cold"]
    assert least["encoder"] < least["prefill"] <= least["enter bare"] < least["enter hit"]
    assert stages["step"]["16"][5] > least["step"]
    assert model["wall_over_cpu"] > 0.5
    sizes, prompt = ModelSizes(**model["sizes"]), model["prompts"]["1"]
    silence = sizes.entry_bytes(prompt["prefix"]) + sizes.feature_bytes(prompt["audio"])
    row = sizes.row_bytes(prompt["tokens"])
    assert model["held_bytes"] == {"1": {"silence": silence, "row": row}}
    assert stage_times.layer_seconds(model) > 0


def test_a_real_server_hits_what_the_simulation_hits(demo: BenchModel) -> None:
    """Which silences are at hand depends on the order of requests alone."""
    traffic = Traffic(2.0, (1.8, 2.4, 3.0), (2, 5), steered=0.7)
    sent = [replace(request, at=0.7 * i) for i, request in enumerate(requests(traffic, 6, 0))]
    cache = 2_000_000  # two of the three
    words = ["--silence-cache-bytes", str(cache)]
    outcomes, contention = run_server(demo, DEMO_PROFILE, sent, *words)
    model = json.loads(FIGURES.read_text())["models"]["demo"]
    run = simulate(
        sent, stage_times.cpu_stage_times(model), FleetSettings(silence_cache_bytes=cache)
    )
    assert [outcome.status for outcome in outcomes] == [200] * len(sent)
    assert [outcome.twin for outcome in outcomes] == [outcome.twin for outcome in run.outcomes]
    assert {outcome.twin for outcome in outcomes} == {"", "hit", "miss"}
    assert all(0 < outcome.first_token_seconds < outcome.seconds for outcome in outcomes)
    assert contention.torch_cpu > contention.other_cpu > 0
    assert contention.torch_slowdown >= 1
    assert min(slowdowns(model, outcomes)) > 0
    assert summary(outcomes, 60.0)["answered_a_second"] == pytest.approx(len(sent) / 60, rel=1e-3)


def test_a_card_is_as_slow_as_its_passes(card: CardReplica) -> None:
    entering = [card.entering(30.0, twin) for twin in ("", "hit", "miss", "cold")]
    assert entering == sorted(entering) and len(set(entering)) == 4
    operations = 13.13e12  # of a prefill of 827 tokens, counted by torch: test_costs.py
    assert card.entering(30.0, "") == pytest.approx(operations / (0.5 * 989e12), rel=0.01)
    weights = 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 156_032)  # no embedding
    step = (weights + 16 * 1024 * 524_288) / (0.6 * 3.35e12)
    assert card.round(16, 1024) == pytest.approx(step)
    assert card.rows(2048) == int((0.9 * 80e9 - card.sizes.weight_bytes) / 2**30)


def test_what_waits_for_operators_to_start_is_no_faster_on_a_faster_card(card: CardReplica) -> None:
    slow_host = replace(card.host, layer_seconds=1e-3)
    bound = replace(card, machine=replace(card.machine, layer_seconds=1e-3), host=slow_host)
    faster = replace(bound.machine, operations_a_second=1e18, bytes_a_second=1e15)
    assert replace(bound, machine=faster).entering(30.0, "hit") == bound.entering(30.0, "hit")
    assert bound.entering(30.0, "") == pytest.approx(64e-3)  # 32 layers of each
    assert bound.round(1, 1024) == card.round(1, 1024)  # recorded
