"""Paired comparisons over concepts, as the chapters print them: interval, counts, a p that knows how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..world.evaluation import interval

EXACT = 16  # up to so many differences that are not zero, all assignments of signs are tried: 65,536
TIED = 1e-9  # differences smaller than this are none


def sign_flip(differences: Sequence[float], *, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p of a mean of paired differences: how often are signs dealt out by a coin as far from zero as these?

    differences: one number a concept. Exact up to EXACT numbers that are not zero, else from `draws` random deals
    (Fisher, 1935). Zeros change nothing, whatever their sign; where all are zero p is 1. ValueError for none.
    """
    if not len(differences):
        raise ValueError("no differences given: there is nothing to compare")
    apart = np.array([d for d in differences if abs(d) > TIED], float)
    if len(apart) == 0:
        return 1.0
    seen = abs(apart.sum()) * (1 - TIED)
    if len(apart) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(apart))[:, None] >> np.arange(len(apart)) & 1)
        return float(np.mean(abs(signs @ apart) >= seen))
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (draws, len(apart)))
    return float((1 + np.sum(abs(signs @ apart) >= seen)) / (1 + draws))


def holm(p: Sequence[float]) -> np.ndarray:
    """The p-values of several comparisons, raised so that all together err as rarely as one alone (Holm, 1979)."""
    p = np.asarray(p, float)
    order, out = p.argsort(kind="stable"), np.empty(len(p))
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return out


def compare(differences: Mapping[str, Sequence[float]], *, digits: int = 2) -> pd.DataFrame:
    """One row a comparison, for numbers of which less is better; all rows are one family in "p (Holm)".

    differences: for each comparison its own minus the other's, one number a concept. The interval is a bootstrap over
    the concepts, 95 %, each by itself, and none where all are alike; better, worse and tied count concepts. `said`
    makes a sentence of the table.
    """
    rows, apart = {}, 0
    for label, values in differences.items():
        values = np.asarray(values, float)
        low, high = interval(values.tolist())
        apart += low > TIED or high < -TIED
        span = f"{low + 0:+.{digits}f} to {high + 0:+.{digits}f}"
        rows[label] = {
            "difference": f"{values.mean() + 0:+.{digits}f}",
            "95 % interval": span if np.ptp(values) > TIED else "all alike",
            "better": int((values < -TIED).sum()), "worse": int((values > TIED).sum()),
            "tied": int((abs(values) <= TIED).sum()), "p": sign_flip(values),
        }  # fmt: skip
    table = pd.DataFrame(rows).T
    table["p (Holm)"] = holm(table["p"].astype(float)).round(3)
    table["p"] = table["p"].astype(float).round(3)
    table.attrs["apart"] = apart
    return table


def with_interval(values: Sequence[float], digits: int = 1, *, times: float = 1.0, sign: str = "") -> str:
    """The mean of one number a concept, and its 95 % interval from resampling concepts, as text: "1.7 (1.0 to 2.6)".

    Where all are alike there is nothing to resample, and no interval: "0.0 (all alike)". times: what the numbers are
    multiplied by, 100 for per cent; sign: "+" to show it. ValueError for none.
    """
    values = [times * float(value) for value in values]
    if not values:
        raise ValueError("no numbers given: there is nothing to average")
    mean, low, high = (round(x, digits) + 0.0 for x in (np.mean(values), *interval(values)))  # no minus before a zero
    if max(values) - min(values) <= TIED:
        return f"{mean:{sign}.{digits}f} (all alike)"
    return f"{mean:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def said(table: pd.DataFrame) -> str:
    """What a table of `compare` says as a whole: how many would differ by chance, how many intervals do, which stay."""
    many, stay = len(table), table.index[table["p (Holm)"].astype(float) <= 0.05]
    return (
        f"{many} comparisons, of which {0.05 * many:.1f} would look different by chance at 95 %; "
        f"{table.attrs['apart']} intervals leave zero out; counted as {many} (Holm), different: "
        + (", ".join(stay) or "none")
    )
