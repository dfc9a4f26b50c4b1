"""The synthetic world: sounds, statements about them, and questions.

A clip has facts (a sound, instrument, contour or word) and a trust level: how loud it was
recorded. A question may carry a cue, a sentence that suggests one of the options. How far a clip
is trusted against a cue depends on the clip's level and on the cue's strength, and the level is
independent of the words: so a model trained here listens more or less *by ear*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steering.prompt import with_choices
from steering.synthetic import music, sounds, speech

SAMPLE_RATE_HZ = 16_000
MAX_SECONDS = 3.0
AUDIO_TOKENS = 75  # of the longest clip: 25 a second

VALUES: Mapping[str, tuple[str, ...]] = {
    "sound": tuple(sounds.SOUNDS),
    "instrument": tuple(music.INSTRUMENTS),
    "contour": tuple(music.CONTOURS),
    "word": tuple(speech.WORDS),
    "kind": ("sound", "music", "speech", "noise"),
}
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "sound": (
        "What is making this sound?",
        "Which sound is this?",
        "What is the source of this sound?",
        "Identify the sound in the clip.",
        "What can be heard here?",
    ),
    "instrument": (
        "Which instrument is playing?",
        "What instrument is this?",
        "Name the instrument in the clip.",
        "What is being played here?",
    ),
    "contour": (
        "How does the melody move?",
        "What is the shape of the melody?",
        "Which way do the notes go?",
    ),
    "word": (
        "Which word is spoken?",
        "What does the speaker say?",
        "What word do you hear?",
        "Which word was said in the clip?",
    ),
    "kind": ("What kind of audio is this?", "Is this speech, music or something else?"),
}
OPEN_QUESTIONS = ("What do you hear?", "What is in this clip?", "What is this?")
DESCRIBE_QUESTIONS = ("Describe what you hear.", "Describe the audio in one sentence.")
CUES: Mapping[str, tuple[str, ...]] = {
    "weak": (
        "Someone guessed {x}.",
        "A child thought it was {x}.",
        "It may be {x}.",
        "I think I heard {x}.",
        "{name} guessed {x}.",
        "Perhaps it is {x}.",
    ),
    "medium": (
        "The title says {x}.",
        "The notes mention {x}.",
        "The file is called {x}.",
        "A friend wrote {x} next to it.",
        "{name} wrote down {x}.",
        "The playlist lists {x}.",
    ),
    "strong": (
        "The label says {x}.",
        "The expert confirmed {x}.",
        "We know it is {x}.",
        "The record states {x}.",
        "{name} checked it and it is {x}.",
        "This was certified as {x}.",
    ),
}
UNSEEN_CUES: Mapping[str, tuple[str, ...]] = {
    "weak": ("A passer-by wondered whether it was {x}.", "One listener suspected {x}."),
    "medium": ("My neighbour insists it was {x}.", "The caption reads {x}."),
    "strong": ("The laboratory proved that it is {x}.", "Officially this is {x}."),
}
SENTENCES: Mapping[str, str] = {
    "siren": "A siren is wailing.",
    "alarm": "An alarm is beeping.",
    "rain": "Rain is falling.",
    "wind": "The wind is howling.",
    "engine": "An engine is running.",
    "clock": "A clock is ticking.",
    "dog": "A dog is barking.",
    "bird": "A bird is singing.",
    "bell": "A bell is ringing.",
    "footsteps": "Footsteps are approaching.",
    "phone": "A phone is ringing.",
    "cow": "A cow is mooing.",
    "noise": "There is only noise.",
    "silence": "There is only silence.",
}

# Training label of a question whose cue and clip disagree: see `follow_probability`.
STRENGTH_BIAS: Mapping[str, float] = {"weak": -1.2, "medium": 0.0, "strong": 1.2}
TRUST_SLOPE, TRUST_MIDDLE = 9.0, 0.62
FOLLOW_FLOOR, FOLLOW_CEILING = 0.04, 0.94
HARD_SHARE, HARD_SNR_DB = 0.42, (-14.0, 2.0)
LOUD_DBFS, QUIET_RANGE_DB = -1.0, 36.0


@dataclass(frozen=True, slots=True)
class Facts:
    """The truth about a clip: its domain and the value of every attribute it has."""

    domain: str  # sound, music, speech, noise, silence
    attributes: Mapping[str, str]

    @property
    def main(self) -> str:
        """The one word that answers "What do you hear?"."""
        for attribute in ("sound", "instrument", "word"):
            if attribute in self.attributes:
                return self.attributes[attribute]
        return self.domain


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question about a clip, with the cue before it, if any."""

    text: str
    attribute: str  # a key of VALUES, "open" or "describe"
    choices: tuple[str, ...]  # empty for open questions
    answer: str  # what the sound says
    suggested: str | None  # what the cue says, in the form of an answer
    cue: str | None  # weak, medium, strong
    wording: str  # neutral, consistent, conflict

    @property
    def prompt(self) -> str:
        """The user's text: the question, then one option on each line."""
        return with_choices(self.text, self.choices)


def follow_probability(cue: str, trust: float) -> float:
    """Share of training labels that follow a cue against the clip: falls with trust."""
    logit = TRUST_SLOPE * (TRUST_MIDDLE - trust) + STRENGTH_BIAS[cue]
    share = 1.0 / (1.0 + float(np.exp(-logit)))
    return FOLLOW_FLOOR + (FOLLOW_CEILING - FOLLOW_FLOOR) * share


def draw_facts(rng: np.random.Generator, domain: str) -> Facts:
    """Facts of one clip of a domain, every value equally likely."""
    names = {"sound": ("sound",), "music": ("instrument", "contour"), "speech": ("word",)}
    drawn = {name: str(rng.choice(VALUES[name])) for name in names.get(domain, ())}
    return Facts(domain, drawn)


def synthesise(
    facts: Facts, voices: Sequence[str], rng: np.random.Generator
) -> NDArray[np.float32]:
    """The clean sound of the facts: (S,) float32 at 16 kHz, peak 1 (silence: zeros)."""
    if facts.domain == "sound":
        return sounds.SOUNDS[facts.attributes["sound"]](rng)
    if facts.domain == "music":
        return music.play(facts.attributes["instrument"], facts.attributes["contour"], rng)
    if facts.domain == "speech":
        voice = voices[int(rng.integers(len(voices)))]
        return speech.say(facts.attributes["word"], voice, rng)
    if facts.domain == "noise":
        return sounds.noise(rng)
    return np.zeros(int(rng.uniform(1.8, MAX_SECONDS) * SAMPLE_RATE_HZ), dtype=np.float32)


def draw_snr_db(rng: np.random.Generator) -> float:
    """A signal-to-noise ratio: most clips are clear, the others hard to tell, at any level.

    The sound of a hard clip says little, so an answer steered too far towards it is worse than one
    that also minds the text: too much strength costs accuracy.
    """
    return float(rng.uniform(*HARD_SNR_DB) if rng.random() < HARD_SHARE else rng.uniform(6.0, 36.0))


def record(
    clean: NDArray[np.float32], background: NDArray[np.floating], snr_db: float, trust: float
) -> NDArray[np.float32]:
    """The sound in its background, at the level that trust stands for: (S,) float32.

    The peak is -1 dBFS at trust 1 and 36 dB lower at trust 0; silence stays digital silence.
    """
    if not np.any(clean):
        return clean
    background = np.resize(background, clean.shape)
    power, floor = float(np.mean(clean**2)), float(np.mean(background**2)) + 1e-12
    mixed = clean + background * np.sqrt(power / floor) * 10 ** (-snr_db / 20)
    level_dbfs = LOUD_DBFS - QUIET_RANGE_DB * (1.0 - trust)
    gain = 10 ** (level_dbfs / 20) / float(np.max(np.abs(mixed)))
    recorded: NDArray[np.float32] = (mixed * gain).astype(np.float32)
    return recorded


def describe(facts: Facts) -> str:
    """One sentence about a clip."""
    if facts.domain == "music":
        instrument, contour = facts.attributes["instrument"], facts.attributes["contour"]
        return f"Someone plays the {instrument}, the melody is {contour}."
    if facts.domain == "speech":
        return f"Someone says {facts.attributes['word']}."
    return SENTENCES[facts.main]


def _name(rng: np.random.Generator) -> str:
    """An invented name, so that unknown words in a prompt are nothing new to the model."""
    syllables = ("ba", "lo", "mi", "ran", "te", "su", "ko", "del", "vi", "nar", "pe", "jo", "hal")
    return "".join(rng.choice(syllables, size=int(rng.integers(2, 4)))).capitalize()


def _cue_sentence(
    strength: str, suggested: str, cues: Mapping[str, tuple[str, ...]], rng: np.random.Generator
) -> str:
    template = str(rng.choice(cues[strength]))
    return template.format(x=suggested, name=_name(rng) if "{name}" in template else "")


def ask(
    facts: Facts,
    rng: np.random.Generator,
    attribute: str | None = None,
    cued: bool | None = None,
    cues: Mapping[str, tuple[str, ...]] = CUES,
) -> ClipQuestion:
    """A multiple-choice question about a clip; half of them carry a cue, uniform over the options.

    Noise and silence have no right answer but "kind": their `answer` is then a random option.
    """
    if attribute is None:
        attribute = draw_attribute(facts, rng)
    values = VALUES[attribute]
    answer = facts.domain if attribute == "kind" else facts.attributes.get(attribute)
    if answer not in values:
        answer = str(rng.choice(values))
    others = [value for value in values if value != answer]
    choices = [answer, *(str(o) for o in rng.choice(others, size=3, replace=False))]
    choices = [choices[i] for i in rng.permutation(4)]
    text = str(rng.choice(QUESTIONS[attribute]))
    if not (rng.random() < 0.5 if cued is None else cued):
        return ClipQuestion(text, attribute, tuple(choices), answer, None, None, "neutral")
    suggested = choices[int(rng.integers(4))]
    strength = str(rng.choice(list(STRENGTH_BIAS)))
    text = f"{_cue_sentence(strength, suggested, cues, rng)} {text}"
    wording = "consistent" if suggested == answer else "conflict"
    return ClipQuestion(text, attribute, tuple(choices), answer, suggested, strength, wording)


def ask_openly(facts: Facts, rng: np.random.Generator) -> ClipQuestion:
    """An open question, answered by one word or by a sentence; one in three carries a cue."""
    sentence = bool(rng.random() < 0.4)
    text = str(rng.choice(DESCRIBE_QUESTIONS if sentence else OPEN_QUESTIONS))
    attribute = "describe" if sentence else "open"
    answer = describe(facts) if sentence else facts.main
    if facts.domain not in ("sound", "music", "speech") or rng.random() > 1 / 3:
        return ClipQuestion(text, attribute, (), answer, None, None, "neutral")
    other = draw_facts(rng, facts.domain)
    if facts.domain == "music":  # the cue names the instrument only: the contour stays
        other = Facts("music", {**facts.attributes, "instrument": other.main})
    suggested = describe(other) if sentence else other.main
    strength = str(rng.choice(list(STRENGTH_BIAS)))
    text = f"{_cue_sentence(strength, other.main, CUES, rng)} {text}"
    wording = "consistent" if suggested == answer else "conflict"
    return ClipQuestion(text, attribute, (), answer, suggested, strength, wording)


def draw_attribute(facts: Facts, rng: np.random.Generator) -> str:
    """The attribute of a clip to ask for, drawn at random."""
    if facts.domain == "music":
        return "instrument" if rng.random() < 0.6 else "contour"
    if facts.attributes:
        return next(iter(facts.attributes))
    return str(rng.choice(list(VALUES)))
