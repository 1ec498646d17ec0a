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

import json
import time
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir

import slug_lite as slug
from slug_lite import variants
from slug_lite.gradients import Gradients, layer_stats
from slug_lite.results import save_results
from slug_lite.search import Search, make_delta

from measure_concepts import FRESH, PICTURES, Report  # isort: skip

method = import_module("slug_lite.unlearn")  # the module; the package's name of the same spelling is its function
SEED = 0
CONCEPTS = ("Ada Sunfield", "Dario Lindqvist", "Zorbo", "cat", "Clay")
world = slug.toonworld


def ways(clip: slug.Clip, forget: slug.Pairs, retain: slug.Pairs, name: str) -> dict[str, Gradients]:
    """The gradients of each way, with the table of the layers."""
    pairs = {
        "script": variants.as_the_script(clip, forget, retain),
        "notebook": variants.as_the_notebook(clip, forget, retain, name),
    }
    out = {way: Gradients(layer_stats(clip, f, r), f, float("nan"), float("nan")) for way, (f, r) in pairs.items()}
    return out | {"whole": slug.one_shot_gradients(clip, forget, retain, progress=False)}


def search(clip: slug.Clip, gradients: Gradients, sign: int, front: list[str], task: method.Task) -> dict[str, Search]:
    """The step search in every layer of the front, along sign * gradient; half the clearance where none reaches it."""
    turned = Gradients(gradients.stats, {n: sign * gradients.forget[n] for n in front}, float("nan"), float("nan"))
    for clearance in (4.0, 2.0):
        found = method.search_layers(clip, turned, front, task.validate, clearance=clearance, progress=False)
        if method.best_layer(found):
            break
    return found


def deepest(front: list[str], tower: str, clip: slug.Clip) -> str | None:
    """The layer of the front in the highest block of a tower; of several the first; None if it has none in blocks."""
    depth = {n: int(n.split("resblocks.")[1].split(".")[0]) for n in front if clip.tower(n) == tower and "blocks" in n}
    return max(depth, key=depth.__getitem__, default=None)


def measure(clip: slug.Clip, name: str, report: Report) -> list[dict]:
    tasks, retain = method._tasks(clip, name, None, None, 48, 512, SEED)
    base, rows = slug.fingerprint(clip), []
    taken = ways(clip, tasks[0].forget, retain, name)
    fronts = {way: slug.pareto_front(g.stats) for way, g in taken.items()}
    for way, gradients in taken.items():
        for sign in (1, -1):
            start = time.perf_counter()
            found = search(clip, gradients, sign, fronts[way], tasks[0])
            chosen = {"best": method.best_layer(found)}
            if way == "whole" and sign == 1:
                chosen |= {f"deepest, {t}": deepest(fronts[way], t, clip) for t in ("vision", "text")}
            for choice, layer in chosen.items():
                row = {
                    "name": name, "kind": world.kind_of(name), "way": way, "sign": sign, "choice": choice,
                    "front": len(fronts[way]), "common": len(set(fronts[way]) & set(fronts["whole"])),
                    "cosine": round(float(gradients.stats.cosine.median()), 4),
                    "able": sum(one.step is not None for one in found.values()),
                    "evaluations": sum(len(one.trace) for one in found.values()), "layer": layer,
                }  # fmt: skip
                if layer is not None and found[layer].step is not None:
                    step = float(found[layer].step)
                    delta = make_delta(sign * gradients.forget[layer], step)
                    edit = slug.Edit({layer: delta}, {layer: step}, name, base)
                    size = clip.weights()[layer].norm()
                    row |= {"step": round(step, 5), "relative": round((delta.float().norm() / size).item(), 4)}
                    row |= report.row(edit, [name])
                rows.append(row | {"seconds": round(time.perf_counter() - start, 2)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    clip, part = slug.load_clip("mini", device="cpu"), Path(gettempdir()) / "slug_lite_variants.jsonl"
    key = {"base": slug.fingerprint(clip), "seed": SEED}
    done = [json.loads(line) for line in part.read_text().splitlines()] if part.exists() else []
    done = [row for row in done if row.pop("key", None) == key]
    todo = [name for name in CONCEPTS if all(row["name"] != name for row in done)]
    if todo:
        report = Report(clip)
    for name in todo:
        rows = measure(clip, name, report)
        done += rows
        with part.open("a") as file:
            file.writelines(json.dumps(row | {"key": key}) + "\n" for row in rows)
    about = {"script": "tools/measure_variants.py", "seed": SEED, "pictures": PICTURES, "fresh": FRESH}
    print(save_results("variants", sorted(done, key=lambda row: CONCEPTS.index(row["name"])), **about))
    part.unlink()


if __name__ == "__main__":
    main()
