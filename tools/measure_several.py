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

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import pandas as pd
import torch
from measure_concepts import FRESH, PICTURES, SEED, Report

import slug_lite as slug
from slug_lite.book.one_layer import forget_in_layer
from slug_lite.book.results import save_results
from slug_lite.gradients import forget_gradients
from slug_lite.runtime.linear import gram, project_out
from slug_lite.runtime.progress import silent
from slug_lite.runtime.zero_shot import embed_images
from slug_lite.world import evaluation
from slug_lite.world.tasks import PROTECT

world = slug.toonworld
SIZES = {0: (2, 3, 5, 10), 1: (5, 10), 2: (5,)}  # draw -> how many people; smaller sets are part of larger
MIXED = 2  # draws of one person, one character, one object and one style
PAIRED = 6  # people whose edits are put on one by one and two by two

# where people's edits collide: the layer of each tower that edits of single people take most often
LAYERS = ["transformer.resblocks.0.attn.out_proj.weight", "visual.proj"]


def draw(number: int, count: int) -> list[str]:
    """The first `count` people of one random order."""
    return [str(p) for p in np.random.default_rng([SEED, number]).permutation(world.PEOPLE)[:count]]


def mixed(number: int) -> list[str]:
    rng = np.random.default_rng([SEED, 100 + number])
    return [str(rng.choice(names)) for names in world.NAMES.values()]


class Bench:
    """The model, the report, and the edits of single concepts, each looked for once."""

    def __init__(self) -> None:
        self.clip = slug.load_clip("mini", device="cpu")
        self.report = Report(self.clip)
        self.single = cache(lambda name: slug.unlearn(self.clip, name, seed=SEED))
        self.length = sum(w.detach().double().square().sum() for w in self.clip.weights().values()).sqrt().item()

    def together(self, names: list[str]) -> slug.Edit:
        return slug.unlearn_several(self.clip, names, seed=SEED)

    def merged(self, names: list[str]) -> slug.Edit:
        return slug.merge([self.single(name) for name in names])

    def in_turn(self, names: list[str]) -> slug.Edit:
        """As if requests came one at a time: what is gone already is neither retained nor validated on."""
        edits: list[slug.Edit] = []
        for k, name in enumerate(names):
            retain = world.retain(names[: k + 1], 512, SEED)
            validate = world.validation(name, seed=SEED, without=names[:k])
            with slug.merge(edits).on(self.clip) if edits else nullcontext():
                edits.append(slug.unlearn(self.clip, name, retain, validate=validate, seed=SEED))
        return slug.merge(edits)

    def plain(self, names: list[str]) -> slug.Edit:
        return slug.unlearn_several(self.clip, names, protect=(), seed=SEED)

    def half(self, names: list[str]) -> slug.Edit:
        """Of the names that stay, the first, third, ... are protected."""
        return slug.unlearn_several(self.clip, names, protect=world.others(names, PROTECT, SEED)[::2], seed=SEED)

    def half_row(self, names: list[str]) -> dict:
        """The row of "half", with what was lost by the people it protects, "known" to it, and by the others."""
        edits: list[slug.Edit] = []

        def find(names: list[str]) -> slug.Edit:
            edits.append(self.half(names))
            return edits[0]

        row, staying = self.row(find, names), [name for some in world.NAMES.values() for name in some]
        staying = [name for name in staying if name not in names]
        with edits[0].on(self.clip):
            after = self.report(embed_images(self.clip, self.report.pixels))
        for label, others in (("known", staying[1::2]), ("unknown", staying[::2])):
            row[f"lost_{label}"] = round(evaluation.drop(self.report.before, after, [*names, *others])["people"], 3)
        return row

    def one_layer(self, names: list[str]) -> slug.Edit:
        sets = [[world.pairs(name, seed=SEED) for name in names], world.others(names, PROTECT, SEED)]
        own, stay = (forget_gradients(self.clip, some, layers=lambda name, _: name == LAYERS[1]) for some in sets)
        rests = project_out([one[LAYERS[1]] for one in own], [one[LAYERS[1]] for one in stay])
        validations = {n: world.validation(n, seed=SEED, without=[o for o in names if o != n]) for n in names}
        directions = dict(zip(names, rests, strict=True))
        return slug.merge(list(forget_in_layer(self.clip, LAYERS[1], directions, validations).values()))

    def row(self, find: Callable[[list[str]], slug.Edit], names: list[str]) -> dict:
        start, cpu = time.perf_counter(), time.process_time()
        try:
            edit = find(names)
        except slug.NothingForgets as error:
            return {"failed": str(error)[:200]}
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        weights = self.clip.weights()
        norms = {layer: delta.float().norm().item() for layer, delta in edit.deltas.items()}
        with TemporaryDirectory() as folder:
            size = edit.save(Path(folder) / "edit.safetensors").stat().st_size
        trace = edit.trace
        return self.report.row(edit, names) | {
            "layers": edit.layers,
            "relative": [round(norm / weights[layer].norm().item(), 4) for layer, norm in norms.items()],
            "whole": round(float(np.linalg.norm(list(norms.values()))) / self.length, 5),
            "evaluations": None if trace is None else len(trace),
            "searches": None if trace is None else searches(trace),
            "bytes": size, "seconds": round(seconds, 1), "cpu": round(cpu, 1),
        }  # fmt: skip


def searches(trace: pd.DataFrame) -> int:
    """How many step searches a trace holds, of all concepts and rounds."""
    return int((trace["evaluation"] == 0).sum())


class Touch:
    """Edits of people in one layer given beforehand, and what one does to another."""

    def __init__(self, bench: Bench, people: list[str], layers: list[str]) -> None:
        self.clip, self.people, self.layers = bench.clip, people, layers
        sets = [world.pairs(name, 48, SEED) for name in people]
        self.gradients = slug.one_shot_gradients(self.clip, sets, world.retain(people, 64, SEED))
        self.pixels = [self.clip.pixels(world.pairs(name, 24, SEED + FRESH, "test")) for name in people]
        self.edits = {}
        for name, gradient in zip(people, self.gradients, strict=True):
            scored = {name: world.validation(name, seed=SEED)}
            for layer in layers:
                found = forget_in_layer(self.clip, layer, {name: gradient.forget[layer]}, scored, rounds=1)
                self.edits[name, layer] = found[name]
        self.before = self.state(people)

    @torch.no_grad()
    def scores(self, names: list[str]) -> torch.Tensor:
        """Cosines of people's test pictures with the names of all: (people, pictures, names)."""
        classifier = slug.zero_shot_classifier(self.clip, world.PEOPLE, world.templates("people", "test"))
        pixels = torch.cat([self.pixels[self.people.index(name)] for name in names])
        return (embed_images(self.clip, pixels) @ classifier.T).unflatten(0, (len(names), -1))

    def state(self, names: list[str]) -> dict[str, torch.Tensor]:
        """For each person, over their pictures: cosine with their own name, margin in logits, accuracy; (people,)."""
        scores = self.scores(names)
        at = torch.tensor([world.PEOPLE.index(name) for name in names])[:, None, None].expand(*scores.shape[:2], 1)
        own, others = scores.gather(2, at)[..., 0], scores.scatter(2, at, -torch.inf).amax(2)
        margin = self.clip.logit_scale() * (others - own)
        parts = {"cosine": own, "margin": margin, "accuracy": (margin <= 0).float()}
        return {key: values.mean(1) for key, values in parts.items()}

    def touch(self, by: str, layer: str) -> dict:
        """What `by`'s edit does to each of the others, and what the gradients at the untouched weights say of it."""
        edit, at = self.edits[by, layer], self.people.index(by)
        matrix = gram([g.forget[layer] for g in self.gradients])
        products, lengths = matrix[at], matrix.diagonal().sqrt()
        cosines = products / lengths / lengths[at]
        with edit.on(self.clip):
            after = self.state(self.people)
        return {
            "step": round(edit.step, 5),
            "relative": round((edit.delta.float().norm() / self.clip.weights()[layer].norm()).item(), 4),
            "cosine": rounded(cosines), "predicted": rounded(edit.step * products),
            "drop": rounded(self.before["cosine"] - after["cosine"]),
            "margin": rounded(after["margin"] - self.before["margin"], 2), "accuracy": rounded(after["accuracy"], 3),
        }  # fmt: skip

    def pair(self, name: str, layer: str, other_layer: str) -> dict:
        """`name` with its own edit in `layer`, alone and with each other's in `other_layer`.

        called: which share of the pictures gets each other's name while the own edit is on alone.
        """
        with self.edits[name, layer].on(self.clip):
            guesses = self.scores([name])[0].argmax(1)
            both = []
            for other in self.people:
                with self.edits[other, other_layer].on(self.clip) if other != name else nullcontext():
                    both.append(self.state([name]))
        return {
            "called": rounded([(guesses == world.PEOPLE.index(other)).float().mean() for other in self.people], 3),
            "own": rounded([state["cosine"] for state in both]),
            "margin": rounded([state["margin"] for state in both], 2),
            "left": rounded([state["accuracy"] for state in both], 3),
        }  # fmt: skip


def rounded(values: torch.Tensor | list, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in values]


class Log:
    """Rows, kept in a file as they come, so that a run that was stopped goes on."""

    def __init__(self, key: dict) -> None:
        self.key, self.file = key, Path(gettempdir()) / "slug_lite_several.jsonl"
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        self.rows = [row for row in lines if row.pop("key", None) == key]

    def add(self, measure: Callable[[], dict], **about: object) -> None:
        if any(all(row.get(k) == v for k, v in about.items()) for row in self.rows):
            return
        row = about | measure()
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row | {"key": self.key}) + "\n")
        print(row, flush=True)


def measure_sets(bench: Bench, log: Log) -> None:
    sets = [("people", d, draw(d, count)) for d, sizes in SIZES.items() for count in sizes]
    sets += [("mixed", m, mixed(m)) for m in range(MIXED)]
    sets.sort(key=lambda one: len(one[2]) != 5)  # the sets of five first: they are what is promised
    five = [one for one in sets if one[0] == "people" and len(one[2]) == 5]
    people = [one for one in sets if one[0] == "people"]
    ways = [
        ("together", bench.together, sets), ("one layer", bench.one_layer, people),
        ("plain", bench.plain, [*five, *(one for one in people if len(one[2]) == 10 and one[1] == 0)]),
        ("half", None, five), ("merged", bench.merged, sets), ("in turn", bench.in_turn, five),
    ]  # fmt: skip
    for way, find, chosen in ways:
        for what, number, names in chosen:
            for name in names if way == "merged" else ():
                log.add(lambda name=name: bench.row(lambda n: bench.single(n[0]), [name]), part="single", name=name)
            about = {"part": "set", "what": what, "draw": number, "names": names, "way": way}
            if way == "half":
                log.add(lambda names=names: bench.half_row(names), **about)
            else:
                log.add(lambda find=find, names=names: bench.row(find, names), **about)


def measure_collisions(bench: Bench, log: Log, people: list[str], layers: list[str]) -> None:
    touch = Touch(bench, people, layers)
    for name, layer in touch.edits:
        log.add(lambda n=name, at=layer: touch.touch(n, at), part="touch", by=name, layer=layer)
        for other in layers:
            about = {"part": "pair", "name": name, "layer": layer, "other_layer": other}
            log.add(lambda n=name, at=layer, o=other: touch.pair(n, at, o), **about)


def main() -> None:
    bench = Bench()
    log = Log({"base": slug.fingerprint(bench.clip), "seed": SEED})
    people, layers = draw(0, PAIRED), LAYERS
    measure_collisions(bench, log, people, layers)
    measure_sets(bench, log)
    about = {"script": "tools/measure_several.py", "seed": SEED, "pictures": PICTURES, "people": people}
    print(save_results("several", log.rows, **about, layers=layers))
    log.file.unlink()


if __name__ == "__main__":
    with silent():
        main()
