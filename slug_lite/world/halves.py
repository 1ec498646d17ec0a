"""Two halves of the world. Methods, defaults and thresholds are chosen on one, headline figures are of the other.

Drawn once, by kind, by a fixed seed: whatever is looked at while something is tuned, is looked at on `DEVELOPMENT`.
A method that does well on names that it was tuned on has shown that it can be tuned; see chapter 2.
"""

from __future__ import annotations

import numpy as np

from .captions import NAMES, kind_of

_DRAW = (2407, 11867)  # never to be changed: what was looked at cannot be unseen


def _drawn(number: int, names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    order = [names[k] for k in np.random.default_rng([*_DRAW, number]).permutation(len(names))]
    return tuple(order[: len(order) // 2]), tuple(order[len(order) // 2 :])


_HALVES = {kind: _drawn(number, names) for number, (kind, names) in enumerate(NAMES.items())}
# For each kind its names, in the order of the draw: whoever needs fewer takes the first.
DEVELOPMENT = {kind: development for kind, (development, _) in _HALVES.items()}
REPORT = {kind: report for kind, (_, report) in _HALVES.items()}


def half_of(name: str) -> str:
    """ "development" or "report". KeyError for a name that the world does not have."""
    return "development" if name in DEVELOPMENT[kind_of(name)] else "report"
