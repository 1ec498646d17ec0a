"""Three ways to take the two gradients, each walked up and down, one table; the chapter on the official code draws it.

python tools/measure_variants.py          five concepts, seed 0; five minutes on two cores; goes on where it stopped

    script    as the paper defines them, in batches of 16 that are zeroed, as the released script for CLIP does
    notebook  batches of 16 never zeroed, every caption the concept's name, as the released Stable Diffusion notebook
    whole     as slug_lite does: the contrastive loss over all retain pairs at once

    sign +1 climbs the forget loss, -1 descends it

Everything else is the same for all: sets, candidate layers, front (the first one, |cos|), search, fresh pictures to
report on. Two more rows a concept say what the deepest layer of the front costs, where the best is not taken.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from fresh_pictures import FRESH, PICTURES, SEED, clip, report
from measuring import Measurement, Unit, run
from torch import Tensor

import slug_lite as slug
from slug_lite.book import variants
from slug_lite.gradients import layer_stats
from slug_lite.search import Found, by_preference, make_delta, search_layers
from slug_lite.validation import Scorer, scorer_of
from slug_lite.world.tasks import task

CONCEPTS = ("Ada Sunfield", "Dario Lindqvist", "Zorbo", "cat", "Clay")


def ways(forget: slug.Pairs, retain: slug.Pairs, name: str) -> dict[str, tuple[pd.DataFrame, dict[str, Tensor]]]:
    """The table of the layers and the forget gradients of each way."""
    pairs = {
        "script": variants.as_the_script(clip(), forget, retain),
        "notebook": variants.as_the_notebook(clip(), forget, retain, name),
    }
    whole = slug.one_shot_gradients(clip(), forget, retain)
    out = {way: (layer_stats(clip(), f, r), f) for way, (f, r) in pairs.items()}
    return out | {"whole": (whole.stats, whole.forget)}


def search(directions: dict[str, Tensor], front: list[str], scorer: Scorer) -> dict[str, Found]:
    """The step search in every layer of the front; half the standardized margin where none reaches it."""
    whole = slug.StepSearch()
    for margin in (whole.margin, whole.margin / 2):
        found = search_layers(clip(), directions, front, scorer, replace(whole, margin=margin))
        if by_preference(found):
            break
    return found


def deepest(front: list[str], tower: str) -> str | None:
    """The layer of the front in the highest block of a tower; of several the first; None if it has none in blocks."""
    within = [n for n in front if clip().tower(n) == tower and "blocks" in n]
    depth = {n: int(n.split("resblocks.")[1].split(".")[0]) for n in within}
    return max(depth, key=depth.__getitem__, default=None)


def measure(name: str) -> list[dict]:
    asked, rows = task(name, seed=SEED), []
    taken, scorer = ways(asked.forget, asked.retain, name), scorer_of(asked.validate, clip())
    fronts = {way: slug.pareto_front(stats) for way, (stats, _) in taken.items()}
    for way, (stats, forget) in taken.items():
        for sign in (1, -1):
            start = time.perf_counter()
            directions = {layer: sign * forget[layer] for layer in fronts[way]}
            found = search(directions, fronts[way], scorer)
            chosen = {"best": next(iter(by_preference(found)), None)}
            if way == "whole" and sign == 1:
                chosen |= {f"deepest, {t}": deepest(fronts[way], t) for t in ("vision", "text")}
            for choice, layer in chosen.items():
                row = {
                    "name": name, "kind": slug.toonworld.kind_of(name), "way": way, "sign": sign, "choice": choice,
                    "front": len(fronts[way]), "common": len(set(fronts[way]) & set(fronts["whole"])),
                    "cosine": round(float(stats.cosine.median()), 4),
                    "able": sum(one.step is not None for one in found.values()),
                    "evaluations": sum(len(one.trace) for one in found.values()), "layer": layer,
                }  # fmt: skip
                if layer is not None and found[layer].step is not None:
                    step = float(found[layer].step)
                    delta = make_delta(directions[layer], step)
                    edit = slug.Edit({layer: delta}, {layer: step}, name, slug.fingerprint(clip()))
                    size = clip().weights()[layer].norm()
                    row |= {"step": round(step, 5), "relative": round((delta.float().norm() / size).item(), 4)}
                    row |= report().row(edit, [name])
                rows.append(row | {"seconds": round(time.perf_counter() - start, 2)})
    return rows


if __name__ == "__main__":
    settings = {"seed": SEED, "pictures": PICTURES, "fresh": FRESH}
    run(Measurement("variants", Path(__file__), settings), [Unit((name,), partial(measure, name)) for name in CONCEPTS])
