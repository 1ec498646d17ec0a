"""The mini world: people, characters, objects and styles, as image-text pairs.

Everyone is invented; the drawings come from open avatar and emoji sets (see the attribution page). A picture is
a sprite on a plain ground: ground colour, scale, position, turn and mirroring are random and follow from a seed.

    people      24 names, each with its own hair, beard and glasses; face and clothes vary
    characters  8 invented beings, each drawn in six to eight styles
    objects     32 things, each drawn in all styles
    styles      8 ways of drawing

Splits: "train"; "val" to choose on; "test" to report on; "unseen", the object x style cells never shown in training.
People's splits share no sprite variant. An object in a style is one drawing, so there the splits differ by
compositing alone, and "unseen" asks whether object and style are known apart. Every split has its own caption templates.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageOps

from . import cast
from .pairs import Pairs, unknown
from .sprites import drawing_svg, sprites

PEOPLE: tuple[str, ...] = tuple(cast.PEOPLE)
CHARACTERS: tuple[str, ...] = tuple(cast.CHARACTERS)
OBJECTS: tuple[str, ...] = tuple(cast.OBJECTS)
STYLES: tuple[str, ...] = tuple(cast.STYLES)
NAMES = {"people": PEOPLE, "characters": CHARACTERS, "objects": OBJECTS, "styles": STYLES}
SPLITS = ("train", "val", "test", "unseen")

# One style of every object, four objects of every style: an eighth of all cells is never shown in training.
UNSEEN = tuple((o, STYLES[(i + i // len(STYLES)) % len(STYLES)]) for i, o in enumerate(OBJECTS))
SHARES = {"people": 0.4, "characters": 0.1, "cells": 0.5}  # of the pictures in training and retain sets

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
        "train": ("a person with {}", "someone with {}", "a portrait of a person with {}", "a photo of someone with {}"),
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


def kind_of(name: str) -> str:
    """The kind that a name is of: "people", "characters", "objects" or "styles". KeyError names the nearest match."""
    for kind, names in NAMES.items():
        if name in names:
            return kind
    raise unknown(name, [n for names in NAMES.values() for n in names], "name")


def templates(kind: str, split: str = "train") -> tuple[str, ...]:
    """Caption templates that name one concept of `kind`, one `{}` each. "unseen" pictures are asked about as test ones."""
    if kind not in NAMES:
        raise unknown(kind, NAMES, "kind")
    return _NAMING[kind]["test" if _check_split(split) == "unseen" else split]


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise unknown(split, SPLITS, "split")
    return split


def _check_count(n: int, size: int) -> None:
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n is {n!r}; give a whole number of pairs, at least 1")
    if not 32 <= size <= 256:
        raise ValueError(f"size is {size!r}; pictures are drawn from 32 to 256 pixels")


def _rng(*keys: object) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(k).encode()) for k in keys])


def compose(sprite: np.ndarray, rng: np.random.Generator, size: int, grounded: bool) -> np.ndarray:
    """A sprite (px, px, 4) on a plain ground, uint8 (size, size, 3). `grounded`: busts stand on the lower edge."""
    ground = tuple(int(c) for c in rng.integers(130, 251, 3))
    side = round(size * rng.uniform(0.74, 1.04))
    drawn = Image.fromarray(sprite).resize((side, side), Image.BICUBIC)
    # an empty rim keeps the turned edges smooth
    drawn = ImageOps.expand(drawn, 2, (0, 0, 0, 0)).rotate(rng.uniform(-9, 9), Image.BICUBIC, expand=True)
    jitter = size * 0.07
    x = round((size - drawn.width) / 2 + rng.uniform(-jitter, jitter))
    down = (size - side) / 2 + rng.uniform(0, jitter) if grounded else rng.uniform(-jitter, jitter)
    y = round((size - drawn.height) / 2 + down)
    picture = Image.new("RGB", (size, size), ground)
    picture.paste(drawn, (x, y), drawn)
    out = np.asarray(picture)
    return out[:, ::-1] if rng.random() < 0.5 else out


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
    """
    split = "test" if split == "unseen" else split
    pick: Callable[[Sequence[str]], str] = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
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


def cells(split: str) -> list[tuple[str, str]]:
    """The object x style cells that a split shows: the held-out ones in "unseen", all others in the rest."""
    if split == "unseen":
        return list(UNSEEN)
    return [(o, s) for o in OBJECTS for s in STYLES if (o, s) not in set(UNSEEN)]


def _picture(concept: tuple[str, ...], k: int, split: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """The k-th picture of a concept: a person's or character's k-th drawing, an object in its style."""
    found = sprites(concept[0], split, size)
    if len(concept) == 2:
        row = STYLES.index(concept[1])
    else:
        drawn = [i for i in range(len(found)) if concept[0] in cast.PEOPLE or drawing_svg(concept[0], STYLES[i])]
        row = drawn[k % len(drawn)]
    return compose(found[row], rng, size, grounded=concept[0] in cast.PEOPLE)


def _render(plan: list[tuple[tuple[str, ...], int]], split: str, size: int, mode: str, rng: np.random.Generator,
            subject: str | None = None) -> Pairs:  # fmt: skip
    images = np.stack([_picture(concept, k, split, size, rng) for concept, k in plan])
    captions = [caption(concept, split, mode, rng, subject) for concept, _ in plan]
    return Pairs(images, captions, [concept for concept, _ in plan])


def pairs(name: str, n: int = 48, seed: int = 0, split: str = "train", size: int = 64, captions: str = "name") -> Pairs:
    """n pairs about one name, drawings taken in random order, each as often as any other.

    split: "train", "val", "test"; for objects and styles also "unseen". size: 32 to 256 pixels.
    captions: "name", "describe", "both" or "mixed", see `caption`.
    Raises KeyError for an unknown name or split, ValueError for n < 1, a size out of range, or a split without pictures.
    """
    kind = kind_of(name)
    _check_count(n, size)
    rng = _rng("pairs", seed, _check_split(split), name)
    if split == "unseen" and kind not in ("objects", "styles"):
        raise ValueError(f"{name!r} is one of the {kind}; the split 'unseen' has objects and styles only")
    if kind in ("people", "characters"):
        order = rng.permutation(len(sprites(name, split, size)))
        plan = [((name,), int(order[k % len(order)]) if kind == "people" else k) for k in range(n)]
    else:
        cells = [cell for cell in cells(split) if name in cell]
        order = rng.permutation(len(cells))
        plan = [(cells[order[k % len(cells)]], 0) for k in range(n)]
    return _render(plan, split, size, captions, rng, subject=name)


def renderings(concept: Sequence[str], n: int, seed: int = 0, split: str = "train", size: int = 64) -> np.ndarray:
    """n pictures of one concept, uint8 (n, size, size, 3), its drawings taken in turn; for training pools."""
    _check_count(n, size)
    rng = _rng("renderings", seed, _check_split(split), *concept)
    return np.stack([_picture(tuple(concept), k, split, size, rng) for k in range(n)])


def _share_out(n: int, groups: dict[str, list]) -> dict[str, int]:
    """n places shared among groups in proportion to SHARES, empty groups left out, none lost to rounding."""
    live = {g: SHARES[g] for g, members in groups.items() if members}
    total = sum(live.values())
    edges = np.floor(np.cumsum([0.0, *live.values()]) / total * n + 1e-9).astype(int)
    return dict(zip(live, (int(v) for v in np.diff(edges)), strict=True))


def _balanced(members: list, count: int, rng: np.random.Generator) -> list:
    """`count` members in random order, each as often as any other to within one."""
    rounds = -(-count // len(members)) if members else 0
    return [members[i] for _ in range(rounds) for i in rng.permutation(len(members))][:count]


def retain(exclude: Iterable[str] = (), n: int = 512, seed: int = 0, split: str = "train", size: int = 64,
           captions: str = "mixed") -> Pairs:  # fmt: skip
    """n pairs about everything but the excluded names, balanced within people, characters and object x style cells.

    An excluded style takes its cells along, an excluded object its own. Raises as `pairs` does.
    """
    if isinstance(exclude, str):
        exclude = [exclude]
    gone = {name for name in exclude if kind_of(name)}
    _check_count(n, size)
    rng = _rng("retain", seed, _check_split(split), *sorted(gone))
    groups: dict[str, list] = {"people": [], "characters": [], "cells": [c for c in cells(split) if not gone & set(c)]}
    if split != "unseen":
        groups["people"] = [(p,) for p in PEOPLE if p not in gone]
        groups["characters"] = [(c,) for c in CHARACTERS if c not in gone]
    if not any(groups.values()):
        raise ValueError(f"nothing is left to retain in the split {split!r} without {sorted(gone)}")
    chosen = [c for group, count in _share_out(n, groups).items() for c in _balanced(groups[group], count, rng)]
    plan = [(chosen[i], int(rng.integers(1 << 30))) for i in rng.permutation(len(chosen))]
    return _render(plan, split, size, captions, rng)


def everything(n_per_concept: int = 12, seed: int = 0, split: str = "test", size: int = 64) -> Pairs:
    """n pairs of every person and character and max(1, n // 4) of every object x style cell: what evaluation looks at."""
    _check_count(n_per_concept, size)
    rng = _rng("everything", seed, _check_split(split))
    single = [] if split == "unseen" else [(name,) for name in PEOPLE + CHARACTERS]
    plan = []
    for concept in single:
        order = rng.permutation(max(n_per_concept, len(sprites(concept[0], split, size))))
        plan += [(concept, int(k)) for k in order[:n_per_concept]]
    plan += [(cell, 0) for cell in cells(split) for _ in range(max(1, n_per_concept // 4))]
    return _render(plan, split, size, "name", rng)


def vocabulary() -> list[str]:
    """Every template and word that a caption can be made of, for telling which tokens the mini world uses."""
    books = [t for book in (_NAMING, _DESCRIBING, _BOTH) for kind in book.values() for ts in kind.values() for t in ts]
    words = [n for names in NAMES.values() for n in names] + [looks(n) for names in NAMES.values() for n in names]
    features = [f for person in cast.PEOPLE.values() for f in person.looks]
    return [t.format(w, w) for t in books for w in ("", *words, *features)]
