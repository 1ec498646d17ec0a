"""What a model knows of the mini world: zero-shot accuracy on pictures that no search has seen, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..models import Clip
from ..runtime.broken import check_embedded
from ..runtime.modes import gradient_free
from ..runtime.zero_shot import embed_images, labels, zero_shot_classifier
from . import toonworld


def interval(
    hits: Tensor | Sequence[float], *, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a mean (Efron, 1979): percentiles of the means of `draws` samples drawn with replacement.

    hits: (n,) numbers, for accuracies 0 and 1. Where all are alike the interval has no width, which says more about
    the bootstrap than about the mean: of 0 hits in n, the rule of three allows 3 / n. ValueError for none, or for NaN.
    """
    values = torch.as_tensor(hits, dtype=torch.float64).flatten().cpu()
    if len(values) == 0:
        raise ValueError("no hits given: an interval needs at least one number")
    if not torch.isfinite(values).all():
        raise ValueError("hits are not finite: they have no interval")
    generator = torch.Generator().manual_seed(seed)
    means = values[torch.randint(len(values), (draws, len(values)), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def auc(members: Tensor | Sequence[float], others: Tensor | Sequence[float]) -> float:
    """The chance that a member scores higher than one of the others, ties counted half: the area under the ROC curve.

    0.5 where the scores tell nothing, 1 where every member is above all others (Hanley and McNeil, 1982). As a
    membership inference attack (Yeom et al., 2018): scores of pictures that a model was trained on, and of others.
    members, others: (m,) and (n,) finite numbers, m * n comparisons. ValueError for none, or for NaN.
    """
    up, down = (torch.as_tensor(scores, dtype=torch.float64).flatten().cpu() for scores in (members, others))
    if len(up) == 0 or len(down) == 0:
        raise ValueError(f"{len(up)} members and {len(down)} others given; each needs at least one score")
    if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise ValueError("scores are not finite: they cannot be put in order")
    gap = up[:, None] - down  # (m, n)
    return ((gap > 0).double() + (gap == 0).double() / 2).mean().item()


@gradient_free
def evaluate(clip: Clip, split: str = "test", *, n: int = 12, seed: int = 0) -> dict[str, Any]:
    """Zero-shot accuracy on the mini world, among the names of each kind.

    n: pictures of every person and character, and n // 4 of every object x style cell; captions' templates are
    those of the split. Returns "people", "characters", "objects", "styles" (those the split has) -> accuracy in
    [0, 1], the mean over pictures, and "per_concept" -> DataFrame with kind, name, accuracy, pictures. ValueError for
    a model whose embeddings are not finite.
    """
    pairs = toonworld.evaluation_pairs(n, seed, split, size=world_size(clip))
    features, rows = check_embedded(embed_images(clip, clip.pixels(pairs)), "pictures' embeddings"), []
    out: dict[str, Any] = {}
    for kind, names in toonworld.NAMES.items():
        picked, own = labels(pairs, names)
        if len(picked) == 0:
            continue
        classifier = check_embedded(zero_shot_classifier(clip, names, toonworld.templates(kind, split)), "names' ones")
        right = (features[picked.to(clip.device)] @ classifier.T).argmax(1).cpu().eq(own)
        out[kind] = right.float().mean().item()
        for i, name in enumerate(names):
            mine = right[own == i]
            rows.append({"kind": kind, "name": name, "accuracy": mine.float().mean().item(), "pictures": len(mine)})
    return out | {"per_concept": pd.DataFrame(rows)}


@gradient_free
def recognised(clip: Clip, name: str, *, n: int = 48, seed: int = 0, split: str = "test", top: int = 1) -> Tensor:
    """Which of n fresh pictures of a concept of the mini world does the model name rightly? Bool (n,), on the CPU.

    Among the names of its kind, with the templates of the split; top: right if among the best `top` names. The mean
    is FA@top, the forget accuracy, once the concept is to be forgotten (Cai, Tan, Asif, 2025, section 4.1).
    Raises as `toonworld.pairs` does.
    """
    kind = toonworld.kind_of(name)
    names = toonworld.NAMES[kind]
    pictures = toonworld.pairs(name, n, seed, split, world_size(clip))
    classifier = check_embedded(zero_shot_classifier(clip, names, toonworld.templates(kind, split)), "names' ones")
    scores = check_embedded(embed_images(clip, clip.pixels(pictures)), "pictures' embeddings") @ classifier.T
    return (scores.topk(top).indices == names.index(name)).any(1).cpu()


def drop(before: Mapping[str, Any], after: Mapping[str, Any], names: str | Sequence[str]) -> pd.Series:
    """Points of accuracy that each kind lost, all of its concepts but `names` counted, each alike.

    before, after: what `evaluate` returned. Index: kinds; values in points per hundred, negative for a gain.
    """
    tables = [scores["per_concept"].set_index("name") for scores in (before, after)]
    gone = [names] if isinstance(names, str) else list(names)
    change = 100 * (tables[0]["accuracy"] - tables[1]["accuracy"]).drop(gone, errors="ignore")
    return change.groupby(tables[0]["kind"].loc[change.index], sort=False).mean()


def world_size(clip: Clip) -> int:
    """How large to draw the mini world for a model, in pixels: as large as it looks at, within 32 to 256."""
    return min(max(clip.image_size, 32), 256)
