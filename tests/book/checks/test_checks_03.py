"""Chapter 3: every solution runs and prints what its text says; every check names the typical mistakes."""

import numpy as np
import pandas as pd
import pytest
from solutions import Chapter, never_raises

from slug_lite.book import checks
from slug_lite.gradients import editable
from slug_lite.selection import pareto_front


@pytest.fixture(scope="module")
def chapter():
    return Chapter("03_one_gradient_each")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-hand-forget", "ex-across", "ex-retain-slope", "ex-rule"]


def test_the_gradient_by_hand(chapter):
    said, names = chapter.solve("ex-hand-forget")
    assert said == "check: right\n"
    hand, check = names["by_hand"], checks.check_ex_hand_forget
    forget, retain = names["forget_at_embeddings"], names["retain_at_embeddings"]
    assert check(lambda w, p, t: hand(w, p, t, forget)) == "right"

    def with_changed(**changes):
        """The chapter's own code with a function of it replaced: what a reader who forgets a part would write."""

        def attempt(w, p, t):
            kept = {name: hand.__globals__[name] for name in changes}
            hand.__globals__.update(changes)
            try:
                return hand(w, p, t, forget)
            finally:
                hand.__globals__.update(kept)

        return attempt

    def ungated(dz, kept, W2):
        return (dz @ W2).T @ kept[0], dz.T @ kept[2]

    def times(factor, at=forget):
        return lambda w, p, t: {name: factor * g for name, g in hand(w, p, t, at).items()}

    for mistake, attempt in {
        "the wrong sign": times(-1),
        "sum, not mean": times(5),
        "too long by the factor 3": times(3),
        "forget and retain are swapped": times(1, retain),
        "not normalised": with_changed(through_normalisation=lambda du, u, length: du),
        "the part along u is still in it": with_changed(through_normalisation=lambda du, u, length: du / length),
        "the division by |z| is missing": with_changed(
            through_normalisation=lambda du, u, length: du - (du * u).sum(1, keepdims=True) * u
        ),
        "the ReLU's gate is missing": with_changed(through_tower=ungated),
        "it is transposed": lambda w, p, t: {name: g.T for name, g in hand(w, p, t, forget).items()},
        "the gradient is zero": times(0),
        "give a dict with the keys": lambda w, p, t: {"image W1": 0},
        "this is None": lambda w, p, t: None,
        "your function stops with TypeError": lambda w: w,
        "wrong, in a way not on the list; right are: image W1": lambda w, p, t: (
            hand(w, p, t, forget) | {"image W2": np.ones((3, 7))}
        ),
    }.items():
        assert mistake in check(attempt), mistake
    assert "the wrong sign" in check(times(-1, retain)) and "swapped" in check(times(-1, retain))
    never_raises(check)


def test_what_stands_across(chapter):
    said, names = chapter.solve("ex-across")
    assert said.count("check: right") == 2 and not any(abs(value) > 1e-9 for value in names["products"].values())
    w, g = names["toy"], names["hand_f"]
    lengths = {name: np.linalg.norm(w[name]) * np.linalg.norm(g[name]) for name in w}
    longer = [np.linalg.norm(w[n] + step * g[n]) > np.linalg.norm(w[n]) for n in w for step in (-0.1, 0.1)]
    assert all(longer)  # "a step across makes a vector longer, whatever its sign"
    for mistake, answer in {
        "the product of the two lengths": lengths,
        "the absolute values were added": {n: abs(w[n] * g[n]).sum() for n in w},
        "the gradient with itself": {n: (g[n] ** 2).sum() for n in w},
        "the weight with itself": {n: (w[n] ** 2).sum() for n in w},
        "a product of matrices": {n: (g[n] @ w[n].T).sum() for n in w},
        "with the keys": {"image W1": 0.0},
    }.items():
        assert mistake in checks.check_ex_across(answer, g, w), mistake
    never_raises(checks.check_ex_across, g, w)


def test_the_slope_of_the_retain_loss(chapter):
    said, names = chapter.solve("ex-retain-slope")
    stats = names["grads"].stats
    assert said.count("check: right") == 3
    layer = stats.index[stats.cosine.abs().argmax()]
    row = stats.loc[layer]
    slope, step = row.cosine * row.forget_norm * row.retain_norm, 0.01 * row.weight_norm / row.forget_norm
    for mistake, answer in {
        "the wrong sign": -slope,
        "the distance is 2 * step": 2 * slope,
        "one step too many": slope / 2,
        "a difference, not yet a slope": 2 * step * slope,
        "forget and retain are swapped": row.forget_norm**2,
        "along the unit vector": row.cosine * row.retain_norm,
    }.items():
        assert mistake in checks.check_ex_retain_slope(answer, layer, stats), mistake
    assert "there is no layer" in checks.check_ex_retain_slope(slope, "another", stats)
    never_raises(checks.check_ex_retain_slope, layer, stats)


def test_layers_of_another_kind(chapter):
    said, names = chapter.solve("ex-rule")
    newcomers, wide, clip, check = names["newcomers"], names["wide"].stats, names["clip"], checks.check_ex_rule
    # "Five biases reach the front, four of them in the vision tower, and no gain of a norm does."
    assert "check: right" in said and len(newcomers) == 5 and all("bias" in name for name in newcomers)
    assert sum(name.startswith("visual.") for name in newcomers) == 4
    front, weights = pareto_front(wide), clip.weights()
    for mistake, answer in {
        "the whole front": front,
        "the old ones, not the newcomers": [n for n in front if n not in newcomers],
        "all newcomers, not those on the front": [n for n in wide.index if not editable(n, weights[n])],
        "1 missing": newcomers[1:],
        "1 too many": [*newcomers, "another"],
    }.items():
        assert mistake in check(answer, wide, clip), mistake
    assert "no biases" in check(newcomers, wide[[weights[n].ndim > 1 for n in wide.index]], clip)
    embedded = pd.concat([wide, wide.iloc[:1].rename(index=lambda _: "token_embedding.weight")])
    assert "embeddings were let in" in check(newcomers, embedded, clip)
    never_raises(check, wide, clip)
