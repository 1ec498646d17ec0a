"""The next step to try, without any model."""

import math

import pytest

from slug_lite.runtime.bracket import PRECISION, Bracket, next_step


def test_next_step():
    assert next_step(1.0, (1.0, 0.5), None, 4.0) == 2.0
    assert next_step(2.0, (1.0, 2.0), (2.0, 6.0), 4.0) == pytest.approx(1.5)
    assert next_step(2.0, (1.0, 3.0), (2.0, 7.0), 4.0) == pytest.approx(1.25)
    assert next_step(2.0, (1.0, 3.999), (2.0, 7.0), 4.0) == pytest.approx(1.05)  # never stuck at an end
    assert next_step(2.0, (1.0, 5.0), (2.0, 7.0), 4.0) == 1.5  # wide enough, and yet a picture was known: halve
    assert next_step(2.0, None, (2.0, 7.0), 4.0) == 1.0
    assert next_step(2.0, (1.0, 3.0), (2.0, 7.0), None) == 1.5


def test_an_end_that_stays_moves_half_way_to_the_goal():
    with_goal = Bracket(1.0, goal=4.0)
    assert with_goal._nearer((3.0, 1.0)) == (3.0, 2.5) and with_goal._nearer(None) is None
    assert Bracket(1.0)._nearer((3.0, 1.0)) == (3.0, 1.0)


def test_doubles_then_halves_without_a_goal():
    bracket, steps = Bracket(1.0), []
    for _ in range(6):
        steps.append(bracket.step)
        bracket.add(bracket.step >= 3, margin=99.0)
        assert not bracket.narrow
    assert steps == [1, 2, 4, 3, 2.5, 2.75] and bracket.found == 3


def test_only_an_end_that_stayed_twice_is_leaned_over():
    bracket = Bracket(1.0, goal=4.0)
    for gone, margin in ((False, 0.0), (True, 8.0)):
        bracket.add(gone, margin)
    assert bracket.short == (1.0, 0.0) and bracket.enough == (2.0, 8.0) and bracket.step == pytest.approx(1.5)
    bracket.add(True, 7.0)  # the longer end moved twice in a row: the shorter one stayed
    assert bracket.short == (1.0, 2.0) and bracket.enough == (1.5, 7.0) and bracket.step == pytest.approx(1.2)
    bracket.add(False, 3.0)
    assert bracket.short == (pytest.approx(1.2), 3.0) and bracket.enough == (1.5, 7.0)


def test_it_is_narrow_with_a_goal_and_two_ends():
    bracket = Bracket(1.0, goal=4.0)
    bracket.add(True, 5.0)
    assert not bracket.narrow and bracket.found == 1.0  # nothing has failed yet
    bracket.short = (1.0 - 0.99 * PRECISION, 3.0)
    assert bracket.narrow
    bracket.short = (1.0 - 1.01 * PRECISION, 3.0)
    assert not bracket.narrow


def test_a_margin_that_says_nothing_leads_to_halves():
    bracket = Bracket(1.0, goal=4.0)
    for gone, margin in ((False, math.nan), (True, math.inf)):
        bracket.add(gone, margin)
    assert bracket.step == 1.5
