"""Checks of chapter 11: useless methods, a step length chosen and reported, what comes instead, and another CRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...world import toonworld
from ...world.canvas import canvas
from ...world.judge import NONE
from ._drawn import pictures_of, seen_in, verdict_interval
from ._ground import by_number, one_by_one
from .common import number, other_type, verdict, verdict_choice

THREE = ("UA", "IRA", "CRA")
DESIGN = ("times", "seeds", *THREE, "interval")
PAGE_SEEDS = {100, 101, 102, 103}  # noise that the page has drawn from

Cells = list[tuple[str, str]]


def _cells(some: Any) -> Cells | None:
    """Pairs of an object and a style; None for anything else."""
    try:
        found = [(str(thing), str(style)) for thing, style in some]
    except Exception:
        return None
    good = all(thing in toonworld.OBJECTS and style in toonworld.STYLES for thing, style in found)
    return found if found and good else None


def _asked(some: Any, name: str) -> tuple[Cells, np.ndarray] | str:
    """(cells, pictures) that an edit was counted on, or the sentence that says what is wrong with them."""
    wanted = "two things, the cells (object, style) and the pictures of them, in the same order"
    if not isinstance(some, Sequence) or isinstance(some, str | bytes) or len(some) != 2:
        return other_type(some, wanted)
    cells, pictures = _cells(some[0]), pictures_of(some[1])
    if cells is None or pictures is None:
        return other_type(some, wanted)
    if len(cells) != len(pictures):
        return f"{len(cells)} cells and {len(pictures)} pictures: give as many of each"
    if unseen := [cell for cell in cells if cell in toonworld.UNSEEN]:
        return f"{' in '.join(unseen[0])} was never shown in training: leave such cells out of the counts"
    mine = [name in cell for cell in cells]
    if all(mine) or not any(mine):
        return f"some cells must be of {name}, and some must not: {sum(mine)} of {len(mine)} are"
    return cells, pictures


def _three(given: Any) -> Any:
    """UA, IRA and CRA as a dict, also where they are given in this order."""
    if isinstance(given, Mapping | str | bytes) or not isinstance(given, Sequence):
        return given
    return dict(zip(THREE, given, strict=True)) if len(given) == 3 else given


def _named(name: Any) -> bool:
    return isinstance(name, str) and name in (*toonworld.OBJECTS, *toonworld.STYLES)


def _other_counts(cells: Cells, pictures: np.ndarray, name: str) -> dict[str, list[float]]:
    """What typical mistakes make of UA, IRA and CRA."""
    table, right = seen_in(pictures), canvas(cells, seen_in(pictures), name)
    own, other = (0, 1) if name in toonworld.OBJECTS else (1, 0)
    hit = table[["name", "style"]].to_numpy() == np.array(cells, dtype=object)
    ua, ira, cra = (right[key] for key in THREE)
    return {
        "UA counts the pictures in which the concept is still seen: it is to count the others": [1 - ua, ira, cra],
        "IRA and CRA are swapped: in-domain is the domain of what is forgotten": [ua, cra, ira],
        "IRA over all pictures, those asked for with the concept included": [ua, float(hit[:, own].mean()), cra],
        "CRA over all pictures, those asked for with the concept included": [ua, ira, float(hit[:, other].mean())],
        "all over all pictures": [ua, float(hit[:, own].mean()), float(hit[:, other].mean())],
        "what is lost, not what is kept": [ua, 1 - ira, 1 - cra],
    }


def check_ex_grid_nothing(nothing: Any, grey: Any, cells: Any, pictures: Any, name: Any) -> str:
    """nothing, grey: UA, IRA and CRA, as a dict, of two methods; cells, pictures: those drawn without any edit."""
    if not _named(name):
        return other_type(name, "the style or object that is to be forgotten, as the last argument")
    asked = _asked((cells, pictures), name)
    if isinstance(asked, str):
        return asked
    right = canvas(asked[0], seen_in(asked[1]), name)
    first = verdict(_three(nothing), right, _other_counts(*asked, name), wanted="a dict of UA, IRA and CRA", abs_=1e-3)
    second = verdict(_three(grey), {"UA": 1.0, "IRA": 0.0, "CRA": 0.0}, {
        "a grey square does not show the style either: UA counts it": [0, 0, 0],
        "nothing that was asked for is seen in a grey square, so nothing is kept": [1, 1, 1],
        "as of the method that does nothing": list(right.values()),
        "UA counts the pictures in which the concept is still seen, and IRA and CRA what is lost": [0, 1, 1],
    }, wanted="a dict of UA, IRA and CRA", abs_=1e-3)  # fmt: skip
    return one_by_one({"nothing": first, "grey": second}, "only the three together say something")


def check_ex_grid_length(design: Any, chosen_on: Any, reported_on: Any, name: Any) -> str:
    """A dict: "times" (the multiple), "seeds" (to choose, to report), "UA", "IRA", "CRA" and "interval" (95 %, of UA).

    chosen_on: {multiple: (cells, pictures)}; reported_on: (cells, pictures) with the multiple that was chosen, the one
    of the greatest sum UA + IRA + CRA. The interval is over objects.
    """
    if not isinstance(design, Mapping) or set(design) != set(DESIGN):
        return other_type(design, f"a dict with the keys {', '.join(DESIGN)}")
    if not _named(name):
        return other_type(name, "the style that is forgotten, as the last argument")
    tried = by_number(chosen_on)
    if tried is None or len(tried) < 2:
        return (
            f"chosen_on: {other_type(chosen_on, 'a dict of two or more multiples, each with its cells and pictures')}"
        )
    sets = {times: _asked(one, name) for times, one in tried.items()}
    for times, one in sets.items():
        if isinstance(one, str):
            return f"chosen_on, {times:g}: {one}"
    reported = _asked(reported_on, name)
    if isinstance(reported, str):
        return f"reported_on: {reported}"
    whole = {times: one for times, one in sets.items() if not isinstance(one, str)}
    if len({tuple(sorted(one[0])) for one in whole.values()}) > 1:
        return "chosen_on: the multiples were asked for different cells, so that they cannot be compared"
    things = [{cell[0] for cell in cells if name in cell} for cells in (next(iter(whole.values()))[0], reported[0])]
    if both := sorted(things[0] & things[1]):
        return f"tuned on the report half: {both[0]} in {name} is in both halves"
    if min(len(one) for one in things) < 8:
        return f"{min(len(one) for one in things)} objects in {name} are few for a half: eight or more"
    try:
        seeds = [int(seed) for seed in design["seeds"]]
    except Exception:
        seeds = []
    if len(seeds) != 2:
        return f"seeds: {other_type(design['seeds'], 'two seeds, (to choose, to report)')}"
    if seeds[0] == seeds[1]:
        return "seeds: the report is drawn from the noise that was chosen on; take another seed"
    if used := set(seeds) & PAGE_SEEDS:
        return f"seeds: {used.pop()} is noise that the page has drawn from; take fresh seeds"
    counts = {times: canvas(cells, seen_in(pictures), name) for times, (cells, pictures) in whole.items()}
    sums = {times: sum(one.values()) for times, one in counts.items()}
    best = [times for times in sums if sums[times] >= max(sums.values()) - 1e-9]
    value = number(design["times"])
    times = best[0] if value is None or not np.isclose(best, value).any() else value
    said = verdict(design["times"], times, {
        "the most forgotten, whatever it costs the others: the sum of all three is asked for":
            max(counts, key=lambda k: counts[k]["UA"]),
        "the least harm, whatever is left: the sum of all three is asked for":
            max(counts, key=lambda k: counts[k]["IRA"] + counts[k]["CRA"]),
        "the least sum, not the greatest": min(sums, key=lambda k: sums[k]),
        "the sum itself, where the multiple is asked for": max(sums.values()),
    }, wanted="the multiple that was chosen", rel=1e-6)  # fmt: skip
    cells, pictures = reported
    right, chosen = canvas(cells, seen_in(pictures), name), counts[times]
    three = verdict({key: design[key] for key in THREE}, right, {
        "the numbers of the half that was chosen on: report the other's, once": list(chosen.values()),
        **_other_counts(cells, pictures, name),
    }, wanted="UA, IRA and CRA of the report half, three shares", abs_=1e-3)  # fmt: skip
    gone = (seen_in(pictures)[["name", "style"]] != name).all(axis=1).to_numpy()
    by_thing = {t: [g for g, cell in zip(gone, cells, strict=True) if name in cell and cell[0] == t] for t in things[1]}
    units = [float(np.mean(one)) for one in by_thing.values()]
    ends = verdict_interval(design["interval"], units, sum(map(len, by_thing.values())), "objects")
    also = f"{times:g} times; UA {chosen['UA']:.0%} where it was chosen, {right['UA']:.0%} where it was not"
    return one_by_one({"times": said, "reported": three, "interval": ends}, also)


def check_ex_grid_instead(instead: Any, kept: Any, things: Any, pictures: Any, name: Any) -> str:
    """instead: the style seen most often in place of the forgotten one; kept: share with the object that was asked for.

    things: the object of each picture's prompt; pictures: all asked for in the forgotten style, drawn with the edit on.
    """
    if not _named(name) or name not in toonworld.STYLES:
        return other_type(name, "the style that is forgotten, as the last argument")
    drawn = pictures_of(pictures)
    objects = None if isinstance(things, str) else _cells([(t, name) for t in things] if _listed(things) else None)
    if drawn is None or objects is None or len(objects) != len(drawn):
        return other_type(things, "the object of each prompt, as many as pictures, and the pictures")
    table = seen_in(drawn)
    others = table["style"][table["style"] != name].value_counts()
    if others.empty:
        return f"all of these still show {name}: was the edit on?"
    most = [str(style) for style in others.index[others == others.max()]]
    own = instead.strip() if isinstance(instead, str) else instead
    style = own if isinstance(own, str) and own in most else most[0]
    why = {str(one).lower(): "seen less often than another" for one in (*toonworld.STYLES, NONE) if one not in most}
    why[name.lower()] = "this is the forgotten style itself: what comes instead is asked for"
    if others.index[-1] not in most:
        why[str(others.index[-1]).lower()] = "the rarest, not the most frequent"
    said = verdict_choice(own, style.lower(), why)
    hit = (table["name"] == [thing for thing, _ in objects]).to_numpy()
    rest = (table["style"] != name).to_numpy()
    share = verdict(kept, hit.mean(), {
        "sum, not mean: a share of 1 is asked for": hit.sum(),
        "the pictures whose object is lost": 1 - hit.mean(),
        "of the pictures without the style alone: all that were asked for count": hit[rest].mean(),
        "the pictures whose style is gone, where the object is asked for": rest.mean(),
        "any object, not the one that was asked for": (table["name"] != NONE).mean(),
    }, wanted="a share of 1", rel=0.0, abs_=0.006)  # fmt: skip
    return one_by_one({"instead": said, "kept": share}, f"{len(others)} others are seen in {int(rest.sum())} pictures")


def _listed(some: Any) -> bool:
    try:
        return not isinstance(some, bytes | Mapping) and all(isinstance(one, str) for one in some)
    except Exception:
        return False


def check_ex_grid_cra(measures: Any, high: Any) -> str:
    """measures: "other prompts", "rest of the prompt", "forgetting" or "quality"; high: would you want it high?"""
    what = verdict_choice(measures, "rest of the prompt", {
        "other prompts": "that is the CRA of the protocol, on pictures of other objects; here the object is asked for",
        "forgetting": "that is UA, which asks for the object itself; this one asks for the style beside it",
        "quality": "a picture may be well drawn and disobey: quality is asked for by the Fréchet distance",
    })  # fmt: skip
    wanted = verdict_choice(high, True, {
        False: "low would mean that with the object its style goes too, of which nobody asked to be rid",
    })  # fmt: skip
    return one_by_one({"measures": what, "high": wanted}, "another promise than leaving other prompts alone")
