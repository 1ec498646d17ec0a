"""Short marks that tell models apart: by every weight's name, shape and values, and not by their order or precision."""

from itertools import pairwise, permutations

import pytest
import torch

import slug_lite as slug
from slug_lite.runtime.fingerprints import STEP, Mark, same_mark, weights_fingerprint
from slug_lite.runtime.text_towers import tower_mark


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(40, 50), "a.bias": torch.randn(40), "b.bias": torch.randn(40),
            "scale": torch.tensor(2.0)}  # fmt: skip


@pytest.fixture(scope="session")
def whole():
    return {name: weight.detach() for name, weight in slug.load_clip("mini", device="cpu").model.named_parameters()}


def test_the_same_weights_have_the_same_mark(weights):
    mark = weights_fingerprint(weights)
    assert len(mark) == 24 and set(mark) <= set("0123456789abcdef")
    assert weights_fingerprint(dict(reversed(weights.items()))) == mark


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_another_dtype_changes_no_mark_by_more_than_a_step(weights, whole, dtype):
    for one in (weights, whole):
        rounded = {name: weight.to(dtype) for name, weight in one.items()}
        mark = weights_fingerprint(rounded)
        assert mark == weights_fingerprint({n: w.float() for n, w in rounded.items()})
        assert same_mark(mark, weights_fingerprint(one))


def test_gains_that_training_has_hardly_moved_are_one_in_bfloat16_and_the_model_is_the_same():
    """Between 1 and 1.0078 bfloat16 has nothing: all of many gains are rounded the same way, which adds up."""
    generator = torch.Generator().manual_seed(0)
    gains = {f"block {k}.ln.weight": 1.003 + 0.001 * torch.randn(256, generator=generator) for k in range(200)}
    mark = weights_fingerprint(gains)
    for dtype in (torch.bfloat16, torch.float16):
        assert same_mark(weights_fingerprint({name: w.to(dtype) for name, w in gains.items()}), mark)
    assert not same_mark(weights_fingerprint({name: 1.02 * w for name, w in gains.items()}), mark)


@pytest.mark.parametrize("name", ["a.weight", "a.bias", "scale"])
def test_every_weight_counts_be_it_a_matrix_a_bias_or_a_number(weights, name):
    mark = weights_fingerprint(weights)
    assert not same_mark(weights_fingerprint(weights | {name: 1.1 * weights[name]}), mark)
    assert not same_mark(weights_fingerprint({n: w for n, w in weights.items() if n != name}), mark)


def test_names_and_shapes_count(weights):
    mark, a, b = weights_fingerprint(weights), weights["a.bias"], weights["b.bias"]
    assert not same_mark(weights_fingerprint(weights | {"a.bias": b, "b.bias": a}), mark)
    renamed = {("c.bias" if name == "b.bias" else name): weight for name, weight in weights.items()}
    assert not same_mark(weights_fingerprint(renamed), mark)
    assert not same_mark(weights_fingerprint(weights | {"a.weight": weights["a.weight"].reshape(50, 40)}), mark)


def test_a_scaled_weight_is_another_model_also_where_a_second_is_scaled_the_other_way(whole):
    """Of each of mini CLIP's weights alone, and of pairs: one sum over all sizes had passed the pairs as one model."""
    mark, names = weights_fingerprint(whole), [name for name, w in whole.items() if w.square().mean().sqrt() > 1e-2]
    assert len(names) > 60
    passed = [n for n in names if same_mark(weights_fingerprint(whole | {n: 1.04 * whole[n]}), mark)]
    pairs = list(permutations(names[::12], 2))
    passed += [
        (a, b) for a, b in pairs
        if same_mark(weights_fingerprint(whole | {a: 2 * whole[a], b: 0.5 * whole[b]}), mark)
    ]  # fmt: skip
    assert not passed and len(pairs) > 20


def test_sizes_count_by_more_than_a_step():
    """Signs and names alike: on either side of a step they are one model, a few steps apart they are two."""
    own = torch.randn(40, 50)
    marks = [Mark() for _ in range(30)]
    for k, mark in enumerate(marks):
        mark.add("a.weight", own * 2 ** (0.45 * STEP * k))
    texts = [mark.text() for mark in marks]
    assert len(set(texts)) > 3
    assert all(same_mark(one, other) for pair in pairwise(texts) for one, other in (pair, pair[::-1]))
    assert not any(same_mark(one, other) for one, other in zip(texts, texts[10:], strict=False))


def test_where_digits_end_sums_go_on_with_the_first():
    assert same_mark("a" * 12 + "000" * 4, "a" * 12 + "fff" * 4)
    assert not same_mark("a" * 12 + "000" * 4, "a" * 12 + "ffd" * 4)
    assert not same_mark("a" * 12 + "000" * 4, "a" * 11 + "b" + "000" * 4)
    assert not same_mark("a" * 12 + "000" * 4, "a" * 12 + "000")  # of another version
    assert same_mark("made by hand, not hex", "made by hand, not hex")
    assert not same_mark("made by hand, not hex", "made by hand, not hey")


def test_signs_and_what_is_not_finite_count(weights):
    mark = weights_fingerprint(weights)
    assert not same_mark(mark, weights_fingerprint({n: -w for n, w in weights.items()}))
    broken = weights_fingerprint(weights | {"scale": torch.tensor(float("nan"))})
    assert len(broken) == 24 and not same_mark(mark, broken)


def test_what_is_no_text_tower_of_clips_has_no_mark(weights):
    assert tower_mark(weights) == "" != tower_mark({"ln_final.weight": weights["a.bias"]})
