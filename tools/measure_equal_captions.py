"""Equal captions in a contrastive batch are each other's negatives: what does that do to the choice of a layer?

python tools/measure_equal_captions.py           a dozen concepts; ten minutes on one core; goes on where it stopped;
                                                 chapter 3 draws the result

A row is one concept with one of these:

    apart    the loss as CLIP was trained with: each picture has one right caption, its own
    pooled   the same sets; any caption equal to a picture's own is right, and any picture with a caption's words
    redrawn  the loss as it is, and another draw of the retain set: what chance alone does

Equal shares of the target among equal captions need no arm: that is "apart" to the last digit, see chapter 3.
`rank` and `stays` compare with "apart": the rank correlation of the layers' alignments, and the share of the first
front that is still on it. Layer, step, what is left and lost are of the edit that `unlearn` then finds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from fresh_pictures import FRESH, PICTURES, SEED, clip, report, world
from measuring import Measurement, Unit, run
from torch import Tensor

import slug_lite as slug
from slug_lite import gradients
from slug_lite.world.tasks import task

NUMBERS = {"people": 4, "characters": 2, "objects": 4, "styles": 2}
CONCEPTS = [name for kind, n in NUMBERS.items() for name in world.NAMES[kind][:: len(world.NAMES[kind]) // n][:n]]


def pooling(captions: list[str]) -> Callable[..., Tensor]:
    """CLIP's contrastive loss in which equal captions are one: of the chance that any of them is meant."""
    other = torch.tensor([[a != b for b in captions] for a in captions])

    def loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = scale * images @ texts.T

        def half(rows: Tensor) -> Tensor:
            own = rows.masked_fill(other.to(rows.device), -torch.inf)
            return (rows.logsumexp(1) - own.logsumexp(1)).mean()

        return (half(logits) + half(logits.T)) / 2

    return loss


def measure(name: str) -> list[dict]:
    """Three rows, the first of which the others are compared with."""
    rows, first = [], None
    for way, seed in (("apart", SEED), ("pooled", SEED), ("redrawn", SEED + FRESH)):
        given = task(name, seed=SEED)
        retain = world.retain([name], n=len(given.retain), seed=seed)
        captions = retain.captions
        loss = pooling(captions) if way == "pooled" else gradients.retain_loss
        with patch.object(gradients, "retain_loss", loss):  # where `one_shot_gradients` looks for it
            found = slug.one_shot_gradients(clip(), given.forget, retain, keep=lambda stats: [], progress=False)
            edit = slug.unlearn(clip(), given.forget, retain, validate=given.validate)
        front = set(slug.pareto_front(found.stats))
        first = first or (found.stats.alignment.rank(), front)
        rows.append({
            "name": name, "kind": world.kind_of(name), "way": way,
            "repeated": sum(captions.count(caption) > 1 for caption in captions), "loss": round(found.retain_loss, 4),
            "rank": round(float(first[0].corr(found.stats.alignment.rank())), 3), "front": len(front),
            "stays": round(len(first[1] & front) / len(first[1]), 3), "layer": edit.layer,
            "step": float(f"{edit.step:.4g}"), **report().row(edit, [name]),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    settings = {"seed": SEED, "pictures": PICTURES, "retain": len(task(CONCEPTS[0], seed=SEED).retain)}
    measurement = Measurement("equal_captions", Path(__file__), settings)
    run(measurement, [Unit((name,), partial(measure, name)) for name in CONCEPTS])
