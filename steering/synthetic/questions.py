"""Questions about the clips of the synthetic world: options, cues, and sentences as answers."""

from collections.abc import Mapping
from dataclasses import dataclass

from steering.prompt import with_choices
from steering.synthetic import sounds, world
from steering.synthetic.synthesis import Rng
from steering.synthetic.world import Facts

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
    "count": (
        "How many times does it sound?",
        "How often can you hear it?",
        "Count the sounds in the clip.",
    ),
    "first": ("What comes first?", "What do you hear at the beginning?"),
    "last": ("What comes last?", "What do you hear at the end?"),
    "kind": ("What kind of audio is this?", "Is this speech, music or something else?"),
}
OPEN_QUESTIONS = ("What do you hear?", "What is in this clip?", "What is this?")
DESCRIBE_QUESTIONS = (
    "Describe what you hear.",
    "Describe the audio in one sentence.",
    "Describe the clip.",
    "Say what can be heard in this clip.",
    "What is in this audio? Answer in one sentence.",
)
UNSEEN_DESCRIBE_QUESTIONS = (
    "Tell me what happens in this recording.",
    "Summarise the audio for someone who could not listen.",
)
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
_ALIKE_SHARE = 0.4  # of the other options that are drawn from the answer's family


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
    rival: str = ""  # the value that a contradicting cue names

    @property
    def prompt(self) -> str:
        """The user's text: the question, then one option on each line."""
        return with_choices(self.text, self.choices)


def describe(facts: Facts) -> str:
    """One sentence about a clip."""
    attributes = facts.attributes
    if "first" in attributes:
        return f"You can hear {noun(attributes['first'])}, then {noun(attributes['last'])}."
    if facts.domain == "music":
        return f"Someone plays the {facts.main}, the melody is {attributes['contour']}."
    if facts.domain == "speech":
        return f"A {facts.speaker} says {facts.main}."
    if "count" in attributes:
        times = "time" if attributes["count"] == "one" else "times"
        return f"You can hear {noun(facts.main)}, {attributes['count']} {times}."
    return sounds.ACTIONS.get(facts.main, f"There is only {facts.main}.")


def noun(source: str) -> str:
    """A source as the object of a sentence: a dog, an oboe, the word seven."""
    kind = world.KIND_OF[source]
    if kind == "word":
        return f"the word {source}"
    if kind == "instrument":
        return f"an {source}" if source[0] in "aeiou" else f"a {source}"
    return sounds.NOUNS[source]


def ask(
    facts: Facts,
    rng: Rng,
    attribute: str | None = None,
    cued: bool | None = None,
    cues: Mapping[str, tuple[str, ...]] = CUES,
) -> ClipQuestion:
    """A multiple-choice question about a clip; half of them carry a cue, uniform over the options.

    Noise and silence have no right answer but "kind": their `answer` is then a random option.

    Args:
        facts: what sounds.
        rng: source of the wording, the options and the cue.
        attribute: what is asked for, a key of VALUES; otherwise drawn from what can be heard.
        cued: whether there is a cue; otherwise drawn.
        cues: the cues' wordings by strength.
    """
    if attribute is None:
        attribute = draw_attribute(facts, rng)
    answer = facts.domain if attribute == "kind" else facts.attributes.get(attribute, "")
    if answer not in world.VALUES[attribute]:
        answer = str(rng.choice(world.VALUES[attribute]))
    choices = _options(facts, attribute, answer, rng)
    text = str(rng.choice(QUESTIONS[attribute]))
    if not (rng.random() < 0.5 if cued is None else cued):
        return ClipQuestion(text, attribute, choices, answer, None, None, "neutral")
    suggested = choices[int(rng.integers(4))]
    cue, sentence = _draw_cue(suggested, cues, rng)
    wording = "consistent" if suggested == answer else "conflict"
    return ClipQuestion(
        f"{sentence} {text}", attribute, choices, answer, suggested, cue, wording, rival=suggested
    )


def _options(facts: Facts, attribute: str, answer: str, rng: Rng) -> tuple[str, ...]:
    """The answer and three others in random order, some of them like it."""
    values = list(world.VALUES[attribute])
    if attribute in world.ORDER:
        values = list(world.SOURCES[world.KIND_OF[answer]])
    chosen = [answer]
    if attribute in world.ORDER and rng.random() < 0.5:
        other = facts.attributes.get("last" if attribute == "first" else "first", answer)
        chosen += [other] if other not in chosen else []
    while len(chosen) < 4:
        alike = [v for v in world.FAMILY_OF.get(answer, ()) if v not in chosen]
        pool = alike if alike and rng.random() < _ALIKE_SHARE else values
        value = str(rng.choice(pool))
        chosen += [value] if value not in chosen else []
    return tuple(chosen[i] for i in rng.permutation(4))


def ask_openly(
    facts: Facts,
    rng: Rng,
    wordings: tuple[str, ...] = DESCRIBE_QUESTIONS,
    cued: bool | None = None,
    sentence: bool | None = None,
) -> ClipQuestion:
    """An open question, answered by one word or by a sentence; one in four carries a cue.

    A clip of two events has no one word, and no cue.

    Args:
        facts: what sounds.
        rng: source of the wording and the cue.
        wordings: of the questions that a sentence answers.
        cued: whether there is a cue; otherwise drawn.
        sentence: whether a sentence answers; otherwise drawn.
    """
    pair = "first" in facts.attributes
    if sentence is None:
        sentence = pair or bool(rng.random() < 0.8)
    text = str(rng.choice(wordings if sentence else OPEN_QUESTIONS))
    attribute = "describe" if sentence else "open"
    answer = describe(facts) if sentence else facts.main
    wanted = rng.random() < 0.25 if cued is None else cued
    if facts.domain not in world.DOMAINS or pair or not wanted:
        return ClipQuestion(text, attribute, (), answer, None, None, "neutral")
    source = world.DOMAINS[facts.domain]
    rival = str(rng.choice([v for v in world.SOURCES[source] if v != facts.main]))
    if "count" in facts.attributes:
        rival = str(rng.choice([v for v in sounds.COUNTED if v != facts.main]))
    # the cue names the source only: what else the clip tells stays
    other = Facts(facts.domain, {**facts.attributes, source: rival}, speaker=facts.speaker)
    suggested = describe(other) if sentence else rival
    cue, cue_text = _draw_cue(rival, CUES, rng)
    return ClipQuestion(
        f"{cue_text} {text}", attribute, (), answer, suggested, cue, "conflict", rival=rival
    )


def draw_attribute(facts: Facts, rng: Rng) -> str:
    """An attribute of a clip that can be heard, drawn at random."""
    if facts.domain == "music" and "contour" in facts.attributes:
        return "instrument" if rng.random() < 0.6 else "contour"
    if facts.audible:
        return str(rng.choice(facts.audible))
    return str(rng.choice(list(world.VALUES)))


def _invented_name(rng: Rng) -> str:
    """An invented name, so that unknown words in a prompt are nothing new to the model."""
    syllables = ("ba", "lo", "mi", "ran", "te", "su", "ko", "del", "vi", "nar", "pe", "jo", "hal")
    return "".join(rng.choice(syllables, size=int(rng.integers(2, 4)))).capitalize()


def _draw_cue(suggested: str, cues: Mapping[str, tuple[str, ...]], rng: Rng) -> tuple[str, str]:
    """How strong a cue is, and the sentence that suggests the value."""
    strength = str(rng.choice(list(world.STRENGTH_BIAS)))
    template = str(rng.choice(cues[strength]))
    name = _invented_name(rng) if "{name}" in template else ""
    return strength, template.format(x=suggested, name=name)
