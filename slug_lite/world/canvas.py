"""What is measured on pictures that a pipeline draws: UA, IRA and CRA of UnlearnCanvas, and Fréchet distances.

UnlearnCanvas (Zhang et al., 2024) has a pipeline draw every object in every style, and a classifier say what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from ..runtime.checks import unknown
from .captions import OBJECTS, STYLES


def canvas(asked: Sequence[tuple[str, str]], found: pd.DataFrame, forgotten: str) -> dict[str, float]:
    """UA, IRA and CRA of an edit that is to forget an object or a style, as shares of 1.

    asked: for each picture the (object, style) of its prompt; found: what a judge says of it, with "name" and "style".
    "UA", unlearning accuracy: of the pictures that were asked for with the concept, those without it. "IRA", in-domain
    retain accuracy: of all others, those that show what they should in the concept's own domain, objects or styles;
    "CRA", cross-domain retain accuracy: the same in the other domain.
    Raises KeyError for a name that is neither object nor style, ValueError for lengths that differ or where no
    picture, or every one, was asked for with the concept.
    """
    if forgotten not in OBJECTS + STYLES:
        raise unknown(forgotten, OBJECTS + STYLES, "object or style")
    if len(asked) != len(found):
        raise ValueError(f"{len(asked)} pictures asked for, {len(found)} judged")
    own, other = (0, 1) if forgotten in OBJECTS else (1, 0)
    wanted = np.array(asked, dtype=object).reshape(-1, 2)
    seen = found[["name", "style"]].to_numpy(dtype=object)
    mine = wanted[:, own] == forgotten
    if mine.all() or not mine.any():
        raise ValueError(
            f"{mine.sum()} of {len(mine)} pictures were asked for with {forgotten!r}; some must be, and some must not"
        )
    right = wanted == seen
    return {
        "UA": float((seen[mine, own] != forgotten).mean()),
        "IRA": float(right[~mine, own].mean()),
        "CRA": float(right[~mine, other].mean()),
    }


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance between two sets of features, each taken as normally distributed: float (m, d) and (n, d).

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B (Dowson and Landau, 1982; on the
    features of an Inception network it is the FID of Heusel et al., 2017). Few pictures make it larger: compare sets
    of equal size only. Raises ValueError for other shapes, fewer than two rows, or features that are not finite.
    """
    sets = [torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (first, second)]
    if any(x.ndim != 2 or len(x) < 2 for x in sets) or sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"features have shapes {[tuple(x.shape) for x in sets]}; give (m, d) and (n, d), m, n >= 2")
    if not all(torch.isfinite(x).all() for x in sets):
        raise ValueError("features are not finite")
    a, b = (torch.cov(x.T).reshape(x.shape[1], x.shape[1]) for x in sets)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric
    middle = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    distance = (sets[0].mean(0) - sets[1].mean(0)).square().sum() + a.trace() + b.trace() - 2 * middle
    return max(0.0, distance.item())
