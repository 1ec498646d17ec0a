"""Forget several concepts of the mini world together, and measure on fresh test pictures; chapter 7 draws the result.

python tools/measure_several.py           seed 0; twenty-five minutes on two cores; goes on where it stopped

Rows, told apart by "part":

    single   one concept alone
    set      several, in these ways: "together", `unlearn_several`, which protects all other names;
             "half", the same, but only every second of them protected; "plain", none of them, the paper's way;
             "one layer", as together, but all in one layer; "merged", edits found one by one on the untouched model,
             added; "in turn", each found on the model that the earlier ones have changed
    touch    what the edit of one person in a given layer does to each of the others, and what gradients say of it
    pair     two people's edits on at once, in the same layer or in two: is the first one forgotten still?
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from collisions import Touch
from fresh_pictures import EVERY, PICTURES, SEED, clip, report, world
from measuring import Measurement, Unit, run

import slug_lite as slug
from slug_lite.book.one_layer import forget_in_layer
from slug_lite.gradients import forget_gradients
from slug_lite.runtime.linear import project_out
from slug_lite.world import evaluation
from slug_lite.world.tasks import PROTECT

SIZES = {0: (2, 3, 5, 10), 1: (5, 10), 2: (5,)}  # draw -> how many people; smaller sets are part of larger
MIXED = 2  # draws of one person, one character, one object and one style
BY_MARGIN = slug.StepSearch("margin")  # as `unlearn_several` has it
PAIRED = 6  # people whose edits are put on one by one and two by two

# where people's edits collide: the layer of each tower that edits of single people take most often
LAYERS = ["transformer.resblocks.0.attn.out_proj.weight", "visual.proj"]


def draw(number: int, count: int) -> list[str]:
    """The first `count` people of one random order."""
    return [str(p) for p in np.random.default_rng([SEED, number]).permutation(world.PEOPLE)[:count]]


def mixed(number: int) -> list[str]:
    rng = np.random.default_rng([SEED, 100 + number])
    return [str(rng.choice(names)) for names in world.NAMES.values()]


@cache  # each looked for once
def single(name: str) -> slug.Edit:
    return slug.unlearn(clip(), name, search=BY_MARGIN, seed=SEED)


@cache
def touch() -> Touch:
    return Touch(draw(0, PAIRED), LAYERS)


def in_turn(names: list[str]) -> slug.Edit:
    """As if requests came one at a time: what is gone already is neither retained nor validated on."""
    edits: list[slug.Edit] = []
    for k, name in enumerate(names):
        retain = world.retain(names[: k + 1], 512, SEED)
        validate = world.validation(name, seed=SEED, without=names[:k])
        with slug.merge(edits).on(clip()) if edits else nullcontext():
            edits.append(slug.unlearn(clip(), name, retain, validate=validate, search=BY_MARGIN, seed=SEED))
    return slug.merge(edits)


def one_layer(names: list[str]) -> slug.Edit:
    sets = [[world.pairs(name, seed=SEED) for name in names], world.others(names, PROTECT, SEED)]
    own, stay = (forget_gradients(clip(), some, layers=lambda name, _: name == LAYERS[1]) for some in sets)
    rests = project_out([one[LAYERS[1]] for one in own], [one[LAYERS[1]] for one in stay])
    validations = {n: world.validation(n, seed=SEED, without=[o for o in names if o != n]) for n in names}
    found = forget_in_layer(clip(), LAYERS[1], dict(zip(names, rests, strict=True)), validations)
    return slug.merge(list(found.values()))


def half(names: list[str]) -> slug.Edit:
    """Of the names that stay, the first, third, ... are protected."""
    return slug.unlearn_several(clip(), names, protect=world.others(names, PROTECT, SEED)[::2], seed=SEED)


WAYS = {
    "together": lambda names: slug.unlearn_several(clip(), names, seed=SEED),
    "one layer": one_layer,
    "plain": lambda names: slug.unlearn_several(clip(), names, protect=(), seed=SEED),
    "half": half,
    "merged": lambda names: slug.merge([single(name) for name in names]),
    "in turn": in_turn,
}


def row(way: str, names: list[str]) -> dict:
    """What an edit of several names does, and what it cost to find it; of "merged", the merging alone."""
    if way == "merged":
        _ = [single(name) for name in names]
    start, cpu = time.perf_counter(), time.process_time()
    try:
        edit = WAYS[way](names) if len(names) > 1 else single(names[0])
    except slug.NothingForgets as error:
        return {"failed": str(error)[:200]}
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    sizes = {layer: w.detach().double().norm().item() for layer, w in clip().weights().items()}
    norms = {layer: delta.float().norm().item() for layer, delta in edit.deltas.items()}
    with TemporaryDirectory() as folder:
        size = edit.save(Path(folder) / "edit.safetensors").stat().st_size
    trace = edit.trace
    return report().row(edit, names) | {
        "layers": edit.layers, "relative": [round(norm / sizes[layer], 4) for layer, norm in norms.items()],
        "whole": round(math.hypot(*norms.values()) / math.hypot(*sizes.values()), 5),
        "evaluations": None if trace is None else len(trace),
        "searches": None if trace is None else int((trace["evaluation"] == 0).sum()),  # of all concepts and rounds
        "bytes": size, "seconds": round(seconds, 1), "cpu": round(cpu, 1),
    } | (known(edit, names) if way == "half" else {})  # fmt: skip


def known(edit: slug.Edit, names: list[str]) -> dict[str, float]:
    """What was lost by the people that "half" protects, "known" to it, and by the others."""
    after, staying = report().after(edit), [name for name in EVERY if name not in names]
    return {
        f"lost_{label}": round(evaluation.drop(report().before, after, [*names, *others])["people"], 3)
        for label, others in (("known", staying[1::2]), ("unknown", staying[::2]))
    }


def unit(measure: Callable[..., dict], *asked: object, **about: object) -> Unit:
    """One row: what it says of itself first, then what is measured."""
    key = tuple(" + ".join(value) if isinstance(value, list) else value for value in about.values())
    return Unit(key, lambda: [about | measure(*asked)])


def collisions(people: list[str]) -> Iterator[Unit]:
    for name, layer in itertools.product(people, LAYERS):
        yield unit(lambda *asked: touch().touch(*asked), name, layer, part="touch", by=name, layer=layer)
        for other in LAYERS:
            about = {"part": "pair", "name": name, "layer": layer, "other_layer": other}
            yield unit(lambda *asked: touch().pair(*asked), name, layer, other, **about)


def sets() -> Iterator[Unit]:
    every = [("people", d, draw(d, count)) for d, sizes in SIZES.items() for count in sizes]
    every += [("mixed", m, mixed(m)) for m in range(MIXED)]
    every.sort(key=lambda one: len(one[2]) != 5)  # the sets of five first: they are what is promised
    people = [one for one in every if one[0] == "people"]
    five = [one for one in people if len(one[2]) == 5]
    some = [*five, *(one for one in people if len(one[2]) == 10 and one[1] == 0)]
    of = {"together": every, "one layer": people, "plain": some, "half": five, "merged": every, "in turn": five}
    for way, chosen in of.items():
        for what, number, names in chosen:
            for name in names if way == "merged" else ():
                yield unit(row, "single", [name], part="single", name=name)
            yield unit(row, way, names, part="set", what=what, draw=number, names=names, way=way)


if __name__ == "__main__":
    people = draw(0, PAIRED)
    settings = {"seed": SEED, "pictures": PICTURES, "people": people, "layers": LAYERS}
    units = {one.key: one for one in (*collisions(people), *sets())}  # some names are in several sets
    run(Measurement("several", Path(__file__), settings), list(units.values()))
