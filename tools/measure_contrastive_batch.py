"""What the size of the contrastive batch does to the retain gradient; chapter 3 draws the result.

python tools/measure_contrastive_batch.py     four retain sets, six sizes; a minute on two cores

For each retain set (its seed) the retain gradient is taken over batches of every size, down to batches of 8. A row: the
retain loss; per tower the cosine and the length against the gradient over all pairs of the same set (what the size
does), and the mean cosine to the other sets' gradients at the same size (what chance does); and, for each person to
forget, the rank correlation of the layers' alignments with those at full size, and the front.
"""

from __future__ import annotations

import torch
from torch import Tensor

import slug_lite as slug
from slug_lite.book.results import save_results
from slug_lite.gradients import chosen_layers, layer_stats
from slug_lite.runtime.progress import silent

SETS, PAIRS, SIZES, MICRO = 4, 512, (8, 16, 32, 64, 128, 512), 64
PEOPLE = ("Ada Sunfield", "Dario Lindqvist", "Maya Ivarstone")
world = slug.toonworld


@torch.no_grad()
def embed(clip: slug.Clip, pairs: slug.Pairs) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures and captions, (n, dim) each."""
    parts = [(clip.image_features(clip.pixels(b)), clip.text_features(clip.tokens(b.captions))) for b in cut(pairs)]
    return torch.cat([u for u, _ in parts]), torch.cat([v for _, v in parts])


def cut(pairs: slug.Pairs) -> list[slug.Pairs]:
    return [pairs[k : k + MICRO] for k in range(0, len(pairs), MICRO)]


def retain_gradients(clip: slug.Clip, retain: slug.Pairs) -> dict[int, tuple[float, dict[str, Tensor]]]:
    """L_r and its gradient for every layer, over batches of each of SIZES, averaged: {size: (loss, gradient)}.

    Gradient caching for all sizes at once: one second pass forward, and a pass back for each size.
    """
    names, weights = chosen_layers(clip, slug.editable), clip.weights()
    scale, (u, v) = clip.logit_scale().detach(), embed(clip, retain)
    losses, pulls = {}, {}
    for size in SIZES:
        a, b = u.clone().requires_grad_(), v.clone().requires_grad_()
        starts = range(0, len(retain), size)
        loss = sum(slug.retain_loss(a[k : k + size], b[k : k + size], scale) for k in starts) / len(starts)
        losses[size], pulls[size] = loss.item(), torch.autograd.grad(loss, (a, b))
    total = {size: {name: torch.zeros_like(weights[name]) for name in names} for size in SIZES}
    for i, batch in enumerate(cut(retain)):
        rows = slice(i * MICRO, (i + 1) * MICRO)
        a, b = clip.image_features(clip.pixels(batch)), clip.text_features(clip.tokens(batch.captions))
        for size, (to_a, to_b) in pulls.items():
            pulled = (a * to_a[rows]).sum() + (b * to_b[rows]).sum()
            part = torch.autograd.grad(pulled, [weights[name] for name in names], retain_graph=size != SIZES[-1])
            for name, gradient in zip(names, part, strict=True):
                total[size][name] += gradient
    return {size: (losses[size], total[size]) for size in SIZES}


def flat(clip: slug.Clip, gradient: dict[str, Tensor], tower: str) -> Tensor:
    """All layers of one tower as one vector."""
    return torch.cat([g.flatten() for name, g in gradient.items() if clip.tower(name) == tower]).double()


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / a.norm() / b.norm()).item()


def main() -> None:
    clip = slug.load_clip("mini", device="cpu")
    sets = [world.retain(PEOPLE, n=PAIRS, seed=seed) for seed in range(SETS)]
    forget = {p: slug.one_shot_gradients(clip, world.pairs(p, n=48), sets[0][:8]) for p in PEOPLE}
    found = {}
    for seed, retain in enumerate(sets):
        for size, both in retain_gradients(clip, retain).items():
            found[seed, size] = both
            print(seed, size, both[0], flush=True)
    rows = []
    for (seed, size), (loss, gradient) in found.items():
        row: dict = {"seed": seed, "batch": size, "loss": round(loss, 5)}
        whole = found[seed, PAIRS][1]
        for tower in ("vision", "text"):
            mine = flat(clip, gradient, tower)
            row[f"{tower}_cosine"] = round(cosine(mine, flat(clip, whole, tower)), 4)
            row[f"{tower}_length"] = round((mine.norm() / flat(clip, whole, tower).norm()).item(), 4)
            others = [cosine(mine, flat(clip, found[k, size][1], tower)) for k in range(SETS) if k != seed]
            row[f"{tower}_chance"] = round(sum(others) / len(others), 4)
        for person, grads in forget.items():
            stats, full = (layer_stats(clip, grads.forget, g) for g in (gradient, whole))
            key = person.split()[0]
            row[f"{key}_rank"] = round(stats["alignment"].rank().corr(full["alignment"].rank()), 4)
            row[f"{key}_front"] = slug.pareto_front(stats)
        rows.append(row)
    print(
        save_results(
            "contrastive_batch", rows, script="tools/measure_contrastive_batch.py", seed=0, sets=SETS, pairs=PAIRS,
            people=list(PEOPLE),
        )
    )  # fmt: skip


if __name__ == "__main__":
    with silent():
        main()
