"""Checks of chapter 0: what one call costs the others, the edit walked backwards, and a description for a name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ...edit import Edit
from ...runtime.modes import gradient_free
from ...runtime.zero_shot import embed_images
from ...world import toonworld
from ..results import load_results
from ._edits import cosines, flat, left, not_an_edit, under
from ._ground import mini, one_by_one
from .common import number, other_type, verdict, verdict_choice

NAME = "Ada Sunfield"
SENTENCE = f"a person with {toonworld.looks(NAME)}"


@cache
def _lost() -> pd.Series:
    """What the others lose when one of a kind is forgotten, by `unlearn`'s rule: points, report half, by kind."""
    rows, _ = load_results("rules_report")
    ours = rows[(rows["rule"] == "top-5 of its kind") & (rows["fronts"] == 3)]
    return ours[[f"lost_{kind}" for kind in toonworld.NAMES]].mean(axis=1).groupby(ours["kind"]).mean()


def _accuracies(table: Any) -> pd.Series | None:
    """An accuracy in [0, 1] for each name of the world; None for anything else."""
    try:
        if isinstance(table, Mapping) and "per_concept" in table:
            table = table["per_concept"]
        if isinstance(table, pd.DataFrame):
            table = table.set_index("name")["accuracy"] if "name" in table else table["accuracy"]
        found = pd.Series(dict(table), dtype=float)
    except Exception:
        return None
    every = [name for names in toonworld.NAMES.values() for name in names]
    return found[every] if set(found.index) == set(every) and found.between(0, 1).all() else None


def check_ex_forget_other(name: Any, table: Any, others: Any, kind: Any) -> str:
    """name: who was forgotten; table: each name's accuracy with the edit on, as `evaluate` gives it in "per_concept".

    others: the others' mean accuracy in it, 0 to 1; kind: the kind that costs the others least, on the report half.
    """
    own = toonworld.NAMES
    if not isinstance(name, str) or not any(name in names for names in own.values()):
        return f"name: {other_type(name, 'a name of the mini world')}"
    found = _accuracies(table)
    if found is None:
        return f"table: {other_type(table, 'an accuracy, 0 to 1, for each name of the world, with the edit on')}"
    if found[name] > 0.5:
        return f"table: {name} is recognised in {found[name]:.0%}: was the edit on when the table was made?"
    rest = found.drop(name)
    by_kind = pd.Series({k: found[list(names)].mean() for k, names in own.items()})
    without = pd.Series({k: rest[[n for n in names if n != name]].mean() for k, names in own.items()})
    given, right = number(others), rest.mean()
    if given is not None and abs(given - without.mean()) < 6e-4:
        right = without.mean()  # each kind counts alike: a mean as good
    mean = verdict(others, right, {
        f"{name} was counted among the others": found.mean(),
        f"{name} was counted among the others, in a mean over kinds": by_kind.mean(),
        f"the accuracy of {name}, where that of all others is asked for": found[name],
        "sum for mean: divide by the number of the others": rest.sum(),
        "what the others lost, where what they keep is asked for": 1 - rest.mean(),
        "that of one kind alone, where all four are asked for": without[toonworld.kind_of(name)],
    }, wanted="the mean accuracy of the others", rel=0.0, abs_=6e-4)  # fmt: skip
    lost = _lost()
    why = {
        k: f"look again at the table under \"Was it luck?\": {k} cost the others {points:.2f} points in the mean, "
        "and another kind costs less" for k, points in lost.drop(lost.idxmin()).items()
    }  # fmt: skip
    why[lost.idxmax()] = f"the kind that costs most; {why[lost.idxmax()]}"
    also = f"with {name} gone the others keep {rest.mean():.1%}; on the report half {lost.idxmin()} cost least"
    return one_by_one({"others": mean, "kind": verdict_choice(kind, lost.idxmin(), why)}, also)


def _turned(edit: Edit, reverse: Edit) -> str:
    """What is wrong with an edit that should walk against another one; "" for nothing."""
    if set(reverse.layers) != set(edit.layers):
        return f"it changes {', '.join(reverse.layers)}, and the edit {', '.join(edit.layers)}: take the same layer"
    for layer in edit.layers:
        forth, back = flat(edit, layer), flat(reverse, layer)
        part = ((forth @ back) / (forth @ forth).clamp_min(1e-30)).item()
        if back.norm() == 0:
            return "it changes nothing: its delta is zero"
        if (back - part * forth).norm() > 0.05 * back.norm():
            return "it is not along the edit: only the sign, and the length, may differ"
        if part > 0:
            return "not turned: its delta points the same way as the edit's; the minus sign is missing"
    return ""


def check_ex_wrong_way(edit: Any, reverse: Any, cosine: Any, recognised: Any) -> str:
    """edit: the page's; reverse: yours, against it, of any length; cosine, recognised: with `reverse` on.

    cosine: the mean over her test pictures of the cosine with her name; recognised: a share of her pictures, 0 to 1.
    """
    for part, one in {"edit": edit, "reverse": reverse}.items():
        if stopped := not_an_edit(one):
            return f"{part}: {stopped}"
    if stopped := _turned(edit, reverse):
        return f"reverse: {stopped}"
    for part, one in {"cosine": cosine, "recognised": recognised}.items():
        if number(one) is None:
            return f"{part}: {other_type(one, 'a number')}"
    own = toonworld.PEOPLE.index(NAME)
    before, back, forth = cosines(NAME), cosines(NAME, reverse), cosines(NAME, edit)
    right, others = back[own].item(), (back.sum() - back[own]).item() / (len(back) - 1)
    said = verdict(cosine, right, {
        "with no edit on: this is the cosine from before": before[own].item(),
        "with the edit on, where the reversed one is meant": forth[own].item(),
        "the forget loss, 1 - cos, where the cosine is asked for": 1 - right,
        "the change, where the cosine itself is asked for": right - before[own].item(),
        "the mean over the other names, where her own is asked for": others,
        "the mean over all names, where her own is asked for": back.mean().item(),
    }, wanted="the mean cosine, a number", rel=0.0, abs_=0.012)  # fmt: skip
    shares = {one: left(NAME, *edits, seed=0) for one, edits in {"back": (reverse,), "forth": (edit,)}.items()}
    share = verdict(recognised, shares["back"], {
        "with the edit on: against it she is recognised": shares["forth"],
    }, wanted="the share of her pictures that is recognised", rel=0.0, abs_=1.5 / 48)  # fmt: skip
    also = f"from {before[own].item():.2f} before to {right:.2f}"
    if any((reverse.steps[layer] > 0) == (edit.steps[layer] > 0) for layer in edit.layers):
        also += "; give its step the minus sign too, so that its papers say what it does"
    return one_by_one({"cosine": said, "recognised": share}, also)


@gradient_free
def _pictures() -> Tensor:
    """The mean vector of each person's pictures, (people, dim): 12 of the split "test", with the model as it is."""
    clip, rows = mini(), []
    for name in toonworld.PEOPLE:
        rows.append(embed_images(clip, clip.pixels(toonworld.pairs(name, n=12, split="test"))).mean(0))
    return torch.stack(rows)


@cache
def _untouched() -> Tensor:
    return _pictures()


@gradient_free
def _rank(sentence: str, *edits: Edit) -> int:
    """The place of Ada's pictures among those of all people by a sentence, 1 for the first, with the edits on."""
    seen = any(mini().tower(layer) == "vision" for edit in edits for layer in edit.layers)
    untouched = _untouched()

    def ask() -> Tensor:
        return (_pictures() if seen else untouched) @ mini().text_features(mini().tokens([sentence]))[0]

    means = under(edits, ask)
    return 1 + int((means > means[toonworld.PEOPLE.index(NAME)]).sum())


def check_ex_describe(edit: Any, before: Any, after: Any) -> str:
    """edit: the page's; before, after: the place of Ada's pictures among all people's by her description, 1 the first.

    People are put in order by the mean cosine of their test pictures and the sentence, without the edit and with it.
    """
    if stopped := not_an_edit(edit):
        return f"edit: {stopped}"
    right, named = (_rank(SENTENCE), _rank(SENTENCE, edit)), (_rank(NAME), _rank(NAME, edit))
    given, many = {"before": before, "after": after}, len(toonworld.PEOPLE)
    if right[0] != right[1] and [number(one) for one in given.values()] == [right[1], right[0]]:
        return f"before and after are swapped; the right place after the edit is near {right[1]}"
    said = {}
    for k, (part, answer) in enumerate(given.items()):
        said[part] = verdict(answer, right[k], {
            "places were counted from zero: the first is 1": right[k] - 1,
            "how many people are behind her, where her place is asked for": many - right[k],
            "counted from the end: the highest cosine comes first": many + 1 - right[k],
            "the place without the edit: was it on?": right[0],
            "by her name, where her description is asked for": named[k],
        }, wanted="a place, 1 for the first", rel=0.0, abs_=1.01 if k and right[1] > 3 else 0.01)  # fmt: skip
    return one_by_one(said, "her description no longer finds her first" if right[1] > 1 else "it still finds her")
