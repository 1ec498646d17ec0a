"""Checks of chapter 4: the front by its definition, scaled layers, long steps, the rate of exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ...selection import pareto_front
from .common import attempt, other_type, verdict, verdict_names


def _tables(draws: int = 40) -> list[pd.DataFrame]:
    """Small tables of layers in two towers, with many ties."""
    rng = np.random.default_rng(0)
    return [
        pd.DataFrame({
            "tower": rng.choice(["vision", "text"], 8), "forget_norm": 1.0,
            "importance": rng.integers(1, 5, 8).astype(float), "alignment": rng.integers(1, 5, 8) / 10,
        }, index=list("ABCDEFGH"))
        for _ in range(draws)
    ]  # fmt: skip


def _beaten(table: pd.DataFrame, layer: str, rule: str = "") -> bool:
    """Is a layer beaten, by the definition or by a mistaken one?"""
    own = table.loc[layer]
    rivals = table if rule == "mixed" else table[table.tower == own.tower]
    more, less = rivals.importance > own.importance, rivals.alignment < own.alignment
    if rule == "ties":
        others = rivals.index != layer
        more, less = (rivals.importance >= own.importance) & others, (rivals.alignment <= own.alignment) & others
    if rule == "more aligned":
        less = rivals.alignment > own.alignment
    if rule == "less important":
        more = rivals.importance < own.importance
    return bool(((more | less) if rule == "or" else (more & less)).any())


def check_ex_beaten(function: Any) -> str:
    """Your function(table, layer) -> is the layer beaten? Asked on tables of our own."""
    mistakes = {
        "the wrong sign: it says what is on the front, not what is beaten": lambda t, n: not _beaten(t, n),
        "the towers are mixed: only a layer of the same tower beats a layer": lambda t, n: _beaten(t, n, "mixed"),
        "ties count as beaten: more important and less aligned are both strict": lambda t, n: _beaten(t, n, "ties"),
        "or, not and: one layer has to be better in both": lambda t, n: _beaten(t, n, "or"),
        "alignment is to be low: yours lets the more aligned layer win": lambda t, n: _beaten(t, n, "more aligned"),
        "importance is to be high: yours lets the less important layer win": lambda t, n: _beaten(
            t, n, "less important"
        ),
    }
    cases, given = [(table, layer) for table in _tables() for layer in table.index], []
    for table, layer in cases:
        value, stopped = attempt(function, table.copy(), layer, wanted="the function")
        if stopped:
            return stopped
        if not isinstance(value, bool | np.bool_):
            return other_type(value, "a function that returns True or False")
        given.append(bool(value))
    right = [_beaten(*case) for case in cases]
    share = f"near {np.mean(right):.0%} of our layers are beaten, by yours {np.mean(given):.0%}"
    if given == right:
        return f"right: the same answer as the definition in all {len(cases)} cases"
    for name, other in mistakes.items():
        if given == [other(*case) for case in cases]:
            return f"{name}; {share}"
    wrong = sum(a != b for a, b in zip(given, right, strict=True))
    return f"wrong, in a way not on the list: {wrong} of {len(cases)} cases; {share}"


def check_ex_rescale(factors: Any, factor: float = 10.0) -> str:
    """(importance, product) of the layer after the scaling, each divided by what it was before."""
    right = (factor**-2, 1.0)
    mistakes = {
        "the gradient is forgotten: it becomes shorter as the weight becomes longer": (1 / factor, factor),
        "the weight's length is forgotten: only the gradient has changed": (1 / factor, 1 / factor),
        "before and after are swapped": (factor**2, 1.0),
        "the gradient is taken to grow with the weight: it shrinks": (1.0, factor**2),
        "nothing changes in what the model says, but the measure does": (1.0, 1.0),
        "importance and product are swapped": (1.0, factor**-2),
    }
    return verdict(factors, right, mistakes, wanted="two factors, (importance, product)", rel=0.03)


def check_ex_long_step(correlations: Any, predicted: Any, measured: Any) -> str:
    """(forget, retain): correlations of predicted and measured changes, (layers, 2) both, for one length of step."""
    tables = [np.asarray(one, dtype=float) for one in (predicted, measured)]

    def both(a: np.ndarray, b: np.ndarray) -> list[float]:
        return [float(np.corrcoef(a[:, k], b[:, k])[0, 1]) for k in (0, 1)]

    p, m = tables
    right = both(p, m)
    ranks = both(*(pd.DataFrame(one).rank().to_numpy() for one in tables))
    mistakes = {
        "forget and retain are swapped": right[::-1],
        "squared: this is the share of variance, not the correlation": [value**2 for value in right],
        "of ranks: this is Spearman's, Pearson's is asked for": ranks,
        "the share of equal signs, not the correlation": [
            float(np.mean(np.sign(p[:, k]) == np.sign(m[:, k]))) for k in (0, 1)
        ],
        "not divided by the spreads: this is the covariance": [float(np.cov(p[:, k], m[:, k])[0, 1]) for k in (0, 1)],
    }
    return verdict(correlations, right, mistakes, wanted="two correlations, (forget, retain)", rel=0.002, abs_=0.002)


def check_ex_exchange(names: Any, stats: pd.DataFrame) -> str:
    """The names on the front with alignment replaced by the rate of exchange; `stats`: of the gradients."""
    rate = stats.cosine * stats.retain_norm / stats.forget_norm

    def front(values: pd.Series) -> list[str]:
        return pareto_front(stats.assign(alignment=values))

    mistakes = {
        "alignment was not replaced: this is the old front": pareto_front(stats),
        "upside down: the retain gradient belongs above the line": front(
            (stats.cosine * stats.forget_norm / stats.retain_norm).abs()
        ),
        "not normalised: divided by no length, this is the inner product": front((rate * stats.forget_norm**2).abs()),
        "divided by the length of g_f once: by its square is asked for": front(
            (stats.cosine * stats.retain_norm).abs()
        ),
        "the wrong sign: large rates were taken for good ones": front(-rate.abs()),
        "signed: the absolute value is missing": front(rate),
        "the towers are mixed: a front for each tower": pareto_front(
            stats.assign(alignment=rate.abs(), tower="vision")
        ),
    }
    return verdict_names(names, front(rate.abs()), mistakes, also="one concept is an anecdote")
