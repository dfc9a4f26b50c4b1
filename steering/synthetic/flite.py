"""Words spoken by Flite, a second synthesiser that only training uses.

It is a program of its own, in Debian's package flite. Four of its five voices here are made from
recordings of people, where espeak-ng's are made by rule. The same settings give the same samples.
"""

import os
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Signal

_TIMEOUT_S = 60


def flite_program() -> str:
    """The path of the program flite.

    Raises:
        RuntimeError: It is not installed.
    """
    program = shutil.which("flite")
    if program is None:
        raise RuntimeError(
            "the program flite is not on PATH, and the voices of EXTRA_TRAIN_VOICES, which the "
            "embedded model is trained with, are its; install it with: apt-get install flite"
        )
    return program


def flite_word(word: str, voice: str, stretch: float, pitch: float) -> Signal:
    """One word by Flite: (S,), 16 kHz, with the silence around it, peak not normalised.

    Args:
        word: What to say, in English.
        voice: A name that `flite -lv` lists.
        stretch: Length over the voice's own, above 0.
        pitch: Fundamental frequency over the voice's own, above 0; the voice rms leaves it alone.

    Raises:
        RuntimeError: Flite is not installed, or fails, or speaks at another rate than 16 kHz.
    """
    program = flite_program()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "word.wav")
        settings = ["--setf", f"duration_stretch={stretch}", "--setf", f"f0_shift={pitch}"]
        command = [program, "-voice", voice, *settings, "-t", word, "-o", os.fspath(file)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if answer.returncode != 0 or not file.exists():
            problem = answer.stderr.strip() or f"exit status {answer.returncode}"
            raise RuntimeError(f"flite could not say {word!r} in voice {voice!r}: {problem}")
        with wave.open(os.fspath(file)) as sound:
            rate_hz, raw = sound.getframerate(), sound.readframes(sound.getnframes())
    if rate_hz != SAMPLE_RATE_HZ:
        raise RuntimeError(f"voice {voice!r} of flite speaks at {rate_hz} Hz, not {SAMPLE_RATE_HZ}")
    return np.frombuffer(raw, np.int16) / 32768.0
