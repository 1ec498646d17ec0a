"""Chapter 1: every solution runs and prints what its text says; every check names the typical mistakes."""

import math

import pytest
import torch
from solutions import Chapter, never_raises

from slug_lite.book import checks


@pytest.fixture(scope="module")
def chapter():
    return Chapter("01_clip_and_what_it_knows")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-clip-nobody", "ex-clip-scale", "ex-clip-floor", "ex-clip-stranger"]


def test_nobody(chapter):
    said, names = chapter.solve("ex-clip-nobody")
    first, clip, check = names["first"], names["clip"], checks.check_ex_clip_nobody
    assert "check: right" in said and [name.split()[0] for name in first.values()] == ["Ada", "Hugo", "Rosa"]
    sentence = next(iter(first))
    faces, who, people = names["faces"], names["who"], names["world"].PEOPLE
    with torch.no_grad():
        scores = faces @ clip.text_features(clip.tokens([sentence]))[0]
    means = torch.stack([scores[who == k].mean() for k in range(len(people))])
    order = [people[k] for k in means.argsort(descending=True)]
    for mistake, name in {
        "the wrong sign": order[-1],
        "comes second, not first": order[1],
        "not by the cosine": next(n for n in order[5:-1] if "sunglasses" not in names["world"].looks(n)),
        "guessed by the accessory": next(n for n in order[2:-1] if "sunglasses" in names["world"].looks(n)),
        "give the full name": "Ada",
    }.items():
        assert mistake in check({sentence: name}, clip), (mistake, check({sentence: name}, clip))
    never_raises(check, clip)


def test_scale(chapter):
    said, names = chapter.solve("ex-clip-scale")
    found, mine, ada, clip = names["found"], names["mine"], names["ada"], names["clip"]
    assert "check: right" in said and said.count("recognised 100%") == 4
    # "from twice that of a guess to certainty"
    assert 1.7 < found[0] * len(names["world"].PEOPLE) < 2.3 and found[-1] > 0.999 and found == sorted(found)
    scales, every = (1, 10, names["scale"].item(), 100), names["faces"] @ names["classifier"].T
    for mistake, answer in {
        "over the pictures, not over the names": [(s * mine).softmax(0)[:, ada].mean() for s in scales],
        "divided by the scale": [(mine / s).softmax(1)[:, ada].mean() for s in scales],
        "everybody's pictures": [(s * every).softmax(1)[:, ada].mean() for s in scales],
        "take its exponential": [(s * mine).softmax(1)[:, ada].mean() for s in (1, 10, math.log(scales[2]), 100)],
        "accuracy, not probability": [1, 1, 1, 1],
        "sum, not mean": [(s * mine).softmax(1)[:, ada].sum() for s in scales],
        "in per cent": [100 * p for p in found],
    }.items():
        assert mistake in checks.check_ex_clip_scale(answer, clip), mistake
    never_raises(checks.check_ex_clip_scale, clip)


def test_floor(chapter):
    said, names = chapter.solve("ex-clip-floor")
    assert "check: right" in said and abs(names["loss"] - math.log(2)) < 1e-4
    for mistake, answer in {
        "sum, not mean, of the two directions": 2 * math.log(2),
        "in bits": 1.0,
        "knows nothing": math.log(16),
        "zero would be the floor": 0,
        "sum, not mean, over the pairs": 16 * math.log(2),
        "the probability itself": 0.5,
        "the wrong sign": -math.log(2),
        "not at the floor yet": 1.967,
    }.items():
        assert mistake in checks.check_ex_clip_floor(answer), mistake
    never_raises(checks.check_ex_clip_floor)


def test_stranger(chapter):
    said, names = chapter.solve("ex-clip-stranger")
    won, rest, more = names["won"], names["rest"], names["faces"] @ names["more"].T
    clip, hers = names["clip"], more[names["who"] == names["ada"], :-1]
    assert "check: right" in said and won == 0  # "fits nobody in particular"
    cosine, last = rest.amax(1).mean(), int((more.argmax(1) == len(names["world"].PEOPLE) - 1).sum())
    for mistake, answer in {
        "her own name is still in the list": (won, hers.amax(1).mean()),
        "the last real person": (last, cosine),
        "the mean over the names": (won, rest.mean()),
        "the lowest cosine": (won, rest.amin(1).mean()),
        "does not win": (len(more) - won, cosine),
    }.items():
        assert mistake in checks.check_ex_clip_stranger(answer, clip), mistake
    never_raises(checks.check_ex_clip_stranger, clip)
