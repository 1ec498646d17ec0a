"""Short marks that tell models apart: by every weight's name, shape and values, and not by their order or precision."""

from itertools import pairwise

import pytest
import torch

from slug_lite.runtime.fingerprints import STEP, same_weights, tower_mark, weights_fingerprint


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(40, 50), "a.bias": torch.randn(40), "b.bias": torch.randn(40),
            "scale": torch.tensor(2.0)}  # fmt: skip


def test_the_same_weights_have_the_same_mark(weights):
    mark = weights_fingerprint(weights)
    assert len(mark) == 16 and set(mark) <= set("0123456789abcdef")
    assert weights_fingerprint(dict(reversed(weights.items()))) == mark
    rounded = {name: weight.bfloat16() for name, weight in weights.items()}
    assert weights_fingerprint(rounded) == weights_fingerprint({n: w.float() for n, w in rounded.items()}) == mark


@pytest.mark.parametrize("name", ["a.weight", "a.bias", "scale"])
def test_every_weight_counts_be_it_a_matrix_a_bias_or_a_number(weights, name):
    assert weights_fingerprint(weights | {name: 1.1 * weights[name]}) != weights_fingerprint(weights)
    assert weights_fingerprint({n: w for n, w in weights.items() if n != name}) != weights_fingerprint(weights)


def test_names_and_shapes_count(weights):
    mark, a, b = weights_fingerprint(weights), weights["a.bias"], weights["b.bias"]
    assert weights_fingerprint(weights | {"a.bias": b, "b.bias": a}) != mark
    renamed = {("c.bias" if name == "b.bias" else name): weight for name, weight in weights.items()}
    assert weights_fingerprint(renamed) != mark
    assert weights_fingerprint(weights | {"a.weight": weights["a.weight"].reshape(50, 40)}) != mark


def test_sizes_count_by_more_than_a_step(weights):
    """Signs and names alike: on either side of a step they are one model, a few steps apart they are two."""
    own, whole = {"a.weight": weights["a.weight"]}, weights_fingerprint(weights)
    marks = [weights_fingerprint({n: w * 2 ** (0.45 * STEP * k) for n, w in own.items()}) for k in range(9)]
    pairs = list(pairwise(marks))
    assert len(set(marks)) > 3 and all(same_weights(one, other) for pair in pairs for one, other in (pair, pair[::-1]))
    assert not any(same_weights(one, other) for one, other in zip(marks, marks[5:], strict=False))
    assert not same_weights(whole, weights_fingerprint({n: 1.1 * w for n, w in weights.items()}))
    assert not same_weights(whole, weights_fingerprint({n: -w for n, w in weights.items()}))


def test_what_is_no_text_tower_of_clips_has_no_mark(weights):
    assert tower_mark(weights) == "" != tower_mark({"ln_final.weight": weights["a.bias"]})
