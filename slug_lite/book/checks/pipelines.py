"""Checks of chapter 8: which states are alike, how many steps, a state of zero, blends, and where a name lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...world import toonworld
from ._drawn import by_key, pictures_of, shares, shows, verdict_interval, verdict_shares
from ._ground import by_number, one_by_one
from .common import number, other_type, short, verdict

PAGE = ("Ada Sunfield", "Felix Moorhaven")
PAGE_SEEDS = {7, *range(10, 18), *range(20, 28)}  # noise that the page has drawn from


def _ids(pipe: Any, texts: Sequence[Any]) -> list[list[int]] | None:
    """The tokens of texts, padding included; None for what is no pipeline, or no text."""
    try:
        if not all(isinstance(text, str) for text in texts):
            return None
        return [list(pipe.tokenizer(text, padding="max_length", truncation=True).input_ids) for text in texts]
    except Exception:
        return None


def check_ex_pipe_order(causal: Any, without: Any, first: Any, second: Any, pipe: Any) -> str:
    """causal, without: at how many positions the states of two prompts are alike, with the causal mask and without."""
    tokens = _ids(pipe, (first, second))
    if tokens is None:
        return other_type([first, second], "the two prompts as texts, and the pipeline, after your numbers")
    alike = [a == b for a, b in zip(*tokens, strict=True)]
    if all(alike):
        return "the two prompts are the same tokens; take two names"
    same, places = alike.index(False), sum(alike)
    elsewhere = "positions with the same token: behind the name the tokens are alike, and the states are not"
    one = verdict(causal, same, {
        "the start token is not counted, which is a position too": same - 1,
        "one too many: the first token of the name differs already": same + 1,
        elsewhere: places,
        "positions whose states differ, where those alike are asked for": len(alike) - same,
        "with and without the mask are swapped": 0,
    }, wanted="a number of positions", rel=0.0, abs_=0.4)  # fmt: skip
    none = verdict(without, 0, {
        "nothing is hidden from them: without the mask the positions before the name see it too": same,
        "the start token's state is not the same either: without the mask it sees the whole prompt": 1,
        elsewhere: places,
    }, wanted="a number of positions", rel=0.0, abs_=0.4)  # fmt: skip
    return one_by_one({"with the mask": one, "without": none}, f"{same} and none")


def check_ex_pipe_solver(found: Any, enough: Any, pictures: Any, name: str = "Ada Sunfield") -> str:
    """found: {steps: share in which she is found}; enough: the fewest steps; pictures: {steps: those drawn with them}.

    Enough are the fewest steps from which on no count is below the one of the most steps.
    """
    given = by_key(pictures)
    if isinstance(given, str):
        return given
    if by_number(given) is None or len(given) < 3:
        return other_type(list(given), "pictures for three or more numbers of steps, such as {2: ..., 4: ..., 8: ...}")
    right = {steps: one for steps, (one,) in shares(given, name).items()}
    counted = verdict_shares(found, right, given)
    if not counted.startswith("right"):
        return f"found: {counted}"
    steps = sorted(right)
    good = [s for s in steps if all(right[later] >= right[steps[-1]] - 1e-9 for later in steps if later >= s)]
    any_hit = next((s for s in steps if right[s] > 0), steps[-1])
    fewest = verdict(enough, good[0], {
        "the fewest with any hit at all: enough is what the most steps reach": any_hit,
        "the most steps that you drew with, where the fewest that reach as much are asked for": steps[-1],
        "too few: at this number the count is still below": max((s for s in steps if s < good[0]), default=0),
        "the share, where a number of steps is asked for": right[good[0]],
    }, wanted="a number of steps", rel=0.0, abs_=0.4)  # fmt: skip
    return one_by_one({"found": counted, "enough": fewest}, f"{good[0]:g} steps find her as often as {steps[-1]:g}")


def _states(some: Any) -> np.ndarray | None:
    """States as an array of floats (n, positions, width); None for anything else."""
    try:
        x = np.asarray(some.detach().cpu().float().numpy() if hasattr(some, "detach") else some, dtype=float)
    except Exception:
        return None
    x = x[None] if x.ndim == 2 else x
    return x if x.ndim == 3 and x.size and np.isfinite(x).all() else None


def check_ex_pipe_start(change: Any, states: Any, rows: Any) -> str:
    """change: of a pixel, on average (of 255); states, rows: (whole, changed), and the pictures drawn of them."""
    for what, some in (("states", states), ("rows", rows)):
        if not isinstance(some, Sequence) or isinstance(some, str | bytes) or len(some) != 2:
            return f"{what}: {other_type(some, 'two of them, (whole, changed)')}"
    given, pictures = [_states(one) for one in states], [pictures_of(one) for one in rows]
    if given[0] is None or given[1] is None or given[0].shape != given[1].shape:
        return f"states: {other_type(states, 'two sets of states of one shape, (n, positions, width)')}"
    if pictures[0] is None or pictures[1] is None or pictures[0].shape != pictures[1].shape:
        return f"rows: {other_type(rows, 'two sets of as many pictures')}"
    whole, changed = given[0], given[1]
    moved = np.abs(changed - whole).max(2) > 1e-9  # (n, positions)
    if not moved.any():
        zero = np.abs(whole[:, 0]).max() == 0
        return "states: whole was changed as well: clone it first" if zero else "states: nothing was changed"
    if np.abs(whole[:, 0]).max() == 0:
        return "states: whole and changed are swapped"
    if not moved[:, 0].any():
        return f"states: position {int(moved.any(0).argmax())} was changed, not the start token's, which is position 0"
    if moved[:, 1:].any():
        return f"states: {int(moved.any(0).sum())} positions were changed; the start token's alone is asked for"
    if not moved[:, 0].all():
        return "states: only one picture's start token was changed: the first axis is the picture"
    if np.abs(changed[:, 0]).max() > 0:
        return "states: the start token's state is changed, but not zero"
    a, b = (one.astype(float) for one in pictures if one is not None)
    wrapped = np.abs(pictures[0] - pictures[1]).astype(float)  # uint8, as numpy counts
    return verdict(change, np.abs(a - b).mean(), {
        "bytes wrap around: make numbers of them before you subtract": wrapped.mean(),
        "signed: brighter and darker cancel, take the absolute value": (b - a).mean(),
        "squared: the mean absolute change is asked for": ((a - b) ** 2).mean(),
        "the root of the mean square: the mean absolute change is asked for": np.sqrt(((a - b) ** 2).mean()),
        "a share of 1, where a number of 255 is asked for": np.abs(a - b).mean() / 255,
        "the largest change, not the mean": np.abs(a - b).max(),
        "of the first picture alone": np.abs(a - b)[0].mean(),
        "sum, not mean, over the pictures": len(a) * np.abs(a - b).mean(),
    }, wanted="the mean change of a pixel, a number", rel=0.01)  # fmt: skip


def check_ex_pipe_blend(
    found: Any, nobody: Any, pictures: Any, first: str = PAGE[0], second: str = PAGE[1]
) -> str:  # fmt: skip
    """found: {a: (share with the first, with the second)}; nobody: the a with most of neither; pictures: {a: ...}."""
    given = by_key(pictures)
    if isinstance(given, str):
        return given
    numbers = by_number(given)
    if numbers is None or not {0.0, 1.0} <= set(numbers) or len(numbers) < 3:
        return other_type(list(given), "pictures for a = 0, for a = 1 and for some a between them")
    right = shares(given, first, second)
    turned = {a: values[::-1] for a, values in right.items()}
    ends = {float(a): values for a, values in right.items()}
    if ends[0.0][1] > ends[0.0][0] and ends[1.0][0] > ends[1.0][1]:
        return f"pictures: a and 1 - a are swapped: at a = 0 the prompt of {first} is whole"
    counted = verdict_shares(found, right, given, {
        "the two names are swapped": list(turned.values()),
        "both added up, in both places": [[sum(v)] * 2 for v in right.values()],
    }, wanted="for each a two shares, (first, second)")  # fmt: skip
    if not counted.startswith("right"):
        return f"found: {counted}"
    neither = {float(a): 1 - sum(values) for a, values in right.items()}
    best = [a for a in neither if neither[a] >= max(neither.values()) - 1e-9]
    value = number(nobody)
    where = best[0] if value is None or not np.isclose(best, value).any() else value
    least = min(neither, key=lambda a: neither[a])
    said = verdict(nobody, where, {
        "the least, not the most: here nearly all are one of the two": least,
        "how many are neither, where the place a is asked for": max(neither.values()),
        "counted from the other end: 1 - a": 1 - where,
    }, wanted="a number a", rel=0.0, abs_=1e-3)  # fmt: skip
    return one_by_one({"found": counted, "nobody": said}, f"{max(neither.values()):.0%} are neither there")


def _bad_pairs(pairs: Any, pipe: Any) -> str:
    """What is wrong with the pairs of people of a design; "" for nothing."""
    wanted = "pairs: give six or more pairs of names, such as [('Bruno Marlowick', 'Vera Rossaline'), ...]"
    try:
        pairs = [tuple(pair) for pair in pairs]
    except Exception:
        return wanted
    if not all(len(pair) == 2 and all(name in toonworld.PEOPLE for name in pair) for pair in pairs):
        return f"{wanted}, of people of the world"
    names = [name for pair in pairs for name in pair]
    if set(names) & set(PAGE):
        return f"pairs: {sorted(set(names) & set(PAGE))[0]} is from the page: what was looked at is no evidence"
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"pairs: {twice} is in two pairs, so that these are not independent"
    if len(pairs) < 6:
        return f"pairs: {len(pairs)} are few for an interval; six or more"
    tokens = {name: _ids(pipe, (f"a portrait of {name}",)) for name in names}
    if any(one is None for one in tokens.values()):
        return other_type(pipe, "the pipeline, for its tokenizer, as the last argument")
    lengths = {name: len(pipe.tokenizer(f"a portrait of {name}").input_ids) for name in names}
    for a, b in pairs:
        if lengths[a] != lengths[b]:
            return f"pairs: {a} and {b} have different numbers of tokens: positions do not match"
    return ""


def check_ex_pipe_pairs(design: Any, pictures: Any, pipe: Any) -> str:
    """design: a dict of "pairs", "seeds", "mean", "control", "interval"; pictures: {pair: (exchanged, control)}.

    mean, control: the share of pictures with the second person, a mean over pairs, with end token and padding of the
    second's prompt, and with nothing taken. interval: 95 %, of that mean, over pairs.
    """
    keys = ("pairs", "seeds", "mean", "control", "interval")
    if not isinstance(design, Mapping) or set(design) != set(keys):
        return other_type(design, f"a dict with the keys {', '.join(keys)}")
    if stopped := _bad_pairs(design["pairs"], pipe):
        return stopped
    pairs = [tuple(pair) for pair in design["pairs"]]
    try:
        seeds = [int(seed) for seed in design["seeds"]]
    except Exception:
        return f"seeds: {other_type(design['seeds'], 'the seeds of the noise, a list of whole numbers')}"
    if len(seeds) < 4 or len(set(seeds)) < len(seeds):
        return "seeds: four or more for each pair, no one twice"
    if set(seeds) & PAGE_SEEDS:
        return f"seeds: {min(set(seeds) & PAGE_SEEDS)} is noise that the page has drawn from; take fresh seeds"
    given = by_key(pictures, 2)
    if isinstance(given, str):
        return given
    given = {tuple(key) if isinstance(key, tuple | list) else key: sets for key, sets in given.items()}
    if set(given) != set(pairs):
        return f"pictures: give them by pair, for all {len(pairs)} pairs; yours are {short(list(given))}"
    if any(len(one) != len(seeds) for sets in given.values() for one in sets):
        return f"pictures: one for each of the {len(seeds)} seeds, with the exchange and without"
    second, control = (np.array([shows(given[p][k], p[1]).mean() for p in pairs]) for k in (0, 1))
    first, own = (np.array([shows(given[p][k], p[0]).mean() for p in pairs]) for k in (0, 1))
    swapped = "first and second of each pair are swapped"
    sets = "exchange and control are swapped"
    mean = verdict(design["mean"], second.mean(), {
        sets: control.mean(), swapped: first.mean(),
        "sum, not mean, over the pairs": second.sum(),
        "exchange minus control: give the share itself, the control stands beside it": second.mean() - control.mean(),
        "the pictures without the first person: whoever is not the first need not be the second": 1 - first.mean(),
        "the best pair, not the mean over pairs": second.max(),
    }, wanted="a share of 1", rel=0.0, abs_=0.006)  # fmt: skip
    other = verdict(design["control"], control.mean(), {
        "the control is asked for the second person, whom nothing should draw there": own.mean(),
        sets: second.mean(),
    }, wanted="a share of 1", rel=0.0, abs_=0.006)  # fmt: skip
    said = verdict_interval(design["interval"], second, len(pairs) * len(seeds), "pairs")
    also = f"{len(pairs)} pairs, {len(seeds)} fresh seeds each"
    return one_by_one({"mean": mean, "control": other, "interval": said}, also)
