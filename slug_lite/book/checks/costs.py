"""Checks of the appendix on benchmarks: which ratio another machine changes most, and the cost of a try by depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ._ground import one_by_one
from .common import array, attempt, number, other_type, verdict, verdict_choice

CASES = [  # k, K, n_f, n_r, c, t, tries
    (k, 12, f, r, c, t, n)
    for k, f, r, c, t, n in product((1, 3, 9), (10, 50), (90, 450), (1.0, 0.2), (0.0, 40.0), (3, 10))
]


def check_ex_bench_own(layer: Any, mine: Any, table: Any) -> str:
    """layer: whose ratio differs most, as a factor; mine: {layer: times faster on your machine}; table: the page's."""
    if not isinstance(table, pd.DataFrame) or not {"layer", "ratio", "ours_s"} <= set(table.columns):
        return other_type(table, "the page's table of layers, as `by_layer` returns it, as the last argument")
    try:
        own = {str(name): number(value) for name, value in dict(mine).items()}
    except Exception:
        return other_type(mine, "your ratios, a dict from layers to numbers, by the whole names of the layers")
    page = table.set_index("layer")["ratio"].astype(float)
    both = {name: value for name, value in own.items() if name in page.index}
    if len(both) < 3 or any(value is None or not np.isfinite(value) or value <= 0 for value in both.values()):
        return other_type(
            mine, "your ratios, positive numbers, of three or more of the page's layers, by their whole names"
        )
    ours = pd.Series(both, dtype=float)
    if (ours == page[ours.index]).all():
        return "these are the page's own ratios: measure on your machine"
    if np.median(ours) < 1:
        return "upside down: the plain time over ours is more than 1"
    factor = np.log(ours / page[ours.index]).abs()
    why = {name: "this one differs less, as a factor" for name in ours.index}
    why[(ours - page[ours.index]).abs().idxmax()] = "the largest difference: ratios are compared by division"
    why[ours.idxmax()] = "the largest of your ratios, not the one that differs most"
    why[factor.idxmin()] = "the one that differs least"
    right = factor.idxmax()
    given = layer if isinstance(layer, str) else None
    choice = {name.lower(): reason for name, reason in why.items() if name != right}
    said = verdict_choice(given if given is not None else layer, right.lower(), choice)
    share = float(np.exp(factor[right]))
    return f"right: {right}, by a factor of {share:.1f}" if said.startswith("right") else said


def _ratio(k: int, blocks: int, own: float, rest: float, c: float, t: float, tries: int, rule: str = "") -> float:
    """The plain way's cost over ours, by the definition or by a mistaken one."""
    part = (k if rule == "before" else blocks - k) / blocks
    plain, ours = (own + rest) * c + t, own * c * part
    look = rest * c * (1.0 if rule == "whole" else part)
    if rule == "no prompts":
        plain -= t
    if rule == "one plain":
        return plain / (tries * ours + look)
    if rule == "one ours":
        return tries * plain / (ours + look)
    if rule == "every":
        return plain / (ours + look)
    if rule == "prompts":
        ours += t
    if rule == "no look":
        look = 0.0
    value = tries * plain / (tries * ours + look)
    return 1 / value if rule == "inverse" else value


def check_ex_bench_depth(function: Any, first: Any) -> str:
    """function(k, K, n_f, n_r, c, t, tries): plain cost over ours; first: the block of 12 from which it is ten or more.

    first: for ten tries, a tenth of the pictures from the concept, and t = 0.
    """
    given = []
    for case in CASES:
        value, stopped = attempt(function, *case, wanted="the function (k, K, n_f, n_r, c, t, tries)")
        if stopped:
            return f"function: {stopped}"
        found = number(array(value))
        if found is None or not np.isfinite(found):
            return f"function: {other_type(value, 'a function that returns a number')}"
        given.append(found)

    def by(rule: str) -> bool:
        return bool(np.allclose(given, [_ratio(*case, rule=rule) for case in CASES], rtol=1e-3))

    own: Callable[..., float] = lambda *case: _ratio(*case, rule="whole")  # noqa: E731
    if by(""):
        own = _ratio
    elif not by("whole"):
        mistakes: Mapping[str, str] = {
            "every": "the others are looked at in every try: ours asks for them once, at the step that was found",
            "before": "k / K of the tower runs: it is (K - k) / K, from the layer to the end",
            "no prompts": "the plain try runs the prompts too: t is missing above the line",
            "prompts": "an edit of the vision tower leaves the names as they were: ours runs no prompts",
            "no look": "the others are never looked at: once they are, at the step that was found",
            "one plain": "one plain try against all of ours: both make as many",
            "one ours": "all plain tries against one of ours: both make as many",
            "inverse": "upside down: the plain cost stands above the line",
        }
        name = next((reason for rule, reason in mistakes.items() if by(rule)), "wrong, in a way not on the list")
        case = (3, 12, 10, 90, 1.0, 0.0, 10)
        return f"function: {name}; for {case} it is near {_ratio(*case):.2g}, yours is {given[CASES.index(case)]:.2g}"
    ratios = [own(k, 12, 1, 9, 1.0, 0.0, 10) for k in range(12)]
    right = next(k for k, value in enumerate(ratios) if value >= 10)
    said = verdict(first, right, {
        "counted from the end": 12 - right,
        "a part of the tower, not the number of a block": right / 12,
        "not rounded up: blocks are whole": 12 * (1 - 0.9 / 1.71) if own is _ratio else 10.8,
        "one too few: there it is still below ten": right - 1,
        "one too many": right + 1,
        "the ratio, not the block": ratios[right],
    }, wanted="the number of a block, 0 to 11", rel=0.0, abs_=0.01)  # fmt: skip
    also = f"{ratios[0]:.1f} times in the first block, {ratios[right]:.0f} in block {right}"
    return one_by_one({"function": "right", "first": said}, also)
