"""Motors, vehicles and power tools."""

import numpy as np

from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    TOP_HZ,
    Event,
    Rng,
    Samples,
    Signal,
    drawn,
    faded,
    filtered,
    harmonics,
    noise_band,
    peak_normalised,
    place,
    pulses,
    resonances,
    running_phase,
    seconds,
    slow,
    tilt,
)


def engine(rng: Rng, samples: int) -> Samples:
    """A low pulse train with harmonics and drifting speed."""
    drift = rng.uniform(0.05, 0.5) * slow(rng, samples, rng.uniform(0.5, 1.5))
    phase = running_phase(rng.uniform(28, 80) * 2**drift)
    strengths = rng.uniform(0.6, 1.0, 4)[(phase / (2 * np.pi)).astype(np.int64) % 4]
    pulse = np.exp(rng.uniform(4, 14) * (np.cos(phase) - 1)) * strengths
    rough = rng.uniform(0.05, 0.25) * pulse * noise_band(rng, samples, 200, 2500)
    peaks = [(rng.uniform(60, 140), 80.0, 1.0), (rng.uniform(180, 450), 160.0, rng.uniform(0.4, 1))]
    peaks.append((rng.uniform(600, 1400), 500.0, rng.uniform(0.1, 0.4)))
    body = filtered(pulse - pulse.mean() + rough, resonances(peaks, floor=0.02))
    return peak_normalised(tilt(rng, body, -1, 1.5))


def motorcycle(rng: Rng, samples: int) -> Samples:
    """A hard, bright exhaust that is revved: up by an octave and back, again and again."""
    turn = seconds(samples) * rng.uniform(1.2, 2.2) + rng.uniform()
    revs = np.abs((turn % 1.0) - rng.uniform(0.25, 0.4)) * 1.6
    pitch_hz = rng.uniform(85, 130) * 2 ** (rng.uniform(0.9, 1.4) * np.clip(1 - revs, 0, 1))
    pulse = pulses(running_phase(pitch_hz), rng.uniform(20, 50))
    rasp = (pulse - pulse.min()) * noise_band(rng, samples, 500, 5000) * rng.uniform(0.2, 0.5)
    peaks = [(300.0, 300.0, 0.7), (rng.uniform(900, 1500), 700.0, 1.0), (3000.0, 1500.0, 0.6)]
    body = filtered(pulse + rasp, resonances(peaks, floor=0.1))
    return peak_normalised(np.tanh(2 * body / body.std() / 3))


def tractor(rng: Rng, samples: int) -> Samples:
    """A slow diesel: separate thumps with a clatter, nine to fourteen a second."""
    phase = running_phase(rng.uniform(9, 14) * (1 + 0.06 * slow(rng, samples, 4)))
    strengths = rng.uniform(0.6, 1.0, 2)[(phase / (2 * np.pi)).astype(np.int64) % 2]
    beat = np.exp(rng.uniform(25, 50) * (np.cos(phase) - 1)) * strengths
    thump = filtered(beat, resonances([(rng.uniform(70, 130), 40.0, 1.0)]))
    clatter = beat * filtered(
        rng.standard_normal(samples), resonances([(rng.uniform(900, 1800), 500.0, 1.0)])
    )
    body = thump / thump.std() + rng.uniform(0.4, 0.8) * clatter / clatter.std()
    return peak_normalised(body)


def train(rng: Rng, samples: int) -> Samples:
    """Wheels on rails: pairs of metal clacks at a steady pace over a rumble."""
    out = 0.12 * noise_band(rng, samples, 60, rng.uniform(250, 500))
    pace_s, pair_s = rng.uniform(0.4, 0.58), rng.uniform(0.09, 0.14)
    centres_hz = rng.uniform(350, 1500, 3)
    t = seconds(int(0.12 * SAMPLE_RATE_HZ))
    for i in range(int(samples / SAMPLE_RATE_HZ / pace_s) + 1):
        for late_s, level in ((0.0, 1.0), (pair_s, 0.75)):
            ring = sum(np.sin(2 * np.pi * f * t) for f in centres_hz) * np.exp(-t / 0.025)
            clack = ring / 3 + rng.standard_normal(t.size) * np.exp(-t / 0.006)
            start_s = 0.05 + i * pace_s * rng.uniform(0.99, 1.01) + late_s
            place(out, clack * level, int(start_s * SAMPLE_RATE_HZ))
    return peak_normalised(out)


def helicopter(rng: Rng, samples: int) -> Samples:
    """Rotor blades: soft chops of airy noise, ten to sixteen a second, under a thin whine."""
    phase = running_phase(rng.uniform(11, 17) * (1 + 0.03 * slow(rng, samples, 2)))
    chop = np.exp(rng.uniform(2, 4) * (np.cos(phase) - 1))
    air = noise_band(rng, samples, 100, rng.uniform(500, 900)) * chop
    whine_hz = np.full(samples, rng.uniform(1500, 2600))
    whine = 0.06 * harmonics(running_phase(whine_hz), [1.0, 0.5])
    return peak_normalised(air + whine + 0.05 * noise_band(rng, samples, 300, 3000))


def airplane(rng: Rng, samples: int) -> Samples:
    """A jet passing: broad roar that swells, and a turbine tone that sinks as it goes by."""
    share = np.linspace(0, 1, samples)
    passing = np.tanh((share - rng.uniform(0.3, 0.7)) * 4)
    swell = 0.3 + 0.7 * (1 - passing**2)
    pitch_hz = rng.uniform(1400, 2600) * 2 ** (-0.3 * passing)
    whine = harmonics(running_phase(pitch_hz), [1.0, 0.4])
    roar = noise_band(rng, samples, 80, rng.uniform(900, 2000))
    return peak_normalised((roar + rng.uniform(0.35, 0.7) * whine) * swell)


def drill(rng: Rng, samples: int) -> Samples:
    """A fast motor whine with a hammering of twenty-five to forty strokes a second."""
    load = 2 ** (-0.25 * slow(rng, samples, 2))
    whine = pulses(running_phase(rng.uniform(380, 620) * load), 4.0)
    hammer = pulses(running_phase(rng.uniform(25, 40) * load), 8.0)
    grit = noise_band(rng, samples, 1500, 6500) * (hammer - hammer.min())
    body = whine / whine.std() + rng.uniform(1.0, 1.8) * grit / grit.std()
    return peak_normalised(tilt(rng, body, -1, 1))


def strokes(rng: Rng) -> Event:
    """A hand saw: toothed noise back and forth, the pull lower than the push."""
    teeth_hz, centre_hz = rng.uniform(70, 110), rng.uniform(1800, 3000)
    turn = [0]

    def stroke() -> Signal:
        turn[0] += 1
        n, back = drawn(rng, 0.17, 0.26), turn[0] % 2
        t = np.linspace(0, 1, n)
        teeth = pulses(running_phase(teeth_hz * (0.5 + np.sin(np.pi * t))), 4.0)
        grain = noise_band(rng, n, 500, 6000) * (teeth - teeth.min() + 0.1)
        centre = centre_hz * (0.65 if back else 1.0)
        return faded(filtered(grain, resonances([(centre, 900.0, 1.0)], 0.1)), 0.06, 0.06)

    return stroke


def printed_lines(rng: Rng) -> Event:
    """A needle printer: a shrill buzz for each line, then the step of the paper."""
    rate_hz, pitch_hz = rng.uniform(90, 140), rng.uniform(1100, 1900)

    def line() -> Signal:
        n, step = drawn(rng, 0.18, 0.34), drawn(rng, 0.05, 0.07)
        needles = pulses(running_phase(np.full(n, rate_hz * rng.uniform(0.97, 1.03))), 40.0)
        buzz = filtered(needles, resonances([(pitch_hz, 250.0, 1.0), (2.3 * pitch_hz, 500.0, 0.9)]))
        motor = harmonics(running_phase(np.full(step, rng.uniform(240, 300))), [1.0, 0.8, 0.6])
        return np.concatenate([faded(buzz / buzz.std(), 0.005, 0.005), faded(motor, 0.005, 0.01)])

    return line


def vacuum(rng: Rng, samples: int) -> Samples:
    """A steady roar of air and the even hum of its motor."""
    hum_hz = rng.uniform(180, 330)
    levels = list(rng.uniform(0.2, 1.0, min(10, int(TOP_HZ / hum_hz))))
    hum = harmonics(running_phase(hum_hz * (1 + 0.01 * slow(rng, samples, 2))), levels)
    air = noise_band(rng, samples, rng.uniform(300, 600), rng.uniform(2500, 5000))
    return peak_normalised(tilt(rng, air + rng.uniform(0.5, 0.9) * hum / hum.std(), -1, 1))
