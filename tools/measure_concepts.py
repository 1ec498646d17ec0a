"""Forget every concept of the mini world, one at a time, in three ways, and measure on fresh test pictures.

python tools/measure_concepts.py          all of them, seed 0; half an hour on two cores; goes on where it stopped

    alignment   as `unlearn` does, with the paper's measure |cos| for the front
    cosine      the same with the signed cosine
    paper       the paper's rule: the first front, the smallest step with validation accuracy 0

The gradients are taken once for all three. A row: what is left of the concept on pictures that neither gradient nor
search has seen, what every kind of the others lost, and the edit's own numbers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fresh_pictures import EVERY, PICTURES, SEED, clip, report
from measuring import Measurement, Unit, run

import slug_lite as slug
from slug_lite.algorithm import best_edit, candidate_fronts
from slug_lite.validation import scorer_of
from slug_lite.world.tasks import task

WAYS = {
    "alignment": slug.StepSearch(),
    "cosine": slug.StepSearch(measure="cosine"),
    "paper": slug.StepSearch(rule="top1", fronts=1),
}


def forget(name: str) -> list[dict]:
    """The rows of one concept, one a way."""
    asked, rows = task(name, seed=SEED), []
    gradients, scorer = slug.one_shot_gradients(clip(), asked.forget, asked.retain), scorer_of(asked.validate, clip())
    for way, search in WAYS.items():
        about = {"name": name, "kind": slug.toonworld.kind_of(name), "way": way}
        try:
            fronts = candidate_fronts(search, None, gradients.stats)
            edit = best_edit(clip(), name, scorer, gradients.forget, fronts, search)
        except slug.NothingForgets as error:
            rows.append(about | {"layer": None, "evaluations": len(error.trace)})
            continue
        weight = clip().weights()[edit.layer]
        rows.append(
            about | report().row(edit, [name]) | {
                "layer": edit.layer, "step": round(edit.step, 5),
                "cosine": round(float(gradients.stats.cosine[edit.layer]), 4),
                "relative": round((edit.delta.float().norm() / weight.norm()).item(), 4),
                "evaluations": len(edit.trace),
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    settings = {"seed": SEED, "pictures": PICTURES}
    run(Measurement("concepts", Path(__file__), settings), [Unit((name,), partial(forget, name)) for name in EVERY])
