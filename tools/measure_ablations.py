"""Is it the layer, the direction or the step? SLUG's choices taken away one at a time; chapter 6 draws the result.

python tools/measure_ablations.py         two concepts of each kind, seed 0; goes on where it stopped

Everything is measured on fresh test pictures, with the same search of the step and the same rule of stopping:

    layers   every layer that may be edited, searched on its own; any rule that picks one layer is a look-up here
    arms     all layers at once, or many, in one relative or one absolute step; the retain gradient projected out of the
             gradient; random directions, at SLUG's length and searched; the gradient of the same pictures with foreign
             captions
    rank     SLUG's edit cut down to its first singular directions
    retain   the statistics from fewer retain pairs, or from contrastive batches of 16, against other 512 pairs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fresh_pictures import PICTURES, SEED, clip, recognised, report, world
from measure_contrastive_batch import retain_gradient
from measuring import Measurement, Unit, run
from torch import Tensor

import slug_lite as slug
from slug_lite.gradients import forget_gradients, layer_stats
from slug_lite.runtime.linear import inner
from slug_lite.search import Found, by_preference, make_delta, search_step, try_steps
from slug_lite.validation import scorer_of
from slug_lite.world.tasks import task

PER_KIND, OTHERS = 2, 6  # concepts of each kind; pictures of every other concept
SEARCH = slug.StepSearch()  # as `unlearn` has it
RANDOM = 2  # random directions
RANKS = (1, 2, 4, 8, 16, 32)
Deltas = dict[str, Tensor]
RETAIN_SEEDS, SIZES, SMALL = (1, 2), (16, 32, 64, 128, 256, 512), 16


@torch.no_grad()
def search_together(
    clip: slug.Clip, own: slug.Validation, direction: Deltas, begin: float, search: slug.StepSearch
) -> tuple[Deltas | None, int]:
    """As `search_step`, all layers as one long weight: the shortest common step that forgets, and the tries.

    begin: the search begins at this part of where that of a single layer does (it begins at a tenth of the weight).
    own: is the concept still known? What the rest keeps is not asked.
    """
    weights, rows = [clip.weights()[layer] for layer in direction], []
    original, along = (torch.cat([t.flatten() for t in tensors]) for tensors in (weights, direction.values()))
    start = original * begin  # what the search sees; only what it adds to it matters
    vector = start.clone()

    def split(joined: Tensor) -> list[Tensor]:
        return [part.view_as(w) for part, w in zip(joined.split([w.numel() for w in weights]), weights, strict=True)]

    def probe() -> dict[str, float]:
        torch._foreach_copy_(weights, split(original + (vector - start)))
        return own(clip)

    try:
        step = try_steps(vector, along, probe, search, rows)
    finally:
        torch._foreach_copy_(weights, split(original))
    found = None if step is None else dict(zip(direction, split(make_delta(along, step)), strict=True))
    return found, len(rows)


class Concept:
    """One concept: its gradients, its validation, every layer's search."""

    def __init__(self, name: str) -> None:
        self.clip, self.name, self.report = clip(), name, report(OTHERS)
        asked = task(name, seed=SEED)
        self.forget, self.retain, self.scorer = asked.forget, asked.retain, scorer_of(asked.validate, self.clip)
        (self.g_f,), (self.g_r, _) = forget_gradients(self.clip, [self.forget]), retain_gradient(self.clip, self.retain)
        self.stats = layer_stats(self.clip, self.g_f, self.g_r)
        self.enough = self.scorer.retaining()["retain_accuracy"] - SEARCH.max_accuracy_drop
        self.about = {"name": name, "kind": world.kind_of(name)}

    @torch.no_grad()
    def row(self, deltas: Deltas) -> dict:
        """left, lost by kind, and the length of the change, absolute and relative to the weights it is added to."""
        weights = self.clip.weights()
        lengths = [(d.float().norm().item(), weights[layer].norm().item()) for layer, d in deltas.items()]
        edit = slug.Edit(deltas, dict.fromkeys(deltas, 1.0), self.name, slug.fingerprint(self.clip))
        length, size = (math.sqrt(sum(x * x for x in column)) for column in zip(*lengths, strict=True))
        about = {"length": round(length, 4), "relative": round(length / size, 4)}
        return self.report.row(edit, [self.name]) | about

    def search(self, layer: str, gradient: Tensor) -> tuple[Found | None, int]:
        found = search_step(self.clip, layer, gradient, self.scorer, SEARCH)
        return (found if found.step is not None else None), len(found.trace)

    def layers(self) -> list[dict]:
        """One row a layer; keeps what was found for `choose`."""
        rows, self.found = [], {}
        for layer, s in self.stats.iterrows():
            search, tries = self.search(layer, self.g_f[layer])
            self.found[layer] = search
            row = {"part": "layers", **self.about, "layer": layer, "tower": s.tower, "tries": tries}
            row |= (
                s[["importance", "alignment", "cosine", "forget_norm", "retain_norm"]].astype(float).round(6).to_dict()
            )
            if search is not None:
                row |= {"step": search.step, **self.row({layer: self.delta(layer)})}
                row |= {k: round(search.score[k], 5) for k in ("retain_accuracy", "retain_loss")}
            rows.append(row)
        return rows

    def delta(self, layer: str) -> Tensor:
        return make_delta(self.g_f[layer], self.found[layer].step)

    def choose(self, stats: pd.DataFrame, fronts: int = SEARCH.fronts) -> tuple[str | None, int]:
        """The layer that `unlearn` takes with these statistics, and how many layers it tries."""
        tried = list[str]()
        for front in slug.pareto_fronts(stats, fronts, by=SEARCH.measure):
            tried += front
            able = {n: self.found[n] for n in tried if self.found[n]}
            layer = next(iter(by_preference(able)), None)
            if layer is not None and able[layer].score["retain_accuracy"] >= self.enough:
                break
        return layer, len(tried)

    def arm(self, way: str, deltas: Deltas | None, tries: int, seed: int = 0, **more: object) -> dict:
        row = {"part": "arms", **self.about, "way": way, "seed": seed, "tries": tries, **more}
        if deltas is None:
            return row
        layer = next(iter(deltas)) if len(deltas) == 1 else None
        return row | {"layer": layer, **self.row(deltas)}

    def wholes(self, harmless: Sequence[str]) -> list[dict]:
        """Many layers at once: all, those of one tower, and the `harmless`, which alone cost next to nothing.

        The search begins long before it does in one layer, since many move the model more; "_tenth": where it does.
        """
        weights, rows = self.clip.weights(), []
        unit = {n: g * (weights[n].detach().norm() / g.norm()) for n, g in self.g_f.items() if g.norm() > 0}
        towers = {t: {n: d for n, d in unit.items() if self.clip.tower(n) == t} for t in ("vision", "text")}
        ways = {
            "all_relative": (unit, 1 / 16), "all_relative_tenth": (unit, 1.0), "all_absolute": (self.g_f, 1 / 16),
            "all_absolute_tenth": (self.g_f, 1.0), "vision_relative": (towers["vision"], 1 / 16),
            "text_relative": (towers["text"], 1 / 16), "harmless_relative": ({n: unit[n] for n in harmless}, 1 / 16),
        }  # fmt: skip
        whole = self.scorer.validation
        mine = whole.pairs[[k for k, concept in enumerate(whole.pairs.concepts) if self.name in concept]]
        names, templates = ({self.about["kind"]: some[self.about["kind"]]} for some in (whole.names, whole.templates))
        own = replace(whole, pairs=mine, names=names, templates=templates)
        for way, (direction, begin) in ways.items():
            along = {n: d for n, d in direction.items() if n in unit}
            deltas, tries = search_together(self.clip, own, along, begin, SEARCH)
            rows.append(self.arm(way, deltas, tries, layers=len(along)))
        return rows

    def harmless(self) -> list[str]:
        """Layers that forget and keep what `unlearn` asks for, on validation pictures."""
        able = {n: search for n, search in self.found.items() if search}
        return [n for n, search in able.items() if search.score["retain_accuracy"] >= self.enough]

    def arms(self) -> list[dict]:
        """Everything that is not a choice of one layer."""
        layer, tried = self.choose(self.stats)
        single, tried_once = self.choose(self.stats, fronts=1)
        rows = [{"part": "arms", **self.about, "way": "slug", "seed": 0, "layer": layer, "layers_tried": tried}]
        rows += [{"part": "arms", **self.about, "way": "front", "seed": 0, "layer": single, "layers_tried": tried_once}]
        rows[0] |= {"known": round(recognised(self.name), 4)}
        rows += self.wholes(self.harmless())

        def searched(way: str, where: str, gradient: Tensor, seed: int = 0) -> None:
            search, tries = self.search(where, gradient)
            deltas = None if search is None else {where: make_delta(gradient, search.step)}
            rows.append(self.arm(way, deltas, tries, seed, layer=where))

        most = str(self.stats["importance"].idxmax())
        for way, where in (("projected", layer), ("projected_important", most)):
            g_f, g_r = self.g_f[where], self.g_r[where]
            searched(way, where, g_f - inner(g_f, g_r) / inner(g_r, g_r) * g_r)
        g_f, length = self.g_f[layer], self.delta(layer).float().norm()
        for seed in range(RANDOM):
            noise = torch.randn(g_f.shape, generator=torch.Generator().manual_seed(seed))
            rows.append(self.arm("random_same", {layer: make_delta(noise, (length / noise.norm()).item())}, 0, seed))
            searched("random_search", layer, noise * (g_f.norm() / noise.norm()), seed)
        foreign = slug.Pairs(self.forget.images, self.retain.captions[: len(self.forget)])
        (wrong,) = forget_gradients(self.clip, [foreign])
        searched("foreign_captions", layer, wrong[layer])
        same = make_delta(wrong[layer], (length / wrong[layer].norm()).item())
        return [*rows, self.arm("foreign_same", {layer: same}, 0)]

    def ranks(self) -> list[dict]:
        """SLUG's edit and what its best approximations of low rank do."""
        layer, _ = self.choose(self.stats)
        edit = slug.Edit({layer: self.delta(layer)}, {layer: 1.0}, self.name, slug.fingerprint(self.clip))
        energy = torch.linalg.svdvals(edit.delta.float().flatten(1)).square()
        return [
            {"part": "rank", **self.about, "rank": r, "of": len(energy), "layer": layer}
            | {"energy": round((energy[:r].sum() / energy.sum()).item(), 4)}
            | self.row(edit.low_rank(r).deltas)
            for r in RANKS
        ]

    def retains(self) -> list[dict]:
        """Statistics of smaller retain sets against those of 512 other pairs; the layer that they would choose."""
        rows, reference = [], set(slug.pareto_front(self.stats))
        for seed in RETAIN_SEEDS:
            pairs = world.retain([self.name], max(SIZES), seed)
            for size, batch in [(n, n) for n in SIZES] + [(max(SIZES), SMALL)]:
                g_r, loss = retain_gradient(self.clip, pairs[:size], batch)
                stats = layer_stats(self.clip, self.g_f, g_r)
                front = set(slug.pareto_front(stats))
                layer, tried = self.choose(stats)
                single, _ = self.choose(stats, fronts=1)
                product, mine, theirs = (
                    sum(inner(a[n], b[n]) for n in g_r) for a, b in ((g_r, self.g_r), (g_r, g_r), (self.g_r, self.g_r))
                )
                rows.append({
                    "part": "retain", **self.about, "seed": seed, "pairs": size, "batch": batch,
                    "loss": float(f"{loss:.4g}"), "gradient_norm": float(f"{math.sqrt(mine):.4g}"),
                    "gradient_cosine": round(product / math.sqrt(mine * theirs), 4),
                    "rank": round(float(stats.alignment.rank().corr(self.stats.alignment.rank())), 4),
                    "sign": round(float((np.sign(stats.cosine) == np.sign(self.stats.cosine)).mean()), 4),
                    "front": len(front), "overlap": round(len(front & reference) / len(front | reference), 4),
                    "layer": layer, "layers_tried": tried, "layer_front": single,
                })  # fmt: skip
        return rows


def concepts() -> list[str]:
    """PER_KIND names of each kind, by the seed; the first of every kind comes before the second of any."""
    rng = np.random.default_rng(SEED)
    drawn = [rng.choice(names, PER_KIND, replace=False) for names in world.NAMES.values()]
    return [str(names[k]) for k in range(PER_KIND) for names in drawn]


def measure(name: str, retains: bool) -> list[dict]:
    concept = Concept(name)
    rows = concept.layers() + concept.arms() + concept.ranks()
    return rows + (concept.retains() if retains else [])


if __name__ == "__main__":
    first = concepts()[: len(world.NAMES)]  # retain sets are compared for one of each kind
    units = [Unit((name,), partial(measure, name, name in first)) for name in concepts()]
    run(Measurement("ablations", Path(__file__), {"seed": SEED, "pictures": PICTURES}), units)
