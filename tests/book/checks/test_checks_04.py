"""Chapter 4: its solutions run and print what their texts say; every check names the typical mistakes."""

import numpy as np
import pandas as pd
import pytest
from solutions import Chapter, never_raises

from slug_lite.book import checks
from slug_lite.selection import pareto_front


@pytest.fixture(scope="module")
def chapter():
    return Chapter("04_which_layer", given=["ranked"])


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-beaten", "ex-rescale", "ex-long-step", "ex-exchange"]


def test_beaten(chapter):
    said, names = chapter.solve("ex-beaten")  # the solution itself compares with the library's front
    assert "check: right" in said
    beaten, check = names["beaten"], checks.check_ex_beaten

    def by(more, less, towers=True, both=True):
        def attempt(table, layer):
            own = table.loc[layer]
            rivals = (table[table.tower == own.tower] if towers else table).drop(layer)
            a, b = getattr(rivals.importance, more)(own.importance), getattr(rivals.alignment, less)(own.alignment)
            return bool(((a & b) if both else (a | b)).any())

        return attempt

    assert check(by("gt", "lt")).startswith("right")
    for mistake, attempt in {
        "the wrong sign": lambda table, layer: not beaten(table, layer),
        "the towers are mixed": by("gt", "lt", towers=False),
        "ties count as beaten": by("ge", "le"),
        "or, not and": by("gt", "lt", both=False),
        "more aligned layer win": by("gt", "gt"),
        "less important layer win": by("lt", "lt"),
        "give a function that returns True or False": lambda table, layer: "yes",
        "your function stops with KeyError": lambda table, layer: table.loc["Z"],
        "wrong, in a way not on the list": lambda table, layer: layer == "A",
    }.items():
        assert mistake in check(attempt), mistake
    never_raises(check)


def test_rescale(chapter):
    said, names = chapter.solve("ex-rescale")
    assert "check: right" in said and "visual.proj" in names["front"]
    # "The layer was on the front and drops off it": importance a hundredth, product and cosine as before
    assert "visual.proj" not in pareto_front(names["scaled"].stats)
    assert abs(names["a"].cosine - names["b"].cosine) < 1e-3
    for mistake, answer in {
        "the gradient is forgotten": (0.1, 10),
        "the weight's length is forgotten": (0.1, 0.1),
        "before and after are swapped": (100, 1),
        "the measure does": (1, 1),
        "importance and product are swapped": (1, 0.01),
        "of shape (2,)": 0.01,
    }.items():
        assert mistake in checks.check_ex_rescale(answer), mistake
    never_raises(checks.check_ex_rescale)


def test_long_step(chapter):
    said, names = chapter.solve("ex-long-step")
    assert said.count("check: right") == 4
    rows = [line for line in said.splitlines() if "retain loss rises" in line]
    forget, retain, rises = (
        [float(line.split(key)[1].split(end)[0].rstrip("%")) for line in rows]
        for key, end in (("forget ", ","), ("retain ", ","), ("rises in ", " of"))
    )
    # "Both predictions fade, the one for the retain loss most. The share of layers that harm the rest grows."
    assert forget[0] > forget[-1] and forget[0] - forget[-1] < retain[0] - retain[-1] and rises[0] < rises[-1]
    p, m = names["predicted"], names["far"]
    right = [np.corrcoef(p[:, k], m[:, k])[0, 1] for k in (0, 1)]
    for mistake, answer in {
        "forget and retain are swapped": right[::-1],
        "squared": [value**2 for value in right],
        "Spearman": [pd.Series(p[:, k]).rank().corr(pd.Series(m[:, k]).rank()) for k in (0, 1)],
        "the share of equal signs": [np.mean(np.sign(p[:, k]) == np.sign(m[:, k])) for k in (0, 1)],
        "the wrong sign": [-value for value in right],
    }.items():
        assert mistake in checks.check_ex_long_step(answer, p, m), mistake
    never_raises(checks.check_ex_long_step, p, m)


def test_exchange(chapter):
    """The places are those of the shipped table: the page holds its own search of all layers against it."""
    filed = chapter.names["now"].loc["Ada Sunfield"].dropna(subset="relative")
    filed = filed.sort_values(["val_kept", "val_loss"], ascending=[False, True])
    said, names = chapter.solve("ex-exchange", ranked=filed)
    assert "check: right" in said
    places = [eval(line.split("all: ")[1]) for line in said.splitlines() if "places" in line]
    assert places[0][0] == places[1][0]  # "its best layer is the same: nothing is gained"
    stats = names["stats"]
    rate, check = stats.cosine * stats.retain_norm / stats.forget_norm, checks.check_ex_exchange

    def front(values, **more):
        return pareto_front(stats.assign(alignment=values, **more))

    right, old = front(rate.abs()), pareto_front(stats)
    assert check(right, stats).startswith("right") and len(right) == len(old) + 1  # "gets one layer more"
    told = [
        check(answer, stats)
        for answer in (old, front(-rate.abs()), front(rate), front((stats.cosine * stats.retain_norm).abs()), right[1:])
    ]
    mistakes = ("alignment was not replaced", "the wrong sign", "signed", "divided by", "1 missing")
    for mistake, said in zip(mistakes, told, strict=True):
        assert mistake in said, (mistake, said)
    never_raises(check, stats)
