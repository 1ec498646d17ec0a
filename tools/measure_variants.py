"""Where the released code and the paper part, one departure at a time; the chapter on the official code draws it.

python tools/measure_variants.py          two concepts of each kind, seed 0; twelve minutes of one core; goes on where
                                          it stopped

Three whole methods:

    paper      SLUG (paper: top-1): one gradient each over all pairs, matrices, one front a tower, a climb, the layer of
               the front that keeps most, the shortest step after which no validation picture is recognised
    released   SLUG (released code: top-5): as the script for CLIP, batches of 16 pairs, weights of norms allowed, and
               a step after which the name is among the best five for no picture
    ours       as `unlearn` does: top-5, further fronts where the first costs too much

What the released code does otherwise, one change to "paper" at a time:

    descent    along minus the gradient                   norms      weights of LayerNorms may be chosen
    top5       the released stopping rule                 names      `visual_projection` counts as language
    batches16  gradients in batches of 16                 deepest    the deepest text layer of the front, as it is found
    batches4   gradients in batches of 4                  pair       both matrices of an MLP where one is chosen
    unzeroed   batches of 4, .grad never emptied          three      the step is searched on three pictures
    captions   every caption is the concept's name

And the Stable Diffusion notebook, all of its choices together, on CLIP's text tower: `notebook_up` and `notebook_down`
by the sign of its step, and `ready`, the step that it has ready: 1/20, upwards, without a search.

Everything is counted on fresh test pictures. A row without a layer: nothing that was tried forgot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from fresh_pictures import FRESH, PICTURES, SEED, clip, report, world
from measure_ablations import concepts, search_together
from measuring import Measurement, Unit, run
from torch import Tensor

import slug_lite as slug
from slug_lite.algorithm import best_edit, candidate_fronts
from slug_lite.book import variants
from slug_lite.gradients import editable, layer_stats
from slug_lite.search import Found, by_preference, make_delta, search_layers
from slug_lite.validation import Scorer, scorer_of
from slug_lite.world.tasks import task

TOP1, TOP5 = (slug.StepSearch(rule=rule, fronts=1) for rule in ("top1", "top5"))
FEW, READY, ITS_BLOCK = 3, 1 / 20, 11.5 / 24  # pictures; the ready-made step, and where its block lies in the tower
Directions = Mapping[str, Tensor]


def block(layer: str) -> int:
    """The number of the block that a layer is in, -1 outside of blocks."""
    found = re.search(r"resblocks\.(\d+)\.", layer)
    return int(found[1]) if found else -1


def by_default(stats: pd.DataFrame, front: Sequence[str]) -> str:
    """The text layer that the Stable Diffusion notebook takes: the deepest on the front.

    Of several in one block it meets the worst aligned first and keeps it, and block 0 never counts. Where none is
    left it has a name ready, the output of an attention; here that of the last block.
    """
    met = sorted((n for n in front if clip().tower(n) == "text"), key=lambda n: -stats.alignment[n])
    last = max(block(n) for n in clip().weights() if clip().tower(n) == "text")
    return max(
        (n for n in met if block(n) > 0), key=block, default=f"transformer.resblocks.{last}.attn.out_proj.weight"
    )


def as_transformers(stats: pd.DataFrame) -> pd.DataFrame:
    """As the notebook's filter sees the names of transformers: all without "vision_model" is language."""
    stats = stats.drop(index="visual.conv1.weight")  # there a patch_embedding, and left out as one
    stats.loc["visual.proj", "tower"] = "text"  # there a visual_projection
    return stats


def together(layer: str) -> list[str]:
    """What steps with a layer in the notebook: both matrices of an MLP. (Query, key and value are one tensor here.)"""
    both = ("mlp.c_fc", "mlp.c_proj")
    return next(([layer.replace(part, p) for p in both] for part in both if part in layer), [layer])


class Concept:
    """One concept: its gradients, taken in each way; its searches, each made once."""

    def __init__(self, name: str) -> None:
        self.name, asked = name, task(name, seed=SEED)
        self.scorer, self.validation = scorer_of(asked.validate, clip()), asked.validate
        self.mine = [k for k, concept in enumerate(asked.validate.pairs.concepts) if name in concept]
        take = partial(variants.batch_gradients, clip(), layers=variants.by_name)
        forget, retain = asked.forget, asked.retain
        four = [variants.in_batches(some, 4) for some in (forget, retain)]
        (own, _), (whole, _) = take([forget], variants.forgetting), take([retain], slug.retain_loss)
        in4 = take(four[0], variants.forgetting, zero=False)
        called = [variants.renamed(some, name) for some in (forget, retain)]
        self.gradients: dict[str, tuple[Directions, Directions]] = {
            "paper": (own, whole),
            "batches16": (own, take(variants.in_batches(retain, 16), slug.retain_loss)[0]),
            "batches4": (own, take(four[1], slug.retain_loss)[0]),
            "unzeroed": (in4[0], take(four[1], slug.retain_loss, zero=False, left=in4[1])[0]),
            "captions": (take([called[0]], variants.forgetting)[0], take([called[1]], slug.retain_loss)[0]),
            "notebook": variants.as_the_notebook(clip(), forget, retain, name),
        }
        self.stats = {way: layer_stats(clip(), *pair) for way, pair in self.gradients.items()}
        self.found: dict[tuple[str, str, int], dict[str, Found]] = {}

    def matrices(self, way: str) -> pd.DataFrame:
        return self.stats[way].loc[[n for n in self.stats[way].index if editable(n, clip().weights()[n])]]

    def directions(self, way: str, sign: int = 1) -> Directions:
        return {layer: sign * g for layer, g in self.gradients[way][0].items()}

    def searched(self, way: str, front: Sequence[str], search: slug.StepSearch, sign: int = 1) -> dict[str, Found]:
        """Of every layer of a front; directions that are the same in several ways are searched once."""
        way = way if way in ("unzeroed", "captions", "notebook") else "paper"
        known = self.found.setdefault((way, search.rule, sign), {})
        new = [layer for layer in front if layer not in known]
        known |= search_layers(clip(), self.directions(way, sign), new, self.scorer, search)
        return {layer: known[layer] for layer in front}

    def row(
        self, way: str, stats: pd.DataFrame, front: Sequence[str], deltas: Directions | None, **more: object
    ) -> dict:
        paper = slug.pareto_front(self.matrices("paper"))
        row = {
            "name": self.name, "kind": world.kind_of(self.name), "way": way, "front": len(front),
            "common": len(set(front) & set(paper)), "cosine": round(float(stats.cosine.median()), 4),
            "layer": None, **more,
        }  # fmt: skip
        if not deltas:
            return row
        edit = slug.Edit(dict(deltas), dict.fromkeys(deltas, 1.0), self.name, slug.fingerprint(clip()))
        sizes = [(d.float().norm() / clip().weights()[layer].norm()).item() for layer, d in deltas.items()]
        return row | {"layer": next(iter(deltas)), "relative": round(max(sizes), 4)} | report().row(edit, [self.name])

    def best(
        self, way: str, called: str = "", stats: pd.DataFrame | None = None, search: slug.StepSearch = TOP1,
        sign: int = 1,
    ) -> dict:  # fmt: skip
        """The layer of the front that keeps most, by the way's gradients."""
        stats = self.matrices(way) if stats is None else stats
        front = slug.pareto_front(stats)
        found = self.searched(way, front, search, sign)
        able = by_preference(found)
        deltas = {n: make_delta(self.directions(way, sign)[n], found[n].step) for n in able[:1]}
        return self.row(called or way, stats, front, deltas, able=len(able))

    def in_pairs(
        self, way: str, called: str, stats: pd.DataFrame, picked: str | None, search: slug.StepSearch, sign: int = 1
    ) -> dict:
        """A layer that is picked, and what steps with it, by one common step."""
        front, along = slug.pareto_front(stats), self.directions(way, sign)
        if picked is None:
            return self.row(called, stats, front, None)
        kind = world.kind_of(self.name)
        own = replace(
            self.validation, pairs=self.validation.pairs[self.mine], names={kind: self.validation.names[kind]},
            templates={kind: self.validation.templates[kind]},
        )  # fmt: skip
        both = together(picked)
        deltas, _ = search_together(clip(), own, {n: along[n] for n in both}, 1.0, search)
        return self.row(called, stats, front, deltas and {picked: deltas[picked], **deltas}, layers=len(both))

    def three(self) -> dict:
        """The layer of "paper", its step searched on the first few pictures of the concept."""
        stats, pairs = self.matrices("paper"), self.validation.pairs
        front, rest = slug.pareto_front(stats), [k for k, c in enumerate(pairs.concepts) if self.name not in c]
        few: Scorer = scorer_of(replace(self.validation, pairs=pairs[self.mine[:FEW] + rest]), clip())
        picked = by_preference(self.searched("paper", front, TOP1))[:1]
        found = search_layers(clip(), self.directions("paper"), picked, few, TOP1)
        deltas = {n: make_delta(self.directions("paper")[n], f.step) for n, f in found.items() if f.step is not None}
        return self.row("three", stats, front, deltas)

    def ready(self) -> dict:
        """Query, key and value of the block that the notebook names, by 1/20 of where its ratio would bring the key."""
        depth = 1 + max(block(n) for n in clip().weights() if clip().tower(n) == "text")
        layer = f"transformer.resblocks.{int(ITS_BLOCK * depth)}.attn.in_proj_weight"
        g = self.gradients["notebook"][0][layer]
        (_, key, _), (_, g_k, _) = clip().weights()[layer].detach().chunk(3), g.chunk(3)
        step = READY * (key.norm() / g_k.norm()).item()
        return self.row("ready", self.stats["notebook"], [], {layer: make_delta(g, step)})

    def ours(self) -> dict:
        search, stats = slug.StepSearch(), self.matrices("paper")
        try:
            fronts = candidate_fronts(search, None, stats)
            edit = best_edit(clip(), self.name, self.scorer, self.directions("paper"), fronts, search)
        except slug.NothingForgets:
            return self.row("ours", stats, slug.pareto_front(stats), None)
        return self.row("ours", stats, slug.pareto_front(stats), edit.deltas)

    def rows(self) -> Iterator[dict]:
        paper, book = self.matrices("paper"), self.matrices("notebook")
        yield self.best("paper")
        yield self.best("batches16", "released", self.stats["batches16"], TOP5)
        yield self.ours()
        yield self.best("paper", "descent", sign=-1)
        yield self.best("paper", "top5", search=TOP5)
        for way in ("batches16", "batches4", "unzeroed", "captions"):
            yield self.best(way)
        yield self.best("paper", "norms", self.stats["paper"])
        yield self.best("paper", "names", as_transformers(paper))
        picked = by_preference(self.searched("paper", slug.pareto_front(paper), TOP1))[:1]
        yield self.in_pairs("paper", "pair", paper, picked[0] if picked else None, TOP1)
        deepest = by_default(paper, slug.pareto_front(paper))
        found = self.searched("paper", [deepest], TOP1)[deepest]
        deltas = found.step and {deepest: make_delta(self.directions("paper")[deepest], found.step)}
        yield self.row("deepest", paper, slug.pareto_front(paper), deltas)
        yield self.three()
        text = as_transformers(book).query("tower == 'text'")
        default = by_default(text, slug.pareto_front(text))
        for sign, called in ((1, "notebook_up"), (-1, "notebook_down")):
            yield self.in_pairs("notebook", called, text, default, TOP5, sign)
        yield self.ready()


def measure(name: str) -> list[dict]:
    start = time.perf_counter()
    rows = list(Concept(name).rows())
    return [row | {"seconds": round(time.perf_counter() - start, 1)} for row in rows]


if __name__ == "__main__":
    settings = {"seed": SEED, "pictures": PICTURES, "fresh": FRESH, "few": FEW, "ready": READY}
    run(
        Measurement("variants", Path(__file__), settings),
        [Unit((name,), partial(measure, name)) for name in concepts()],
    )
