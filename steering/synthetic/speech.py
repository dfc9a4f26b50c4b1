"""Spoken words in many voices, by the espeak-ng library that the package espeakng-loader carries.

The library keeps state between words (the tremor of the voice goes on where the last word left it),
and offers no way to reset it. It is therefore loaded afresh for each word, about 4 ms, so that the
same seed gives the same samples whatever was said before. POSIX only, for its dlclose.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    Rng,
    Samples,
    Signal,
    draw_length,
    peak_normalised,
)

WORDS = (
    "seven",
    "banana",
    "monday",
    "yellow",
    "coffee",
    "computer",
    "window",
    "orange",
    "hospital",
    "tomorrow",
    "music",
    "river",
    "elephant",
    "sugar",
)

# An espeak-ng voice is a language, which sets the accent (plain en is
# British), and a variant, which sets the speaker.
TRAIN_VOICES = (
    "en-us+m1",
    "en-us+m3",
    "en-us+m7",
    "en-us+f1",
    "en-us+f3",
    "en-us+f5",
    "en+m2",
    "en+m4",
    "en+f2",
    "en+f4",
    "en-gb-x-rp+m3",
    "en-gb-x-rp+f1",
    "en-gb-scotland+m1",
    "en-gb-scotland+f3",
    "en-gb-x-gbclan+m7",
    "en-gb-x-gbcwmd+f2",
)
TEST_VOICES = ("en-us+m2", "en+f3", "en-gb-x-rp+m1")

# Values of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_CHARACTERS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_OK = 0

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def _espeak() -> Iterator[tuple[ctypes.CDLL, int]]:
    # The freshly loaded library and its sample rate; unloaded on the way out.
    remedy = "reinstall it with: pip install --force-reinstall espeakng-loader"
    path = espeakng_loader.get_library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(f"espeak-ng cannot be loaded from {path} ({error}); {remedy}") from error
    try:
        data = str(espeakng_loader.get_data_path())
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
        if rate_hz <= 0:
            raise RuntimeError(f"espeak-ng did not start with its data at {data}; {remedy}")
        _check(library.espeak_ng_SetRandSeed(ctypes.c_long(0)), "set its seed")  # else the clock's
        yield library, rate_hz
        _check(library.espeak_Terminate(), "stop")
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


def _check(status: int, what: str) -> None:
    if status != _OK:
        raise RuntimeError(f"espeak-ng could not {what}: status {status}, expected {_OK}")


def _spoken(word: str, voice: str, settings: dict[int, int]) -> Signal:
    # The word at SAMPLE_RATE_HZ, (S,), peak not normalised.
    import soxr  # here: the server imports this module and needs no such library

    blocks: list[NDArray[np.int16]] = []

    def receive(wav: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if wav and count > 0:
            blocks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        return 0  # go on

    callback = _Callback(receive)  # must outlive the synthesis: C keeps only a bare pointer
    text = word.encode()
    size = ctypes.c_size_t(len(text) + 1)
    with _ONE_AT_A_TIME, _espeak() as (library, rate_hz):
        library.espeak_SetSynthCallback(callback)
        _check(library.espeak_SetVoiceByName(voice.encode()), f"find voice {voice!r}")
        for parameter, value in settings.items():
            status = library.espeak_SetParameter(parameter, value, 0)
            _check(status, f"set parameter {parameter} to {value}")
        status = library.espeak_Synth(text, size, 0, 0, 0, _CHARACTERS_UTF8, None, None)
        _check(status, f"say {word!r}")
        _check(library.espeak_Synchronize(), f"finish {word!r}")
    if not blocks:
        raise RuntimeError(f"espeak-ng gave no samples for {word!r} in voice {voice!r}")
    speech: Signal = soxr.resample(np.concatenate(blocks) / 32768.0, rate_hz, SAMPLE_RATE_HZ)
    return speech


def _trimmed(signal: Signal) -> Signal:
    # Without the near-silence (below 1 % of the peak) on either side.
    loud = np.flatnonzero(np.abs(signal) > 0.01 * np.max(np.abs(signal)))
    return signal[loud[0] : loud[-1] + 1]


def say(word: str, voice: str, rng: Rng) -> Samples:
    """One word at a random place in a clip: (S,) float32, mono, 16 kHz, 1.8 to 3.0 s, peak 1.

    Speed, pitch and intonation range are drawn from rng. ValueError for a voice that is in neither
    TRAIN_VOICES nor TEST_VOICES; RuntimeError if espeak-ng cannot be loaded or fails.
    """
    if voice not in TRAIN_VOICES + TEST_VOICES:  # espeak-ng ignores a variant it does not know
        raise ValueError(f"voice {voice!r} is unknown, choose from TRAIN_VOICES or TEST_VOICES")
    settings = {
        _RATE: int(rng.integers(115, 190)),  # words a minute
        _PITCH: int(rng.integers(30, 71)),  # 50 is the voice's own
        _RANGE: int(rng.integers(30, 81)),
    }
    speech = _trimmed(_spoken(word, voice, settings))
    out = np.zeros(draw_length(rng))
    if speech.size > out.size:
        raise RuntimeError(f"{word!r} lasts longer than a clip of {out.size / SAMPLE_RATE_HZ} s")
    start = int(rng.integers(0, out.size - speech.size + 1))
    out[start : start + speech.size] = speech
    return peak_normalised(out)
