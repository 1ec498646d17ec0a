"""Paired comparisons: the sign-flip test against all assignments written out, Holm against its own example."""

import itertools

import numpy as np
import pytest

from slug_lite.book.comparisons import EXACT, compare, holm, said, sign_flip, with_interval
from slug_lite.world.evaluation import interval


def test_signs_that_all_point_one_way_are_the_rarest_there_can_be():
    assert sign_flip([1.0, 2.0, 3.0, 4.0]) == 2 / 16
    assert sign_flip([-1.0, -2.0, -3.0, -4.0]) == 2 / 16


def test_exact_is_what_all_assignments_written_out_give():
    values = np.random.default_rng(0).normal(0.4, 1, 7)
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=7)
    ]
    assert sign_flip(values) == np.mean([s >= abs(values.sum()) - 1e-12 for s in sums])


def test_zeros_change_nothing_and_nothing_but_zeros_is_no_difference():
    assert sign_flip([0.0, 1.0, 2.0, 0.0, 0.0]) == sign_flip([1.0, 2.0])
    assert sign_flip([0.0, 0.0]) == 1.0


def test_random_deals_agree_with_all_of_them():
    values = np.random.default_rng(1).normal(0.5, 1, EXACT)
    exact, dealt = sign_flip(values), sign_flip([*values, 1e-6])  # one more than are tried in full, of no weight
    assert dealt == pytest.approx(exact, abs=0.02)


def test_p_is_rarely_small_where_there_is_nothing():
    rng = np.random.default_rng(2)
    assert np.mean([sign_flip(rng.normal(0, 1, 9)) <= 0.05 for _ in range(400)]) == pytest.approx(0.05, abs=0.03)


def test_holm_multiplies_by_how_many_are_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_a_table_counts_concepts_and_says_how_many_comparisons_there_are():
    table = compare({"worse": [1.0] * 8, "same": [0.0] * 8, "mixed": [1.0, -1.0] * 4})
    assert table.loc["worse", ["better", "worse", "tied"]].tolist() == [0, 8, 0]
    assert table.loc["mixed", ["better", "worse", "tied"]].tolist() == [4, 4, 0]
    assert table.attrs["apart"] == 1
    assert table.loc["worse", "p (Holm)"] == pytest.approx(3 * 2 / 256, abs=1e-3)
    assert said(table).startswith("3 comparisons, of which 0.2 would") and said(table).endswith("different: worse")


def test_nothing_to_compare_is_told():
    with pytest.raises(ValueError, match="nothing to compare"):
        sign_flip([])


def test_a_mean_has_its_interval_and_none_where_there_is_nothing_to_resample():
    values = [0.0, 0.0, 0.02, 0.04]
    low, high = interval([100 * v for v in values])
    assert with_interval(values, times=100) == f"1.5 ({low:.1f} to {high:.1f})" and low < 1.5 < high
    assert with_interval([0.0, 0.0], 2) == "0.00 (all alike)" and with_interval([3], times=2) == "6.0 (all alike)"
    assert with_interval(-np.array(values), sign="+").startswith("+0.0 (")  # no minus before a zero
    assert with_interval([1, 2], sign="+").startswith("+1.5 (")
    with pytest.raises(ValueError, match="nothing to average"):
        with_interval([])


def test_differences_that_are_all_alike_have_no_interval():
    assert list(compare({"none": [0.0] * 5, "some": [0.0, 1.0]})["95 % interval"]) == ["all alike", "+0.00 to +1.00"]
