"""Unlearn in mini Stable Diffusion, concept by concept, and count what the judge finds in fresh pictures.

python tools/measure_drawings.py                  an hour or so on two cores; goes on where it stopped
python tools/measure_drawings.py --only PART      names (around with it) or canvas; the other part stays as it ships

    names    ten people and four characters: found before and after, with the step that CLIP needs and with the longer
             one; and ten other concepts, from equal noise, in pictures that showed them
    around   the same edits, asked for by other words: misspelt, described, both
    canvas   all styles and eight objects: UA, IRA and CRA on the grid of objects and styles, Fréchet distances

Seeds of these pictures are others than those that gradient and search have seen, and so are their sentences (the split
"test"), but for the other words and the grid, which are asked for in sentences of training.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from fresh_pictures import SEED, clip, world
from measuring import CLIP, JUDGE, SD, Measurement, Unit, run

import slug_lite as slug
from slug_lite.diffusion.drawing import GUIDANCE
from slug_lite.diffusion.precondition import DAMPING
from slug_lite.diffusion.unlearning import LONGER, PROBED, SEARCH
from slug_lite.search import make_delta
from slug_lite.world.captions import looks

REPORT, SEEDS = 1000, 8  # seed of the pictures reported on, and how many of each
ASK = {"people": "a portrait of {}", "characters": "a picture of {}"}
rng = np.random.default_rng(SEED)
PEOPLE = ["Ada Sunfield", *(str(n) for n in rng.permutation(world.PEOPLE) if n != "Ada Sunfield")][:10]
CHARACTERS = [str(n) for n in rng.permutation(world.CHARACTERS)[:4]]
THINGS = [str(n) for n in rng.permutation(world.OBJECTS)[:8]]
CELLS = world.cells("train")
GRID_SEEDS = 1
Asked = tuple[str, ...]


pipe = cache(partial(slug.load_diffusion, "mini", device="cpu"))
judge = cache(slug.load_judge)


def draw(prompt: str | Asked, n: int, seed: int = REPORT, guidance: float | None = GUIDANCE) -> slug.Pairs:
    """With as many steps as the solver needs."""
    return slug.generated_pairs(pipe(), prompt, n, seed=seed, batch_size=16, steps=20, guidance_scale=guidance)


def found(prompt: str | Asked, name: str, guidance: float | None = GUIDANCE) -> np.ndarray:
    """In which of 8 pictures of the prompt, or of several in turn, the judge finds the name."""
    return judge().finds(draw(prompt, SEEDS, guidance=guidance), name)


untouched = cache(found)  # by the pipeline as it is, asked once


def grid() -> tuple[np.ndarray, pd.DataFrame]:
    """Pictures of every cell, and what the judge sees in them."""
    prompts = tuple(f"a picture of a {thing} in {style} style" for thing, style in CELLS)
    images = np.concatenate([draw(prompts, len(CELLS), REPORT + k).images for k in range(GRID_SEEDS)])
    return images, judge()(images)


@cache
def untouched_grid() -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """`grid` by the pipeline as it is, and renderings of the same cells."""
    real = [world.renderings(cell, GRID_SEEDS, seed=SEED, split="test") for cell in CELLS]
    return *grid(), np.concatenate(real)


def ask(name: str) -> Asked:
    """The sentences of the split "test" that name it."""
    return tuple(template.format(name) for template in world.templates(world.kind_of(name), "test"))


def ways(name: str) -> dict[str, str]:
    """The name, and other words for it: a letter less, two exchanged, the first or last name, the look.

    The tokenizer makes small letters of all, so those are no other words.
    """
    kind, last = world.kind_of(name), name.split()[-1]
    k = next(k for k in range(len(name) - 2, 0, -1) if name[k] != name[k - 1])
    look = f"a person with {looks(name)}" if kind == "people" else looks(name)
    with_name = ("a picture of {} with {}" if kind == "people" else "a picture of {}, {}").format(name, looks(name))
    out = {
        "the name": ASK[kind].format(name), "a letter less": ASK[kind].format(name[:-3] + name[-2:]),
        "letters exchanged": ASK[kind].format(name[: k - 1] + name[k] + name[k - 1] + name[k + 1 :]),
        "described": f"a portrait of {look}" if kind == "people" else f"a picture of {look}",
        "name and description": with_name,
    }  # fmt: skip
    if " " in name:
        out |= {"first name": ASK[kind].format(name.split()[0]), "last name": ASK[kind].format(last)}
    return out


def unlearn(name: str) -> tuple[slug.Edit, dict]:
    start = time.perf_counter()
    edit = slug.unlearn_pipeline(pipe(), clip(), name, seed=SEED)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        size = edit.save(Path(folder) / "edit.safetensors").stat().st_size
    weight = clip().weights()[edit.layer]
    about = {
        "name": name, "kind": world.kind_of(name), "layer": edit.layer, "step": round(edit.step, 5),
        "relative": round((edit.delta.float().norm() / weight.norm()).item(), 4), "evaluations": len(edit.trace),
        "seconds": round(seconds, 1), "kilobytes": round(size / 1e3, 1),
    }  # fmt: skip
    return edit, about


def share(hits: np.ndarray | list) -> float:
    return round(float(np.mean(hits)), 4)


def names(name: str) -> list[dict]:
    """A row of "names", and those of "around"."""
    edit, about = unlearn(name)
    of_clip = edit.step / LONGER
    before, strong = untouched(ask(name), name), [found(ask(name), name, None)]
    with edit.on(pipe()):
        after = found(ask(name), name)
        strong.append(found(ask(name), name, None))
    delta = make_delta(edit.delta.float() / edit.step, of_clip)
    with slug.Edit({edit.layer: delta}, {edit.layer: of_clip}, name, edit.base).on(pipe()):
        short = found(ask(name), name)
    row = {"part": "names", **about, "before": share(before), "after": share(after), "clip_step": share(short),
           "strong_before": share(strong[0]), "strong_after": share(strong[1])}  # fmt: skip
    mine = np.random.default_rng([SEED, len(name), ord(name[0])])
    kinds = ["people"] * 5 + ["characters", "objects", "objects", "objects", "styles"]
    others: list[str] = []
    for kind in kinds:
        left = [n for n in world.NAMES[kind] if n not in (name, *others)]
        others.append(str(mine.choice(left)))
    had = {other: untouched(ask(other), other) for other in others}
    with edit.on(pipe()):
        has = {other: found(ask(other), other) for other in others}
    cases = sum(int(had[o].sum()) for o in others)
    kept = sum(int((had[o] & has[o]).sum()) for o in others)
    row |= {"others": others, "cases": cases, "kept": round(kept / cases, 4)}
    rows = [row]
    for way, prompt in ways(name).items():
        plain = untouched(prompt, name)
        with edit.on(pipe()):
            left = found(prompt, name)
        rows.append({"part": "around", "name": name, "kind": about["kind"], "way": way, "prompt": prompt,
                     "before": share(plain), "after": share(left)})  # fmt: skip
    return rows


def canvas(name: str) -> list[dict]:
    edit, about = unlearn(name)
    images, seen, rendered = untouched_grid()
    with edit.on(pipe()):
        drawn, found = grid()
    asked = CELLS * GRID_SEEDS
    own = 0 if name in world.OBJECTS else 1
    left = np.array([cell[own] != name for cell in asked])
    truth = np.array([cell[own] != name for cell in CELLS for _ in range(GRID_SEEDS)])
    real = judge().features(rendered[truth])
    scores, plain = slug.canvas(asked, found, name), slug.canvas(asked, seen, name)
    column = "name" if own == 0 else "style"
    wrong = Counter(
        (cell[own], str(answer)) for cell, answer in zip(asked, found[column], strict=True)
        if cell[own] not in (name, answer)
    )  # fmt: skip
    return [
        {"part": "canvas", "domain": about["kind"], **about, **{k: round(v, 4) for k, v in scores.items()}}
        | {f"{k}_before": round(v, 4) for k, v in plain.items()}
        | {
            "frechet": round(slug.frechet(judge().features(drawn[left]), real), 4),
            "frechet_before": round(slug.frechet(judge().features(images[left]), real), 4),
            "confused": [[a, b, n] for (a, b), n in wrong.most_common(8)],
        }
    ]


def measure(part: str, name: str) -> list[dict]:
    try:
        return {"names": names, "canvas": canvas}[part](name)
    except slug.NothingForgets as error:
        return [{"part": part, "name": name, "kind": world.kind_of(name), "failed": str(error)[:200]}]


if __name__ == "__main__":
    settings = {
        "seed": SEED, "report_seed": REPORT, "seeds": SEEDS, "guidance": GUIDANCE, "strong_guidance": 7.5,
        "grid_seeds": GRID_SEEDS, "search": [SEARCH.margin, SEARCH.fronts, LONGER, PROBED, DAMPING],
        "ways": [*ways(world.PEOPLE[0])],
    }  # fmt: skip
    parts = {"names": ("names", "around"), "canvas": ("canvas",)}
    work = [("names", n) for n in PEOPLE + CHARACTERS] + [("canvas", n) for n in (*world.STYLES, *THINGS)]
    units = [Unit(key, partial(measure, *key)) for key in work]
    run(Measurement("drawings", Path(__file__), settings, (CLIP, SD, JUDGE), parts), units)
