"""Chapter 10: every solution runs and prints what its text says; every check names the typical mistakes."""

import numpy as np
import pandas as pd
import pytest
import torch
from solutions import OTHER_TYPES, Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import asking as room


@pytest.fixture(scope="module")
def chapter():
    return Chapter("10_characters_and_protected_content")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-char-few", "ex-char-letters", "ex-char-person", "ex-char-worst"]


def test_how_many_pictures(chapter):
    said, names = chapter.solve("ex-char-few")
    assert "\nright: " in said
    cosines, own, layer, clip = (names[name] for name in ("cosines", "own", "layer", "clip"))
    values, check = np.array(list(cosines.values())), checks.check_ex_char_few
    assert (
        values[0] > 0.6 and len(own) == 16 and cosines[16] > 0.999
    )  # "A few ... already point nearly", "Sixteen are all"
    whole = names["of_drawn"].forget[layer]
    grads = [one[layer] for one in names["found"]]
    for mistake, answer in {
        "not normalised": [(one * whole).sum() for one in grads],
        "the lengths": [one.norm() / whole.norm() for one in grads],
        "squared": values**2, "1 minus": 1 - values, "in degrees": np.degrees(np.arccos(np.clip(values, -1, 1))),
        "the wrong sign": -values, "in per cent": 100 * values,
    }.items():  # fmt: skip
        assert mistake in check(dict(zip(cosines, answer, strict=True)), own, layer, clip), mistake
    assert "there are 16 pictures" in check({32: 1.0}, own, layer, clip)
    assert check(pd.Series(cosines), own, layer, clip).startswith("right")
    assert check({n: torch.tensor(v) for n, v in cosines.items()}, own, layer, clip).startswith("right")
    refused(check, cosines, own, layer, clip)


def test_misspellings(chapter):
    said, names = chapter.solve("ex-char-letters")
    assert "\nright: " in said
    found, shared, pictures, pipe = (names[name] for name in ("found", "shared", "pictures", "pipe"))
    assert shared["Gear hart"] == shared["Girhart"] == 0 < shared["Gearheart"] < shared["Gearhart"]
    check, name = checks.check_ex_char_letters, "Gearhart"
    counts = np.array(list(shared.values()))
    for mistake, answer in {
        "the start token": counts + 1, "before the name are counted": counts + 4, "that are not shared": 2 - counts,
        "all tokens of the misspelling": [len(pipe.tokenizer.tokenize(text)) for text in found],
        "letters, not tokens": [8, 5, 4, 7, 1],
    }.items():  # fmt: skip
        said = check(found, dict(zip(shared, answer, strict=True)), pictures, pipe, name)
        assert mistake in said, (mistake, said)
    for mistake, answer in {
        "sum, not mean": {text: 6 * share for text, share in found.items()},
        "without it": {text: 1 - share for text, share in found.items()},
    }.items():
        assert mistake in check(answer, shared, pictures, pipe, name)
    assert "no misspelling" in check(found, shared, {"gearhart": pictures[name]}, pipe, name)
    assert "not the whole prompt" in check(found, shared, {"a picture of Gearheart": pictures[name]}, pipe, name)
    refused(check, found, shared, pictures, pipe, name)


def test_whom_a_description_fits(chapter):
    said, names = chapter.solve("ex-char-person")
    assert "\nright: " in said and "\nthe whole description: Ada Sunfield\n" in said  # "fits her alone in this world"
    fits, found, pictures, world = (names[name] for name in ("fits", "found", "pictures", "world"))
    assert len(fits) > 1  # "Round glasses fit others as well"
    check, name = checks.check_ex_char_person, "Ada Sunfield"
    for mistake, answer in {
        "who else could be": [name], "without the person": [one for one in fits if one != name],
        "those whom it does not fit": [one for one in world.PEOPLE if one not in fits], "1 too many": [*fits, "Zorbo"],
    }.items():  # fmt: skip
        assert mistake in check(answer, found, pictures), mistake
    for mistake, answer in {
        "before and after are swapped": {text: both[::-1] for text, both in found.items()},
        "sum, not mean": {text: [8 * one for one in both] for text, both in found.items()},
        "without it": {text: [1 - one for one in both] for text, both in found.items()},
    }.items():
        assert mistake in check(fits, answer, pictures), mistake
    same = {text: [sets[0], sets[0]] for text, sets in pictures.items()}
    assert "the edit was not on" in check(fits, found, same)
    assert "of the prompt with the name" in check(fits, found, dict(list(pictures.items())[1:]))
    assert check(set(fits), {t: tuple(b) for t, b in found.items()}, pictures).startswith("right")
    refused(check, fits, found, pictures, name)


def test_the_worst_way(chapter):
    said, names = chapter.solve("ex-char-worst")
    assert "\nright: " in said
    chosen, reported = np.nanmean(names["told"], axis=0)
    assert chosen > reported  # "more where it was chosen than where it was not"
    was, left, worked, check = names["was"], names["left"], names["worked"], checks.check_ex_char_worst
    divisions = [names["divided"](np.random.default_rng(seed)) for seed in range(60)]
    choose, report = divisions[0]

    def answer(choose, report):
        way = worked.loc[choose].mean().idxmax()
        values = worked.loc[report, way].dropna()
        error = 2 * values.std() / len(values) ** 0.5 if len(values) > 1 else 0.0
        ends = values.mean() - error, values.mean() + error
        if not values.any():
            ends = 0.0, 3 / max(len(values), 1)
        return {"choose": choose, "report": report, "way": way, "left": values.mean(), "interval": ends}

    good = answer(choose, report)
    assert check(good).startswith("right")
    kinds = names["kind_of"]
    people = [name for name in was.index if kinds[name] == "people"]
    rest = [name for name in was.index if kinds[name] != "people"] + people[:3]
    for mistake, changed in {
        "tuned on the report half: 1 concepts": {"report": [*report, choose[0]]},
        "in neither half": {"report": report[1:]},
        "divide each kind": {"choose": people[3:], "report": rest}, "one of": {"way": "by telepathy"},
        "is there twice": {"report": [*report, report[0]]},
    }.items():  # fmt: skip
        assert mistake in check(good | changed), mistake
    low = worked.loc[choose].mean().idxmin()
    assert "the wrong sign" in check(good | {"way": low}) or worked.loc[choose].mean().max() == 0
    said = set()
    for some, others in divisions:
        full = answer(some, others)
        values = worked.loc[others, full["way"]].dropna()
        if len(values) < 2:
            continue
        assert check(full).startswith("right"), full
        given = {
            "because it was chosen": worked.loc[some, full["way"]].mean(), "sum, not mean": values.sum(),
            "their zeros say nothing": left.loc[others, full["way"]].mean(),
            "not after": was.loc[values.index, full["way"]].mean(),
        }  # fmt: skip
        said |= {mistake for mistake, value in given.items() if mistake in check(full | {"left": value})}
        best = worked.loc[others].mean().idxmax()
        if best != full["way"] and worked.loc[others].mean().max() > 0:
            said.add("tuned") if "tuned on the report half" in check(full | {"way": best}) else None
        if not values.any():
            said.add("width") if "of no width" in check(full | {"interval": (0, 0)}) else None
    assert len(said) >= 3, said
    for key in good:
        for other in OTHER_TYPES:
            assert not check(good | {key: other}).startswith("right") or other is True
    refused(check, good)
    assert "of no width" in room._nothing_found(0, 0, 7) and room._nothing_found(0, 3 / 7, 7).startswith("right")
    assert "p is near" in room._nothing_found(0, 0.1, 7) and "low is 0" in room._nothing_found(0.2, 0.4, 7)
