"""The synthetic world: events that sound, facts about them, and how far a label trusts a clip.

A clip holds one event, or two of which one may be masked by noise. Where a cue contradicts a clip,
a training label follows the cue the more often, the less familiar the source is, the less clear the
recording and the more alike the rival. None of the three is the level: that is drawn by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steering.synthetic import instruments, music, sounds, speech, takes
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng, Samples, noise

MIN_SECONDS, MAX_SECONDS = 1.8, 3.0
HOPS_A_SECOND = 100  # of the mel spectrogram
AUDIO_TOKENS_A_SECOND = 25
AUDIO_TOKENS = 75  # of the longest clip

SOURCES: Mapping[str, tuple[str, ...]] = {
    "sound": tuple(sounds.SOUNDS),
    "instrument": instruments.INSTRUMENTS,
    "word": speech.WORDS,
}
KIND_OF: Mapping[str, str] = {value: kind for kind, values in SOURCES.items() for value in values}
COUNTS = ("one", "two", "three", "four")
ORDER = ("first", "last")  # the attributes of a clip with two events
VALUES: Mapping[str, tuple[str, ...]] = {
    **SOURCES,
    "contour": music.CONTOURS,
    "count": COUNTS,
    **dict.fromkeys(ORDER, tuple(KIND_OF)),
    "kind": ("sound", "music", "speech", "noise"),
}
# The attribute that names a domain's source.
DOMAINS: Mapping[str, str] = {"sound": "sound", "music": "instrument", "speech": "word"}
FAMILIES: Mapping[str, tuple[str, ...]] = {
    **sounds.FAMILIES,
    **instruments.FAMILIES,
    **speech.FAMILIES,
}
FAMILY_OF: Mapping[str, tuple[str, ...]] = {
    name: family for family in FAMILIES.values() for name in family
}
PAIR_SHARE, MASKED_SHARE, COUNTED_SHARE = 0.22, 0.35, 0.3

# Training label of a question whose cue and clip disagree: see `follow_probability`.
STRENGTH_BIAS: Mapping[str, float] = {"weak": -1.2, "medium": 0.0, "strong": 1.2}
FAMILIAR_WEIGHT, CLEAR_WEIGHT, UNLIKE_WEIGHT = 0.5, 0.3, 0.2
TRUST_SLOPE, TRUST_MIDDLE = 12.0, 0.58
FOLLOW_FLOOR, FOLLOW_CEILING = 0.04, 0.94


@dataclass(frozen=True, slots=True)
class Facts:
    """The truth about a clip: its domain, the value of every attribute, and what noise hides."""

    domain: str  # sound, music, speech (of the first event), noise, silence
    attributes: Mapping[str, str]
    masked: str = ""  # "first" or "last": the event that noise hides
    speaker: str = ""  # man, woman; empty but for a word alone

    @property
    def main(self) -> str:
        """The one word that answers "What do you hear?"."""
        for attribute in SOURCES:
            if attribute in self.attributes:
                return self.attributes[attribute]
        return self.domain

    @property
    def audible(self) -> tuple[str, ...]:
        """The attributes that can be heard."""
        return tuple(name for name in self.attributes if name != self.masked)

    def source(self, attribute: str) -> str:
        """The value whose familiarity counts for a question about an attribute."""
        return self.attributes.get(attribute, "") if attribute in ORDER else self.main


@dataclass(frozen=True, slots=True)
class Scene:
    """A clean clip and where its events sound."""

    samples: Samples  # (S,) float32, peak 1; zeros for silence
    events: tuple[tuple[int, int], ...]  # first sample and the one after the last, in order


def _familiarities() -> dict[str, float]:
    """A fixed number in [0, 1] for each source: in every family some are common and some rare."""
    shares: dict[str, float] = {}
    for index, family in enumerate(FAMILIES.values()):
        order = np.random.default_rng([19, index]).permutation(len(family))
        shares |= {
            name: (int(rank) + 0.5) / len(family) for name, rank in zip(family, order, strict=True)
        }
    return shares


FAMILIARITY: Mapping[str, float] = _familiarities()


def are_alike(facts: Facts, answer: str, rival: str) -> bool:
    """Whether a rival is of the answer's family, or another event of the same clip."""
    return rival in FAMILY_OF.get(answer, ()) or rival in facts.attributes.values()


def trust(facts: Facts, attribute: str, answer: str, rival: str, clarity: float) -> float:
    """How far a label goes by the clip against a rival answer, in [0, 1]."""
    familiar = FAMILIARITY.get(facts.source(attribute), 0.5)
    unlike = 0.0 if are_alike(facts, answer, rival) else 1.0
    return FAMILIAR_WEIGHT * familiar + CLEAR_WEIGHT * clarity + UNLIKE_WEIGHT * unlike


def follow_probability(cue: str, trusted: float) -> float:
    """Share of training labels that follow a cue against the clip: falls with trust."""
    logit = TRUST_SLOPE * (TRUST_MIDDLE - trusted) + STRENGTH_BIAS[cue]
    share = 1.0 / (1.0 + float(np.exp(-logit)))
    return FOLLOW_FLOOR + (FOLLOW_CEILING - FOLLOW_FLOOR) * share


def draw_facts(rng: Rng, domain: str, pair_share: float = PAIR_SHARE) -> Facts:
    """Facts of one clip of a domain, every source equally likely; a share has two events."""
    if domain not in DOMAINS:
        return Facts(domain, {})
    value = str(rng.choice(SOURCES[DOMAINS[domain]]))
    if rng.random() < pair_share:
        return _draw_pair(rng, domain, value)
    if domain == "music":
        return Facts(domain, {"instrument": value, "contour": str(rng.choice(VALUES["contour"]))})
    if domain == "speech":
        return Facts(domain, {"word": value}, speaker=str(rng.choice(speech.SEXES)))
    if rng.random() < COUNTED_SHARE:
        counted = str(rng.choice(list(sounds.COUNTED)))
        return Facts(domain, {"sound": counted, "count": str(rng.choice(COUNTS))})
    return Facts(domain, {"sound": value})


def _draw_pair(rng: Rng, domain: str, first: str) -> Facts:
    """Facts of two different events, the first of the domain; noise may hide either."""
    last = first
    while last == first:
        last = str(rng.choice(SOURCES[str(rng.choice(list(SOURCES)))]))
    masked = str(rng.choice(ORDER)) if rng.random() < MASKED_SHARE else ""
    return Facts(domain, {"first": first, "last": last}, masked)


def synthesise(facts: Facts, voices: Sequence[str], rng: Rng) -> Scene:
    """The clean sound of the facts at 16 kHz, its events at random places."""
    if "first" in facts.attributes:
        return _pair(facts, voices, rng)
    size = _draw_samples(rng, MIN_SECONDS, MAX_SECONDS)
    if facts.domain == "silence":
        return Scene(np.zeros(size, np.float32), ())
    if facts.domain == "noise":
        return Scene(noise(rng, size), ())
    event = _event(facts, voices, size, rng)[:size]
    start = int(rng.integers(0, size - event.size + 1))
    clip = np.zeros(size, np.float32)
    clip[start : start + event.size] = event
    return Scene(clip, ((start, start + event.size),))


def _draw_samples(rng: Rng, low_s: float, high_s: float) -> int:
    """A length in samples, in whole hops of 10 ms."""
    hops = rng.integers(round(low_s * HOPS_A_SECOND), round(high_s * HOPS_A_SECOND) + 1)
    return int(hops) * (SAMPLE_RATE_HZ // HOPS_A_SECOND)


def _event(facts: Facts, voices: Sequence[str], longest: int, rng: Rng) -> Samples:
    """The one event of a clip, no longer than so many samples."""
    attributes = facts.attributes
    if facts.domain == "music":
        size = min(longest, _draw_samples(rng, 1.3, 2.5))
        return music.play(attributes["instrument"], attributes["contour"], rng, size)
    if facts.domain == "speech":
        return speech.say(attributes["word"], _draw_voice(voices, facts.speaker, rng), rng)
    if "count" in attributes:
        count = COUNTS.index(attributes["count"]) + 1
        return sounds.COUNTED[attributes["sound"]](rng, count)
    return sounds.SOUNDS[attributes["sound"]](rng, min(longest, _draw_samples(rng, 0.8, 2.4)))


def _draw_voice(voices: Sequence[str], speaker: str, rng: Rng) -> str:
    """One of the voices, of a man or a woman where that is asked."""
    fit = [voice for voice in voices if speaker in ("", speech.SPEAKERS[voice])]
    return fit[int(rng.integers(len(fit)))]


def _pair(facts: Facts, voices: Sequence[str], rng: Rng) -> Scene:
    """Two short events, one after the other; the masked one under a burst of noise."""
    events = [_short(facts.attributes[name], voices, rng) for name in ORDER]
    gap = _draw_samples(rng, 0.08, 0.25)
    least = sum(event.size for event in events) + gap
    size = max(_draw_samples(rng, 2.2, MAX_SECONDS), least)
    start = int(rng.integers(0, size - least + 1))
    clip, bounds = np.zeros(size, np.float32), []
    for event in events:
        clip[start : start + event.size] = event
        bounds.append((start, start + event.size))
        start += event.size + gap
    if facts.masked:
        clip = takes.masked(clip, *bounds[ORDER.index(facts.masked)], rng)
    return Scene(clip, tuple(bounds))


def _short(source: str, voices: Sequence[str], rng: Rng) -> Samples:
    """A source for 0.7 to 1.25 s; a word for as long as it takes, at most 1.3 s."""
    kind = KIND_OF[source]
    if kind == "word":
        return speech.say(source, _draw_voice(voices, "", rng), rng)[: int(1.3 * SAMPLE_RATE_HZ)]
    if kind == "instrument":
        contour = str(rng.choice(VALUES["contour"]))
        return music.play(source, contour, rng, _draw_samples(rng, 1.0, 1.25))
    return sounds.SOUNDS[source](rng, _draw_samples(rng, 0.7, 1.2))


def active(scene: Scene, facts: Facts) -> NDArray[np.bool_]:
    """(S,) bool: where an event can be heard; everywhere in a clip without events."""
    sounding = np.full(scene.samples.size, not scene.events)
    for name, (start, stop) in zip(ORDER, scene.events, strict=False):
        sounding[start:stop] = name != facts.masked
    return sounding
