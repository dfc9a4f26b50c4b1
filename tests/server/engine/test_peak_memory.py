"""16 answers at once hold their rows and no prompt's cache, in as much memory as was planned."""

from __future__ import annotations

import json
import os
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
