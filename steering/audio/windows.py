"""Windows: a clip longer than the model's window is cut into overlapping parts, at quiet points.

A window ends at the quietest point of its last fifth, and the next one begins at the quietest point
of what lies a tenth to a fifth of a window before that end. So nothing is left out, and what a cut
splits is whole in the window after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from steering.audio.clip import Clip

_FRAME_SECONDS = 0.02
_END_SHARE = 0.2  # of a window in which its end is looked for
_OVERLAP_SHARES = (0.1, 0.2)  # of a window: least and most overlap


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One window of a longer clip."""

    start_seconds: float
    end_seconds: float
    clip: Clip


def cut(clip: Clip, window_seconds: float) -> tuple[Window, ...]:
    """The windows of a clip, each at most `window_seconds`; one if the clip is no longer."""
    size = int(window_seconds * clip.sample_rate_hz)
    total, start = len(clip.samples), 0
    windows: list[Window] = []
    while total - start > size:
        end = _quietest(clip, start + size - int(_END_SHARE * size), start + size)
        windows.append(_window(clip, start, end))
        least, most = (int(share * size) for share in _OVERLAP_SHARES)
        start = _quietest(clip, end - most, end - least)
    return (*windows, _window(clip, start, total))


def _quietest(clip: Clip, first: int, last: int) -> int:
    """The sample in the middle of the quietest 20 ms between two samples."""
    frame = max(1, int(_FRAME_SECONDS * clip.sample_rate_hz))
    energy = np.square(clip.samples[first:last].astype(np.float64))
    sums = np.convolve(energy, np.ones(frame), "valid") if len(energy) >= frame else energy
    return first + int(sums.argmin()) + min(frame, last - first) // 2


def _window(clip: Clip, start: int, end: int) -> Window:
    rate = clip.sample_rate_hz
    part = replace(clip, samples=clip.samples[start:end], submitted_seconds=(end - start) / rate)
    return Window(start / rate, end / rate, part)
