"""Which layer? The Pareto front of importance and alignment, one for each tower."""

from __future__ import annotations

import pandas as pd

from .runtime.checks import unknown

MEASURES = ("alignment", "cosine")


def pareto_front(stats: pd.DataFrame, *, by: str = "alignment") -> list[str]:
    """Layers that no other layer of the same tower beats in both importance (high) and alignment (low).

    stats: as in `Gradients.stats`. by: "alignment" (|cos|, the paper's) or "cosine" (signed: a negative one helps
    the retain loss and is best). To be beaten is to be strictly worse in both, so ties stay on the front.
    Returns names of both towers, most important first within a tower. KeyError for another `by`.
    """
    if by not in MEASURES:
        raise unknown(by, MEASURES, "measure")
    front: list[str] = []
    for _, tower in stats[stats["forget_norm"] > 0].groupby("tower", sort=False):
        lowest = float("inf")  # alignment among the strictly more important layers seen so far
        for _, level in sorted(tower.groupby("importance"), key=lambda item: -item[0]):
            front += [name for name, value in level[by].items() if value <= lowest]
            lowest = min(lowest, level[by].min())
    return front


def pareto_fronts(stats: pd.DataFrame, number: int, *, by: str = "alignment") -> list[list[str]]:
    """The Pareto front, that of what remains without it, and so on: up to `number`. The first is the paper's."""
    fronts = []
    for _ in range(number):
        fronts.append(pareto_front(stats, by=by))
        stats = stats.drop(index=fronts[-1])
    return [front for front in fronts if front]
