"""The Pareto front, against comparing every pair, and the fronts of what remains."""

import numpy as np
import pandas as pd
import pytest

from slug_lite import pareto_front, pareto_fronts


def table(importance, alignment, tower=None, cosine=None):
    n = len(importance)
    columns = {"tower": tower or ["text"] * n, "forget_norm": 1.0, "importance": importance, "alignment": alignment}
    return pd.DataFrame(columns | {"cosine": cosine or alignment}, index=[f"layer{i}" for i in range(n)])


def brute(stats, by):
    keep = []
    for a in stats.itertuples():
        rivals = stats[stats.tower == a.tower].itertuples()
        if not any(b.importance > a.importance and getattr(b, by) < getattr(a, by) for b in rivals):
            keep.append(a.Index)
    return set(keep)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("by", ["alignment", "cosine"])
def test_equal_to_comparing_every_pair(seed, by):
    rng = np.random.default_rng(seed)
    cosine = rng.choice(np.linspace(-1, 1, 9), 30)
    towers = list(rng.choice(["vision", "text"], 30))
    stats = table(rng.choice(np.linspace(0.1, 1, 6), 30), np.abs(cosine), towers, list(cosine))
    assert set(pareto_front(stats, by=by)) == brute(stats, by)


def test_each_tower_has_a_front_and_ties_stay():
    stats = table([3, 2, 2, 1], [0.5, 0.1, 0.1, 0.3], ["text", "text", "text", "vision"])
    assert set(pareto_front(stats)) == {"layer0", "layer1", "layer2", "layer3"}
    assert pareto_front(table([3, 2], [0.1, 0.5])) == ["layer0"]
    for towers in (["vision", "text"], ["text", "vision"]):  # in the order in which the table has them
        assert pareto_front(table([1, 2], [0.1, 0.1], towers)) == ["layer0", "layer1"]


def test_signed_and_absolute_differ():
    stats = table([3, 2], [0.1, 0.6], cosine=[0.1, -0.6])
    assert pareto_front(stats) == ["layer0"] and set(pareto_front(stats, by="cosine")) == {"layer0", "layer1"}


def test_layers_that_the_loss_does_not_reach_are_left_out():
    stats = table([3, 0], [0.5, 0.0])
    stats.loc["layer1", "forget_norm"] = 0.0
    assert pareto_front(stats) == ["layer0"]


def test_another_measure_is_refused():
    with pytest.raises(KeyError, match="did you mean 'alignment'"):
        pareto_front(table([1], [1]), by="alignement")
    with pytest.raises(KeyError, match="did you mean 'cosine'"):
        pareto_fronts(table([1], [1]), 1, by="cosin")


@pytest.mark.parametrize("by", ["alignment", "cosine"])
def test_each_further_front_is_that_of_what_remains(by):
    rng = np.random.default_rng(3)
    cosine = rng.uniform(-1, 1, 30)
    stats = table(rng.uniform(0.1, 1, 30), np.abs(cosine), list(rng.choice(["vision", "text"], 30)), list(cosine))
    stats.loc["layer7", "forget_norm"] = 0.0  # on no front
    fronts, rest = pareto_fronts(stats, 1000, by=by), stats
    for front in fronts:
        assert front == pareto_front(rest, by=by) and set(front) == brute(rest[rest.forget_norm > 0], by)
        rest = rest.drop(index=front)
    assert list(rest.index) == ["layer7"] and 2 < len(fronts) < 30 and all(fronts)
    assert pareto_fronts(stats, 9) == pareto_fronts(stats, 9, by="alignment")  # the paper's, where none is named
    assert pareto_fronts(stats, 2, by=by) == fronts[:2] and pareto_fronts(stats.iloc[:0], 3, by=by) == []
