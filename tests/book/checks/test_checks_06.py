"""Chapter 6: every solution runs and prints what its text says; every check names the typical mistakes."""

import re

import numpy as np
import pytest
from solutions import OTHER_TYPES, ROOT, Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import one_layer as room

NOTEBOOK = ROOT / "notebooks" / "06_why_one_layer_is_enough.ipynb"


@pytest.fixture(scope="module")
def chapter():
    return Chapter("06_why_one_layer_is_enough")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-one-other", "ex-one-mean", "ex-one-best", "ex-one-two"]


def test_another_kind(chapter):
    said, names = chapter.solve("ex-one-other")
    assert "\nright: " in said
    name, many, text = names["name"], names["many"], chapter.texts["ex-one-other"]
    assert "about half as many layers have a window as for the person on the page" in text
    page = int(re.search(r"costs the rest at most 2 points: (\d+) of", NOTEBOOK.read_text(encoding="utf-8"))[1])
    assert 0.4 < many / page < 0.6
    assert "the characters have the fewest usable layers" in text and names["fewest"].idxmin() == "characters"
    known, kept = room._map(name)
    good, check = (known == 0) & (kept >= kept.max() - 2), checks.check_ex_one_other
    for mistake, answer in {
        "cells counted": good.sum(), "only the left half": (known == 0).any(1).sum(),
        "only the right half": (kept >= kept.max() - 2).any(1).sum(), "without a window": (~good.any(1)).sum(),
        "two or more neighbouring steps": (good.sum(1) > 1).sum(),
    }.items():  # fmt: skip
        assert mistake in check(name, answer, "characters"), mistake
    assert "another kind has fewer" in check(name, many, "styles")
    assert "of the page's own kind" in check(room._tables()[0]["name"].iloc[0], many, "characters")
    refused(check, name, many, "characters")


def test_the_size_of_a_mean(chapter):
    said, _ = chapter.solve("ex-one-mean")
    assert said.startswith("all: 0.0  single: 1.0\nright")
    assert "It is not true." in chapter.texts["ex-one-mean"]
    check = checks.check_ex_one_mean
    assert check(False).startswith("right") and check([3, -1], [0.25, 0.75]).startswith("right")
    for mistake, answer in {
        "look for two rates that cancel": (True,), "of one sign": ([1, 2],), "not enough cancels": ([3, -1],),
        "not normalised": ([1, -1], [1, 1]), "a share is negative": ([1, -1], [2, -1]),
        "a share for each rate": ([1, -1], [1]),
    }.items():  # fmt: skip
        assert mistake in check(*answer)
    for other in OTHER_TYPES:
        if other is not True:  # an answer, and a wrong one
            assert not check(other).startswith("right")


def test_the_choice_by_length(chapter):
    said, names = chapter.solve("ex-one-best")
    another, cost, check = names["another"], names["cost"], checks.check_ex_one_best
    assert said.startswith(f"another layer: {another} of 8") and "\nright: " in said
    assert "For most of the eight, and in the mean it costs next to nothing" in chapter.texts["ex-one-best"]
    gap = names["by_length"].cost - names["by_accuracy"].cost
    assert 4 < another < 8 and abs(cost) < 0.05
    assert (gap < -1e-9).sum() > 1 and (gap > 1e-9).sum() == 1  # "less for some, more for one"
    for mistake, answer in {
        "pick the same layer": (8 - another, cost), "sum for mean": (another, 8 * cost),
        "the wrong sign": (another, -cost), "not minus the other": (another, names["by_length"].cost.mean()),
    }.items():  # fmt: skip
        assert mistake in check(*answer)
    able = names["layers"].dropna(subset=["left"])
    peeked = able.groupby("name").cost.min() - names["by_accuracy"].cost.sort_index()
    assert "tuned on the report half" in check(another, peeked.mean())
    steps = able.loc[able.groupby("name").step.idxmin()].set_index("name").cost - names["by_accuracy"].cost.sort_index()
    assert "units of each layer's gradient" in check(another, steps.mean())
    refused(lambda some: check(another, some), cost)
    for other in OTHER_TYPES:
        assert not check(other, cost).startswith("right")


def test_one_block(chapter):
    said, names = chapter.solve("ex-one-two")
    assert "\nright: " in said
    vision, text = (np.array(list(one.values())) for one in names["by_block"])
    gone = np.flatnonzero(text == 0)
    assert "In the last vision block the layers work together" in chapter.texts["ex-one-two"]
    assert (vision == 0).all()  # "a change a fraction as long as ours forgets, and forgetting lasts"
    shortest = float(re.search(r"V\d  ?s = 0.05  length +([\d.]+)", said)[1])
    assert shortest < float(re.search(r"our change has length ([\d.]+)", said)[1])
    assert len(gone) and text[gone[0] :].max() > 0.9  # "the concept goes and *comes back*"
    check, (first, second) = checks.check_ex_one_two, names["by_block"]
    name = room._tables()[0]["name"].iloc[0]
    last = [room._block(tower) for tower in room.BLOCKS]

    def other(how="relative", sign=1):
        return [{s: room._recognised(name, block, sign * s, how) for s in first} for block in last]

    for mistake, answer in {
        "the towers are swapped": (second, first), "the wrong sign: this block walked down": other(sign=-1),
        "not relative": other("absolute"), "only the block's first layer": (first, other("one")[1]),
        "the length is shared out": (first, other("shared")[1]),
        "what was forgotten": (first, {s: 1 - v for s, v in second.items()}),
    }.items():  # fmt: skip
        assert mistake in check(*answer), (mistake, check(*answer))
    refused(check, first, second)
