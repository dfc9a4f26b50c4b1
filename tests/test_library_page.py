"""The examples of docs/library.md run, in their order, and do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steering.profile import Profile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    """What each block printed."""
    return []


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, outputs: list[str]) -> dict[str, Any]:
    """What the page's names stand for at its end."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "steering").symlink_to(ROOT / "steering")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for number, block in enumerate(BLOCKS):
            printed: list[str] = []
            names["print"] = lambda *values, printed=printed: printed.append(
                " ".join(map(str, values))
            )
            exec(compile(block, f"docs/library.md, block {number}", "exec"), names)
            outputs.append("\n".join(printed))
            names[f"ears of {number}"] = names.get("ears")
    return names


def test_the_page_runs_and_steers(names: dict[str, Any]) -> None:
    assert len(BLOCKS) > 8
    steered, batch, bare = (
        names[f"ears of {number}"]
        for number, block in enumerate(BLOCKS)
        if "as ears" in block and "for strength" not in block
    )
    assert names["answer"].strip() == "dog"
    assert steered.verdict == "partly_listening"
    assert steered.strength > 0.1
    assert steered.timeline.sum() == pytest.approx(steered.score, abs=1e-5)
    assert batch.rows[0].verdict == steered.verdict
    assert batch.rows[1].score > batch.rows[0].score
    assert batch.rows[0].score == pytest.approx(steered.score, abs=1e-5)
    assert bare.score == pytest.approx(steered.score, abs=1e-6)
    assert (bare.strength, bare.reason) == (0.0, "steer is false")


def test_a_stronger_hand_turns_the_answer(names: dict[str, Any], outputs: list[str]) -> None:
    (lines,) = (outputs[n] for n, block in enumerate(BLOCKS) if "for strength" in block)
    weakest, *_, strongest = lines.splitlines()
    assert "hammer" in weakest and "dog" in strongest


def test_the_page_calibrates_and_evaluates(names: dict[str, Any]) -> None:
    assert isinstance(names["calibrated"], Profile)
    assert isinstance(names["own"], Profile)
    assert names["own"].calibrated_on == "synthetic"
    assert names["calibrated"].calibrated_on == "user data"
    assert np.isfinite(names["results"]["arms"]["adaptive"]["right_percent"])


def test_the_page_names_all_that_the_package_offers() -> None:
    import steering

    offered = set(re.findall(r"^- `(\w+)\(", PAGE, re.MULTILINE))
    assert offered == set(steering.__all__) - {"Profile"}
    assert set(dir(steering)) >= set(steering.__all__)
    for name in steering.__all__:
        assert callable(getattr(steering, name))
    with pytest.raises(AttributeError, match="calibrate"):
        _ = steering.calibrates


def test_importing_the_package_imports_no_torch() -> None:
    code = "import steering, sys; dir(steering); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_functions_stay_functions_whatever_was_imported_before() -> None:
    code = (
        "import steering.calibration.calibrate, steering.evaluation.evaluate\n"
        "import steering.transformers_hooks.hooks\n"
        "from steering import calibrate, evaluate, listening, load\n"
        "assert all(type(f).__name__ == 'function' for f in (calibrate, evaluate, listening, load))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
