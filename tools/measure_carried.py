"""What a pipeline draws once CLIP has forgotten: the published method carried over, and ours, on the report half.

python tools/measure_carried.py           16 people and characters; an hour of one core; goes on where it stopped

Arms. Of SLUG's there are two stopping rules, on the text tower's first front, in layers that the pipeline has: "top-1"
(paper) and "top-5" (released code); each as published, along the gradient, and "preconditioned", along g C^-1, which
leaves the states of preserved prompts alone. "ours" is `unlearn_pipeline`; "ours, nothing preserved" is the same along
the gradient.

A third of the other names are left out of the preserved prompts, so that it can be said how far preserving carries.
Drawn from noise and in sentences that no search has seen, with diffusers' own guidance: of the concept's pictures what
is left, and what the others show: somebody or something else, or nothing that the judge knows; of preserved and of
left-out names what is kept, of the pictures that showed them before. Mini CLIP itself, untouched, is asked too what it
sees in each picture: a second judge, trained on other tasks and by another loss.
"""

from __future__ import annotations

import time
import zlib
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from compare_searches import Asked, Plan
from fresh_pictures import EVERY, clip, world
from measuring import CLIP, JUDGE, SD, Measurement, Unit, run

import slug_lite as slug
from slug_lite.algorithm import best_edit, candidate_fronts, gradients_of
from slug_lite.diffusion.precondition import input_moments, precondition
from slug_lite.diffusion.unlearning import LONGER, PROBED, SEARCH, has_layer
from slug_lite.pretrain.judge import nobodies
from slug_lite.runtime.zero_shot import embed_images
from slug_lite.world.judge import NONE
from slug_lite.world.tasks import task

SEED, STEPS = 40, 20  # of forget set, retain set, validation and noise: no other script's
NOISES = 16  # pictures of the concept
SPOILED = 0.95  # of the pictures that the untouched pipeline draws lie nearer to a real drawing than a spoiled one
NAMES = [name for kind in ("people", "characters") for name in world.REPORT[kind]]
RULES = {"SLUG (paper: top-1)": "top1", "SLUG (released code: top-5)": "top5"}

pipe = cache(partial(slug.load_diffusion, "mini", device="cpu"))
judge = cache(slug.load_judge)


class Carried(Plan):
    """As `Plan`, with more noise for the concept's own pictures."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        sentences = world.templates(world.kind_of(name), "test")
        self.own: Asked = [(sentences[k % len(sentences)].format(name), (name,)) for k in range(NOISES)]


def draw(asked: Asked, part: str) -> np.ndarray:
    """uint8 (n, 64, 64, 3): each prompt from noise of its own, the same before and after an edit."""
    images = []
    for start in range(0, len(asked), 16):
        some = [text for text, _ in asked[start : start + 16]]
        noise = [
            torch.Generator().manual_seed(zlib.crc32(f"{SEED}|{text}|{part}|{start + k}".encode()))
            for k, text in enumerate(some)
        ]
        drawn = pipe()(some, generator=noise, num_inference_steps=STEPS)
        images += [np.asarray(image.convert("RGB")) for image in drawn.images]
    return np.stack(images)


@cache
def words() -> torch.Tensor:
    some = [slug.zero_shot_classifier(clip(), names, world.templates(k, "test")) for k, names in world.NAMES.items()]
    return torch.cat(some)


@torch.no_grad()
def by_clip(images: np.ndarray, kind: str) -> list[str]:
    """What the untouched mini CLIP calls pictures, of the names of a kind."""
    own = [k for k, name in enumerate(EVERY) if world.kind_of(name) == kind]
    scores = embed_images(clip(), clip().pixels(slug.Pairs(images, [""] * len(images)))) @ words()[own].T
    return [EVERY[own[k]] for k in scores.argmax(1).tolist()]


def shows(asked: Asked, images: np.ndarray) -> np.ndarray:
    seen = judge()(images)
    both = zip(asked, seen["name"], seen["style"], strict=True)
    return np.array([all(one in (name, style) for one in wanted) for (_, wanted), name, style in both])


def drawn(plan: Carried) -> dict[str, np.ndarray]:
    parts = {"own": plan.own, "kept": plan.preserved, "kept_left_out": plan.unpreserved}
    return {part: draw(asked, part) for part, asked in parts.items()}


def edits(name: str, plan: Carried) -> dict[str, tuple[slug.Edit | None, float]]:
    """The edit of each arm, None where no layer forgets, and the seconds that it took, gradients among them."""
    own, found = task(name, seed=SEED), {}
    for rule, by in RULES.items():
        search, start = slug.StepSearch(rule=by, fronts=1), time.perf_counter()

        def fronts(stats: object, search: slug.StepSearch = search) -> list[list[str]]:
            return candidate_fronts(search, "text", stats, lambda layer: has_layer(pipe(), layer))

        (gradients,) = gradients_of(clip(), [own], fronts, slug.Memory())
        layers, taken = fronts(gradients.stats), time.perf_counter() - start
        moments = input_moments(pipe(), plan.preserve, list(gradients.forget))
        bent = {n: precondition(g, moments[n]) if n in moments else g for n, g in gradients.forget.items()}
        for arm, directions in ((rule, gradients.forget), (f"{rule}, preconditioned", bent)):
            start = time.perf_counter()
            try:
                edit = best_edit(clip(), name, own.validate, directions, layers, search)
            except slug.NothingForgets:
                edit = None
            found[arm] = edit, taken + time.perf_counter() - start
    for arm, preserve in (("ours, nothing preserved", ()), ("ours", plan.preserve)):
        start = time.perf_counter()
        try:
            edit = slug.unlearn_pipeline(pipe(), clip(), own, preserve=preserve, seed=SEED)
        except slug.NothingForgets:
            edit = None
        found[arm] = edit, time.perf_counter() - start
    return found


@cache
def real() -> torch.Tensor:
    """Features of real drawings, of all that the world has and of people who are nobody: (n, 256)."""
    every = np.concatenate([world.pairs(name, 16, SEED, "test").images for name in EVERY])
    strangers = nobodies(400, np.random.default_rng(SEED), "test")
    return torch.from_numpy(np.concatenate([judge().features(every), judge().features(strangers)]))


def far(images: np.ndarray) -> np.ndarray:
    """How far each picture is from the nearest real drawing."""
    return torch.cdist(torch.from_numpy(judge().features(images)), real()).amin(1).numpy()


def measure(name: str) -> list[dict]:
    """A row of each arm, and one of the untouched pipeline."""
    plan, about = Carried(name), {"name": name, "kind": world.kind_of(name)}
    asked = {"kept": plan.preserved, "kept_left_out": plan.unpreserved}
    before = drawn(plan)
    good = np.quantile(np.concatenate([far(before[part]) for part in asked]), SPOILED)
    had = {part: shows(some, before[part]) for part, some in asked.items()}
    rows = [about | {"arm": "untouched"} | row(name, before["own"], good) | {p: share(h) for p, h in had.items()}]
    for arm, (edit, seconds) in edits(name, plan).items():
        if edit is None:
            rows.append(about | {"arm": arm, "failed": True, "seconds": round(seconds, 1)})
            continue
        with edit.on(pipe()):
            after = drawn(plan)
        kept = {part: share(shows(some, after[part])[had[part]]) for part, some in asked.items()}
        cost = {"seconds": round(seconds, 1), "evaluations": len(edit.trace)}
        found = {"layer": edit.layer, "step": round(edit.step, 5)}
        rows.append(about | {"arm": arm} | row(name, after["own"], good) | kept | found | cost)
    return rows


def share(hits: np.ndarray) -> float | None:
    return round(float(np.mean(hits)), 4) if len(hits) else None


def row(name: str, images: np.ndarray, good: float) -> dict:
    """What the concept's own pictures show, as shares; "clip_left" and "agree": what mini CLIP says of the same."""
    kind, seen, distance = world.kind_of(name), judge()(images), far(images)
    hers, spoiled = (seen["name"] == name).to_numpy(), distance > good
    rest = ~hers & ~spoiled
    known = (seen["name"] != NONE).to_numpy()
    same = (seen["kind"] == kind).to_numpy()
    second = np.array([one == name for one in by_clip(images, kind)])
    parts = {
        "left": hers, "same_kind": rest & known & same, "other_kind": rest & known & ~same, "nobody": rest & ~known,
        "spoiled": ~hers & spoiled, "clip_left": second, "agree": second == hers,
    }  # fmt: skip
    return {"pictures": len(images)} | {part: share(hits) for part, hits in parts.items()}


if __name__ == "__main__":
    settings = {
        "seed": SEED, "steps": STEPS, "noises": NOISES, "half": "report", "names": NAMES,
        "ours": [SEARCH.margin, SEARCH.fronts, LONGER, PROBED],
    }  # fmt: skip
    units = [Unit((name,), partial(measure, name)) for name in NAMES]
    run(Measurement("carried", Path(__file__), settings, (CLIP, SD, JUDGE)), units)
