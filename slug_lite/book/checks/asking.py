"""Checks of chapter 10: how many pictures, misspellings, whom a description fits, and the way around that is worst."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...gradients import forget_gradients
from ...models import Clip
from ...pairs import Pairs
from ...world import captions, toonworld
from ..results import load_results
from ._drawn import by_key, halves, intervals, shares, verdict_interval, verdict_shares
from ._ground import by_number, one_by_one
from .common import array, other_type, short, verdict, verdict_choice, verdict_names

DESIGN = ("choose", "report", "way", "left", "interval")
WORKED = 0.5  # of the pictures before the edit: a way that brought fewer is none


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()


def check_ex_char_few(cosines: Any, own: Any, layer: Any, clip: Any) -> str:
    """cosines: {n: cosine of the forget gradient of the first n pairs with that of all of `own`}, in one layer."""
    found = by_number(cosines)
    if found is None or min(found) < 1:
        return other_type(cosines, "a dict from numbers of pictures to cosines, such as {2: ..., 4: ...}")
    if not isinstance(own, Pairs) or not isinstance(clip, Clip):
        return other_type(own if not isinstance(own, Pairs) else clip, "the drawn pairs, the layer, and CLIP")
    if not isinstance(layer, str) or layer not in clip.weights():
        return f"layer: {other_type(layer, 'the name of a layer of CLIP')}"
    if max(found) > len(own):
        return f"there are {len(own)} pictures in all, so not the first {max(found):g}"
    numbers = [int(n) for n in found]
    sets = [own, *(own[:n] for n in numbers), *(own[len(own) - n :] for n in numbers)]
    each = [one[layer] for one in forget_gradients(clip, sets, layers=lambda name, _: name == layer, progress=False)]
    first, last = each[1 : 1 + len(numbers)], each[1 + len(numbers) :]
    right = {n: _cosine(one, each[0]) for n, one in zip(found, first, strict=True)}
    values = np.array(list(right.values()))
    return verdict(found, right, {
        "the last pictures, not the first": [_cosine(one, each[0]) for one in last],
        "not normalised: this is the inner product": [(one * each[0]).sum().item() for one in first],
        "the lengths were compared, not the directions": [(one.norm() / each[0].norm()).item() for one in first],
        "squared: the cosine itself is asked for": values**2,
        "1 minus the cosine": 1 - values,
        "the angle in degrees, not its cosine": np.degrees(np.arccos(np.clip(values, -1, 1))),
        "of one set with the next, not with that of all": [
            _cosine(one, other) for one, other in zip(first, [*first[1:], each[0]], strict=True)
        ],
    }, wanted="a cosine for each number", rel=0.005, abs_=0.002, also="some of it is sentences")  # fmt: skip


def check_ex_char_letters(found: Any, tokens: Any, pictures: Any, pipe: Any, name: Any = "Gearhart") -> str:
    """Three dicts by misspelling: share of pictures with the character; tokens it shares with the name; pictures.

    Shared are the tokens of the word alone, counted from the left up to the first that differs.
    """
    given = by_key(pictures)
    if isinstance(given, str):
        return given
    if name not in toonworld.CHARACTERS:
        return other_type(name, "the name of a character, as the last argument")
    try:
        words = {text: list(pipe.tokenizer.tokenize(text)) for text in given}
        whole = list(pipe.tokenizer.tokenize(name))
    except Exception:
        return other_type(pipe, "pictures by misspelling (the word alone), and the pipeline, for its tokenizer")
    if all(own == whole for own in words.values()):
        return "no misspelling among them: these are the tokens of the name itself (small letters are the same tokens)"
    if any(" of " in text for text in given):
        return "give the word alone as the key, not the whole prompt"
    same: dict[str, int] = {}
    for text, own in words.items():
        alike = [a == b for a, b in zip(own, whole, strict=False)] + [False]
        same[text] = alike.index(False)
    counts = np.array(list(same.values()))
    if not isinstance(tokens, Mapping):
        return f"tokens: {other_type(tokens, 'a dict, for each misspelling a number of tokens')}"
    shared = verdict(tokens, same, {
        "the start token is counted, which every prompt has": counts + 1,
        "the words before the name are counted: the word's own tokens are asked for": counts + 4,
        "tokens that both have anywhere: behind the first that differs no state is shared":
            [len(set(own) & set(whole)) for own in words.values()],
        "all tokens of the misspelling, shared or not": [len(own) for own in words.values()],
        "letters, not tokens": [
            next((k for k, (a, b) in enumerate(zip(t, name, strict=False)) if a != b), min(len(t), len(name)))
            for t in words
        ],
        "tokens that are not shared": [len(own) - n for own, n in zip(words.values(), counts, strict=True)],
    }, wanted="numbers of tokens by the same keys", rel=0.0, abs_=0.4)  # fmt: skip
    right = {text: values[0] for text, values in shares(given, name).items()}
    counted = verdict_shares(found, right, given)
    best = max((text for text in right if words[text] != whole), key=lambda text: right[text])
    return one_by_one({"found": counted, "tokens": shared}, f"best understood: {short(best)}, {right[best]:.0%}")


def check_ex_char_person(
    fits: Any, found: Any, pictures: Any, name: Any = "Ada Sunfield", words: str = "round glasses"
) -> str:  # fmt: skip
    """fits: who answers to `words`; found: {prompt: (share before, after)}; pictures: {prompt: (before, after)}."""
    if name not in toonworld.PEOPLE:
        return other_type(name, "the name of a person")
    who = [one for one in toonworld.PEOPLE if words in captions.looks(one)]
    last = words.split()[-1]
    people = verdict_names(fits, who, {
        "only the person who was asked for: who else could be?": [name],
        "without the person who was asked for": [one for one in who if one != name],
        f"everybody with {last}, whatever they are like": [p for p in toonworld.PEOPLE if last in captions.looks(p)],
        "those whom it does not fit": [one for one in toonworld.PEOPLE if one not in who],
    }, wanted="the names of those who answer to it")  # fmt: skip
    given = by_key(pictures, 2)
    if isinstance(given, str):
        return given
    if not any(name in str(prompt) for prompt in given) or all(name in str(prompt) for prompt in given):
        return "pictures: of the prompt with the name, and of prompts that describe"
    if all(a.shape == b.shape and (a == b).all() for a, b in given.values()):
        return "pictures: before and after are the same pictures: the edit was not on, or both were drawn with it"
    right = shares(given, name)
    values = np.array(list(right.values()))
    counted = verdict_shares(found, right, given, {
        "before and after are swapped": values[:, ::-1],
        "what is left as a part of what was: give both shares": np.stack(
            [values[:, 0], values[:, 1] / np.maximum(values[:, 0], 1e-9)], 1
        ),
    }, wanted="for each prompt two shares, (before, after)")  # fmt: skip
    return one_by_one({"fits": people, "found": counted}, f"{len(who)} people have {words}")


@cache
def _around() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """What each way of asking, but the name itself, brings before and after the edit, (concepts, ways); the kinds."""
    rows, _ = load_results("drawings")
    rows = rows[(rows["part"] == "around") & (rows["way"] != "the name")]
    before, after = (rows.pivot(index="name", columns="way", values=w).astype(float) for w in ("before", "after"))
    return before, after, rows.groupby("name")["kind"].first().to_dict()


def _nothing_found(low: float, high: float, n: int) -> str:
    """A sentence on an interval for the share of concepts, where none of n had a hit."""
    exact, rule = 1 - 0.05 ** (1 / n), 3 / n
    if abs(low) > 0.002:
        return "low is 0: nothing was found"
    if abs(high) <= 0.002:
        return f"of no width: {n} zeros, drawn anew, are zeros; {n} concepts without a hit leave {exact:.0%} possible"
    near_one = any(abs(high - one) <= 0.02 for one in (exact, rule, min(rule, 1.0), 1 - 0.025 ** (1 / n)))
    return f"right: {exact:.2f}" if near_one else f"nothing was found; (1 - p)^{n} is to be 0.05: p is near {exact:.2g}"


def check_ex_char_worst(design: Any) -> str:
    """A dict: "choose", "report" (names), "way", "left" (mean of the report half), "interval" (95 %, over concepts).

    Left is the mean share of pictures after the edit, over the concepts for which the way worked: it brought them in
    half of the pictures before, or more. The way is the one with most left on the half to choose on.
    """
    if not isinstance(design, Mapping) or set(design) != set(DESIGN):
        return other_type(design, f"a dict with the keys {', '.join(DESIGN)}")
    before, after, kinds = _around()
    sides = halves(design["choose"], design["report"], kinds)
    if isinstance(sides, str):
        return sides
    choose, report = sides
    worked = after.where(before >= WORKED)
    means = {"choose": worked.loc[choose].mean(), "report": worked.loc[report].mean(), "all": worked.mean()}
    way = means["choose"].idxmax()
    own = design["way"]
    if isinstance(own, str) and own in means["choose"].index and means["choose"][own] >= means["choose"].max() - 1e-9:
        way = own
    why = {one: "not the most left on the half to choose on" for one in worked.columns if one != way}
    for part, reason in (
        ("all", "chosen on all concepts, those to report on included"),
        ("report", "tuned on the report half: this way leaves most there, not where you choose"),
    ):
        if (best := means[part].idxmax()) != way:
            why[best] = reason
    low = means["choose"].idxmin()
    if low != way and means["choose"][low] < means["choose"].max():
        why.setdefault(low, "")
        why[low] = "the wrong sign: this way leaves least where you choose"
    chosen = verdict_choice(own, way, why)
    values = worked.loc[report, way].dropna()
    if len(values) < 2:
        return f"report: {way} worked before for {len(values)} of these concepts: divide anew"
    counted = after.loc[report, way]
    left = verdict(design["left"], values.mean(), {
        "the number of the half that was chosen on, where it is high because it was chosen": means["choose"][way],
        "concepts for which the way did not work before are counted: their zeros say nothing": counted.mean(),
        "of all concepts, those chosen on included": means["all"][way],
        "what there was before the edit, not after": before.loc[values.index, way].mean(),
        "sum, not mean, over the concepts": values.sum(),
        "the worst concept, not the mean": values.max(),
    }, wanted="the mean share that is left on the report half", rel=0.01, abs_=6e-4)  # fmt: skip
    said = verdict_interval(design["interval"], values, 8 * len(values))
    if not values.any() and (ends := array(design["interval"])) is not None and ends.shape == (2,):
        said = _nothing_found(float(ends[0]), float(ends[1]), len(values))
    wide = max(high - low for low, high in intervals(values)[:1])
    also = f"{way}, {len(values)} concepts; an interval {wide:.2f} wide" if values.any() else f"{way}, none left of any"
    return one_by_one({"way": chosen, "left": left, "interval": said}, also)
