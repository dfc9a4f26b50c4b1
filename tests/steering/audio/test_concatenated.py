from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from steering.audio.concatenated import second_start
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.errors import AudioError

KINDS = [
    ("WAV", "PCM_16"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def encode(container: str, subtype: str, *, seconds: float = 1.0) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(16_000 * seconds))
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("first", KINDS, ids="-".join)
@pytest.mark.parametrize("second", KINDS, ids="-".join)
def test_a_second_file_is_found_and_refused(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    data = encode(*first)
    joined = data + encode(*second, seconds=0.5)
    if second[0] == "MP3" and first[0] != "MP3":
        assert second_start(joined) is None, "it can't be told from what programs append"
        return
    found = second_start(joined)
    assert found is not None
    assert len(data) <= found < len(data) + 100  # an MP3's mark stands in its first frame
    with pytest.raises(AudioError, match="several files in one"):
        decode(joined, rate_hz=16_000, limits=AudioLimits())


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_one_file_is_one(kind: tuple[str, str]) -> None:
    assert second_start(encode(*kind)) is None
    assert second_start(encode(*kind) + b"TAG" + bytes(125)) is None


def test_a_cut_or_empty_file_is_none() -> None:
    data = encode("OGG", "OPUS")
    for size in (0, 1, 4, 27, 28, 60):
        assert second_start(data[:size]) is None


@pytest.mark.system
def test_sounds_of_a_real_system_are_one_file_each() -> None:
    paths = [p for p in sorted(Path("/usr/share/sounds").rglob("*.*")) if p.is_file()]
    if not paths:
        pytest.skip("no sounds in /usr/share/sounds")
    for path in paths:
        assert second_start(path.read_bytes()) is None, path
