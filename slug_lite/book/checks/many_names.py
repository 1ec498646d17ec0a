"""Checks of chapter 7: two edits in two orders, a forecast, a request that comes later, and those who are protected.

The people and the layers are those of the chapter, as "several.json" names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...edit import Edit
from ...gradients import forget_gradients
from ...pairs import Pairs
from ...validation import Validation
from ...world import toonworld
from ..results import load_results
from ._edits import cosines, flat, left, not_an_edit, under
from ._ground import by_number, mini, one_by_one
from .common import number, other_type, verdict, verdict_choice


@cache
def _touch() -> tuple[pd.DataFrame, list[str], str, str]:
    """What each person's edit does to the others, by (layer, by); the people; the text and the vision layer."""
    rows, about = load_results("several")
    text, vision = about["layers"]
    return rows[rows["part"] == "touch"].set_index(["layer", "by"]), about["people"], text, vision


def _sum(layer: str, *edits: Edit) -> Tensor:
    """A layer's weight with the edits on, put on in this order; on the CPU."""
    return under(edits, lambda: mini().weights()[layer].detach().cpu().clone())


def check_ex_many_order(first: Any, second: Any, apart: Any, must: Any) -> str:
    """first, second: two edits of one layer; apart: the largest difference between the weights in the two orders.

    must: the answer to: must the weights be equal bit for bit? True or False.
    """
    for part, one in {"first": first, "second": second}.items():
        if stopped := not_an_edit(one):
            return f"{part}: {stopped}"
    shared = [layer for layer in first.layers if layer in second.layers]
    if not shared:
        return "the two edits share no layer: nothing is added to one weight twice, so that no order can count"
    if all(torch.equal(flat(first, layer), flat(second, layer)) for layer in shared):
        return "the two edits are one and the same: take two names"
    if isinstance(apart, bool | np.bool_) or number(apart) is None:
        return f"apart: {other_type(apart, 'the largest difference between the two weights, a number')}"
    one, two = (torch.cat([_sum(layer, *edits).flatten() for layer in shared])
                for edits in ((first, second), (second, first)))  # fmt: skip
    old = torch.cat([mini().weights()[layer].detach().cpu().flatten() for layer in shared])
    a, b = (torch.cat([flat(edit, layer) for layer in shared]) for edit in (first, second))
    rounding = 4 * torch.finfo(torch.float32).eps * one.abs().max().item()
    said = verdict(apart, (one - two).abs().max().item(), {
        "the two edits were compared with each other, not the two orders": (a - b).abs().max().item(),
        "the first edit alone against the second alone: both must be on": (old + a - (old + b)).abs().max().item(),
        "compared with the untouched weights, where the two orders are to be compared with each other":
            (one - old).abs().max().item(),
        "one edit against both: the other one came off, or never was on": a.abs().max().item(),
        "one edit against both: the one came off, or never was on": b.abs().max().item(),
        "the largest weight, where the largest difference is asked for": one.abs().max().item(),
    }, wanted="the largest difference between the two weights", rel=0.001, abs_=rounding)  # fmt: skip
    why = "they need not: (w + a) + b and (w + b) + a may be rounded differently in the last digit"
    same = "here they are equal, which is luck" if torch.equal(one, two) else "here they differ, in the last digit"
    return one_by_one({"apart": said, "must": verdict_choice(must, False, {True: why})}, same)


def _row(by: str, layer: str) -> pd.Series:
    return _touch()[0].loc[(layer, by)]


def _pair(answer: Any) -> tuple[str, str, Any, Any] | None:
    """(who is touched, whose edit is on, forecast, drop), of two of the chapter's people; None for anything else."""
    people = _touch()[1]
    if not isinstance(answer, list | tuple) or len(answer) != 4 or not all(isinstance(n, str) for n in answer[:2]):
        return None
    return tuple(answer) if set(answer[:2]) <= set(people) and answer[0] != answer[1] else None


def check_ex_many_forecast(closest: Any, opposed: Any) -> str:
    """closest, opposed: of the pair with the largest and the smallest cosine, (name, by, forecast, drop) each.

    by: whose edit, in the vision layer, is on; forecast, drop: of the cosine of `name`'s pictures and own name.
    """
    _, people, text, vision = _touch()
    pairs = [(a, b) for a in people for b in people if a != b]

    def cosine(on: str, by: str, layer: str = vision) -> float:
        return _row(by, layer)["cosine"][people.index(on)]

    said = {}
    for part, answer, pick in (("closest", closest, max), ("opposed", opposed, min)):
        found = _pair(answer)
        if found is None:
            return f"{part}: {other_type(answer, '(name, by, forecast, drop), of two different people of the chapter')}"
        on, by, forecast, drop = found
        best, other = pick(cosine(*pair) for pair in pairs), {max: min, min: max}[pick]
        if abs(cosine(on, by) - best) > 0.01:
            elsewhere = pick(pairs, key=lambda pair: cosine(*pair, text))
            smallest = min(pairs, key=lambda pair: abs(cosine(*pair)))
            why = (
                "closest and opposed are swapped" if cosine(on, by) == other(cosine(*pair) for pair in pairs)
                else "the pair of the text layer, where the vision layer is meant" if {on, by} == set(elsewhere)
                else "the cosine nearest to zero: the smallest is the most negative" if {on, by} == set(smallest)
                else "another pair"
            )  # fmt: skip
            return f"{part}: {why}; its cosine is {cosine(on, by):+.2f}, the one asked for is near {best:+.2f}"
        row, back, front, k = _row(by, vision), _row(on, vision), _row(by, text), people.index(on)
        right, fell = row["predicted"][k], row["drop"][k]
        said[f"{part}, forecast"] = verdict(forecast, right, {
            "the cosine, where step times inner product is asked for": row["cosine"][k],
            "step times cosine: the inner product has both lengths in it": row["step"] * row["cosine"][k],
            "the inner product without the step": right / row["step"],
            "whose edit is on is swapped with who is touched: the step is another one":
                back["predicted"][people.index(by)],
            "of the text layer, where the vision layer is meant": front["predicted"][k],
            "what was measured, where the forecast is asked for": fell,
        }, wanted="the forecast drop, a number", rel=0.06, abs_=0.002)  # fmt: skip
        said[f"{part}, drop"] = verdict(drop, fell, {
            "the forecast, where the measured drop is asked for": right,
            "of the one whose edit is on, where the other person is meant": row["drop"][people.index(by)],
            "whose edit is on is swapped with who is touched": back["drop"][people.index(by)],
            "of the text layer, where the vision layer is meant": front["drop"][k],
            "the accuracy, where the drop of the cosine is asked for": row["accuracy"][k],
        }, wanted="the measured drop, a number", rel=0.05, abs_=0.012)  # fmt: skip
    return one_by_one(said, "the order comes out right")


def _shows(name: str, pairs: Pairs) -> int:
    """How many of the pairs show a concept."""
    return sum(name in concept for concept in pairs.concepts or ())


def _request(first: Any, second: Any, retain: Any, validate: Any) -> Iterator[str]:
    """What is wrong with the answer to ex-many-arrives before anything is measured."""
    for part, one in {"first": first, "second": second}.items():
        yield (stopped := not_an_edit(one)) and f"{part}: {stopped}"
    yield "" if isinstance(retain, Pairs) and retain.concepts else f"retain: {other_type(retain, 'the retain set')}"
    yield "" if isinstance(validate, Validation) else f"validate: {other_type(validate, 'a validation')}"
    gone, name = first.concept, validate.forget
    if gone not in toonworld.PEOPLE:
        yield f"first: its concept is {gone!r}; give the edit of the first person, under the person's name"
    if name == gone:
        yield f"validate: it asks for {gone}, who is gone already; it must ask for the second person"
    if second.concept == gone:
        yield f"second: this is an edit for {gone}: first and second are swapped, or the same"
    for who, why in {
        gone: f"they ask the model to know {gone} again",
        name: f"the same pictures would be forgotten and retained: leave out {name} as well",
    }.items():
        if many := _shows(who, retain):
            yield f"retain: {many} pictures of {who} count as retained: {why}"
    if many := _shows(gone, validate.pairs):
        yield (
            f"validate: {many} pictures of {gone} count as retained: a layer that brings {gone} back would score "
            "better, and be chosen for it"
        )
    if validate.split == "test":
        yield 'validate: tuned on the report half: the step is to be chosen on the split "val"'


def check_ex_many_arrives(first: Any, second: Any, retain: Any, validate: Any) -> str:
    """first: the edit in force; second: yours, found with `first` on; retain, validate: what it was found with."""
    if stopped := next((said for said in _request(first, second, retain, validate) if said), ""):
        return stopped
    gone, name = first.concept, validate.forget
    shares = {who: left(who, first, second) for who in (gone, name)}
    if shares[name] > 0.1:
        return f"second: with both edits on {name} is recognised in {shares[name]:.0%}: is this the edit for {name}?"
    if shares[gone] > 0.1:
        return (
            f"second: with both edits on {gone} is recognised in {shares[gone]:.0%}: the second edit brings {gone} back"
        )
    return f"right: {gone} is recognised in {shares[gone]:.0%}, {name} in {shares[name]:.0%} of fresh pictures"


@cache
def _staying() -> dict[str, Tensor]:
    """Forget gradients, in the vision layer, of the people at the end of the chapter's list, as the page takes them."""
    _, people, _, vision = _touch()
    sets = [toonworld.pairs(name, n=16, seed=0) for name in people[3:]]
    own = forget_gradients(mini(), sets, layers=lambda layer, _: layer == vision, progress=False)
    return {name: one[vision].cpu().double().flatten() for name, one in zip(people[3:], own, strict=True)}


@cache
def _own_before(name: str) -> float:
    return cosines(name, n=24, seed=1000)[toonworld.PEOPLE.index(name)].item()


def _drops(edit: Edit, names: list[str]) -> list[float]:
    """How far the cosine of each person's test pictures and own name falls when the edit is put on."""
    own = toonworld.PEOPLE.index
    return [_own_before(name) - cosines(name, edit, n=24, seed=1000)[own(name)].item() for name in names]


def check_ex_many_unknown(inside: Any, outside: Any) -> str:
    """inside, outside: {number of others that are protected: (edit, mean drop)}; the people in the span, and not.

    edit: of the three names of the live cell, merged; mean drop: of the three people at the end of the list.
    """
    _, people, _, vision = _touch()
    pairs = {"inside": by_number(inside), "outside": by_number(outside)}
    wanted = "a dict such as {0: (edit, drop), 10: (edit, drop)}, from numbers of others to an edit and a mean drop"
    for part, found in pairs.items():
        if found is None or not all(isinstance(one, list | tuple) and len(one) == 2 for one in found.values()):
            return f"{part}: {other_type(inside if part == 'inside' else outside, wanted)}"
    said, right = {}, {}
    for part, found in pairs.items():
        for many, (edit, drop) in found.items():
            where = f"{part}, {many:g} others"
            if stopped := not_an_edit(edit):
                return f"{where}: {stopped}"
            delta = flat(edit, vision)
            if not delta.any():
                return f"{where}: the edit does not change {vision}, the layer of the live cell"
            touched = max(abs((delta @ g / delta.norm() / g.norm()).item()) for g in _staying().values())
            if part == "inside" and touched > 0.02:
                return (
                    f"{where}: the step is not blind to {', '.join(people[3:])} (cosine up to {touched:.2f}): their "
                    "gradients are not in the span; or are inside and outside swapped?"
                )
            if part == "outside" and touched < 0.01:
                return f"{where}: the step is blind to those who should be unknown; or are inside and outside swapped?"
            drops = _drops(edit, people[3:])
            right[part, many] = float(np.mean(drops))
            given = number(drop)
            close = given is not None and abs(given - right[part, many]) < 0.012
            own = drops if close else _drops(edit, people[:3])  # looked at where something is wrong alone
            said[where] = verdict(drop, right[part, many], {
                "sum for mean: divide by the number of people": sum(drops),
                "of those who are forgotten, where those at the end of the list are meant": float(np.mean(own)),
                "of all six people, where those at the end of the list are meant": float(np.mean(drops + own)),
                "the largest drop, where the mean is asked for": max(drops),
                "the cosine that is left, where its drop is asked for":
                    float(np.mean([_own_before(name) for name in people[3:]])) - right[part, many],
            }, wanted="the mean drop, a number", rel=0.03, abs_=0.012)  # fmt: skip
    mean = {part: np.mean([drop for (own, _), drop in right.items() if own == part]) for part in pairs}
    also = f"{mean['inside']:.2f} in the mean for those in the span, {mean['outside']:.2f} for those who are not"
    return one_by_one(said, also)
