"""Is it the layer, the direction or the step? SLUG's choices taken away one at a time; chapter 6 draws the result.

python tools/measure_ablations.py         two concepts of each kind, seed 0; goes on where it stopped

The results are written when every kind had its first concept, and again after the second.

Everything is measured on fresh test pictures, with the same search of the step and the same rule of stopping:

    layers   every layer that may be edited, searched on its own; any rule that picks one layer is a look-up here
    arms     all layers at once, or many, in one relative or one absolute step; the retain gradient projected out of the
             gradient; random directions, at SLUG's length and searched; the gradient of the same pictures with foreign
             captions
    rank     SLUG's edit cut down to its first singular directions
    retain   the statistics from fewer retain pairs, or from contrastive batches of 16, against other 512 pairs
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import slug_lite as slug
from slug_lite.book.results import save_results
from slug_lite.gradients import chosen_layers, forget_gradients, layer_stats
from slug_lite.runtime.batches import cached_backward, contrastive_batches
from slug_lite.runtime.linear import inner
from slug_lite.runtime.modes import only_gradients_of
from slug_lite.runtime.progress import silent
from slug_lite.runtime.replay import Replay, blocks_before
from slug_lite.runtime.zero_shot import embed_images, labels
from slug_lite.search import Found, by_preference, make_delta, search_step
from slug_lite.validation import scorer_of
from slug_lite.world import evaluation
from slug_lite.world.tasks import task

world = slug.toonworld
SEED, PER_KIND, PICTURES, OTHERS, FRESH = 0, 2, 48, 6, 1000  # OTHERS: pictures of every other concept
SEARCH = slug.StepSearch()  # as `unlearn` has it
RANDOM = 2  # random directions
RANKS = (1, 2, 4, 8, 16, 32)
RETAIN_SEEDS, SIZES, SMALL = (1, 2), (16, 32, 64, 128, 256, 512), 16
Deltas = dict[str, Tensor]


class Report:
    """What is left of a concept and what the others lost, on fresh pictures; blocks before an edit are played back."""

    def __init__(self, clip: slug.Clip) -> None:
        self.clip, self.pairs = clip, world.evaluation_pairs(OTHERS, SEED + FRESH, "test")
        self.pixels = {"rest": clip.pixels(self.pairs)}
        self.replays: dict[tuple[str, int], Replay] = {}
        self.images = {"rest": embed_images(clip, self.pixels["rest"])}
        self.names = self.classifiers()
        self.before = self.scores(self.images["rest"], self.names)

    def classifiers(self) -> dict[str, Tensor]:
        return {
            kind: slug.zero_shot_classifier(self.clip, names, world.templates(kind, "test"))
            for kind, names in world.NAMES.items()
        }

    def of(self, name: str) -> None:
        """Take up a concept; `known` is the share of its pictures that the untouched model recognises."""
        self.name, self.kind = name, world.kind_of(name)
        self.pixels["own"] = self.clip.pixels(world.pairs(name, PICTURES, SEED + FRESH, "test"))
        self.images["own"] = embed_images(self.clip, self.pixels["own"])
        self.replays = {key: replay for key, replay in self.replays.items() if key[0] != "own"}
        self.known = self.hits(self.images["own"], self.names)

    def hits(self, images: Tensor, names: dict[str, Tensor]) -> float:
        own = world.NAMES[self.kind].index(self.name)
        return ((images @ names[self.kind].T).argmax(1) == own).float().mean().item()

    @torch.no_grad()
    def scores(self, images: Tensor, names: dict[str, Tensor]) -> dict:
        rows = []
        for kind, classifier in names.items():
            picked, own = labels(self.pairs, world.NAMES[kind])
            right = (images[picked] @ classifier.T).argmax(1) == own
            rows += [
                {"kind": kind, "name": name, "accuracy": right[own == i].float().mean().item()}
                for i, name in enumerate(world.NAMES[kind])
            ]
        return {"per_concept": pd.DataFrame(rows)}

    def embed(self, part: str, layers: Sequence[str]) -> Tensor:
        if len(layers) > 1:
            return embed_images(self.clip, self.pixels[part])
        blocks = blocks_before(self.clip, layers[0])
        replay = self.replays.setdefault((part, len(blocks)), Replay(blocks))
        with replay.play() if replay.outputs else replay.record():
            return embed_images(self.clip, self.pixels[part])

    @torch.no_grad()
    def row(self, deltas: Deltas) -> dict:
        """left, lost by kind, and the length of the change, absolute and relative to the weights it is added to."""
        weights = self.clip.weights()
        lengths = [(d.float().norm().item(), weights[layer].norm().item()) for layer, d in deltas.items()]
        edit = slug.Edit(deltas, dict.fromkeys(deltas, 1.0), self.name, slug.fingerprint(self.clip))
        towers = {self.clip.tower(layer) for layer in deltas}
        with edit.on(self.clip):
            images = (
                {part: self.embed(part, edit.layers) for part in self.pixels} if "vision" in towers else self.images
            )
            names = self.classifiers() if "text" in towers else self.names
        gone = evaluation.drop(self.before, self.scores(images["rest"], names), self.name)
        length, size = (math.sqrt(sum(x * x for x in column)) for column in zip(*lengths, strict=True))
        return {
            "left": round(self.hits(images["own"], names), 4), **{f"lost_{k}": round(v, 3) for k, v in gone.items()},
            "length": round(length, 4), "relative": round(length / size, 4),
        }  # fmt: skip


def retain_gradient(clip: slug.Clip, retain: slug.Pairs, batch: int | None = None) -> tuple[Deltas, float]:
    """The retain gradient, of which `one_shot_gradients` keeps the statistics alone, and the loss; in its batches."""
    loss, scale = 0.0, clip.logit_scale().detach()
    with only_gradients_of(clip, chosen_layers(clip, slug.editable)) as weights:
        for chunk in contrastive_batches(len(retain), batch):
            some = retain[chunk]

            def embed(rows: slice, some: slug.Pairs = some) -> tuple[Tensor, Tensor]:
                part = some[rows]
                return clip.image_features(clip.pixels(part)), clip.text_features(clip.tokens(part.captions))

            def part(images: Tensor, texts: Tensor, share: float = len(some) / len(retain)) -> Tensor:
                return share * slug.retain_loss(images, texts, scale)

            loss += cached_backward(embed, part, len(some), 128, lambda: None)
        return {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items()}, loss


class Together:
    """All layers as one long weight, for `search_step` to walk in: the model it is given, as far as it looks.

    begin: the search begins at this part of where that of a single layer does (it begins at a tenth of the weight).
    """

    def __init__(self, clip: slug.Clip, validation: slug.Validation, layers: Sequence[str], begin: float) -> None:
        self.clip, self.layers = clip, {layer: clip.weights()[layer] for layer in layers}
        kind, shown = world.kind_of(validation.forget), validation.pairs.concepts or ()
        own = validation.pairs[[k for k, concept in enumerate(shown) if validation.forget in concept]]
        names, templates = ({kind: some[kind]} for some in (validation.names, validation.templates))
        self.validation = replace(validation, pairs=own, names=names, templates=templates)
        self.original = self.join({layer: weight.detach() for layer, weight in self.layers.items()})
        self.vector = self.original * begin  # what the search sees; only what it adds to it matters
        self.start = self.vector.clone()

    def weights(self) -> Deltas:
        return {"all": self.vector}

    def join(self, tensors: Deltas) -> Tensor:
        return torch.cat([tensors[layer].flatten() for layer in self.layers])

    def split(self, vector: Tensor) -> Deltas:
        parts = vector.split([weight.numel() for weight in self.layers.values()])
        return {n: part.view_as(weight) for (n, weight), part in zip(self.layers.items(), parts, strict=True)}

    @torch.no_grad()
    def put(self) -> None:
        for layer, part in self.split(self.original + (self.vector - self.start)).items():
            self.layers[layer].copy_(part)

    def score(self) -> dict[str, float]:
        """Is the concept still known? What the rest keeps is not asked."""
        self.put()
        return self.validation(self.clip)

    def search(self, direction: Deltas, search: slug.StepSearch) -> tuple[Deltas | None, int]:
        """The deltas of the shortest common step along `direction` that forgets, None if none does, and the tries."""
        joined = self.join(direction)
        try:
            found = search_step(self, "all", joined, Together.score, search)
        finally:
            self.put()
        return (None if found.step is None else self.split(make_delta(joined, found.step))), len(found.trace)


def either(search: Callable[[slug.StepSearch], tuple]) -> tuple:
    """As `unlearn` does: where the whole margin is out of reach, half of it is asked for."""
    first, tries = search(SEARCH)
    if first is not None:
        return first, tries, SEARCH.margin
    half = replace(SEARCH, margin=SEARCH.margin / 2)
    second, more = search(half)
    return second, tries + more, half.margin


class Concept:
    """One concept: its gradients, its validation, every layer's search."""

    def __init__(self, clip: slug.Clip, name: str, report: Report) -> None:
        self.clip, self.name, self.report = clip, name, report
        report.of(name)
        asked = task(name, seed=SEED)
        self.forget, self.retain, self.scorer = asked.forget, asked.retain, scorer_of(asked.validate, clip)
        (self.g_f,), (self.g_r, _) = forget_gradients(clip, [self.forget]), retain_gradient(clip, self.retain)
        self.stats = layer_stats(clip, self.g_f, self.g_r)
        self.enough = self.scorer.retaining()["retain_accuracy"] - SEARCH.max_accuracy_drop
        self.about = {"name": name, "kind": report.kind}

    def search(self, layer: str, gradient: Tensor) -> tuple[Found | None, int, float]:
        def once(search: slug.StepSearch) -> tuple[Found | None, int]:
            found = search_step(self.clip, layer, gradient, self.scorer, search)
            return (found if found.step is not None else None), len(found.trace)

        return either(once)

    def layers(self) -> list[dict]:
        """One row a layer; keeps what was found for `choose`."""
        rows, self.found = [], {}
        for layer, s in self.stats.iterrows():
            search, tries, asked = self.search(layer, self.g_f[layer])
            self.found[layer] = (search, tries, asked)
            row = {"part": "layers", **self.about, "layer": layer, "tower": s.tower, "tries": tries}
            row |= {
                k: round(float(s[k]), 6) for k in ("importance", "alignment", "cosine", "forget_norm", "retain_norm")
            }
            if search is not None:
                row |= {"asked": asked, "step": search.step, **self.report.row({layer: self.delta(layer)})}
                row |= {k: round(search.score[k], 5) for k in ("retain_accuracy", "retain_loss")}
            rows.append(row)
        return rows

    def delta(self, layer: str) -> Tensor:
        return make_delta(self.g_f[layer], self.found[layer][0].step)

    def choose(self, stats: pd.DataFrame, fronts: int = SEARCH.fronts) -> tuple[str | None, int]:
        """The layer that `unlearn` takes with these statistics, and how many layers it tries."""
        tried: list[str] = []
        layer = None
        for asked in (SEARCH.margin, SEARCH.margin / 2):
            tried = []
            for front in slug.pareto_fronts(stats, fronts, by=SEARCH.measure):
                tried += front
                able = {n: self.found[n][0] for n in tried if self.found[n][0] and self.found[n][2] == asked}
                layer = next(iter(by_preference(able)), None)
                if layer is not None and able[layer].score["retain_accuracy"] >= self.enough:
                    break
            if layer is not None:
                break
        return layer, len(tried)

    def arm(self, way: str, deltas: Deltas | None, tries: int, seed: int = 0, **more: object) -> dict:
        row = {"part": "arms", **self.about, "way": way, "seed": seed, "tries": tries, **more}
        if deltas is None:
            return row
        layer = next(iter(deltas)) if len(deltas) == 1 else None
        return row | {"layer": layer, **self.report.row(deltas)}

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
        for way, (direction, begin) in ways.items():
            together = Together(self.clip, self.scorer.validation, [n for n in direction if n in unit], begin)
            deltas, tries, asked = either(partial(together.search, direction))
            rows.append(self.arm(way, deltas, tries, asked=asked, layers=len(together.layers)))
        return rows

    def harmless(self) -> list[str]:
        """Layers that forget with the whole margin and keep what `unlearn` asks for, on validation pictures."""
        able = {n: search for n, (search, _, asked) in self.found.items() if search and asked == SEARCH.margin}
        return [n for n, search in able.items() if search.score["retain_accuracy"] >= self.enough]

    def arms(self) -> list[dict]:
        """Everything that is not a choice of one layer."""
        layer, tried = self.choose(self.stats)
        single, tried_once = self.choose(self.stats, fronts=1)
        rows = [{"part": "arms", **self.about, "way": "slug", "seed": 0, "layer": layer, "layers_tried": tried}]
        rows += [{"part": "arms", **self.about, "way": "front", "seed": 0, "layer": single, "layers_tried": tried_once}]
        rows[0] |= {"known": round(self.report.known, 4)}
        rows += self.wholes(self.harmless())

        def searched(way: str, where: str, gradient: Tensor, seed: int = 0) -> None:
            search, tries, asked = self.search(where, gradient)
            deltas = None if search is None else {where: make_delta(gradient, search.step)}
            rows.append(self.arm(way, deltas, tries, seed, layer=where, asked=asked))

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
        rows.append(
            self.arm("foreign_same", {layer: make_delta(wrong[layer], (length / wrong[layer].norm()).item())}, 0)
        )
        return rows

    def ranks(self) -> list[dict]:
        """SLUG's edit and what its best approximations of low rank do."""
        layer, _ = self.choose(self.stats)
        edit = slug.Edit({layer: self.delta(layer)}, {layer: 1.0}, self.name, slug.fingerprint(self.clip))
        energy = torch.linalg.svdvals(edit.delta.float().flatten(1)).square()
        return [
            {"part": "rank", **self.about, "rank": r, "of": len(energy), "layer": layer}
            | {"energy": round((energy[:r].sum() / energy.sum()).item(), 4)}
            | self.report.row(edit.low_rank(r).deltas)
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


def main() -> None:
    clip, part = slug.load_clip("mini", device="cpu"), Path(gettempdir()) / "slug_lite_ablations.jsonl"
    key = {"base": slug.fingerprint(clip), "seed": SEED, "others": OTHERS}
    lines = [json.loads(line) for line in part.read_text().splitlines()] if part.exists() else []
    done = {line["name"]: line["rows"] for line in lines if line["key"] == key}
    report, names = Report(clip), concepts()
    for k, name in enumerate(names, 1):
        if name not in done:
            concept = Concept(clip, name, report)
            done[name] = concept.layers() + concept.arms() + concept.ranks()
            done[name] += concept.retains() if k <= len(world.NAMES) else []  # one of each kind
            with part.open("a") as file:
                file.write(json.dumps({"key": key, "name": name, "rows": done[name]}) + "\n")
            print(name, *(row for row in done[name] if row["part"] == "arms"), sep="\n  ", flush=True)
        if k % len(world.NAMES) == 0:
            rows = [row for name in names[:k] for row in done[name]]
            about = {"script": "tools/measure_ablations.py", "seed": SEED, "pictures": PICTURES}
            print(save_results("ablations", rows, **about), flush=True)
    part.unlink()


if __name__ == "__main__":
    with silent():
        main()
