"""Chapter 5: how many pictures a zero needs, and how far the step goes, forwards and backwards.

The model, the forget gradient and the pictures are those of the chapter: Ada Sunfield, in the layer that the whole
method chose for her. A first step is a tenth of the weight's length.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.modes import gradient_free
from ...runtime.stacks import kept
from ...runtime.zero_shot import embed_images
from ...search import Found, StepSearch, first_step, search_step
from ...world import evaluation, toonworld
from ..results import load_results
from ._ground import by_number, forget_gradient, mini, moved_along, one_by_one, own_scorer
from .common import near, number, other_type, verdict, verdict_choice

NAME = "Ada Sunfield"
PROJECTION = "text_projection"
FRESH = {"n": 192, "seed": 1000}  # the pictures that ex-step-margin reports on


@cache
def _layer() -> str:
    concepts, _ = load_results("concepts")
    return concepts[(concepts["way"] == "alignment") & (concepts["name"] == NAME)]["layer"].iloc[0]


@cache
def _begin(layer: str) -> float:
    return first_step(mini().weights()[layer], forget_gradient(NAME, layer))


def check_ex_step_pictures(tested: Any, expected: Any) -> str:
    """tested: n for "at most one in a hundred" at the 95 % level; expected: n for one in a hundred on average."""
    share, level = 0.01, 0.95
    exact = math.log(1 - level) / math.log(1 - share)  # (1 - share)^n <= 1 - level
    right, rule = math.ceil(exact), round(3 / share)
    if number(tested) == rule:  # the rule of three is an answer too
        tested = right
    swapped = "the two numbers are swapped: this one belongs to the other question"
    first = verdict(tested, right, {
        swapped: 1 / share - 1,
        "not rounded up: the number of pictures must be whole, and not too small": exact,
        "95 % and 5 % are swapped: (1 - p)^n is to be at most 0.05": math.ceil(math.log(level) / math.log(1 - share)),
        "share and level are swapped: the share is 0.01, and 0.05 what remains of the level":
            math.ceil(math.log(share) / math.log(level)),
        "1 in 100 taken for both: the level is 95 %, not 99 %": math.ceil(math.log(share) / math.log(1 - share)),
    }, wanted="how many test pictures", rel=1e-4, abs_=0.3)  # fmt: skip
    second = verdict(expected, 1 / share - 1, {
        "1 / n for 1 / (n + 1): the fresh picture is one of the n + 1": 1 / share,
        "counted away twice: 1 / (n + 1) = 0.01": 1 / share - 2,
        "one too many: the fresh picture is not in the search, 1 / (n + 1) = 0.01": 1 / share + 1,
        swapped: right,
        f"{swapped} (by the rule of three)": rule,
    }, wanted="how many validation pictures", rel=1e-4, abs_=0.3)  # fmt: skip
    return one_by_one({"at the 95 % level": first, "expected": second}, f"{right} and {1 / share - 1:.0f}")


@cache
def _looked(step: float) -> dict[str, float]:
    """What Ada's validation pictures say with lambda = step in her layer."""
    with moved_along(forget_gradient(NAME, _layer()), step, _layer()):
        return own_scorer(NAME).at(_layer()).forgetting()


def check_ex_step_backwards(margins: Any, accuracy_tells: Any = False) -> str:
    """margins: {steps: mean margin in logits}, steps in first steps, such as -0.5 and -16; accuracy_tells: True, False.

    accuracy_tells is the answer to: does the concept's accuracy say that something happens at small negative steps?
    """
    wanted = "a dict from negative numbers of first steps to mean margins, such as {-0.5: ..., -16: ...}"
    found = by_number(margins)
    if found is None:
        return other_type(margins, wanted)
    if not any(steps < 0 for steps in found):
        return f"walked uphill: the exercise goes the other way, so give {wanted}"
    begin = _begin(_layer())

    def each(column: str, factor: float = begin) -> dict[float, float]:
        return {steps: _looked(steps * factor)[column] for steps in found}

    said = verdict(found, each("margin"), {
        "walked uphill: the sign of the step was lost on the way": each("margin", -begin),
        "the step is lambda here, not a number of first steps: multiply it by `begin`": each("margin", 1.0),
        "the margin in standard deviations, where the mean margin is asked for": each("standardized_margin"),
        "the accuracy, which hides it, where the margin is asked for": each("forget_accuracy"),
    }, wanted=wanted, rel=0.01, abs_=0.05)  # fmt: skip
    back, before = _looked(-0.5 * begin), _looked(0.0)
    tells = back["forget_accuracy"] != before["forget_accuracy"]
    why = "look again: at small negative steps the accuracy stays what it was, since it cannot rise above 100 %"
    choice = verdict_choice(accuracy_tells, tells, {not tells: why})
    also = f"half a first step back the margin goes from {before['margin']:.1f} to {back['margin']:.1f}"
    return one_by_one({"margins": said, "whether the accuracy tells": choice}, also)


@cache
def _searched(margin: float | None) -> Found:
    """The chapter's search for a step, by a margin, or by the rule of no hit."""
    rule = StepSearch(rule="top1") if margin is None else StepSearch("margin", margin)
    return search_step(mini(), _layer(), forget_gradient(NAME, _layer()), own_scorer(NAME), rule)


@cache
def _left(step: float, split: str) -> float:
    with moved_along(forget_gradient(NAME, _layer()), step, _layer()):
        return evaluation.recognised(mini(), NAME, split=split, **FRESH).float().mean().item()


def check_ex_step_margin(steps: Any, left: Any) -> str:
    """steps: {margin: step in first steps}; left: {margin: share of fresh test pictures still recognised, 0 to 1}.

    Margins that are never reached are left out of both. Takes a second or two for each margin.
    """
    found = by_number(steps)
    if found is None or min(found) <= 0:
        return other_type(steps, "steps as a dict such as {1: ..., 4: ...}, from margins to numbers of first steps")
    lost = [margin for margin in found if _searched(margin).step is None]
    if lost:
        return f"a margin of {lost[0]:g} is never reached: leave it out; the widest here is a little over 12"
    begin, results = _begin(_layer()), {margin: _searched(margin) for margin in found}
    right = {margin: one.step / begin for margin, one in results.items()}
    first = verdict(found, right, {
        "lambda itself, where a number of first steps is asked for: divide it by `begin`":
            {margin: one.step for margin, one in results.items()},
        "no margin asked for: this is the rule of no hit at every one":
            dict.fromkeys(found, _searched(None).step / begin),
        "the change's length as a part of the weight's, where first steps are asked for: times ten":
            {margin: step / 10 for margin, step in right.items()},
        "the margin that was reached, where the step is asked for":
            {margin: one.score["standardized_margin"] for margin, one in results.items()},
    }, wanted="a step for each margin", rel=0.05)  # fmt: skip
    shares = {margin: _left(one.step, "test") for margin, one in results.items()}
    own = by_number(left)
    if own is None:
        return other_type(left, "left as a dict such as {1: ..., 4: ...}, from the same margins to shares")
    second = verdict(own, shares, {
        "tuned on the report half: these are the pictures on which the search stopped, so that none is left by "
        "construction; report on the split \"test\"": dict.fromkeys(found, 0.0),
        "pictures of the split \"val\": fresh, but drawn and asked for as those of the search; report on \"test\"":
            {margin: _left(one.step, "val") for margin, one in results.items()},
        "what was forgotten, where what is left is asked for": {margin: 1 - share for margin, share in shares.items()},
    }, wanted="a share for each margin", rel=0.0, abs_=3.5 / FRESH["n"])  # fmt: skip
    also = "asking for more leaves less, and in the end costs the others"
    return one_by_one({"steps": first, "left": second}, also)


@gradient_free
def _texts(step: float) -> Tensor:
    """Embeddings of the remark's prompts before they are normalised, the last projection moved by step."""
    clip = mini()
    weight, prompts = clip.weights()[PROJECTION], clip.tokens([f"a picture of {name}" for name in toonworld.PEOPLE])
    with kept(clip.model, weight) as original:
        weight.copy_(original + step * forget_gradient(NAME, PROJECTION))
        return clip.model.encode_text(prompts)


@cache
@gradient_free
def _falls(split: str = "val", *, unit_texts: bool = True, scale: float = 1.0, down: bool = False) -> np.ndarray:
    """In first steps, where each of 192 pictures of Ada is forgotten, by the two products of the remark."""
    clip, unit, own = mini(), _begin(PROJECTION), toonworld.PEOPLE.index(NAME)
    start, slope = _texts(0.0), (_texts(unit) - _texts(0.0)) / unit
    images = embed_images(clip, clip.pixels(toonworld.pairs(NAME, n=192, seed=1, split=split)))
    grid, margins = np.linspace(0, 4 * unit, 400), []
    for step in grid:
        texts = start + (-1 if down else 1) * scale * step * slope
        cosines = images @ (F.normalize(texts, dim=-1) if unit_texts else texts).T
        others = torch.cat([cosines[:, :own], cosines[:, own + 1 :]], 1).amax(1)
        margins.append((others - cosines[:, own]).cpu().numpy())
    rows = np.stack(margins) > 0  # (steps, pictures)
    first = np.where(rows.any(0), rows.argmax(0), len(grid) - 1)
    return grid[first] / unit


def check_ex_step_closed_form(first: Any, last: Any) -> str:
    """first, last: the steps, in first steps, at which the first and the last of the 192 pictures is forgotten."""
    falls, unit = _falls(), _begin(PROJECTION)
    ends = {"first": falls.min(), "last": falls.max()}
    test, long = _falls("test"), _falls(unit_texts=False)
    mistakes = {
        "swapped: first and last": {"first": falls.max(), "last": falls.min()},
        "lambda itself, where first steps are asked for: divide by `unit`": {e: v * unit for e, v in ends.items()},
        "not normalised: the text embeddings must have length one before they are compared":
            {"first": long.min(), "last": long.max()},
        "pictures of the split \"test\", where the validation pictures are asked for":
            {"first": test.min(), "last": test.max()},
        "the mean over the pictures, where its ends are asked for": dict.fromkeys(ends, falls.mean()),
        "the number of the grid's step, where first steps are asked for": {e: v * 399 / 4 for e, v in ends.items()},
    }  # fmt: skip
    given = {"first": first, "last": last}
    said = {
        end: verdict(given[end], right, {m: v[end] for m, v in mistakes.items()}, wanted="a step", rel=0.02, abs_=0.012)
        for end, right in ends.items()
    }
    return one_by_one(said, f"the last falls near {near(ends['last'])} first steps, by two runs of the text tower")
