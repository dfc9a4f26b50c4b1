"""The benchmark runs anywhere that torch and transformers do, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.bench import figures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# What allears needs besides torch and transformers. Those two bring httpx and typer of their own.
_WITHOUT = """
import sys

for name in (
    "espeakng_loader", "fastapi", "prometheus_client", "pydantic_settings", "scipy", "soundfile",
    "soxr", "starlette", "uvicorn",
):
    sys.modules[name] = None
from server.bench.__main__ import main
main(sys.argv[1:])
"""


def test_it_runs_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    out = tmp_path / "there" / "bench.json"
    words = (
        "--model real --scale-down --device cpu --rounds 1 --tokens 3 --concurrency 2 --threads 1"
    )
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, *words.split(), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["real"]
    assert results["audio_tokens"] == 750
    assert results["question_tokens"] == pytest.approx(60, abs=8)
    assert set(results["arms"]) == set(results["legend"])
    for arm in results["arms"].values():
        assert 0 < arm["prefill_seconds"]["median"] < arm["first_token_seconds"]["median"]
    assert results["floors"]["prefill_operations"] > 0
    assert all(ratio["holds"] is None for ratio in results["ratios"]), "bounds are for full sizes"
    for name in (*results["legend"].values(), *results["load"]):
        assert name in done.stdout


def test_ratios_are_made_within_rounds() -> None:
    def runs(*seconds: float) -> list[dict[str, float]]:
        names = ("first_token_seconds", "total_seconds", "seconds_a_token")
        return [dict.fromkeys(names, value) for value in seconds]

    arms = {name: runs(1.0, 10.0, 2.0) for name in ("bare", "bare_without_profile", "hf")}
    arms |= {
        name: runs(1.05, 10.5, 4.0)
        for name in ("warm", "effect", "warm_words", "words", "cold", "new_words", "calibrated")
    }
    arms |= {name: runs(3.0, 30.0, 6.0) for name in ("naive", "two_passes", "aad")}
    ratios = {ratio["ratio"]: ratio for ratio in figures.ratios(arms, "mid")}
    warm = ratios["warm steered / bare, first token"]
    assert (warm["median"], warm["low"], warm["high"]) == pytest.approx((1.05, 1.05, 2.0))
    assert warm["holds"] is True
    assert ratios["naive / warm steered, first token"]["holds"] is True
    unbound = figures.ratios(arms, None)
    assert unbound and all(ratio["bound"] is None for ratio in unbound)


def test_a_table_lines_up() -> None:
    text = figures.table([["name", "n"], ["a", "10"], ["longer", "1"]])
    assert text.split("\n") == ["name     n", "------  --", "a       10", "longer   1"]
