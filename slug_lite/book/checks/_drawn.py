"""What checks of part III stand on: what the judge says of the reader's own pictures, and intervals over units.

No check draws. A share is worked out from the pictures that the reader gives, whatever pipeline drew them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from ...runtime.broken import one_colour
from ...world.judge import NONE, Judge, load_judge
from .common import SIGN, array, other_type, short, verdict

SUM = "sum, not mean: a count of pictures, where a share of 1 is asked for"
NOT_FOUND = "the pictures without it, where those with it are asked for"


@cache
def the_judge() -> Judge:
    """The judge of the mini world, of the checks alone."""
    return load_judge()


def pictures_of(some: Any) -> np.ndarray | None:
    """Pictures of any kind (Pairs, arrays, tensors, PIL images, one alone) as uint8 (n, S, S, 3); None for no such."""
    try:
        some = getattr(some, "images", some)
        if hasattr(some, "detach"):
            some = some.detach().cpu().numpy()
        x = np.asarray(some) if isinstance(some, np.ndarray) else np.stack([np.asarray(one) for one in some])
        x = x[None] if x.ndim == 3 else x
        if x.ndim != 4 or x.shape[3] != 3 or not len(x):
            return None
        if x.dtype.kind == "f":
            x = (x * 255 if x.max() <= 1 else x).round()
        return x.astype(np.uint8)
    except Exception:
        return None


def seen_in(pictures: np.ndarray) -> pd.DataFrame:
    """The judge's table; pictures of one colour, which it refuses, show none of these."""
    plain = set(one_colour(list(pictures)))
    rows = [k for k in range(len(pictures)) if k not in plain]
    table = pd.DataFrame({"name": NONE, "style": NONE}, index=range(len(pictures)))
    if rows:
        table.loc[rows, ["name", "style"]] = the_judge()(pictures[rows])[["name", "style"]].to_numpy()
    return table


def shows(pictures: np.ndarray, name: str) -> np.ndarray:
    """In which pictures the judge sees a name or a style: bool (n,)."""
    table = seen_in(pictures)
    return ((table["name"] == name) | (table["style"] == name)).to_numpy()


def by_key(given: Any, parts: int = 1, wanted: str = "pictures") -> dict[Any, list[np.ndarray]] | str:
    """A dict of pictures, or of `parts` sets of them for each key, as arrays; or the sentence on what is missing."""
    asked = f"{wanted} as a dict, for each key {'the pictures' if parts == 1 else f'{parts} sets of pictures'}"
    if not isinstance(given, Mapping) or not given:
        return f"pictures: {other_type(given, asked)}"
    found: dict[Any, list[np.ndarray]] = {}
    for key, some in given.items():
        sets = [some] if parts == 1 else some
        if parts > 1 and (not isinstance(sets, Sequence | np.ndarray) or len(sets) != parts):
            return f"pictures: {other_type(some, asked)}"
        arrays = [pictures_of(one) for one in sets]
        if any(one is None for one in arrays):
            return f"pictures: those of {short(key)} are none; {other_type(some, asked)}"
        found[key] = [one for one in arrays if one is not None]
    return found


def shares(pictures: Mapping[Any, Sequence[np.ndarray]], *names: str) -> dict[Any, list[float]]:
    """For each key the share of its pictures in which each name is seen, names first, then sets of pictures."""
    return {key: [float(shows(one, name).mean()) for name in names for one in sets] for key, sets in pictures.items()}


def verdict_shares(
    given: Any, right: Mapping[Any, Any], pictures: Mapping[Any, Sequence[np.ndarray]],
    more: Mapping[str, Any] | None = None, *, wanted: str = "shares of pictures, 0 to 1, by the same keys",
) -> str:  # fmt: skip
    """A sentence on shares that the judge counts in pictures: for each key one, or a tuple of them."""
    if not isinstance(given, Mapping):
        return other_type(given, wanted)
    values = array(right)
    counts = np.array([len(sets[0]) for sets in pictures.values()], dtype=float)
    counts = counts.reshape(-1, *[1] * (np.ndim(values) - 1))
    mistakes = {**(more or {}), SUM: values * counts, NOT_FOUND: 1 - values}
    return verdict(given, right, mistakes, wanted=wanted, rel=0.0, abs_=0.006)


def intervals(values: Any, level: float = 0.95) -> list[tuple[float, float]]:
    """Intervals for the mean of units: Student's, normal, by bootstrap; each also cut at 0 and 1."""
    x = np.asarray(values, dtype=float)
    mean, error = x.mean(), x.std(ddof=1) / np.sqrt(len(x))
    draws = np.random.default_rng(0).choice(x, (4000, len(x))).mean(1)
    edge = (1 - level) / 2
    z, v = NormalDist().inv_cdf(1 - edge), len(x) - 1
    student = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)  # Cornish and Fisher
    t, z = student * error, z * error
    low, high = np.quantile(draws, [edge, 1 - edge])
    found = [(mean - t, mean + t), (mean - z, mean + z), (low, high)]
    return [*found, *((max(a, 0.0), min(b, 1.0)) for a, b in found)]


def verdict_interval(answer: Any, values: Any, pictures: float, units: str = "concepts") -> str:
    """A sentence on a 95 % interval for the mean of `values`, a unit each, of `pictures` pictures in all."""
    x = np.asarray(values, dtype=float)
    wanted = f"an interval as two numbers, (low, high), over the {len(x)} {units}"
    found = array(answer)
    if found is None or found.shape != (2,) or not np.isfinite(found).all():
        return other_type(answer, wanted)
    low, high = found

    def off(some: Sequence[tuple[float, float]]) -> float:
        """How far from the nearest of these, 1 being as far as it may be."""
        return min(max(abs(low - a), abs(high - b)) / (0.1 * abs(b - a) + 0.002) for a, b in some)

    right, spread = intervals(x), x.std(ddof=1)
    told = f"near ({right[2][0]:.2g}, {right[2][1]:.2g})"
    if off(right) <= 1:
        return f"right: {told}"
    p, mean = float(np.clip(x.mean(), 0, 1)), float(x.mean())
    alone = np.sqrt(p * (1 - p) / pictures)
    about: Callable[[float], list[tuple[float, float]]] = lambda half: [  # noqa: E731
        (mean - half, mean + half), (max(mean - half, 0), min(mean + half, 1))
    ]  # fmt: skip
    mistakes = {
        f"over pictures, not over {units}: pictures of one are alike, so this is too narrow": about(1.96 * alone),
        f"the spread of single {units}, not of their mean: divide by the root of their number": about(1.96 * spread)[
            :1
        ],
        "one standard error each way, which holds two times in three: two are asked for": about(spread / len(x) ** 0.5),
        "the smallest and the largest value, not an interval for the mean": [(x.min(), x.max())],
        "half of its width, not its two ends": [(mean, (b - a) / 2) for a, b in right],
        "low and high are swapped": [(b, a) for a, b in right],
        "in per cent, where shares of 1 are asked for": [(100 * a, 100 * b) for a, b in right],
        SIGN: [(-b, -a) for a, b in right],
    }
    name = min(mistakes, key=lambda one: off(mistakes[one]))
    if off(mistakes[name]) <= 1:
        return f"{name}; the right one is {told}"
    return f"wrong, in a way not on the list; an interval over the {units} is {told}, yours is ({low:.2g}, {high:.2g})"


def halves(
    choose: Any, report: Any, every: Mapping[str, str], what: str = "concepts"
) -> tuple[list[str], list[str]] | str:
    """Two halves of the world, one to choose on, one to report on; `every` unit's kind. Or what is wrong with them."""
    sides: list[list[str]] = []
    for place, some in (("choose", choose), ("report", report)):
        try:
            names = [] if isinstance(some, str | bytes | Mapping) else list(some)
        except Exception:
            names = []
        if not names or not all(isinstance(name, str) for name in names):
            return f"{place}: {other_type(some, f'the names of the {what} to {place} on')}"
        strange = [name for name in names if name not in every]
        if strange:
            return f"{place}: {strange[0]} is not among the {what}"
        if len(set(names)) < len(names):
            return f"{place}: a name is there twice"
        sides.append(names)
    both = sorted(set(sides[0]) & set(sides[1]))
    if both:
        return f"tuned on the report half: {len(both)} {what} are in both halves, such as {both[0]}"
    if len(sides[0]) + len(sides[1]) < len(every):
        return f"{len(every) - len(sides[0]) - len(sides[1])} {what} are in neither half: which were left out, and why?"
    if not len(every) / 3 <= len(sides[0]) <= 2 * len(every) / 3:
        return f"the halves are of {len(sides[0])} and {len(sides[1])} {what}: neither should be under a third"
    for kind in dict.fromkeys(every.values()):
        many = [sum(every[name] == kind for name in names) for names in sides]
        if abs(many[0] - many[1]) > max(1, sum(many) // 4):
            return f"{kind}: {many[0]} in the one half, {many[1]} in the other; divide each kind"
    return sides[0], sides[1]
