"""Equal captions in a contrastive batch are each other's negatives: what does that do to the choice of a layer?

    python tools/measure_equal_captions.py [--concepts 12] [--search]      goes on where it stopped

For a dozen concepts, the statistics of every layer with the loss as it is, and with equal captions sharing the target.
Prints a row a concept: how many captions of the retain set stand there more than once, how far alignments and cosines
move, which layers are on the first front with either loss, and, with --search, which layer `unlearn` then takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fresh_pictures import EVERY, SEED, clip
from measuring import Measurement, Unit, options, run
from torch import Tensor

import slug_lite as slug
from slug_lite import gradients
from slug_lite.world.tasks import task


def sharing(captions: list[str]) -> Callable[..., Tensor]:
    """CLIP's contrastive loss in which a picture's target is every caption equal to its own, in equal shares."""
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
    target = same / same.sum(1, keepdim=True)

    def loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = scale * images @ texts.T
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss


def measure(name: str, search: bool) -> list[dict]:
    """One row: both losses on the sets that `unlearn` takes for this name."""
    given, own = task(name, seed=SEED), gradients.retain_loss
    captions, found, edits = given.retain.captions, [], []
    for loss in (own, sharing(captions)):
        gradients.retain_loss = loss  # where `one_shot_gradients` looks for it
        try:
            found.append(
                slug.one_shot_gradients(clip(), given.forget, given.retain, keep=lambda stats: [], progress=False)
            )
            if search:
                edits.append(slug.unlearn(clip(), given))
        finally:
            gradients.retain_loss = own
    before, after = (one.stats for one in found)
    fronts = [set(slug.pareto_front(one)) for one in (before, after)]
    taken = {"layer": edits[0].layer, "layer_shared": edits[1].layer} if search else {}
    return [{
        "concept": name, "repeated": sum(captions.count(caption) > 1 for caption in captions),
        "loss": found[0].retain_loss, "loss_shared": found[1].retain_loss,
        "cosine_moved": float(np.abs(before.cosine - after.cosine).mean()),
        "rank_correlation": float(before.alignment.rank().corr(after.alignment.rank())),
        "front": len(fronts[0]), "on_both": len(fronts[0] & fronts[1]), "front_shared": len(fronts[1]), **taken,
    }]  # fmt: skip


def show(_: str, rows: list[dict], **about: object) -> str:
    """The table, in place of a results file."""
    table = pd.DataFrame(rows)
    lines = [table.to_string(index=False, float_format="%.3f"), f"seed {about['seed']}, commit {about['commit']}"]
    if about["search"]:
        lines.append(f"the same layer for {(table.layer == table.layer_shared).sum()} of {len(table)} concepts")
    return "\n".join(lines)


if __name__ == "__main__":
    asked = options(Path(__file__))
    asked.add_argument("--concepts", type=int, default=12)
    asked.add_argument("--search", action="store_true", help="which layer unlearn takes, too (minutes)")
    given = asked.parse_args()
    names = EVERY[:: len(EVERY) // given.concepts][: given.concepts]
    measurement = Measurement("equal_captions", Path(__file__), {"seed": SEED, "search": given.search})
    run(measurement, [Unit((name,), partial(measure, name, given.search)) for name in names], save=show, given=given)
