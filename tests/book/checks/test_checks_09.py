"""Chapter 9: every solution runs and prints what its text says; every check names the typical mistakes."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from solutions import OTHER_TYPES, Chapter, refused, run

from slug_lite.book import checks
from slug_lite.book.checks import drawings as room


class Given(Chapter):
    """The chapter without what no solution needs: two lists are read off their cells, and one search is not made."""

    def solve(self, label, **given):
        for name in ("theirs", "asked"):
            (cell,) = (cell for cell in self.cells if re.search(rf"^{name} = ", cell, re.MULTILINE))
            found = dict(self.names)
            run("\n".join(re.findall(rf"^{name} \+?= .*", cell, re.MULTILINE)), found)
            given[name] = found[name]
        given["of_clip"] = self.names["edit"]  # any edit will do
        return super().solve(label, **given)


@pytest.fixture(scope="module")
def chapter():
    return Given("09_unlearning_in_stable_diffusion", given=["theirs", "asked", "of_clip"])


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == [
        "ex-draw-guidance", "ex-draw-plain", "ex-draw-two", "ex-draw-mixed", "ex-draw-choice"
    ]  # fmt: skip


def test_guidance(chapter):
    said, names = chapter.solve("ex-draw-guidance")
    assert "\nright: " in said and said.count(" of 8 before") == 4
    found, pictures, check = names["found"], names["pictures"], checks.check_ex_draw_guidance
    assert all(after <= before for before, after in found.values())
    for mistake, answer in {
        "before and after are swapped": {w: both[::-1] for w, both in found.items()},
        "shares, where counts": {w: [n / 8 for n in both] for w, both in found.items()},
        "those with it are asked for": {w: [8 - n for n in both] for w, both in found.items()},
        "the same count twice": {w: [both[0]] * 2 for w, both in found.items()},
        "in per cent": {w: [100 * n for n in both] for w, both in found.items()},
    }.items():
        assert mistake in check(answer, pictures), mistake
    same = {w: (sets[0], sets[0]) for w, sets in pictures.items()}
    assert "the edit was not on" in check(found, same) and "three or more" in check(found, {2: pictures[2]})
    arrays = {w: [torch.as_tensor(one.images) for one in sets] for w, sets in pictures.items()}
    assert check({w: np.array(both) for w, both in found.items()}, arrays).startswith("right")
    refused(check, found, pictures)


def test_along_the_gradient(chapter):
    said, names = chapter.solve("ex-draw-plain")
    assert "\nright: " in said
    moves, both, pipe, theirs = (names[name] for name in ("moves", "both", "pipe", "theirs"))
    assert moves[1] > 2 * moves[0]  # "Along the gradient the others' prompts move further for the same lesson"
    check, measured = checks.check_ex_draw_plain, [room._moved(one, pipe, theirs) for one in both]
    for mistake, answer in {
        "the two edits are swapped": moves[::-1], "in per cent": [100 * one for one in moves],
        "not divided by the length": [far.mean() for far, _ in measured],
        "squared": [((far / long) ** 2).mean() for far, long in measured],
        "the last position alone": [(far / long)[:, -1].mean() for far, long in measured],
    }.items():  # fmt: skip
        assert mistake in check(answer, both, pipe, theirs), mistake
    assert "the two are the same" in check(moves, (both[0], both[0]), pipe, theirs)
    assert check(torch.tensor(moves), list(both), pipe, tuple(theirs)).startswith("right")
    refused(check, moves, both, pipe, theirs)


def test_two_edits(chapter):
    said, names = chapter.solve("ex-draw-two")
    assert "\nright: " in said
    both, edits, found, pictures = (names[name] for name in ("both", "edits", "found", "pictures"))
    check, shared = checks.check_ex_draw_two, set(edits[0].layers) & set(edits[1].layers)
    for layer in both.layers:  # "`merge` adds the changes of a layer that both edits want"
        total = sum(edit.deltas[layer].float() for edit in edits if layer in edit.layers)
        assert torch.allclose(both.deltas[layer].float(), total, rtol=2e-3, atol=1e-5)

    def made(deltas):
        return replace(both, deltas=deltas, steps=dict.fromkeys(deltas, 1.0))

    half = made({k: (d.float() / 2).to(d.dtype) for k, d in both.deltas.items()})
    later = made({**edits[0].deltas, **edits[1].deltas})
    for mistake, edit in {
        "the edit of Ada Sunfield alone": edits[0], "the edit of Zorbo alone": edits[1], "not their sum": half,
    }.items():  # fmt: skip
        assert mistake in check(edit, edits, found, pictures), mistake
    assert check(later, edits, found, pictures).startswith("both: ") or not shared
    for mistake, shares in {
        "sum, not mean": {n: 4 * s for n, s in found.items()}, "without it": {n: 1 - s for n, s in found.items()},
        "in per cent": {n: 100 * s for n, s in found.items()},
    }.items():  # fmt: skip
        assert mistake in check(both, edits, shares, pictures), mistake
    own = {name: pictures[name] for name in ("Ada Sunfield", "Zorbo")}
    assert "draw some of the others too" in check(both, edits, found, own)
    assert "none of Zorbo" in check(both, edits, found, {n: p for n, p in pictures.items() if n != "Zorbo"})
    refused(check, both, edits, found, pictures)


def test_two_names(chapter):
    said, names = chapter.solve("ex-draw-mixed")
    assert "\nright: " in said
    found, pictures, check = names["found"], names["pictures"], checks.check_ex_draw_mixed
    if found["Ada Sunfield"][0] != found["Ada Sunfield"][1]:
        assert "before and after are swapped" in check({n: both[::-1] for n, both in found.items()}, pictures)
    two = list(found)
    if found[two[0]] != found[two[1]]:
        assert "two names are swapped" in check({two[0]: found[two[1]], two[1]: found[two[0]]}, pictures)
    assert "shares, where" in check({n: [k / 6 for k in both] for n, both in found.items()}, pictures)
    assert "with it are asked for" in check({n: [6 - k for k in both] for n, both in found.items()}, pictures)
    assert "the keys" in check({"Zorbo": [1, 2]}, pictures)
    refused(check, found, pictures)


def test_a_choice_and_its_report(chapter):
    said, names = chapter.solve("ex-draw-choice")
    assert "\nright: " in said
    # "the number of the half that was chosen on is too low", "with other halves another search is chosen"
    assert names["chosen_on"] < names["reported_on"] and len(set(names["often"])) > 1
    costs, kind_of, check = names["costs"], names["kind_of"], checks.check_ex_draw_choice
    choose, report = names["divided"](np.random.default_rng(0))
    arm = costs.loc[choose].mean().idxmin()
    values = costs.loc[report, arm].to_numpy()
    error = values.std(ddof=1) / len(values) ** 0.5
    good = {"choose": choose, "report": report, "arm": arm, "cost": values.mean()}
    good["interval"] = (values.mean() - 2 * error, values.mean() + 2 * error)
    assert check(good).startswith("right")
    people = [name for name in costs.index if kind_of[name] in ("people", "characters")]
    rest = [name for name in costs.index if name not in people]
    for mistake, changed in {
        "tuned on the report half: 1 concepts": {"report": [*report, choose[0]]},
        "in neither half": {"report": report[1:]},
        "divide each kind": {"choose": people, "report": rest}, "is there twice": {"choose": [*choose[1:], choose[1]]},
        "the wrong sign": {"arm": costs.loc[choose].mean().idxmax()}, "is not among": {"choose": ["Nobody"]},
        "because it was chosen": {"cost": costs.loc[choose, arm].mean()},
        "those chosen on incl": {"cost": costs[arm].mean()},
        "sum, not mean": {"cost": values.sum()}, "in per cent": {"cost": 100 * values.mean()},
        "one standard error": {"interval": (values.mean() - error, values.mean() + error)},
        "swapped": {"interval": good["interval"][::-1]},
    }.items():  # fmt: skip
        assert mistake in check(good | changed), mistake
    for seed in range(20):  # a division where another arm is the best of the report half
        some, others = names["divided"](np.random.default_rng(seed))
        first, best = costs.loc[some].mean().idxmin(), costs.loc[others].mean().idxmin()
        if first != best:
            told = check({"choose": some, "report": others, "arm": best, "cost": 0.1, "interval": (0, 1)})
            assert "tuned on the report half" in told or "chosen on all" in told or best == costs.mean().idxmin()
    for key in good:
        for other in OTHER_TYPES:
            assert not check(good | {key: other}).startswith("right")
    refused(check, good)
