"""Words spoken by espeak-ng, in the library that the package espeakng-loader carries.

The library keeps state between words (the tremor of the voice goes on where the last word left it),
and offers no way to reset it. It is therefore loaded afresh for each word, about 4 ms, so that the
same settings give the same samples whatever was said before. POSIX only, for its dlclose.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Signal

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
        ctypes.CDLL(None).srand(0)  # voices by Klatt's method breathe with the C library's numbers
        yield library, rate_hz
        _check(library.espeak_Terminate(), "stop")
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


def _check(status: int, what: str) -> None:
    if status != _OK:
        raise RuntimeError(f"espeak-ng could not {what}: status {status}, expected {_OK}")


def espeak_word(word: str, voice: str, words_a_minute: int, pitch: int, span: int) -> Signal:
    """One word by espeak-ng: (S,), 16 kHz, with the silence around it, peak not normalised.

    Args:
        word: What to say, in English.
        voice: A language, which sets the accent, and a variant, which sets the speaker. espeak-ng
            passes over a variant that it does not know.
        words_a_minute: 80 to 450.
        pitch: 0 to 100, where 50 is the voice's own.
        span: Range of the intonation, 0 to 100, where 50 is the voice's own.

    Raises:
        RuntimeError: espeak-ng cannot be loaded or fails.
    """
    import soxr  # here: the server imports this module and needs no such library

    blocks: list[NDArray[np.int16]] = []

    def receive(wav: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if wav and count > 0:
            blocks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        return 0  # go on

    settings = {_RATE: words_a_minute, _PITCH: pitch, _RANGE: span}
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
