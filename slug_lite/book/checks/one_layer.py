"""Chapter 6: which layers have a window, rates and their mean, the validation's choice, and a whole block at once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ...gradients import forget_gradients
from ...search import make_delta
from ...validation import scorer_of
from ...world import toonworld
from ..results import load_results
from ._ground import by_number, mini, moved, moved_along, one_by_one, own_scorer
from .common import array, near, other_type, verdict, verdict_choice

STEPS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)  # of the chapter's map, in parts of the weight's length
LOST = [f"lost_{kind}" for kind in toonworld.NAMES]


@cache
def _tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a concept and layer, and a row a concept with the layer that the method chose."""
    rows, _ = load_results("ablations")
    layers = rows[rows["part"] == "layers"].copy()
    layers["cost"] = layers[LOST].astype(float).mean(axis=1)
    layers["usable"] = (layers["left"] <= 0.05) & (layers["cost"] <= 1)
    return layers, rows[(rows["part"] == "arms") & (rows["way"] == "slug")].set_index("name")


@cache
def _map(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The chapter's map for a concept: the concept recognised, and everything else (%), both (layers, steps)."""
    clip, full = mini(), toonworld.validation(name, n=12, others=1)
    gradients = forget_gradients(clip, [toonworld.pairs(name, n=48, seed=0)], progress=False)[0]
    others = [(k, len(concept)) for k, concept in enumerate(full.pairs.concepts or ()) if name not in concept]
    alone, cells = ([k for k, many in others if many == some] for some in (1, 2))
    scorer, rows = scorer_of(replace(full, pairs=full.pairs[[*range(8), *alone[::2], *cells[::14]]]), clip), []
    for layer, gradient in gradients.items():
        view, unit = scorer.at(layer), gradient * (clip.weights()[layer].norm() / gradient.norm())
        for step in STEPS:
            with moved_along(unit, step, layer):
                rows.append(view())
    known, kept = ([100 * row[f"{part}_accuracy"] for row in rows] for part in ("forget", "retain"))
    return np.reshape(known, (-1, len(STEPS))), np.reshape(kept, (-1, len(STEPS)))


def check_ex_one_other(name: Any, layers: Any, fewest: Any) -> str:
    """name: the concept taken; layers: how many have a window on its map; fewest: the kind with fewest usable layers.

    A window: a step on the grid that forgets the concept and costs the rest at most two points. Draws the map anew.
    """
    table, chosen = _tables()
    page = table["name"].iloc[0]
    if not isinstance(name, str) or name not in chosen.index:
        return other_type(name, f"the name of one of the chapter's concepts, such as {chosen.index[-1]!r}")
    if chosen["kind"][name] == chosen["kind"][page]:
        return f"name: {name} is of the page's own kind; take a concept of another kind, and run the page again"
    usable = table.groupby("kind")["usable"].sum()
    why = "its usable layers are {:.0f}, but another kind has fewer: count those of the first table, both towers"
    kind = verdict_choice(fewest, usable.idxmin(), {k: why.format(n) for k, n in usable.drop(usable.idxmin()).items()})
    if array(layers) is None:
        return f"layers: {other_type(layers, 'the number of layers with a window')}"
    known, kept = _map(name)
    good = (known == 0) & (kept >= kept.max() - 2)
    count = verdict(layers, good.any(1).sum(), {
        "cells counted, not layers: a layer with two good steps is one layer": good.sum(),
        "layers with two or more neighbouring steps, where one step is enough": (good.sum(1) > 1).sum(),
        "only the left half of the map: these forget, but the rest must stay too": (known == 0).any(1).sum(),
        "only the right half of the map: these cost nothing, but the concept must go":
            (kept >= kept.max() - 2).any(1).sum(),
        "the two halves are not of one step: it must forget and cost nothing at the same length":
            ((known == 0).any(1) & (kept >= kept.max() - 2).any(1)).sum(),
        "the layers without a window": (~good.any(1)).sum(),
    }, wanted="the number of layers with a window", rel=0.0, abs_=1.01)  # fmt: skip
    return one_by_one({"layers": count, "kind": kind}, f"{good.any(1).sum()} layers of {len(good)} for {name}")


def check_ex_one_mean(rates: Any, shares: Any = None) -> str:
    """rates: of a counterexample's layers, or True or False for the claim; shares: their weights, alike if left out.

    The claim: some single layer has a rate no larger in size than that of all layers together.
    """
    if isinstance(rates, bool | np.bool_):
        why = "a mean of numbers of both signs can be smaller in size than each: look for two rates that cancel"
        return verdict_choice(rates, False, {True: why}, also="now give two rates that show it")
    found = array(rates)
    if found is None or found.ndim != 1 or found.size < 2 or not np.isfinite(found).all():
        return other_type(rates, "the rates of two layers or more, as a list of numbers, or False")
    own = np.full(found.shape, 1 / found.size) if shares is None else array(shares)
    if own is None or own.shape != found.shape or not np.isfinite(own).all():
        return other_type(shares, "a share for each rate")
    if (own < 0).any():
        return "a share is negative: w_l is a squared length over the sum of all, so that none can be"
    if abs(own.sum() - 1) > 1e-6:
        return f"not normalised: the shares add up to {own.sum():.3g}; divide by their sum, so that the rate is a mean"
    everywhere, least = abs((own * found).sum()), abs(found).min()
    if everywhere < least - 1e-12:
        return f"right: all together {everywhere:.3g} in size, the smallest single one {least:.3g}"
    if (found >= 0).all() or (found <= 0).all():
        return "all rates of one sign: there the claim is true, as for the rates themselves; take both signs"
    return f"signs differ, but not enough cancels: all together {everywhere:.3g} in size, one layer alone {least:.3g}"


def check_ex_one_best(another: Any, cost: Any) -> str:
    """another: for how many concepts the shortest edit is in another layer; cost: what the others lose more by it.

    cost: points on the test pictures, the choice by length minus that by accuracy, the mean over all eight concepts.
    """
    layers, _ = _tables()
    able = layers.dropna(subset=["left"])

    def picked(some: pd.DataFrame, *by: str, turned: bool = False) -> pd.DataFrame:
        """Of each concept the best row: high accuracy, small numbers of all else, or the worst, `turned`."""
        up = [(column != "retain_accuracy") != turned for column in by]
        return some.sort_values(list(by), ascending=up, kind="stable").groupby("name").first()

    by_accuracy, by_length = picked(able, "retain_accuracy", "retain_loss"), picked(able, "relative")
    wrong = {
        "the longest edit was picked, where the shortest is meant": picked(able, "relative", turned=True),
        "the step was compared, which is in units of each layer's gradient: take `relative`": picked(able, "step"),
        "tuned on the report half: this choice looked at the test pictures": picked(able, "cost"),
    }  # fmt: skip

    def changed(other: pd.DataFrame) -> int:
        return int((other["layer"] != by_accuracy["layer"]).sum())

    def dearer(other: pd.DataFrame) -> float:
        return float((other["cost"] - by_accuracy["cost"]).mean())

    count = verdict(another, changed(by_length), {
        "the concepts for which both pick the same layer": len(by_length) - changed(by_length),
        **{label: changed(other) for label, other in wrong.items()},
    }, wanted="a number of concepts", rel=0.0, abs_=0.01)  # fmt: skip
    many = len(by_length)
    mean = verdict(cost, dearer(by_length), {
        "the wrong sign: the choice by length minus that by accuracy is meant": -dearer(by_length),
        "sum for mean: this is of all eight concepts together, or of the one concept alone": many * dearer(by_length),
        "what the choice by length costs, not minus the other one": by_length["cost"].mean(),
        "on validation pictures, and in shares: the question is what is lost on the test pictures":
            float((by_accuracy["retain_accuracy"] - by_length["retain_accuracy"]).mean()),
        **{label: dearer(other) for label, other in wrong.items()},
    }, wanted="points, a mean over concepts", rel=0.03, abs_=1e-3)  # fmt: skip
    return one_by_one({"another": count, "cost": mean}, f"near {near(dearer(by_length))} points in the mean")


BLOCKS = ("visual.transformer.resblocks.", "transformer.resblocks.")


def _block(tower: str, first: bool = False) -> str:
    """The name's beginning of a tower's last block, or of its first."""
    numbers = {int(name.removeprefix(tower).split(".")[0]) for name in mini().weights() if name.startswith(tower)}
    return f"{tower}{min(numbers) if first else max(numbers)}."


@cache
def _directions(name: str, block: str) -> dict[str, Tensor]:
    """Forget gradients of a block's layers, each as long as its weight."""
    pairs = [toonworld.pairs(name, n=48, seed=0)]
    (own,) = forget_gradients(
        mini(), pairs, layers=lambda layer, weight: weight.ndim > 1 and layer.startswith(block), progress=False
    )
    return {layer: g * (mini().weights()[layer].norm() / g.norm()) for layer, g in own.items()}


@cache
def _recognised(name: str, block: str, step: float, how: str = "relative") -> float:
    """The share of validation pictures recognised after a step in a whole block."""
    units, weights = _directions(name, block), mini().weights()
    lengths = {layer: weights[layer].norm().item() for layer in units}
    factors = {
        "relative": dict.fromkeys(units, step),
        "absolute": {layer: step / length for layer, length in lengths.items()},
        "shared": dict.fromkeys(units, step / len(units)),
        "one": {layer: step * (layer == next(iter(units))) for layer in units},
    }[how]
    deltas = {layer: make_delta(unit, factors[layer]) for layer, unit in units.items()}
    scorer = own_scorer(name).at(next(iter(units)))  # the first of the block: all of it, and what comes after
    with moved(deltas):
        return scorer.forgetting()["forget_accuracy"]


def check_ex_one_two(vision: Any, text: Any) -> str:
    """vision, text: {s: share of the concept's validation pictures recognised, 0 to 1}, of the last block of a tower.

    s: the common relative length, as 0.1; for each block five lengths or so, of which one at least forgets.
    """
    name, given, said = _tables()[0]["name"].iloc[0], {"vision": vision, "text": text}, {}
    for (label, answer), tower, other in zip(given.items(), BLOCKS, BLOCKS[::-1], strict=True):
        found = by_number(answer)
        if found is None or min(found) <= 0:
            return f"{label}: {other_type(answer, 'a dict such as {0.05: ..., 0.8: ...}, from lengths to shares')}"

        def at(block: str, how: str = "relative", sign: int = 1, some: dict[float, Any] = found) -> dict[float, float]:
            return {step: _recognised(name, block, sign * step, how) for step in some}

        last = _block(tower)
        said[label] = verdict(found, at(last), {
            "the towers are swapped: these are the shares of the other tower's last block": at(_block(other)),
            "the wrong sign: this block walked down the forget loss": at(last, sign=-1),
            "the first block of the tower, where the last is asked for": at(_block(tower, first=True)),
            "lengths that are not relative: each layer moves by s of its own length": at(last, "absolute"),
            "the length is shared out: every layer moves by s of its own length, not by its part of s":
                at(last, "shared"),
            "only the block's first layer moved": at(last, "one"),
            "what was forgotten, where what is recognised is asked for": {s: 1 - v for s, v in at(last).items()},
        }, wanted="a share for each length", rel=0.0, abs_=1.5 / 48)  # fmt: skip
    return one_by_one(said, "in one of the towers forgetting lasts, in the other the concept comes back")
