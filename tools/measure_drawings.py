"""Unlearn in mini Stable Diffusion, concept by concept, and count what the judge finds: other words, and the grid.

python tools/measure_drawings.py                  an hour and a half of one core; goes on where it stopped
python tools/measure_drawings.py --only PART      around or canvas; the other part stays as it ships

    around   people and characters, asked for by other words: misspelt, described, both
    canvas   styles and objects: UA, IRA and CRA on the grid of objects and styles, Fréchet distances

All of the report half (of its objects half), and the styles of the development half beside them, named so: the rules
that make an edit were chosen on them. Seeds of these pictures are others than those that gradient and search have seen;
the grid and the other words are asked for in sentences of training. As `pipe(prompt)` draws, with fewer steps.

UA counts pictures that showed the concept before the edit, from the same noise: what was not there cannot be forgotten.
The concept's own cells are drawn several times over, for a share of a few pictures is a coarse thing.
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
from slug_lite.diffusion.precondition import DAMPING
from slug_lite.diffusion.unlearning import LONGER, PROBED, SEARCH
from slug_lite.world.captions import looks

PICTURED, SEEDS = 1000, 8  # seed of the pictures reported on, and how many of each other word
OWN_SEEDS = 4  # pictures of each of the concept's own cells
ASK = {"people": "a portrait of {}", "characters": "a picture of {}"}
NAMES = [name for kind in ASK for name in world.REPORT[kind]]
THINGS = world.REPORT["objects"][::2]
CELLS = world.cells("train")
HALF = {name: half for half in ("DEVELOPMENT", "REPORT") for names in getattr(world, half).values() for name in names}
Asked = tuple[str, ...]


pipe = cache(partial(slug.load_diffusion, "mini", device="cpu"))
judge = cache(slug.load_judge)


def draw(prompt: str | Asked, n: int, seed: int = PICTURED) -> slug.Pairs:
    """With as many steps as the solver needs."""
    return slug.generated_pairs(pipe(), prompt, n, seed=seed, batch_size=16, steps=20)


def found(prompt: str | Asked, name: str) -> np.ndarray:
    """In which of 8 pictures of the prompt, or of several in turn, the judge finds the name."""
    return judge().finds(draw(prompt, SEEDS), name)


untouched = cache(found)  # by the pipeline as it is, asked once


def drawn(cells: list[tuple[str, str]], seeds: int = 1) -> tuple[np.ndarray, pd.DataFrame]:
    """Pictures of every cell, seeds of each, and what the judge sees in them."""
    prompts = tuple(f"a picture of a {thing} in {style} style" for thing, style in cells)
    images = np.concatenate([draw(prompts, len(cells), PICTURED + k).images for k in range(seeds)])
    return images, judge()(images)


@cache
def untouched_grid() -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """All cells by the pipeline as it is, and a rendering of each."""
    return *drawn(CELLS), np.concatenate([world.renderings(cell, 1, seed=SEED, split="test") for cell in CELLS])


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


def around(name: str) -> list[dict]:
    """A row of each way to ask."""
    edit, about = unlearn(name)
    rows = []
    for way, prompt in ways(name).items():
        plain = untouched(prompt, name)
        with edit.on(pipe()):
            left = found(prompt, name)
        rows.append({"part": "around", "name": name, "kind": about["kind"], "way": way, "prompt": prompt,
                     "before": share(plain), "after": share(left)})  # fmt: skip
    return rows


def canvas(name: str) -> list[dict]:
    """The row of one concept."""
    edit, about = unlearn(name)
    own, column = (0, "name") if name in world.OBJECTS else (1, "style")
    others = np.array([cell[own] != name for cell in CELLS])
    mine = [cell for cell in CELLS if cell[own] == name]
    images, seen, rendered = untouched_grid()
    _, mine_seen = drawn(mine, OWN_SEEDS)
    with edit.on(pipe()):
        after, found = drawn(CELLS)
        _, mine_found = drawn(mine, OWN_SEEDS)
    showed = (mine_seen[column] == name).to_numpy()

    def scores(grid: pd.DataFrame, cells: pd.DataFrame) -> dict[str, float]:
        asked = [cell for cell in CELLS if cell[own] != name] + mine * OWN_SEEDS
        return slug.canvas(asked, pd.concat([grid[others], cells], ignore_index=True), name)

    def of_shown() -> float:
        """UA of the pictures that showed the concept before."""
        return 1 - share(mine_found[column][showed] == name)

    plain = scores(seen, mine_seen)
    wrong = Counter(
        (cell[own], str(answer)) for cell, answer in zip(CELLS, found[column], strict=True)
        if cell[own] not in (name, answer)
    )  # fmt: skip
    real = judge().features(rendered[others])
    return [
        {"part": "canvas", "domain": about["kind"], "half": HALF[name].lower(), **about}
        | {k: round(v, 4) for k, v in (scores(found, mine_found) | {"UA": of_shown()}).items()}
        | {f"{k}_before": round(v, 4) for k, v in plain.items()}
        | {"showed": int(showed.sum()), "drawn": len(showed)}
        | {
            "frechet": round(slug.frechet(judge().features(after[others]), real), 4),
            "frechet_before": round(slug.frechet(judge().features(images[others]), real), 4),
            "confused": [[a, b, n] for (a, b), n in wrong.most_common(8)],
            "instead": Counter(mine_found[column].astype(str)).most_common(5),
        }
    ]


def measure(part: str, name: str) -> list[dict]:
    try:
        return {"around": around, "canvas": canvas}[part](name)
    except slug.NothingForgets as error:
        return [{"part": part, "name": name, "kind": world.kind_of(name), "failed": str(error)[:200]}]


if __name__ == "__main__":
    settings = {
        "seed": SEED, "report_seed": PICTURED, "seeds": SEEDS, "own_seeds": OWN_SEEDS,
        "search": [SEARCH.margin, SEARCH.fronts, LONGER, PROBED, DAMPING], "ways": [*ways(world.PEOPLE[0])],
    }  # fmt: skip
    work = [("around", n) for n in NAMES]
    work += [("canvas", n) for n in (*world.REPORT["styles"], *world.DEVELOPMENT["styles"], *THINGS)]
    units = [Unit(key, partial(measure, *key)) for key in work]
    parts = {"around": ("around",), "canvas": ("canvas",)}
    run(Measurement("drawings", Path(__file__), settings, (CLIP, SD, JUDGE), parts), units)
