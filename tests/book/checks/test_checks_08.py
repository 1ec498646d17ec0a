"""Chapter 8: every solution runs and prints what its text says; every check names the typical mistakes."""

import re

import numpy as np
import pytest
import torch
from solutions import OTHER_TYPES, Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import _drawn


class Given(Chapter):
    """The chapter without the pictures of growing guidance, which no solution needs: their seeds are given."""

    def solve(self, label, **given):
        assert any("\nfew = range(10, 18)\n" in cell for cell in self.cells)
        return super().solve(label, few=range(10, 18), **given)


@pytest.fixture(scope="module")
def chapter():
    return Given("08_from_words_to_pictures", given=["few"])


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == [
        "ex-pipe-order", "ex-pipe-solver", "ex-pipe-start", "ex-pipe-blend", "ex-pipe-pairs"
    ]  # fmt: skip


def test_which_states_are_alike(chapter):
    said, names = chapter.solve("ex-pipe-order")
    assert "\nright: " in said and re.search(r"positions alike: 4 with the mask, 0 without", said)
    assert "The start token and `a portrait of` come before" in chapter.texts["ex-pipe-order"]
    ids = [names["pipe"].tokenizer(names[one], padding="max_length").input_ids for one in ("first", "second")]
    assert sum(a == b for a, b in zip(*ids, strict=True)) > 4  # "Behind the name the tokens are alike again"
    two, check = (names["first"], names["second"], names["pipe"]), checks.check_ex_pipe_order
    alike = sum(a == b for a, b in zip(*ids, strict=True))
    assert check(np.float32(4), torch.tensor(0), *two).startswith("right")
    for mistake, answer in {
        "the start token is not counted": (3, 0), "one too many": (5, 0), "with the same token": (alike, 0),
        "states differ, where": (20, 0), "are swapped": (0, 4), "nothing is hidden": (4, 4),
        "it sees the whole prompt": (4, 1),
    }.items():  # fmt: skip
        assert mistake in check(*answer, *two), mistake
    assert "take two names" in check(4, 0, two[0], two[0], two[2])
    refused(lambda causal, *rest: check(causal, 0, *rest), 4, *two)
    refused(lambda without: check(4, without, *two), 0)


def test_how_few_steps(chapter):
    said, names = chapter.solve("ex-pipe-solver")
    assert "\nright: " in said
    found, enough, eights, check = names["found"], names["enough"], names["eights"], checks.check_ex_pipe_solver
    assert all(found[steps] >= found[32] for steps in found if steps >= enough)  # "never below that of the most steps"
    real, noise = eights[32], np.random.default_rng(0).integers(0, 256, eights[32].shape, np.uint8)
    made = {1: noise, 2: np.concatenate([noise[:4], real[:4]]), 4: real, 8: real}
    right = {s: float(_drawn.shows(one, names["NAME"]).mean()) for s, one in made.items()}
    assert right[1] == 0 < right[2] < right[4] == right[8]
    assert check(right, 4, made).startswith("right")
    assert (
        check({s: torch.tensor(v) for s, v in right.items()}, 4, {s: list(p) for s, p in made.items()})[:5] == "right"
    )
    for mistake, answer in {
        "sum, not mean": ({s: 8 * v for s, v in right.items()}, 4),
        "without it": ({s: 1 - v for s, v in right.items()}, 4),
        "in per cent": ({s: 100 * v for s, v in right.items()}, 4), "with any hit": (right, 2),
        "the most steps": (right, 8), "the keys": ({2: 1.0}, 4),
    }.items():  # fmt: skip
        assert mistake in check(*answer, made), mistake
    assert "three or more" in check({8: 1.0}, 8, {8: real})
    refused(check, right, 4, made)


def test_the_start_token(chapter):
    said, names = chapter.solve("ex-pipe-start")
    assert said.count("\nright: ") == 1
    change, whole, changed, rows = (names[name] for name in ("change", "whole", "changed", "two_rows"))
    assert "the pictures change all the same" in chapter.texts["ex-pipe-start"] and change > 0.5
    check, (a, b) = checks.check_ex_pipe_start, (rows[0].astype(float), rows[1].astype(float))
    assert check(change, [whole.numpy(), changed.double()], [list(rows[0]), rows[1]]).startswith("right")
    for mistake, answer in {
        "bytes wrap around": np.abs(rows[0] - rows[1]).mean(), "signed": (b - a).mean(),
        "squared": ((a - b) ** 2).mean(),
        "a share of 1": np.abs(a - b).mean() / 255, "the root of": ((a - b) ** 2).mean() ** 0.5,
        "sum, not mean": 8 * change,
    }.items():  # fmt: skip
        assert mistake in check(answer, (whole, changed), rows), mistake
    end, more, one = whole.clone(), changed.clone(), whole.clone()
    end[:, 7], more[:, 1], one[0, 0] = 0, 0, 0
    for mistake, states in {
        "clone it first": (changed, changed), "are swapped": (changed, whole), "position 7 was changed": (whole, end),
        "2 positions": (whole, more), "the first axis is the picture": (whole, one), "nothing": (whole, whole),
        "not zero": (whole, torch.cat([whole[:, :1] + 1, whole[:, 1:]], 1)),
    }.items():  # fmt: skip
        assert mistake in check(change, states, rows), mistake
    refused(check, change, (whole, changed), rows)


def test_blends(chapter):
    said, names = chapter.solve("ex-pipe-blend")
    assert "\nright: " in said
    found, nobody, blends, check = names["found"], names["nobody"], names["blends"], checks.check_ex_pipe_blend
    # "At the ends it is the one and the other, and on the way the first is lost before the second is found"
    assert found[0][0] > found[0][1] and found[1][1] > found[1][0] and 0 < nobody < 1
    lost = min(a for a in found if found[a][0] < 0.5)
    assert lost <= min(a for a in found if found[a][1] > 0.5) and sum(found[nobody]) < 1
    turned = {a: v[::-1] for a, v in found.items()}
    for mistake, answer in {
        "two names are swapped": (turned, nobody),
        "sum, not mean": ({a: (8 * v, 8 * w) for a, (v, w) in found.items()}, nobody),
        "added up": ({a: (sum(v),) * 2 for a, v in found.items()}, nobody), "the least, not the most": (found, 0),
    }.items():  # fmt: skip
        assert mistake in check(*answer, blends), mistake
    backwards = {1 - a: pictures for a, pictures in blends.items()}
    assert "1 - a are swapped" in check(found, nobody, backwards)
    assert "for a = 0, for a = 1" in check(found, nobody, {0.5: blends[0.5]})
    refused(check, found, nobody, blends)


def test_a_measurement_over_pairs(chapter):
    said, names = chapter.solve("ex-pipe-pairs")
    assert "\nright: " in said
    design, pictures, pipe, check = names["design"], names["exchanged"], names["pipe"], checks.check_ex_pipe_pairs
    pairs = design["pairs"]
    people = [name for pair in pairs for name in pair]
    assert len(set(people)) == 12 and not {names["NAME"], names["OTHER"]} & set(people)  # "the people ... are new"
    two = [*pairs[:5], (pairs[0][0], pairs[5][1])]
    for mistake, changed in {
        "is in two pairs": {"pairs": two}, "is from the page": {"pairs": [("Ada Sunfield", pairs[0][1]), *pairs[1:]]},
        "5 are few": {"pairs": pairs[:5]}, "drawn from; take fresh seeds": {"seeds": range(20, 24)},
        "no one twice": {"seeds": [1, 1, 2, 3]}, "exchange and control are swapped": {"mean": design["control"]},
        "sum, not mean": {"mean": 6 * design["mean"]}, "in a way not on the list": {"interval": (-1, 2)},
    }.items():  # fmt: skip
        assert mistake in check(design | changed, pictures, pipe), mistake
    long = next(n for n in names["world"].PEOPLE if n not in people and n not in (names["NAME"], names["OTHER"])
                and len(pipe.tokenizer(n).input_ids) != len(pipe.tokenizer(pairs[0][0]).input_ids))  # fmt: skip
    assert "different numbers of tokens" in check(design | {"pairs": [(pairs[0][0], long), *pairs[1:]]}, pictures, pipe)
    refused(check, design, pictures, pipe)
    for key in design:
        for other in OTHER_TYPES:
            assert not check(design | {key: other}, pictures, pipe).startswith("right") or other is True


def test_intervals_over_units():
    values = np.array([0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 0.25])
    mean, error = values.mean(), values.std(ddof=1) / 8**0.5
    right = _drawn.intervals(values)
    assert all(_drawn.verdict_interval(one, values, 64).startswith("right") for one in right)
    assert _drawn.verdict_interval(torch.tensor(right[0]), values, 64).startswith("right")
    for mistake, answer in {
        "over pictures": (mean - 1.96 * 0.06, mean + 1.96 * 0.06), "one standard error": (mean - error, mean + error),
        "spread of single": (mean - 2 * 8**0.5 * error, mean + 2 * 8**0.5 * error), "smallest and the largest": (0, 1),
        "swapped": right[1][::-1], "in per cent": (100 * right[1][0], 100 * right[1][1]),
    }.items():  # fmt: skip
        assert mistake in _drawn.verdict_interval(answer, values, 64), mistake
    for other in OTHER_TYPES:
        assert not _drawn.verdict_interval(other, values, 64).startswith("right")
