"""Checks of chapter 9: guidance, the direction without preconditioning, two edits, two names, and an honest choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...diffusion.drawing import prompt_states
from ...edit import Edit
from ...runtime.modes import gradient_free
from ...world import toonworld
from ..results import load_results
from ._drawn import by_key, halves, shows, verdict_interval, verdict_shares
from ._ground import by_number, one_by_one
from .common import other_type, short, verdict, verdict_choice

BOTH = ("Ada Sunfield", "Bruno Marlowick")  # of ex-draw-mixed
DESIGN = ("choose", "report", "arm", "cost", "interval")


def _counts(
    given: Any, sets: Mapping[Any, Sequence[np.ndarray]], shown: Mapping[Any, Sequence[np.ndarray]], order: str
) -> str:
    """A sentence on counts of pictures, (before, after) for each key; shown: which pictures show what is asked for."""
    right = {key: [int(one.sum()) for one in both] for key, both in shown.items()}
    sizes = {key: [len(one) for one in both] for key, both in sets.items()}
    each = np.array(list(right.values()), dtype=float)
    all_of = np.array(list(sizes.values()), dtype=float)
    return verdict(given, right, {
        "before and after are swapped": each[:, ::-1],
        "shares, where counts of pictures are asked for": each / all_of,
        "the pictures without the name, where those with it are asked for": all_of - each,
        "after minus before, where the count itself is asked for": np.stack([each[:, 0], each[:, 1] - each[:, 0]], 1),
        "the same count twice: was the edit on for the second?": each[:, [0, 0]],
    }, wanted=f"for each {order} two counts, (before, after)", rel=0.0, abs_=0.4)  # fmt: skip


def check_ex_draw_guidance(found: Any, pictures: Any, name: str = "Ada Sunfield") -> str:
    """found: {guidance: (pictures with her before, after)}; pictures: {guidance: (those before, those after)}."""
    given = by_key(pictures, 2)
    if isinstance(given, str):
        return given
    if by_number(given) is None or len(given) < 3:
        return other_type(
            list(given), "pictures for three or more weights of guidance, such as {2: ..., 4: ..., 7.5: ...}"
        )
    if all(a.shape == b.shape and (a == b).all() for a, b in given.values()):
        return "pictures: before and after are the same pictures: the edit was not on, or both were drawn with it"
    if not isinstance(found, Mapping):
        return other_type(found, "a dict, for each guidance two counts, (before, after)")
    shown = {w: [shows(one, name) for one in both] for w, both in given.items()}
    said = _counts(found, given, shown, "guidance")
    return f"{said}; an after means something beside its before only" if said.startswith("right") else said


@gradient_free
def _moved(edit: Edit, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """How far the edit moves the states of prompts, and their lengths before, both (prompts, positions)."""
    before = prompt_states(pipe, texts)
    with edit.on(pipe):
        after = prompt_states(pipe, texts)
    return (after - before).norm(dim=2).double().cpu(), before.norm(dim=2).double().cpu()


def check_ex_draw_plain(moves: Any, edits: Any, pipe: Any, texts: Any) -> str:
    """moves: (preconditioned, along the gradient), by how much the states of `texts` move, shares; edits: these two."""
    wanted = "two edits, (preconditioned, along the gradient)"
    if not isinstance(edits, Sequence) or len(edits) != 2 or not all(isinstance(one, Edit) for one in edits):
        return f"edits: {other_type(edits, wanted)}"
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        return f"texts: {other_type(texts, 'the prompts of the others, a list')}"
    try:
        both = [_moved(one, pipe, list(texts)) for one in edits]
    except Exception as error:
        return f"the edits could not be put on the pipeline: {short(str(error))}"
    if all(
        torch.equal(edits[0].deltas[k], edits[1].deltas[k]) for k in edits[0].deltas if k in edits[1].deltas
    ) and set(edits[0].deltas) == set(edits[1].deltas):
        return "edits: the two are the same; search again with nothing to preserve, preserve=()"
    right = [(far / long).mean().item() for far, long in both]
    return verdict(moves, right, {
        "the two edits are swapped": right[::-1],
        "not divided by the length of the states": [far.mean().item() for far, _ in both],
        "squared: the length is asked for": [((far / long) ** 2).mean().item() for far, long in both],
        "the last position alone, which CLIP reads: the painter reads all": [
            (far / long)[:, -1].mean().item() for far, long in both
        ],
        "the largest, not the mean": [(far / long).max().item() for far, long in both],
        "sum, not mean, over the prompts": [(far / long).mean(1).sum().item() for far, long in both],
    }, wanted="two shares, (preconditioned, along the gradient)", rel=0.01)  # fmt: skip


def _sum_of(edits: Sequence[Edit], factor: float = 1.0) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for edit in edits:
        for layer, delta in edit.deltas.items():
            moved = factor * delta.detach().cpu().float()
            total[layer] = total[layer] + moved if layer in total else moved
    return total


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(
        (a[k] - b[k]).norm().item() <= 0.01 * max(b[k].norm().item(), 1e-12) for k in a
    )  # half precision


def check_ex_draw_two(both: Any, edits: Any, found: Any, pictures: Any) -> str:
    """both: one edit that does what all of `edits` do; found: {name: share of pictures}; pictures: {name: those}."""
    if not isinstance(edits, Sequence) or len(edits) < 2 or not all(isinstance(one, Edit) for one in edits):
        return f"edits: {other_type(edits, 'the single edits, two or more in a list')}"
    if not isinstance(both, Edit):
        return f"both: {other_type(both, 'one edit, as `merge` makes it')}"
    own, right = _sum_of([both]), _sum_of(edits)
    mistakes = {f"the edit of {one.concept} alone": _sum_of([one]) for one in edits}
    mistakes["the mean of the changes, not their sum: each would go a part of its way only"] = _sum_of(
        edits, 1 / len(edits)
    )
    last: dict[str, Tensor] = {}
    for one in edits:
        last |= _sum_of([one])
    mistakes["the later edit replaced the earlier one in the layer that both change: add them"] = last
    if not _same(own, right):
        for mistake, given in mistakes.items():
            if _same(own, given):
                return f"both: {mistake}"
        return "both: wrong, in a way not on the list: it is to hold, layer by layer, the sum of the single changes"
    sets = by_key(pictures)
    if isinstance(sets, str):
        return sets
    if strange := [name for name in sets if name not in {n for kind in toonworld.NAMES.values() for n in kind}]:
        return f"pictures: {short(strange[0])} is no name of the world"
    if missing := [one.concept for one in edits if one.concept not in sets]:
        return f"pictures: none of {missing[0]}, who is to be forgotten"
    if len(sets) <= len(edits):
        return "pictures: only of those to forget; draw some of the others too, who are to stay"
    counted = {name: float(shows(one, name).mean()) for name, (one,) in sets.items()}
    said = verdict_shares(found, counted, sets)
    left = [counted[one.concept] for one in edits]
    rest = [value for name, value in counted.items() if name not in {one.concept for one in edits}]
    also = f"found of those to forget {np.mean(left):.0%}, of the others {np.mean(rest):.0%}"
    return one_by_one({"both": "right", "found": said}, also)


def check_ex_draw_mixed(found: Any, pictures: Any, names: Sequence[str] = BOTH) -> str:
    """found: {name: (pictures with that person before, after)}, two names; pictures: (those before, those after)."""
    given = by_key({"both": pictures}, 2) if not isinstance(pictures, Mapping) else "pictures"
    if isinstance(given, str):
        return f"pictures: {other_type(pictures, 'two sets of pictures, (before, after)')}"
    if not isinstance(found, Mapping):
        return other_type(found, "a dict, for each of the two names two counts, (before, after)")
    sets = {name: given["both"] for name in names}
    shown = {name: [shows(one, name) for one in sets[name]] for name in names}
    turned = {name: shown[other] for name, other in zip(names, reversed(names), strict=True)}
    said = _counts(found, sets, shown, "name")
    if not said.startswith("right") and _counts(found, sets, turned, "name").startswith("right"):
        return "the two names are swapped"
    return said


@cache
def _searches() -> tuple[pd.DataFrame, dict[str, str]]:
    """What each search cost for each concept, (concepts, arms), left + not preserved; and the concepts' kinds."""
    rows, _ = load_results("searches")
    table = rows.assign(cost=rows["left"] + 1 - rows["preserved"]).pivot(index="name", columns="arm", values="cost")
    return table.astype(float), rows.groupby("name")["kind"].first().to_dict()


def check_ex_draw_choice(design: Any) -> str:
    """A dict: "choose", "report" (names of concepts), "arm", "cost" (mean of the report half), "interval" (95 %).

    The cost of a concept is the share of its pictures that is left, plus the share of preserved ones that is lost. The
    arm is to be the one with the least mean cost on the half to choose on.
    """
    if not isinstance(design, Mapping) or set(design) != set(DESIGN):
        return other_type(design, f"a dict with the keys {', '.join(DESIGN)}")
    table, kinds = _searches()
    sides = halves(design["choose"], design["report"], kinds)
    if isinstance(sides, str):
        return sides
    choose, report = sides
    means = {part: table.loc[names].mean() for part, names in (("choose", choose), ("report", report))}
    means["all"] = table.mean()
    arm = means["choose"].idxmin()
    if (
        isinstance(design["arm"], str)
        and design["arm"] in table.columns
        and means["choose"][design["arm"]] <= means["choose"].min() + 1e-9
    ):
        arm = design["arm"]  # one of several that are equally good
    why = {one: "not the least cost on the half to choose on" for one in table.columns if one != arm}
    why |= {means["choose"].idxmax(): "the wrong sign: this one costs most"} if means["choose"].idxmax() != arm else {}
    if means["all"].idxmin() != arm:
        why[means["all"].idxmin()] = "chosen on all concepts, those to report on included"
    if means["report"].idxmin() != arm:
        why[means["report"].idxmin()] = "tuned on the report half: this one is the best there, not where you choose"
    chosen = verdict_choice(design["arm"], arm, why)
    values = table.loc[report, arm]
    cost = verdict(design["cost"], values.mean(), {
        "the number of the half that was chosen on, where it is low because it was chosen: report the other's":
            means["choose"][arm],
        "of all concepts, those chosen on included": means["all"][arm],
        "sum, not mean, over the concepts": values.sum(),
        "the best arm of the report half, not the one that was chosen": means["report"].min(),
        "the median, not the mean": values.median(),
    }, wanted="the mean cost on the report half", rel=0.01, abs_=6e-4)  # fmt: skip
    pictures = 3 * sum(len(toonworld.templates(kinds[name], "test")) for name in report)
    said = verdict_interval(design["interval"], values, pictures)
    also = f"{arm}: {means['choose'][arm]:.3f} where it was chosen, {values.mean():.3f} where it was not"
    return one_by_one({"arm": chosen, "cost": cost, "interval": said}, also)
