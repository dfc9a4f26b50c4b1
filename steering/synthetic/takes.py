"""How a clean clip gets recorded: background, room, microphone, codec and level.

Every part is drawn on its own. The level says nothing about the rest: how well a clip can be heard
is its `clarity`, which cannot be read off a volume meter.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng, Samples

BACKGROUNDS = ("hiss", "babble", "hum")
CODECS = ("none", "telephone", "coarse")

HARD_SHARE, HARD_SNR_DB, CLEAR_SNR_DB = 0.35, (-12.0, 2.0), (6.0, 36.0)
LEVEL_DBFS = (-37.0, -1.0)
MAX_REVERBERATION_S = 0.9
DIRECT_DB = (-2.0, 14.0)
BANDWIDTH_HZ = (1500.0, 8000.0)
TELEPHONE_HZ = (300.0, 3400.0)
MASKED_DB = (25.0, 35.0)
MASKED_BAND_DB = 10.0  # at least, in every band


@dataclass(frozen=True, slots=True)
class Take:
    """The conditions under which one clip is recorded."""

    snr_db: float  # power of the event where it sounds over the background's
    reverberation_s: float  # RT60; 0 is no room
    direct_db: float  # direct over reverberant power
    bandwidth_hz: float  # edge of the low-pass
    codec: str  # one of CODECS
    level_dbfs: float  # peak of the recorded clip
    tilt_db: float  # microphone, dB an octave around 1 kHz
    background: str  # one of BACKGROUNDS
    colour_db: float  # background, dB an octave

    @property
    def clarity(self) -> float:
        """How well the clip can be heard, in [0, 1]: half the noise, a quarter room and band."""
        heard = float(np.clip((self.snr_db + 8.0) / 38.0, 0.0, 1.0))
        return 0.5 * heard + 0.25 * self.dryness + 0.25 * self.width

    @property
    def dryness(self) -> float:
        """1 without a room, 0 in the longest and most distant one."""
        distance = (DIRECT_DB[1] - self.direct_db) / (DIRECT_DB[1] - DIRECT_DB[0])
        wet = np.sqrt(self.reverberation_s / MAX_REVERBERATION_S) * distance
        return float(np.clip(1.0 - wet, 0.0, 1.0))

    @property
    def width(self) -> float:
        """What is left of the band, 1 at 8 kHz and 0 at 1.5 kHz; a coarse codec takes a third."""
        telephone = self.codec == "telephone"
        top_hz = min(self.bandwidth_hz, TELEPHONE_HZ[1]) if telephone else self.bandwidth_hz
        octaves = np.log2(top_hz / BANDWIDTH_HZ[0]) / np.log2(BANDWIDTH_HZ[1] / BANDWIDTH_HZ[0])
        return float(np.clip(octaves, 0.0, 1.0)) * (2 / 3 if self.codec == "coarse" else 1.0)


def draw_take(rng: Rng) -> Take:
    """Conditions of one clip, each drawn on its own.

    A third of the clips is hard to tell from the background, most are nearly dry and of full band.
    """
    hard = rng.random() < HARD_SHARE
    narrow = rng.random() < 0.4
    low, high = np.log(BANDWIDTH_HZ)
    return Take(
        snr_db=float(rng.uniform(*(HARD_SNR_DB if hard else CLEAR_SNR_DB))),
        reverberation_s=float(MAX_REVERBERATION_S * rng.random() ** 2),
        direct_db=float(rng.uniform(*DIRECT_DB)),
        bandwidth_hz=float(np.exp(rng.uniform(low, high))) if narrow else BANDWIDTH_HZ[1],
        codec=str(rng.choice(CODECS, p=(0.7, 0.15, 0.15))),
        level_dbfs=float(rng.uniform(*LEVEL_DBFS)),
        tilt_db=float(rng.uniform(-2.0, 2.0)),
        background=str(rng.choice(BACKGROUNDS, p=(0.55, 0.25, 0.2))),
        colour_db=float(rng.uniform(-6.5, 0.5)),
    )


def record(clean: Samples, active: NDArray[np.bool_], take: Take, rng: Rng) -> Samples:
    """The clip as the microphone and the codec give it: (S,) float32, peak at the level.

    Args:
        clean: (S,) float32, 16 kHz, with silence around its events; all zeros stay as they are.
        active: (S,) bool, where its events can be heard, for the SNR.
        take: the conditions.
        rng: source of the background and the room.
    """
    if not np.any(clean):
        return clean
    n = _transform_length(clean.size + int(take.reverberation_s * SAMPLE_RATE_HZ))
    microphone = _microphone(n, take)
    background = _background(n, take, microphone, rng)[: clean.size]
    room = np.fft.rfft(_room(take, rng), n)
    event = _waveform(np.fft.rfft(clean, n) * room * microphone, n)[: clean.size]
    # Powers by dot product: np.mean of a square would make a copy.
    power = float(np.dot(event * active, event)) / max(int(np.count_nonzero(active)), 1)
    floor = float(np.dot(background, background)) / background.size
    gain = np.float32(np.sqrt(power / floor) * 10 ** (-take.snr_db / 20))
    mixed: Samples = event + background * gain
    coded = _coded(mixed / np.float32(_peak(mixed)), take.codec)
    level = np.float32(10 ** (take.level_dbfs / 20) / _peak(coded))
    recorded: Samples = (coded * level).astype(np.float32, copy=False)
    return recorded


def _peak(signal: Samples) -> float:
    return max(float(signal.max()), -float(signal.min()))


def _transform_length(samples: int) -> int:
    # The next multiple of 4000: a product of small primes, so the FFT is fast.
    return -(-samples // 4000) * 4000


@lru_cache(maxsize=32)
def _octaves(n: int) -> Samples:
    # (n / 2 + 1,) octaves above 1 kHz of each bin; below 60 Hz all the same.
    frequencies_hz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE_HZ)
    octaves: Samples = np.log2(np.maximum(frequencies_hz, 60.0) / 1000.0).astype(np.float32)
    return octaves


def _slope(n: int, db_an_octave: float) -> Samples:
    slope: Samples = np.exp2(_octaves(n) * np.float32(db_an_octave / 6.02))
    return slope


def _low_pass(n: int, edge_hz: float) -> Samples:
    # 48 dB an octave.
    over = np.exp2(np.minimum(16 * (_octaves(n) - np.float32(np.log2(edge_hz / 1000))), 60))
    gain: Samples = 1 / np.sqrt(1 + over)
    return gain


def _microphone(n: int, take: Take) -> Samples:
    # (n / 2 + 1,) gain by frequency: tilt, low-pass and the telephone's band.
    gain = _slope(n, take.tilt_db)
    edge_hz = take.bandwidth_hz
    if take.codec == "telephone":
        edge_hz = min(edge_hz, TELEPHONE_HZ[1])
        gain *= np.minimum(1, _slope(n, 24.0) * np.float32((1000 / TELEPHONE_HZ[0]) ** 4))
    return gain * _low_pass(n, edge_hz) if edge_hz < BANDWIDTH_HZ[1] else gain


def _room(take: Take, rng: Rng) -> Samples:
    # An impulse response: the direct path, then noise that decays by 60 dB over RT60.
    samples = max(1, int(take.reverberation_s * SAMPLE_RATE_HZ))
    tail = rng.standard_normal(samples, dtype=np.float32)
    tail *= np.exp(np.arange(samples, dtype=np.float32) * np.float32(-np.log(1000.0) / samples))
    tail[: SAMPLE_RATE_HZ // 400] = 0  # the nearest wall is 2.5 ms away
    power = float(np.dot(tail, tail))
    if power > 0:
        tail *= np.float32(np.sqrt(10 ** (-take.direct_db / 10) / power))
    tail[0] = 1
    return tail


def _coloured(n: int, gain: Samples, rng: Rng) -> NDArray[np.complex64]:
    # Spectrum of Gaussian noise, coloured by the gain.
    bins = rng.standard_normal(2 * gain.size, dtype=np.float32).view(np.complex64)
    spectrum: NDArray[np.complex64] = bins * gain
    return spectrum


def _background(n: int, take: Take, microphone: Samples, rng: Rng) -> Samples:
    # (n,) of any power: steady hiss, speech-shaped noise that swells and ebbs, or mains hum.
    if take.background == "babble":
        speech = _slope(n, -5.0) * np.minimum(1, _slope(n, 12.0) * np.float32(16))
        noise = _waveform(_coloured(n, speech * microphone, rng), n)
        return noise * _swell(n, rng)
    spectrum = _coloured(n, _slope(n, take.colour_db) * microphone, rng)
    if take.background == "hum":
        spectrum *= np.float32(np.sqrt(0.1 / _power(spectrum)))
        mains = rng.choice([50, 60]) * np.arange(1, 21) * n // SAMPLE_RATE_HZ
        turns = np.exp(2j * np.pi * rng.random(20)) * rng.uniform(0.2, 1.0, 20)
        hum = turns * np.arange(1, 21) ** rng.uniform(-1.2, -0.4) * microphone[mains]
        spectrum[mains] += (hum / np.sqrt(_power(hum))).astype(np.complex64)
    return _waveform(spectrum, n)


def _waveform(spectrum: NDArray[np.complexfloating], n: int) -> Samples:
    # (n,) numpy transforms single precision in single precision; its annotations say double.
    return np.fft.irfft(spectrum, n).astype(np.float32, copy=False)


def _power(spectrum: NDArray[np.complexfloating]) -> float:
    return float(np.vdot(spectrum, spectrum).real)


def _swell(n: int, rng: Rng) -> Samples:
    # (n,) an envelope with the pace of syllables, 10 to 20 dB deep.
    knots = np.exp(rng.normal(0, 0.8, int(n / SAMPLE_RATE_HZ * rng.uniform(4, 7)) + 2))
    at = np.linspace(0, knots.size - 1, n // 32)
    coarse = np.interp(at, np.arange(knots.size), knots)
    return np.interp(np.arange(n), np.arange(n // 32) * 32, coarse).astype(np.float32)


def _coded(signal: Samples, codec: str) -> Samples:
    if codec == "telephone":  # mu-law in 8 bits; the band was cut before
        compressed = np.sign(signal) * np.log1p(255 * np.abs(signal)) / np.float32(np.log(256))
        levels = np.round(compressed * 127) / np.float32(127)
        expanded: Samples = np.sign(levels) * np.expm1(np.abs(levels) * np.float32(np.log(256)))
        return expanded
    return _requantised(signal) if codec == "coarse" else signal


@lru_cache(maxsize=1)
def _window() -> Samples:
    # (512,) its square adds up to 1 at half overlap.
    window: Samples = np.sin(np.pi * (np.arange(512) + 0.5) / 512).astype(np.float32)
    return window


def _requantised(signal: Samples) -> Samples:
    # Spectra of half-overlapping frames in bands of 500 Hz: each band keeps three steps a part, and
    # is dropped where it is 35 dB under the frame's loudest.
    padded = np.pad(signal, (256, 256 + -signal.size % 256 + 256))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::256] * _window()
    bins = np.fft.rfft(frames)[:, :256]
    parts = np.ascontiguousarray(bins).view(bins.real.dtype).reshape(len(frames), 16, 32)
    tops = np.maximum(parts.max(axis=2, keepdims=True), -parts.min(axis=2, keepdims=True))
    step = tops / 3 + np.float32(1e-9)
    kept = np.rint(parts / step) * step
    kept *= tops > tops.max(axis=1, keepdims=True) * np.float32(10 ** (-35 / 20))
    spectra = kept.reshape(len(frames), 512).view(bins.dtype)
    out = np.fft.irfft(spectra, 512) * _window()
    halves = out.reshape(len(frames), 2, 256)
    total = np.zeros((len(frames) + 1, 256), dtype=np.float32)
    total[:-1] += halves[:, 0]
    total[1:] += halves[:, 1]
    return total.ravel()[256 : 256 + signal.size]


def masked(clean: Samples, start: int, stop: int, rng: Rng) -> Samples:
    """The clip with a burst of noise over one stretch, which can no longer be made out.

    The burst is about as loud as the other events, so these stay audible; what sounds under it is
    scaled to 25 to 35 dB below, and further where a narrow band of it would still stand out.

    Args:
        clean: (S,) float32, with silence around its events.
        start: first sample of the stretch.
        stop: one past its last sample.
        rng: source of the burst.

    Returns:
        (S,) float32, peak 1; silence as it is.
    """
    edge = SAMPLE_RATE_HZ // 50  # outside the stretch: inside, the burst has its full level
    left, right = max(0, start - edge), min(clean.size, stop + edge)
    n = _transform_length(right - left)
    burst = _waveform(_coloured(n, _slope(n, rng.uniform(-3.0, 0.5)), rng), n)[: right - left]
    ramp = np.sin(np.linspace(0, np.pi / 2, edge, dtype=np.float32)) ** 2
    burst[: start - left] *= ramp[edge - (start - left) :]
    burst[burst.size - (right - stop) :] *= ramp[::-1][: right - stop]
    hidden = clean[start:stop]
    audible = _sounding(np.concatenate([clean[:start], clean[stop:]]))
    reference = audible if audible.size else _sounding(hidden)
    if not reference.size:
        return clean
    burst *= np.sqrt(np.mean(reference**2) / np.mean(burst[start - left : stop - left] ** 2))
    out = clean.copy()
    if np.any(hidden):
        level_db, band_db = _standing_out_db(hidden, burst[start - left : stop - left])
        fall_db = max(level_db + float(rng.uniform(*MASKED_DB)), band_db + MASKED_BAND_DB)
        out[start:stop] *= 10 ** (-fall_db / 20)
    out[left:right] += burst
    burst_over: Samples = out / np.float32(_peak(out))
    return burst_over


def _sounding(signal: Samples) -> Samples:
    sounding: Samples = signal[signal != 0]
    return sounding


def _standing_out_db(event: Samples, burst: Samples) -> tuple[float, float]:
    # How far the event stands out of the burst: as a whole, where it sounds, and in the worst of
    # 24 bands between 60 Hz and 8 kHz.
    sounding = _sounding(event)
    level_db = 10 * float(np.log10(np.mean(sounding**2) / np.mean(burst**2)))
    n = _transform_length(event.size)
    edges = np.unique(np.geomspace(60, 8000, 25) * n / SAMPLE_RATE_HZ).astype(np.int64)[:-1]
    powers = [np.abs(np.fft.rfft(part, n)) ** 2 for part in (event, burst)]
    event_bands, burst_bands = (np.add.reduceat(power, edges) for power in powers)
    return level_db, 10 * float(np.log10(np.max(event_bands / burst_bands)))
