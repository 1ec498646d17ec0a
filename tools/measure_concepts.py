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
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir

import pandas as pd
import torch

import slug_lite as slug
from slug_lite import metrics
from slug_lite.results import save_results

method = import_module("slug_lite.unlearn")  # the module; the package's name of the same spelling is its function
SEED, PICTURES, FRESH = 0, 48, 1000
DEFAULTS = {"evaluations": 10, "rule": "margin", "clearance": 4.0, "progress": False}
WAYS = {
    "alignment": {"select": "alignment", "fronts": 3, "rule": "margin"},
    "cosine": {"select": "cosine", "fronts": 3, "rule": "margin"},
    "paper": {"select": "alignment", "fronts": 1, "rule": "paper"},
}
world = slug.toonworld


class Report:
    """`slug.evaluate(clip)` on one set of pictures, drawn once for all concepts."""

    def __init__(self, clip: slug.Clip) -> None:
        self.clip, self.pairs = clip, world.everything(12, SEED + FRESH, "test")
        self.pixels = clip.pixels(self.pairs)
        self.features = metrics.embed_images(clip, self.pixels)
        self.before = self(self.features)

    @torch.no_grad()
    def __call__(self, features: torch.Tensor) -> dict:
        rows = []
        for kind, names in world.NAMES.items():
            picked, own = metrics.labels(self.pairs, names)
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
            hits = [metrics.recognised(self.clip, name, n=PICTURES, seed=SEED + FRESH) for name in names]
            after = self(self.features if of_text else metrics.embed_images(self.clip, self.pixels))
        lost = metrics.lost(self.before, after, names)
        left = [round(h.float().mean().item(), 4) for h in hits]
        return {"left": left[0] if len(names) == 1 else left} | {f"lost_{k}": round(v, 3) for k, v in lost.items()}


def remembering(search: Callable) -> Callable:
    """`search_layers` that looks a layer up where it was searched before, for another way, by the same rule."""
    known: dict[tuple, object] = {}

    def searched(clip: slug.Clip, gradients: slug.Gradients, layers: list[str], validate: object, **how) -> dict:
        keys = {layer: (layer, how["rule"], how["clearance"]) for layer in layers}
        new = [layer for layer in layers if keys[layer] not in known]
        known.update({keys[n]: found for n, found in search(clip, gradients, new, validate, **how).items()})
        return {layer: known[keys[layer]] for layer in layers}

    return searched


SEARCH = method.search_layers


def forget(clip: slug.Clip, name: str, report: Report) -> list[dict]:
    """The rows of one concept, one a way."""
    tasks, retain = method._tasks(clip, name, None, None, 48, 512, SEED)
    (gradients,) = slug.one_shot_gradients(clip, [tasks[0].forget], retain, progress=False)
    base, rows = slug.fingerprint(clip), []
    method.search_layers = remembering(SEARCH)
    for way, how in WAYS.items():
        order = method._peel(gradients.stats, how["select"], how["fronts"])
        settings = {**DEFAULTS, "rule": how["rule"]}
        about = {"name": name, "kind": world.kind_of(name), "way": way}
        try:
            edit = method._best_edit(clip, gradients, order, 0.005, tasks[0], base, settings)
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
    main()
