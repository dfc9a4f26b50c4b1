from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from steering.audio.clip import Clip
from steering.audio.windows import cut

RATE_HZ = 1000


def noise(seconds: float, seed: int = 0) -> Clip:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ))
    return Clip(samples.astype(np.float32), RATE_HZ, seconds, RATE_HZ, 1)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 3.01, 5.9, 60.0])
@pytest.mark.parametrize("seed", range(5))
def test_windows_leave_nothing_out_and_overlap(seconds: float, seed: int) -> None:
    clip = noise(seconds, seed)
    windows = cut(clip, 3.0)
    assert (windows[0].start_seconds, windows[-1].end_seconds) == (0.0, seconds)
    for window in windows:
        start, end = (round(s * RATE_HZ) for s in (window.start_seconds, window.end_seconds))
        assert 0 < end - start <= 3.0 * RATE_HZ
        assert np.array_equal(window.clip.samples, clip.samples[start:end])
    for before, after in pairwise(windows):
        assert 0.29 <= before.end_seconds - after.start_seconds <= 0.61
        assert before.end_seconds - before.start_seconds >= 2.39
    assert (len(windows) == 1) == (seconds <= 3.0)


def test_a_cut_is_where_it_is_quiet() -> None:
    clip = noise(8.0)
    quiet = ((2.6, 2.7), (2.2, 2.3), (4.8, 4.9))
    for start, end in quiet:
        clip.samples[int(start * RATE_HZ) : int(end * RATE_HZ)] *= 0.01
    first, second, *_ = cut(clip, 3.0)
    assert 2.6 <= first.end_seconds <= 2.7
    assert 2.2 <= second.start_seconds <= 2.3
    assert 4.8 <= second.end_seconds <= 4.9
