"""16 answers at once hold their rows and no prompt's cache, in as much memory as was planned."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from steering.model.merging import packs
from tests.steering import tiny

ROOT = Path(__file__).parents[3]
DTYPES = ["float32"]
if packs(torch.device("cpu"), torch.bfloat16):
    DTYPES.append("bfloat16")  # with the kernels that this CPU's weights are packed for


def of_large_rows() -> tuple[Any, Any]:
    """A Qwen2-Audio that computes little and keeps much of every token: 64 KB.

    No product is as wide as one of the small model's, whose kernels are there before.
    """
    network, processor = tiny.qwen2_audio()
    config = network.config
    text = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    config.audio_config.d_model, config.audio_config.encoder_ffn_dim = 40, 56
    config.text_config = transformers.Qwen2Config(**tiny.text_config(**text, **heads))
    return transformers.Qwen2AudioForConditionalGeneration(config), processor


def of_wide_layers() -> tuple[Any, Any]:
    """A Qwen2-Audio of 170 MB, nearly all of them in 12 layers of the decoder."""
    network, processor = tiny.qwen2_audio()
    config = network.config
    text = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    config.text_config = transformers.Qwen2Config(**tiny.text_config(**text, **heads))
    return transformers.Qwen2AudioForConditionalGeneration(config), processor


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", DTYPES)
def test_16_answers_take_what_was_planned_within_a_tenth(dtype: str, tmp_path: Path) -> None:
    """Clips, their silence and the unsteered answer are asked for on the way."""
    small = tiny.save(tiny.qwen2_audio, tmp_path / "small")
    large = tiny.save(of_large_rows, tmp_path / "large")
    words = [sys.executable, "-m", "tests.server.engine.peak_memory", dtype, str(small), str(large)]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # what was freed
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **given_back}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["caches"] == 0, "no answer that is being written keeps its prompt's cache"
    assert set(found["tokens"]) == {320}, "each row is full in the end"
    assert found["measured"] == pytest.approx(found["planned"], rel=0.1), found
    without_kernels = found["planned"] - found["parts"]["kernels"]
    assert found["parts"]["rows"] > 0.6 * without_kernels, "a cache each would be seen"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_takes_the_weights_once(tmp_path: Path) -> None:
    """Merged, and packed on x86, they are in memory once and a layer of them twice."""
    packed = platform.machine() == "x86_64"
    small = tiny.save(tiny.qwen2_audio, tmp_path / "small")
    large = tiny.save(of_wide_layers, tmp_path / "large")
    script = f"""
import sys
from pathlib import Path
from steering.model import merging
from steering.model.loading import load
from tests.server.engine.peak_memory import status

merging.packs = lambda *of: {packed}
for folder in sys.argv[1:]:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    model = load(folder, device="cpu", dtype="float32", mmap=False)
    print(*merging.merge_and_pack(model), status("VmHWM") - before, status("VmRSS") - before)
"""
    words = [sys.executable, "-c", script, str(small), str(large)]
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *counts, peak, after = map(int, done.stdout.splitlines()[-1].split())
    size = (large / "model.safetensors").stat().st_size
    assert counts[0] == 3 * 12 and (counts[1] > 0) == packed
    assert after < 1.1 * size
    assert peak < 1.4 * size, "mapped, copied or packed beside what it replaces, it would be 2"
