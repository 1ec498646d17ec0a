"""A name of the mini world as a task: what to forget, what to keep, and how to score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..algorithm import Task, as_task
from ..models import Clip
from ..pairs import Pairs
from ..validation import Validate, Validation
from . import toonworld
from .captions import known_name
from .evaluation import world_size

FORGET, RETAIN, PROTECT = 48, 512, 16  # pairs of the forget set, of the retain set, and of each name to protect


def task(
    name: str, *, n_forget: int = FORGET, n_retain: int = RETAIN, seed: int = 0, size: int = 64,
    retain: Pairs | None = None, validate: Validate | None = None, without: Sequence[str] = (),
) -> Task:  # fmt: skip
    """Forget set and retain set of the split "train", a validation of the split "val", all of one seed.

    retain, validate: instead of those of the world. without: names that are to go as well: neither retained nor
    scored; all names but these and `name` are to be protected then. Names may be given in any spelling. Raises
    KeyError for an unknown name, ValueError for a validation that asks for another.
    """
    name, without = known_name(name), [known_name(one) for one in without] or ()
    if validate is None:
        validate = toonworld.validation(name, seed=seed, size=size, without=without)
    if isinstance(validate, Validation) and validate.forget != name:
        raise ValueError(f"{name!r} is to be forgotten, the validation asks for {validate.forget!r}")
    gone = tuple(sorted({name, *without}))
    if retain is None:
        retain = toonworld.retain(gone, n_retain, seed, size=size)
    protect = _others(gone, seed, size) if without else ()
    return Task(toonworld.pairs(name, n_forget, seed, size=size), retain, validate, name, protect)


@lru_cache(maxsize=1)  # the tasks of one list ask for the same
def _others(gone: tuple[str, ...], seed: int, size: int) -> tuple[Pairs, ...]:
    return tuple(toonworld.others(gone, PROTECT, seed, size=size))


@as_task.register
def _(
    concept: str, clip: Clip, retain: Pairs | None = None, validate: Validate | None = None, seed: int = 0,
    without: Sequence[str] = (),
) -> Task:  # fmt: skip
    return task(concept, seed=seed, size=world_size(clip), retain=retain, validate=validate, without=without)
