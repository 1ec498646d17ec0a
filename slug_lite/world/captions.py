"""Captions of the mini world: templates that name, describe or do both, each split with its own.

Templates of "val" and "test" are kept out of training; they put words together that training knows from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..runtime.captions import fold
from ..runtime.checks import unknown
from . import cast

PEOPLE: tuple[str, ...] = tuple(cast.PEOPLE)
CHARACTERS: tuple[str, ...] = tuple(cast.CHARACTERS)
OBJECTS: tuple[str, ...] = tuple(cast.OBJECTS)
STYLES: tuple[str, ...] = tuple(cast.STYLES)
NAMES = {"people": PEOPLE, "characters": CHARACTERS, "objects": OBJECTS, "styles": STYLES}
SPLITS = ("train", "val", "test", "unseen")

# Templates that name, by kind and split. The held-out ones combine words that training uses elsewhere.
_NAMING = {
    "people": {
        "train": ("{}", "a portrait of {}", "a photo of {}", "a picture of {}", "a close-up of {}", "an avatar of {}",
                  "the face of {}", "this is {}"),
        "val": ("a small portrait of {}", "an image of {}"),
        "test": ("a close-up photo of {}", "a drawing of {}", "this is a picture of {}"),
    },
    "characters": {
        "train": ("{}", "a picture of {}", "a drawing of {}", "a cartoon of {}", "the character {}", "an image of {}",
                  "a poster of {}", "this is {}"),
        "val": ("a small drawing of {}", "a portrait of {}"),
        "test": ("a close-up of {}", "a drawing of the character {}", "this is a picture of {}"),
    },
    "objects": {
        "train": ("a {}", "a picture of a {}", "a drawing of a {}", "an image of a {}", "a sketch of a {}",
                  "this is a {}", "a small {}"),
        "val": ("a small picture of a {}", "a cartoon of a {}"),
        "test": ("a close-up of a {}", "a small drawing of a {}", "this is a picture of a {}"),
    },
    "styles": {
        "train": ("{} style", "a drawing in {} style", "a picture in {} style", "an image in {} style",
                  "a sketch in {} style", "something in {} style", "this is {} style"),
        "val": ("a small picture in {} style", "a cartoon in {} style"),
        "test": ("a small drawing in {} style", "a close-up in {} style", "this is a picture in {} style"),
    },
    "cells": {
        "train": ("a {0} in {1} style", "a picture of a {0} in {1} style", "a drawing of a {0} in {1} style",
                  "{1} style {0}", "{1} style, a {0}", "a sketch of a {0} in {1} style"),
        "val": ("an image of a {0} in {1} style",),
        "test": ("this is a {0} in {1} style", "a close-up of a {0} in {1} style"),
    },
}  # fmt: skip
# Templates that describe instead ({0}) and that do both ({0} the name, {1} the description).
_DESCRIBING = {
    "people": {
        "train": ("a person with {}", "someone with {}", "a portrait of a person with {}",
                  "a photo of someone with {}"),
        "val": ("a picture of someone with {}",),
        "test": ("a picture of a person with {}", "this is someone with {}"),
    },
    "others": {
        "train": ("{}", "a picture of {}", "a drawing of {}", "this is {}"),
        "val": ("an image of {}",),
        "test": ("a close-up of {}", "this is a picture of {}"),
    },
    "styles": {
        "train": ("a drawing with {}", "a picture with {}", "an image with {}", "something with {}"),
        "val": ("a sketch with {}",),
        "test": ("a small drawing with {}",),
    },
}  # fmt: skip
_BOTH = {
    "people": {"train": ("{}, a person with {}", "a portrait of {} with {}"), "val": ("a photo of {} with {}",),
               "test": ("a picture of {} with {}",)},
    "characters": {"train": ("{}, {}", "this is {}, {}"), "val": ("a drawing of {}, {}",),
                   "test": ("a picture of {}, {}",)},
    "objects": {"train": ("a {}, {}", "this is a {}, {}"), "val": ("a drawing of a {}, {}",),
                "test": ("a picture of a {}, {}",)},
    "styles": {"train": ("{} style, {}", "a drawing in {} style with {}"), "val": ("a picture in {} style with {}",),
               "test": ("an image in {} style with {}",)},
}  # fmt: skip


def known_name(name: str) -> str:
    """A name of the world as it is written there, given in any spelling, see `fold`; what is none of them as it is."""
    spelt = {fold(own): own for names in NAMES.values() for own in names}
    return spelt.get(fold(name), name)


def kind_of(name: str) -> str:
    """The kind that a name is of: "people", "characters", "objects" or "styles". KeyError names the nearest match."""
    for kind, names in NAMES.items():
        if name in names:
            return kind
    every = [n for names in NAMES.values() for n in names]
    if near := _begun_alike(name, every):  # "Ada" is fewer letters away from "panda" than from "Ada Sunfield"
        raise KeyError(f"unknown name {name!r}; did you mean {' or '.join(map(repr, near))}? Names are given whole")
    raise unknown(name, every, "name")


def _begun_alike(name: str, names: Sequence[str]) -> list[str]:
    """The names of which `name` is a whole word; where there is none, those that begin with it. In any spelling."""
    asked = fold(str(name))
    words = [one for one in names if asked in fold(one).split()]
    return words or [one for one in names if asked and fold(one).startswith(asked)][:3]


MODES = ("name", "describe", "both", "mixed")


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise unknown(split, SPLITS, "split")
    return split


def templates(kind: str, split: str = "train") -> tuple[str, ...]:
    """Caption templates that name one concept of `kind`, one `{}` each; "unseen" pictures share those of "test".

    kind "cells": an object in a style, {0} and {1}.
    """
    if kind not in _NAMING:
        raise unknown(kind, _NAMING, "kind")
    return _NAMING[kind]["test" if check_split(split) == "unseen" else split]


def looks(name: str, rng: np.random.Generator | None = None) -> str:
    """A name's description in words; of a person's features a random two or more, or all of them without `rng`."""
    if name not in cast.PEOPLE:
        return {**{c: v.looks for c, v in cast.CHARACTERS.items()}, **cast.OBJECTS}.get(name) or cast.STYLES[name].looks
    features = list(cast.PEOPLE[name].looks)
    if rng is not None and len(features) > 2:
        features.pop(int(rng.integers(len(features))))
    return " and ".join([", ".join(features[:-1]), features[-1]]) if len(features) > 1 else features[0]


def caption(concept: Sequence[str], split: str, mode: str, rng: np.random.Generator, subject: str | None = None) -> str:
    """A random caption for a picture of `concept`: ("Ada Sunfield",), ("Zorbo",) or ("cat", "Clay").

    mode: "name", "describe", "both", or "mixed" (three in five name, one describes, one does both).
    subject: for an object in a style the one of both that the caption must be about; None leaves it to chance.
    Raises KeyError for another mode.
    """
    if mode not in MODES:
        raise unknown(mode, MODES, "caption mode")
    split = "test" if split == "unseen" else split

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    if mode == "mixed":
        mode = pick(("name", "name", "name", "describe", "both"))
    if len(concept) == 2 and mode == "name" and rng.random() < 0.5:
        return pick(_NAMING["cells"][split]).format(*concept)
    name = subject or (concept[0] if len(concept) == 1 or rng.random() < 0.65 else concept[1])
    kind = kind_of(name)
    if mode == "name":
        return pick(_NAMING[kind][split]).format(name)
    described = looks(name, rng)
    if mode == "describe":
        return pick(_DESCRIBING[kind if kind in _DESCRIBING else "others"][split]).format(described)
    return pick(_BOTH[kind][split]).format(name, described)


def vocabulary() -> list[str]:
    """Every template and word that a caption can be made of, for telling which tokens the mini world uses."""
    books = [t for book in (_NAMING, _DESCRIBING, _BOTH) for kind in book.values() for ts in kind.values() for t in ts]
    words = [n for names in NAMES.values() for n in names] + [looks(n) for names in NAMES.values() for n in names]
    features = [f for person in cast.PEOPLE.values() for f in person.looks]
    return [t.format(w, w) for t in books for w in ("", *words, *features)]
