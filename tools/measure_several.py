"""Forget several concepts of the mini world together, and measure on fresh test pictures; chapter 7 draws the result.

python tools/measure_several.py           seed 0; half an hour on two cores; goes on where it stopped

Rows, told apart by "part":

    single   one concept alone
    set      several, in three ways: "together", `unlearn` with a list of names; "merged", edits found one by one on
             the untouched model, added; "in turn", each found on the model that the earlier ones have changed
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
from slug_lite import metrics
from slug_lite.gradients import inner
from slug_lite.results import save_results
from slug_lite.search import make_delta

world = slug.toonworld
SIZES = {0: (2, 3, 5, 10), 1: (5,), 2: (5,)}  # draw -> how many people; smaller sets are part of larger
MIXED = 1  # draws of one person, one character, one object and one style
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
        self.single = cache(lambda name: slug.unlearn(self.clip, name, seed=SEED, progress=False))
        self.length = sum(w.detach().double().square().sum() for w in self.clip.weights().values()).sqrt().item()

    def together(self, names: list[str]) -> slug.Edit:
        return slug.unlearn(self.clip, names, seed=SEED, progress=False)

    def merged(self, names: list[str]) -> slug.Edit:
        return slug.merge([self.single(name) for name in names])

    def in_turn(self, names: list[str]) -> slug.Edit:
        """As if requests came one at a time: what is gone already is neither retained nor validated on."""
        edits: list[slug.Edit] = []
        for k, name in enumerate(names):
            retain = world.retain(names[: k + 1], 512, SEED)
            validate = slug.Validation.of_world(name, seed=SEED, without=names[:k])
            with slug.merge(edits).on(self.clip) if edits else nullcontext():
                edits.append(slug.unlearn(self.clip, name, retain, validate=validate, seed=SEED, progress=False))
        return slug.merge(edits)

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
        self.gradients = slug.one_shot_gradients(self.clip, sets, world.retain(people, 64, SEED), progress=False)
        self.pixels = [self.clip.pixels(world.pairs(name, 24, SEED + FRESH, "test")) for name in people]
        self.edits = {}
        for name, gradient in zip(people, self.gradients, strict=True):
            scorer = slug.Validation.of_world(name, seed=SEED).prepare(self.clip)
            for layer in layers:
                found = slug.search_step(self.clip, layer, gradient.forget[layer], scorer.of_layer(layer))
                if found.step is not None:
                    delta = make_delta(gradient.forget[layer], found.step)
                    base = slug.fingerprint(self.clip)
                    self.edits[name, layer] = slug.Edit({layer: delta}, {layer: found.step}, name, base)
        self.before = self.state(people)

    @torch.no_grad()
    def scores(self, names: list[str]) -> torch.Tensor:
        """Cosines of people's test pictures with the names of all: (people, pictures, names)."""
        classifier = slug.zero_shot_classifier(self.clip, world.PEOPLE, world.templates("people", "test"))
        pixels = torch.cat([self.pixels[self.people.index(name)] for name in names])
        return (metrics.embed_images(self.clip, pixels) @ classifier.T).unflatten(0, (len(names), -1))

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
        edit, mine = self.edits[by, layer], self.gradients[self.people.index(by)].forget[layer]
        theirs = [g.forget[layer] for g in self.gradients]
        products = torch.tensor([inner(mine, g) for g in theirs])
        cosines = products / torch.tensor([(inner(mine, mine) * inner(g, g)) ** 0.5 for g in theirs])
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
                edit = self.edits.get((other, other_layer))
                with edit.on(self.clip) if edit is not None and other != name else nullcontext():
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
    for way, find in {"together": bench.together, "merged": bench.merged, "in turn": bench.in_turn}.items():
        for what, number, names in sets:
            if way == "in turn" and not (what == "people" and number == 0 and len(names) == 5):
                continue
            for name in names if way == "merged" else ():
                log.add(lambda name=name: bench.row(lambda n: bench.single(n[0]), [name]), part="single", name=name)
            about = {"part": "set", "what": what, "draw": number, "names": names, "way": way}
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
    main()
