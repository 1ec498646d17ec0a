"""The appendix on benchmarks: every solution runs and prints what its text says; every check names mistakes."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from solutions import OTHER_TYPES, Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import costs as room


@pytest.fixture(scope="module")
def chapter():
    return Chapter("A3_benchmarks")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-bench-own", "ex-bench-depth"]


def test_another_machine(chapter):
    said, names = chapter.solve("ex-bench-own")
    assert "\nright: " in said
    text, vision = (float(re.search(rf"{tower} (\d+)", said.split("median: ")[1])[1]) for tower in ("text", "vision"))
    table = names["layers"]
    page = table.groupby("tower")["ratio"].median()
    assert text > vision and page["text"] > page["vision"]  # "The text layers gain more than the vision layers"
    check, ratios = checks.check_ex_bench_own, table.set_index("layer")["ratio"]
    mine = {name: value * (1 + 0.1 * k) for k, (name, value) in enumerate(ratios.items())}
    last, largest = list(mine)[-1], max(mine, key=mine.get)
    mine[last] = ratios[last] / 4
    far = (pd.Series(mine) - ratios).abs().idxmax()
    assert check(last, mine, table).startswith("right")
    assert check(last, {k: torch.tensor(v) for k, v in mine.items()}, table).startswith("right")
    assert check(last, pd.Series(mine), table).startswith("right")
    for mistake, answer in {
        "differs least": next(iter(mine)), "compared by division": far,
        "the largest of your ratios": largest, "differs less": list(mine)[2], "one of": "another layer",
    }.items():  # fmt: skip
        said = check(answer, mine, table)
        assert not said.startswith("right") and (mistake in said or answer in (far, largest)), said
    assert "page's own" in check(last, dict(ratios), table)
    assert "upside down" in check(last, {k: 1 / v for k, v in mine.items()}, table)
    assert "three or more" in check(last, {last: 2.0}, table)
    refused(check, last, mine, table)


def test_the_cost_of_a_try(chapter):
    said, names = chapter.solve("ex-bench-depth")
    assert "\nright: " in said
    ratio, first, by_block, check = (
        names["times_cheaper"],
        names["first"],
        names["by_block"],
        checks.check_ex_bench_depth,
    )
    assert 5 < by_block[0] < 5.5  # "a little above five"
    row = names["bench"][names["bench"]["case"] == "tries"].iloc[0]
    layers = pd.DataFrame(row["layers"])
    early = layers[layers["layer"] == "visual.transformer.resblocks.0.mlp.c_proj.weight"].iloc[0]
    tens = 10 * early.plain_s / (early.first_s + 9 * early.try_s + early.rest_s)
    assert tens > by_block[0]  # "which is why the table shows more"
    three = float(re.search(r"against ten plain ones: ([\d.]+) times", said)[1])
    assert by_block[0] < three < by_block[0] * 10 / 3  # "though less than ten thirds"

    def upper(k, K, n_f, n_r, c, t, tries):
        return torch.tensor(tries * ((n_f + n_r) * c + t) / (tries * n_f * c * (K - k) / K + n_r * c))

    assert check(upper, 11).startswith("right") and check(ratio, np.float32(6)).startswith("right")
    for mistake, rule in {
        "looked at in every try": "every", "k / K of the tower": "before", "t is missing": "no prompts",
        "runs no prompts": "prompts", "never looked at": "no look", "one plain try": "one plain",
        "against one of ours": "one ours", "upside down": "inverse",
    }.items():  # fmt: skip
        said = check(lambda *case, rule=rule: room._ratio(*case, rule=rule), first)
        assert mistake in said, (mistake, said)
    for mistake, answer in {
        "one too few": 5, "one too many": 7, "not rounded up": 5.68, "a part of the tower": 0.5,
        "the ratio": by_block[6],
    }.items():  # fmt: skip
        assert mistake in check(ratio, answer), mistake
    assert "ZeroDivision" in check(lambda *case: 1 / 0, 6) or not check(lambda *case: 1 / 0, 6).startswith("right")
    for other in OTHER_TYPES:
        assert not check(other, first).startswith("right") and not check(ratio, other).startswith("right")
        assert not check(lambda *case, other=other: other, first).startswith("right")
