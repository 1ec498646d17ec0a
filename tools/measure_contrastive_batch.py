"""What the size of the contrastive batch does to the retain gradient; chapter 3 draws the result.

python tools/measure_contrastive_batch.py     four retain sets, six sizes; two minutes on two cores

For each retain set (its seed) the retain gradient is taken over batches of every size, down to batches of 8. A row: the
retain loss; per tower the cosine and the length against the gradient over all pairs of the same set (what the size
does), and the mean cosine to the other sets' gradients at the same size (what chance does); and, for each person to
forget, the rank correlation of the layers' alignments with those at full size, and the front.
"""

from __future__ import annotations

from pathlib import Path

import torch
from fresh_pictures import SEED, clip, world
from measuring import Measurement, Unit, run
from torch import Tensor
from torch.nn.functional import cosine_similarity as cosine

import slug_lite as slug
from slug_lite.gradients import _collect, _retain_backward, chosen_layers, layer_stats
from slug_lite.runtime.batches import contrastive_batches
from slug_lite.runtime.modes import only_gradients_of

SETS, PAIRS, SIZES = 4, 512, (8, 16, 32, 64, 128, 512)
PEOPLE = ("Ada Sunfield", "Dario Lindqvist", "Maya Ivarstone")


def retain_gradient(clip: slug.Clip, retain: slug.Pairs, batch: int | None = None) -> tuple[dict[str, Tensor], float]:
    """The retain gradient, of which `one_shot_gradients` keeps the statistics alone, and the loss; in its batches."""
    chunks = [retain[rows] for rows in contrastive_batches(len(retain), batch)]
    with only_gradients_of(clip, chosen_layers(clip, slug.editable)) as weights:
        loss = sum(_retain_backward(clip, some, len(some) / len(retain), 128, lambda: None) for some in chunks)
        return _collect(weights, {}), loss


def flat(gradient: dict[str, Tensor], tower: str) -> Tensor:
    """All layers of one tower as one vector."""
    return torch.cat([g.flatten() for name, g in gradient.items() if clip().tower(name) == tower]).double()


def measure() -> list[dict]:
    """All rows at once: every set is held against the others."""
    sets = [world.retain(PEOPLE, n=PAIRS, seed=seed) for seed in range(SETS)]
    forget = {p: slug.one_shot_gradients(clip(), world.pairs(p, n=48), sets[0][:8]) for p in PEOPLE}
    found = {(k, size): retain_gradient(clip(), one, size) for k, one in enumerate(sets) for size in SIZES}
    rows = []
    for (seed, size), (gradient, loss) in found.items():
        row: dict = {"seed": seed, "batch": size, "loss": round(loss, 5)}
        whole = found[seed, PAIRS][0]
        for tower in ("vision", "text"):
            mine = flat(gradient, tower)
            row[f"{tower}_cosine"] = round(cosine(mine, flat(whole, tower), 0).item(), 4)
            row[f"{tower}_length"] = round((mine.norm() / flat(whole, tower).norm()).item(), 4)
            others = [cosine(mine, flat(found[k, size][0], tower), 0).item() for k in range(SETS) if k != seed]
            row[f"{tower}_chance"] = round(sum(others) / len(others), 4)
        for person, grads in forget.items():
            stats, full = (layer_stats(clip(), grads.forget, g) for g in (gradient, whole))
            key = person.split()[0]
            row[f"{key}_rank"] = round(stats["alignment"].rank().corr(full["alignment"].rank()), 4)
            row[f"{key}_front"] = slug.pareto_front(stats)
        rows.append(row)
    return rows


if __name__ == "__main__":
    settings = {"seed": SEED, "sets": SETS, "pairs": PAIRS, "people": list(PEOPLE)}
    run(Measurement("contrastive_batch", Path(__file__), settings), [Unit(("all sets",), measure)])
