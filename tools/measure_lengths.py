"""How many times CLIP's step is a pipeline's edit to be? Multiples compared, on 20 concepts of the development half.

python tools/measure_lengths.py           half an hour of one core; goes on where it stopped; with --shard, one a core

The edit of `unlearn_pipeline`, its layer and its direction; the step is so many times the one that CLIP needs for a
margin of 2. Who is preserved, what is asked for and what is counted: see compare_searches.py. The rule of choice, put
down before this was run: of the multiples that keep at least 95 % of what is preserved, in the mean over kinds, the
smallest that leaves at most 5 % of each kind; where none does, the one that leaves least in its worst kind.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from compare_searches import STEPS, Plan, clip, count, pipe, still
from fresh_pictures import world
from measuring import CLIP, JUDGE, SD, Measurement, Unit, run

import slug_lite as slug
from slug_lite.diffusion.unlearning import LONGER, SEARCH
from slug_lite.search import make_delta
from slug_lite.world.tasks import task

SEED = 50  # of forget set, retain set and validation
TIMES = (1, 1.5, 2.25, 3, 4, 6)
NUMBERS = {"people": 6, "characters": 4, "objects": 6, "styles": 4}
NAMES = [name for kind, number in NUMBERS.items() for name in world.DEVELOPMENT[kind][-number:]]


def measure(name: str) -> list[dict]:
    """A row a multiple."""
    plan, about = Plan(name), {"name": name, "kind": world.kind_of(name)}
    before = count(plan)
    edit = slug.unlearn_pipeline(pipe(), clip(), task(name, seed=SEED), preserve=plan.preserve)
    direction, of_clip = edit.delta.float() / edit.step, edit.step / LONGER
    rows = []
    for times in TIMES:
        step = times * of_clip
        with slug.Edit({edit.layer: make_delta(direction, step)}, {edit.layer: step}, name, edit.base).on(pipe()):
            after = count(plan)
        rows.append(about | {"times": times, "layer": edit.layer, "step": round(step, 5), **still(before, after)})
    return rows


if __name__ == "__main__":
    settings = {"seed": SEED, "steps": STEPS, "times": TIMES, "search": [SEARCH.margin, SEARCH.fronts]}
    units = [Unit((name,), partial(measure, name)) for name in NAMES]
    run(Measurement("lengths", Path(__file__), settings, (CLIP, SD, JUDGE)), units)
