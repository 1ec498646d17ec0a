"""What checks of several chapters stand on: the book's model, a step in it, and an answer's parts, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from torch import Tensor

from ...edit import Edit
from ...gradients import forget_gradients
from ...models import Clip, load_clip
from ...search import make_delta
from ...validation import Scorer, Validation, scorer_of
from ...world import toonworld


@cache
def mini() -> Clip:
    """Mini CLIP, of the checks alone: whatever a reader does to the page's model, this one is untouched."""
    return load_clip("mini")


@cache
def forget_gradient(name: str, layer: str) -> Tensor:
    """The chapters' forget gradient of a concept in a layer: of 48 training pairs, seed 0."""
    pairs = [toonworld.pairs(name, n=48, seed=0)]
    return forget_gradients(mini(), pairs, layers=lambda own, _: own == layer, progress=False)[0][layer]


@cache
def own_scorer(name: str) -> Scorer:
    """Asks for a concept's 48 validation pictures, seed 0, and for nothing else."""
    names = toonworld.NAMES
    own = toonworld.pairs(name, n=48, seed=0, split="val")
    return scorer_of(Validation(own, name, names, {kind: toonworld.templates(kind, "val") for kind in names}), mini())


def moved(deltas: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
    """A with-block in which mini CLIP's weights are moved by float16 deltas."""
    return Edit(dict(deltas), dict.fromkeys(deltas, 1.0), "a check", "").on(mini(), force=True)


def moved_along(direction: Tensor, step: float, layer: str) -> AbstractContextManager[Any]:
    """A with-block in which one layer is moved by step times a direction."""
    return moved({layer: make_delta(direction, step)})


def one_by_one(said: Mapping[str, str], also: str = "") -> str:
    """One sentence of several: the first part that is wrong, by its name; "right", and `also`, where all are right."""
    for part, sentence in said.items():
        if not sentence.startswith("right"):
            return f"{part}: {sentence}"
    return f"right: {', '.join(said)}{f'; {also}' if also else ''}"


def by_number(answer: Any) -> dict[float, Any] | None:
    """A dict or Series whose keys are numbers, up to twenty of them; None for anything else."""
    try:
        found = {float(key): value for key, value in dict(answer).items()}
    except Exception:
        return None
    return found if 0 < len(found) <= 20 and all(abs(key) < 1e6 for key in found) else None
