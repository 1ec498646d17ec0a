"""The mini world: people, characters, objects and styles, as image-text pairs.

Everyone is invented; the drawings come from open avatar and emoji sets (see the attribution page). A picture is
a sprite on a plain ground: ground colour, scale, position, turn and mirroring are random and follow from a seed.

    people      24 names, each with its own hair, beard and glasses; face and clothes vary
    characters  8 invented beings, each drawn in six to eight styles
    objects     32 things, each drawn in all styles
    styles      8 ways of drawing

Splits: "train"; "val" to choose on; "test" to report on; "unseen", object x style cells never shown in training.
People's splits share no sprite variant. An object in a style is one drawing, so there the splits differ by
compositing alone, and "unseen" asks whether object and style are known apart. Every split has templates of its own.

Concepts have two halves, `DEVELOPMENT` and `REPORT`, see `world.halves`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageOps

from ..pairs import Pairs
from ..validation import Validation
from . import cast
from .captions import (
    CHARACTERS,
    NAMES,
    OBJECTS,
    PEOPLE,
    SPLITS,
    STYLES,
    caption,
    check_split,
    kind_of,
    looks,
    templates,
)
from .halves import DEVELOPMENT, REPORT, half_of
from .sprites import drawing_svg, sprites

__all__ = [
    "CHARACTERS", "DEVELOPMENT", "NAMES", "OBJECTS", "PEOPLE", "REPORT", "SPLITS", "STYLES", "UNSEEN", "caption",
    "cells", "compose", "evaluation_pairs", "half_of", "kind_of", "looks", "others", "pairs", "renderings",
    "retain", "templates", "validation",
]  # fmt: skip

# One style of every object, four objects of every style: an eighth of all cells is never shown in training.
UNSEEN = tuple((o, STYLES[(i + i // len(STYLES)) % len(STYLES)]) for i, o in enumerate(OBJECTS))
SHARES = {"people": 0.4, "characters": 0.1, "cells": 0.5}  # of the pictures in training and retain sets


def _check_count(n: int, size: int) -> None:
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n is {n!r}; give a whole number of pairs, at least 1")
    if not isinstance(size, (int, np.integer)) or not 32 <= size <= 256:
        raise ValueError(f"size is {size!r}; pictures are drawn at a whole number of pixels from 32 to 256")


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
    Raises KeyError for an unknown name or split, ValueError for n < 1, a size out of range, an empty split.
    """
    kind = kind_of(name)
    _check_count(n, size)
    rng = _rng("pairs", seed, check_split(split), name)
    if split == "unseen" and kind not in ("objects", "styles"):
        raise ValueError(f"{name!r} is one of the {kind}; the split 'unseen' has objects and styles only")
    if kind in ("people", "characters"):
        order = rng.permutation(len(sprites(name, split, size)))
        plan = [((name,), int(order[k % len(order)]) if kind == "people" else k) for k in range(n)]
    else:
        own = [cell for cell in cells(split) if name in cell]
        order = rng.permutation(len(own))
        plan = [(own[order[k % len(own)]], 0) for k in range(n)]
    return _render(plan, split, size, captions, rng, subject=name)


def renderings(concept: Sequence[str], n: int, seed: int = 0, split: str = "train", size: int = 64) -> np.ndarray:
    """n pictures of one concept, uint8 (n, size, size, 3), its drawings taken in turn; for training pools.

    concept: ("Ada Sunfield",), ("Zorbo",) or ("cat", "Clay"). KeyError for a name that is unknown.
    """
    _check_count(n, size)
    for name in concept:
        kind_of(name)
    rng = _rng("renderings", seed, check_split(split), *concept)
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
    rng = _rng("retain", seed, check_split(split), *sorted(gone))
    groups: dict[str, list] = {"people": [], "characters": [], "cells": [c for c in cells(split) if not gone & set(c)]}
    if split != "unseen":
        groups["people"] = [(p,) for p in PEOPLE if p not in gone]
        groups["characters"] = [(c,) for c in CHARACTERS if c not in gone]
    if not any(groups.values()):
        raise ValueError(f"nothing is left to retain in the split {split!r} without {sorted(gone)}")
    chosen = [c for group, count in _share_out(n, groups).items() for c in _balanced(groups[group], count, rng)]
    plan = [(chosen[i], int(rng.integers(1 << 30))) for i in rng.permutation(len(chosen))]
    return _render(plan, split, size, captions, rng)


def others(exclude: Sequence[str], n: int = 16, seed: int = 0, split: str = "train", size: int = 64) -> list[Pairs]:
    """Of every name but the excluded, n pairs about it, fewer where some would show an excluded name, too.

    A name that is never seen without an excluded one is left out. Raises as `pairs` does.
    """
    gone = {name for name in ([exclude] if isinstance(exclude, str) else exclude) if kind_of(name)}
    sets = [pairs(name, n, seed, split, size) for names in NAMES.values() for name in names if name not in gone]
    clean = [s[[k for k, shown in enumerate(s.concepts or ()) if not gone & set(shown)]] for s in sets]
    return [some for some in clean if len(some)]


def evaluation_pairs(n_per_concept: int = 12, seed: int = 0, split: str = "test", size: int = 64) -> Pairs:
    """n pairs of every person and character, max(1, n // 4) of every object x style cell: what evaluation looks at."""
    _check_count(n_per_concept, size)
    rng = _rng("everything", seed, check_split(split))
    single = [] if split == "unseen" else [(name,) for name in PEOPLE + CHARACTERS]
    plan = []
    for concept in single:
        order = rng.permutation(max(n_per_concept, len(sprites(concept[0], split, size))))
        plan += [(concept, int(k)) for k in order[:n_per_concept]]
    plan += [(cell, 0) for cell in cells(split) for _ in range(max(1, n_per_concept // 4))]
    return _render(plan, split, size, "name", rng)


def validation(
    name: str, *, n: int = 48, others: int = 6, seed: int = 0, split: str = "val", size: int = 64,
    without: Sequence[str] = (),
) -> Validation:  # fmt: skip
    """What to score while a name's edit is searched: n pictures of it, and `others` of every other name.

    Drawn and asked as the split says. without: names whose pictures are left out, because they are to be forgotten,
    too. Raises as `pairs` does.
    """
    rest, gone = evaluation_pairs(others, seed, split, size), {name, *without}
    rest = rest[[k for k, concept in enumerate(rest.concepts or ()) if not gone & set(concept)]]
    shown = pairs(name, n, seed, split, size) + rest
    return Validation(shown, name, NAMES, {kind: templates(kind, split) for kind in NAMES}, split)
