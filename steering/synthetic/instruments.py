"""The synthetic instruments by name, their registers and the families of look-alikes.

An instrument is a function from a generator to a note: it draws one timbre, which all notes of a
phrase then share.
"""

from collections.abc import Callable

from steering.synthetic import plucked, sustained
from steering.synthetic.plucked import Note
from steering.synthetic.synthesis import Rng

TIMBRES: dict[str, Callable[[Rng], Note]] = {
    "piano": plucked.piano,
    "organ": sustained.organ,
    "flute": sustained.flute,
    "violin": sustained.violin,
    "trumpet": sustained.trumpet,
    "guitar": plucked.guitar,
    "marimba": plucked.marimba,
    "clarinet": sustained.clarinet,
    "harp": plucked.harp,
    "cello": sustained.cello,
    "oboe": sustained.oboe,
    "saxophone": sustained.saxophone,
    "accordion": sustained.accordion,
    "banjo": plucked.banjo,
    "xylophone": plucked.xylophone,
    "harmonica": sustained.harmonica,
    "bagpipe": sustained.bagpipe,
    "tuba": sustained.tuba,
    "sitar": plucked.sitar,
    "vibraphone": plucked.vibraphone,
    "harpsichord": plucked.harpsichord,
    "piccolo": sustained.piccolo,
    "trombone": sustained.trombone,
    "theremin": sustained.theremin,
}
INSTRUMENTS = tuple(TIMBRES)

# Semitones above or below the common register; the others overlap in pitch altogether.
REGISTERS: dict[str, int] = {
    "xylophone": 5,
    "piccolo": 9,
    "theremin": 3,
    "cello": -7,
    "trombone": -5,
    "tuba": -9,
}

FAMILIES: dict[str, tuple[str, ...]] = {
    "struck": ("piano", "marimba", "xylophone", "vibraphone"),
    "plucked": ("guitar", "banjo", "harp", "sitar", "harpsichord"),
    "bowed": ("violin", "cello", "theremin"),
    "woodwind": ("flute", "piccolo", "clarinet", "oboe", "saxophone"),
    "brass": ("trumpet", "trombone", "tuba"),
    "bellows": ("organ", "accordion", "harmonica", "bagpipe"),
}
