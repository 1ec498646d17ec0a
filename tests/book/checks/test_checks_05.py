"""Chapter 5: every solution runs and prints what its text says; every check names the typical mistakes."""

import re

import pytest
from solutions import Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import steps as room


@pytest.fixture(scope="module")
def chapter():
    return Chapter("05_how_far")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-step-pictures", "ex-step-backwards", "ex-step-margin", "ex-step-closed-form"]


def test_how_many_pictures(chapter):
    said, _ = chapter.solve("ex-step-pictures")
    assert said.startswith("299.0 99.0\nright")
    assert "299, so about 300 as the rule of three says, and 99." in chapter.texts["ex-step-pictures"]
    check = checks.check_ex_step_pictures
    assert check(300, 99).startswith("right")
    for mistake, answer in {
        "swapped": (99, 299), "not rounded up": (298.07, 99), "95 % and 5 % are swapped": (6, 99),
        "share and level are swapped": (90, 99), "not 99 %": (459, 99), "1 / n for 1 / (n + 1)": (299, 100),
        "the right value is near 99": (299, 12),
    }.items():  # fmt: skip
        assert mistake in check(*answer)
    refused(check, 299, 99)


def test_the_wrong_way(chapter):
    said, names = chapter.solve("ex-step-backwards")
    assert "\nright: " in said
    margins, text = names["walked"], chapter.texts["ex-step-backwards"]
    assert "more negative than it was, up to about two first steps; from four on it is less negative" in text
    assert margins[-2] < margins[-1] < margins[-0.5] < margins[0] < margins[-4] < margins[-8] < margins[-16] < 0
    assert "The accuracy was 100 % before" in text
    assert re.search(r" 0.0 first steps: .*concept 100%", said) and re.search(r"-0.5 first steps: .*concept 100%", said)
    assert not re.search(r"-16.0 first steps: .*concept 100%", said)  # "whatever falls there falls by damage"
    check, begin, some = checks.check_ex_step_backwards, room._begin(room._layer()), (-0.5, -4, -16)
    right = {s: margins[s] for s in some}

    def each(column, factor=begin):
        return {s: room._looked(s * factor)[column] for s in some}

    assert check(right).startswith("right")
    for mistake, answer in {
        "walked uphill: the sign": each("margin", -begin), "not a number of first steps": each("margin", 1.0),
        "in standard deviations": each("standardized_margin"), "the accuracy, which hides it": each("forget_accuracy"),
        "the wrong sign": {s: -m for s, m in right.items()}, "walked uphill: the exercise": {1: -8.0},
    }.items():  # fmt: skip
        assert mistake in check(answer)
    assert "stays what it was" in check(right, True)
    refused(check, right, False)


def test_the_margin_to_ask_for(chapter):
    said, names = chapter.solve("ex-step-margin")
    assert "\nright: " in said
    steps, left = names["steps"], names["shares"]
    text = chapter.texts["ex-step-margin"]
    assert "Margins of 1 and 2 are the rule of no hit over again" in text
    no_hit = room._searched(None).step / room._begin(room._layer())
    assert all(abs(steps[m] / no_hit - 1) < 0.03 and left[m] > 0 for m in (1, 2))
    assert "At 4 nothing is left, 8 has nothing more to gain, and at 12 the others begin to pay" in text
    assert left[4] == left[8] == left[12] == 0
    others = [float(o) for o in re.findall(r"others ([\d.]+)%", said)]
    assert others[:4] == [100.0] * 4 and others[4] < 100
    check, begin = checks.check_ex_step_margin, room._begin(room._layer())
    some = (1, 4)
    right, shares = ({m: one[m] for m in some} for one in (steps, left))
    for mistake, answer in {
        "lambda itself": ({m: s * begin for m, s in right.items()}, shares),
        "no margin asked for": (dict.fromkeys(some, no_hit), shares),
        "as a part of the weight's": ({m: s / 10 for m, s in right.items()}, shares),
        "the margin that was reached": ({m: room._searched(m).score["standardized_margin"] for m in some}, shares),
        "tuned on the report half": (right, dict.fromkeys(some, 0)),
        "what was forgotten": (right, {m: 1 - s for m, s in shares.items()}),
        "in per cent": (right, {m: 100 * s for m, s in shares.items()}),
        "never reached": ({100: 1.0}, shares),
    }.items():
        assert mistake in check(*answer)
    refused(check, right, shares)


def test_two_products(chapter):
    said, names = chapter.solve("ex-step-closed-form")
    assert "recognised just beyond: 0.0\nright: " in said
    check, (first, last) = checks.check_ex_step_closed_form, (names["falls"].min(), names["falls"].max())
    unit = room._begin(room.PROJECTION)
    assert check(first / unit, last / unit).startswith("right")
    test, long = room._falls("test"), room._falls(unit_texts=False)
    for mistake, answer in {
        "swapped": (last / unit, first / unit),
        "lambda itself": (room._falls().min() * unit, room._falls().max() * unit),
        "not normalised": (long.min(), long.max()), 'of the split "test"': (test.min(), test.max()),
        "the mean over the pictures": (names["falls"].mean() / unit,) * 2,
    }.items():  # fmt: skip
        assert mistake in check(*answer)
    refused(check, first / unit, last / unit)
