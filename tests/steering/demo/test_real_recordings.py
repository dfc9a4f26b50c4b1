from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from steering.demo import real_recordings
from steering.demo.real_recordings import LONGEST, PACKAGES, find_recordings, loudest
from steering.demo.sound_bundles import recordings_in
from steering.items import read
from steering.synthetic import world

SOUNDS = Path("/usr/share/sounds/freedesktop")


def tone(seconds: float) -> bytes:
    """A WAV file."""
    file = io.BytesIO()
    samples = np.sin(np.arange(int(seconds * 16_000)) / 5)
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def openttd_sounds(name: bytes, sound: bytes) -> bytes:
    entry = bytes([len(name)]) + name + sound
    return struct.pack("<II", 8 | 0x80000000, len(entry)) + entry


def qt_resource(name: str, sound: bytes) -> bytes:
    """A resource of one folder, which holds one file."""
    names = struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    body = struct.pack(">I", len(sound)) + sound
    folder = struct.pack(">IHII8x", 0, 2, 1, 1)
    file = struct.pack(">IHII8x", 0, 0, 0, 0)
    at = 24 + len(body) + len(names)
    header = struct.pack(">4s5I", b"qres", 3, at, 24, 24 + len(body), 0)
    return header + body + names + folder + file


def test_the_map_names_values_of_the_world() -> None:
    for package, mapped in PACKAGES.items():
        assert set(mapped) <= {"licence", "folder", *world.SOURCES}, package
        assert mapped["licence"]
        for kind in set(mapped) & set(world.SOURCES):
            assert set(mapped[kind]) <= set(world.VALUES[kind]), package


def test_recordings_are_taken_out_of_bundles(tmp_path: Path) -> None:
    sound = tone(0.1)
    (tmp_path / "a.cat").write_bytes(openttd_sounds(b'"Sheep". By X.\0', sound))
    (tmp_path / "a.rcc").write_bytes(qt_resource("dog.ogg", sound))
    (tmp_path / "a.wav").write_bytes(sound)
    for file, name in {"a.cat": '"Sheep". By X.', "a.rcc": "dog.ogg", "a.wav": "a.wav"}.items():
        assert list(recordings_in(tmp_path / file)) == [(name, sound)]


def test_a_long_recording_is_cut_to_its_loudest_part() -> None:
    samples = np.zeros(5 * LONGEST, np.float32)
    samples[2 * LONGEST : 3 * LONGEST] = 1.0
    assert loudest(samples).tolist() == [1.0] * LONGEST
    assert len(loudest(samples[:1000])) == 1000


@pytest.mark.system
def test_the_report_of_installed_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not SOUNDS.exists():
        pytest.skip("sound-theme-freedesktop is missing; .ci/run installs it")
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/freedesktop").symlink_to(SOUNDS)  # whatever else is installed
    out = tmp_path / "out"
    arguments = ["--shares", str(tmp_path), "--out", str(out), "--json"]
    monkeypatch.setattr("sys.argv", ["real_recordings", *arguments])
    real_recordings.main()
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    items = read(out / "items.json", out).items
    assert {item.answer for item in items} == {"alarm", "phone"}
    assert all(item.record["suggested"] != item.answer for item in items)
    clips = {item.audio for item in items}
    assert len(items) == 2 * len(clips) == 2 * len(list(find_recordings(tmp_path)))
    assert [answer["id"] for answer in results["answers"]] == [item.id for item in items]
    for row in results["rows"]:
        assert row["clips"] == len(clips)
        share, low, high = row["adaptive"]
        assert low <= share <= high
        assert row["effect, bits"] > 0
    assert "scratch" in printed.err, "how to get more"
    table = real_recordings.markdown(results["rows"]).splitlines()
    assert len(table) == 2 + len(results["rows"])
    assert all(line.count("|") == table[0].count("|") for line in table)


def test_an_empty_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["real_recordings", "--shares", str(tmp_path)])
    with pytest.raises(SystemExit, match="apt-get install"):
        real_recordings.main()
