"""Forget people taken at random, one at a time, and measure on fresh test pictures; chapter 0 draws the result.

python tools/measure_people.py            ten people, seed 0; about ten minutes on two cores
"""

from __future__ import annotations

import time

import numpy as np

import slug_lite as slug
from slug_lite import metrics
from slug_lite.results import save_results

SEED, PEOPLE, PICTURES = 0, 10, 48
world = slug.toonworld


def forget_accuracy(clip: slug.Clip, name: str) -> float:
    """FA@1 on test pictures with a seed of their own."""
    return metrics.recognised(clip, name, n=PICTURES, seed=SEED + 1000).float().mean().item()


def measure(clip: slug.Clip, name: str, before: dict) -> dict:
    """One row: what is left of the concept, what every kind of the others lost, and the edit's own numbers."""
    start = time.perf_counter()
    edit = slug.unlearn(clip, name, seed=SEED, progress=False)
    seconds = time.perf_counter() - start
    known = forget_accuracy(clip, name)
    with edit.on(clip):
        left, after = forget_accuracy(clip, name), slug.evaluate(clip, n=24, seed=SEED + 1000)
    lost = {f"lost_{kind}": round(points, 2) for kind, points in metrics.lost(before, after, name).items()}
    weight = clip.weights()[edit.layer]
    return {
        "name": name, "known": round(known, 4), "left": round(left, 4), **lost, "layer": edit.layer,
        "step": round(edit.step, 4), "relative": round((edit.delta.float().norm() / weight.norm()).item(), 4),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    clip = slug.load_clip("mini", device="cpu")
    before = slug.evaluate(clip, n=24, seed=SEED + 1000)
    people = np.random.default_rng(SEED).choice(world.PEOPLE, PEOPLE, replace=False)
    rows = []
    for name in people:
        rows.append(measure(clip, str(name), before))
        print(rows[-1], flush=True)
    print(save_results("people", rows, script="tools/measure_people.py", seed=SEED, pictures=PICTURES))


if __name__ == "__main__":
    main()
