"""Forget every concept of the mini world, one at a time, in three ways, and measure on fresh test pictures.

python tools/measure_concepts.py          all of them, seed 0; half an hour on two cores; goes on where it stopped

    alignment   as `unlearn` does, with the paper's measure |cos| for the front
    cosine      the same with the signed cosine
    paper       the paper's rule: the first front, the smallest step with validation accuracy 0

The gradients are taken once for all three. A row: what is left of the concept on pictures that neither gradient nor
search has seen, what every kind of the others lost, and the edit's own numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import gettempdir

import pandas as pd
import torch

import slug_lite as slug
from slug_lite.algorithm import best_edit, candidate_fronts
from slug_lite.book.results import save_results
from slug_lite.runtime.progress import silent
from slug_lite.runtime.zero_shot import embed_images, labels
from slug_lite.validation import scorer_of
from slug_lite.world import evaluation
from slug_lite.world.tasks import task

SEED, PICTURES, FRESH = 0, 48, 1000
WAYS = {
    "alignment": slug.StepSearch(),
    "cosine": slug.StepSearch(measure="cosine"),
    "paper": slug.StepSearch(rule="top1", fronts=1),
}
world = slug.toonworld


class Report:
    """`slug.evaluate(clip)` on one set of pictures, drawn once for all concepts."""

    def __init__(self, clip: slug.Clip) -> None:
        self.clip, self.pairs = clip, world.evaluation_pairs(12, SEED + FRESH, "test")
        self.pixels = clip.pixels(self.pairs)
        self.features = embed_images(clip, self.pixels)
        self.before = self(self.features)

    @torch.no_grad()
    def __call__(self, features: torch.Tensor) -> dict:
        rows = []
        for kind, names in world.NAMES.items():
            picked, own = labels(self.pairs, names)
            classifier = slug.zero_shot_classifier(self.clip, names, world.templates(kind, "test"))
            right = (features[picked] @ classifier.T).argmax(1) == own
            rows += [
                {"kind": kind, "name": name, "accuracy": right[own == i].float().mean().item()}
                for i, name in enumerate(names)
            ]
        return {"per_concept": pd.DataFrame(rows)}

    def row(self, edit: slug.Edit, names: list[str]) -> dict:
        """What an edit leaves of the names, and what it costs the others."""
        of_text = all(self.clip.tower(layer) == "text" for layer in edit.layers)
        with edit.on(self.clip):
            hits = [evaluation.recognised(self.clip, name, n=PICTURES, seed=SEED + FRESH) for name in names]
            after = self(self.features if of_text else embed_images(self.clip, self.pixels))
        lost = evaluation.drop(self.before, after, names)
        left = [round(h.float().mean().item(), 4) for h in hits]
        return {"left": left[0] if len(names) == 1 else left} | {f"lost_{k}": round(v, 3) for k, v in lost.items()}


def forget(clip: slug.Clip, name: str, report: Report) -> list[dict]:
    """The rows of one concept, one a way."""
    asked, rows = task(name, seed=SEED), []
    gradients, scorer = slug.one_shot_gradients(clip, asked.forget, asked.retain), scorer_of(asked.validate, clip)
    for way, search in WAYS.items():
        about = {"name": name, "kind": world.kind_of(name), "way": way}
        try:
            fronts = candidate_fronts(search, None, gradients.stats)
            edit = best_edit(clip, name, scorer, gradients.forget, fronts, search)
        except slug.NothingForgets as error:
            rows.append(about | {"layer": None, "evaluations": len(error.trace)})
            continue
        weight = clip.weights()[edit.layer]
        rows.append(
            about | report.row(edit, [name]) | {
                "layer": edit.layer, "step": round(edit.step, 5),
                "cosine": round(float(gradients.stats.cosine[edit.layer]), 4),
                "relative": round((edit.delta.float().norm() / weight.norm()).item(), 4),
                "evaluations": len(edit.trace),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    clip, part = slug.load_clip("mini", device="cpu"), Path(gettempdir()) / "slug_lite_concepts.jsonl"
    key = {"base": slug.fingerprint(clip), "seed": SEED}
    done = [json.loads(line) for line in part.read_text().splitlines()] if part.exists() else []
    done = [row for row in done if row.pop("key", None) == key]
    report = Report(clip)
    for name in [name for names in world.NAMES.values() for name in names]:
        if any(row["name"] == name for row in done):
            continue
        for row in forget(clip, name, report):
            done.append(row)
            with part.open("a") as file:
                file.write(json.dumps(row | {"key": key}) + "\n")
            print(row, flush=True)
    rows = [row for row in done if row["name"]]
    print(save_results("concepts", rows, script="tools/measure_concepts.py", seed=SEED, pictures=PICTURES))
    part.unlink()


if __name__ == "__main__":
    with silent():
        main()
