"""Whole calibrations, as a user runs them: stopped, shared out, of a model that knows nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy.stats import spearmanr

from steering.calibration.activations import Activations, build_item_prompt, load_item_clip, record
from steering.calibration.calibrate import calibrate
from steering.calibration.collecting import store_folder
from steering.errors import DataError, EvidenceError, ModelError
from steering.heads import correlations
from steering.items import read
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.profile import load
from tests.steering.examples import full_pass, write_items

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ITEMS = 48
FILES = ("profile.json", "profile.safetensors")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_items(tmp_path_factory.mktemp("items"), ITEMS)


@pytest.fixture(scope="session")
def demo() -> AudioModel:
    return loading.load("demo", device="cpu")


@pytest.fixture(scope="session")
def uninterrupted(demo: AudioModel, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile that a run makes which nothing stops, in one process."""
    out = tmp_path_factory.mktemp("whole") / "profile"
    calibrate(demo, data, data.parent, out)
    return out


def started(data: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "server.cli", "calibrate", "--device", "cpu"]
    command += ["--data", str(data), "--out", str(out), *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ)
    )


def items_done(out: Path) -> int:
    file = store_folder(out) / "checks.npy"
    try:
        return int(np.count_nonzero(np.load(file)))
    except (OSError, ValueError, EOFError):  # not there yet, empty, or not whole yet
        return 0


def wait_for(what: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if what():
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate()[1].decode())


def same(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


# ---- stopped and gone on


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    demo: AudioModel, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "profile"
    process = started(data, out)
    wait_for(lambda: items_done(out) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = items_done(out)
    assert 5 <= done < ITEMS and not out.exists()

    seen: list[tuple[int, int]] = []
    calibrate(demo, data, data.parent, out, progress=lambda *both: seen.append(both))
    counted = seen[: seen.index((ITEMS, ITEMS)) + 1]
    assert counted == [(i, ITEMS) for i in range(done, ITEMS + 1)], "nothing lost, nothing twice"
    assert same(out, uninterrupted)
    assert not store_folder(out).exists(), "deleted when done"


def test_kept_evidence_makes_the_profile_again_without_a_pass(
    demo: AudioModel, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "profile", []
    calibrate(demo, data, data.parent, out, keep_evidence=True)
    calibrate(demo, data, data.parent, out, progress=lambda done, _: seen.append(done))
    assert set(seen) == {ITEMS}
    assert same(out, uninterrupted)


def test_evidence_of_other_items_is_refused(demo: AudioModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile"

    def stop(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(demo, data, data.parent, out, progress=stop)
    assert items_done(out) > 0
    other = write_items(tmp_path, ITEMS + 2)
    with pytest.raises(EvidenceError, match="data_sha256"):
        calibrate(demo, other, tmp_path, out)


# ---- several workers


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes of Ray workers that descend from a process: no other is ever touched."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def descends(pid: int) -> bool:
        while pid in parents:
            if pid == process.pid:
                return True
            pid = parents[pid]
        return False

    return [
        pid for pid, name in names.items() if b"ray::CalibrationWorker" in name and descends(pid)
    ]


def test_two_workers_make_the_same_profile_though_one_is_killed(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "profile"
    process = started(data, out, "--workers", "2")
    wait_for(lambda: items_done(out) >= 3, process)
    killed = workers_of(process)[0]
    os.kill(killed, signal.SIGKILL)
    assert items_done(out) < ITEMS, "it was still at work"
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    assert same(out, uninterrupted)


def test_without_ray_the_way_to_get_it_is_said(
    demo: AudioModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'allears\[ray\]'"):
        calibrate(demo, data, data.parent, tmp_path / "profile", workers=2)


# ---- a model that knows nothing


def test_a_model_of_random_weights_is_not_steered_and_every_answer_says_why(
    small_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    sound: bytes,
    serve_process: Callable[..., AbstractContextManager[tuple[subprocess.Popen[bytes], str]]],
) -> None:
    random = loading.load(str(small_checkpoint), device="cpu")
    out = tmp_path / "profile"
    made = calibrate(random, data, data.parent, out, calibrated_on="synthetic")
    assert made.max_strength == 0 and made.refusal
    record = json.loads((out / "profile.json").read_text())
    assert record["refusal"] == made.refusal == load(out).refusal
    assert record["calibration"]["calibrated_on"] == "synthetic"
    with serve_process(small_checkpoint, out, tmp_path / "log") as (_, url):
        for steering in ({}, {"strength": 0.0}, {"direction": "calibrated"}):
            fields = {"question": "Which sound?", "steer": "true", "max_tokens": "2"}
            answer = httpx.post(
                f"{url}/v1/audio-chat",
                data={**fields, "steering": json.dumps(steering)},
                files={"audio": ("a.wav", sound)},
                timeout=60,
            ).json()
            assert answer["steering"]["applied"] is False, answer
            assert made.refusal in answer["steering"]["reason"]
            assert answer["listening"]["score"] is not None


def test_users_data_on_which_every_answer_is_wrong_is_refused(
    small_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    random = loading.load(str(small_checkpoint), device="cpu")
    with pytest.raises(DataError, match="every item is wrong"):
        calibrate(random, data, data.parent, tmp_path / "profile")
    assert not (tmp_path / "profile").exists()


# ---- the head map


def test_the_head_map_is_that_of_eager_attention(
    model: AudioModel, oracle: object, data: Path
) -> None:
    items = read(data, data.parent).items[:12]
    recorded: Activations = record(model, items)
    eager = []
    for item in items:
        prompt = build_item_prompt(model, item, load_item_clip(model, item))
        maps = full_pass(oracle, prompt).attention[:, :, -1]  # (L, H, T) from the last token
        eager.append(maps[..., prompt.audio_mask].sum(-1).flatten().numpy())
    mass = np.stack(eager)
    np.testing.assert_allclose(recorded.mass, mass, atol=1e-5)
    right = np.arange(len(items)) % 3 == 0
    by_taps, by_eager = (correlations(each, right) for each in (recorded.mass, mass))
    np.testing.assert_allclose(by_taps, by_eager, atol=1e-5)
    assert spearmanr(by_taps, by_eager).statistic == pytest.approx(1.0, abs=1e-4)
