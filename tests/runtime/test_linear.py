"""Linear algebra on gradients: inner products, what is orthogonal to what is to stay, products of low rank."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from slug_lite.gradients import forget_gradients, one_shot_gradients
from slug_lite.runtime import linear
from slug_lite.runtime.linear import gram, inner, project_out, protect_layers


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 6, generator=generator) for _ in range(5)]


def test_inner_products_in_pieces():
    a, b = torch.randn(3, 1000), torch.randn(3, 1000)
    assert inner(a, b, piece=7) == pytest.approx((a.double() * b.double()).sum().item(), rel=1e-12)


def test_inner_products_of_millions_of_numbers_are_summed_in_double_precision():
    """In float32 the sum stops growing: from 2**24 on, one more is no more."""
    ones = torch.ones(1, dtype=torch.float32).expand(17, 1 << 20)
    assert inner(ones, ones) == 17 * 2**20 and inner(ones.half(), ones.half()) == 17 * 2**20
    small = torch.full((3, 1 << 20), 1e-3)
    assert inner(small, small) == pytest.approx(3 * 2**20 * small[0, 0].double().item() ** 2, rel=1e-12)


def test_gram_holds_the_inner_products(tensors):
    matrix = gram(tensors)
    assert matrix.shape == (5, 5) and torch.equal(matrix, matrix.T)
    assert matrix[1, 3].item() == pytest.approx((tensors[1] * tensors[3]).sum().item(), rel=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        gram([*tensors, torch.zeros(2, 2)])
    with pytest.raises(ValueError, match="0 gradients"):
        gram([])


def test_gram_adds_up_over_pieces(tensors, monkeypatch):
    wide = [t.double() for t in tensors]  # summed as on a GPU
    whole, exact = gram(tensors), gram(wide)
    monkeypatch.setattr(linear, "PIECE", 7)
    assert torch.allclose(gram(tensors), whole) and whole.shape == (5, 5)
    assert torch.allclose(gram(wide), exact, rtol=1e-12) and torch.allclose(exact, whole)


def test_what_is_projected_out_is_not_touched_and_the_rest_is_kept(tensors):
    gradient, *others = tensors
    (rest,) = project_out([gradient], others)
    assert rest.shape == gradient.shape and rest.dtype == gradient.dtype
    assert all((rest * other).sum().abs() < 1e-5 for other in others)
    assert ((gradient - rest) * rest).sum().abs() < 1e-4  # what was removed lies in the span
    assert (rest * gradient).sum() > 0  # still up the forget loss
    assert torch.equal(project_out([gradient], [])[0], gradient) and project_out([], others) == []


def test_the_same_gradient_twice_counts_once(tensors):
    gradient, other, *_ = tensors
    (thrice,), (once,) = project_out([gradient], [other, other, 2 * other]), project_out([gradient], [other])
    assert torch.allclose(thrice, once, atol=1e-5)


def test_nothing_left_is_said(tensors):
    with pytest.raises(ValueError, match="nothing is left of gradient 1"):
        project_out(tensors[1:2] + tensors[:1], [3 * tensors[0], tensors[2]])


def test_what_is_not_finite_is_said(tensors):
    for broken in (float("nan"), float("inf")):
        for given in ([torch.full_like(tensors[0], broken)], tensors[1:2]), ([tensors[1]], [tensors[2] * broken]):
            with pytest.raises(ValueError, match="not finite"):
                project_out(*given)


def test_short_and_nearly_equal_gradients_are_projected_out_too(tensors):
    gradient, one, two, *_ = tensors
    for others in ([1e-8 * one, two], [one, one + 3e-6 * two]):
        (rest,) = project_out([gradient.double()], [o.double() for o in others])
        assert all((rest * o).sum().abs() < 1e-6 * rest.norm() * o.norm() for o in others)
    assert torch.equal(project_out([gradient], [torch.zeros_like(one)])[0], gradient)


def test_a_layer_without_anything_left_is_taken_out_for_that_concept(tiny, sets):
    forget, retain = sets
    one, two = (one.forget for one in one_shot_gradients(tiny, [forget, retain[:6]], retain[6:]))

    def gradients_of(group):
        return forget_gradients(tiny, [forget], layers=lambda name, _: name in group)

    first, second = protect_layers([one, two], gradients_of, [list(one)])
    assert first == {} and set(second) == set(two)
    assert all(abs(inner(second[n], one[n])) <= 1e-4 * second[n].norm() * one[n].norm() for n in two)
    (alone,) = protect_layers([two], gradients_of, [list(one)])
    assert all((alone[n] - second[n]).norm() <= 1e-5 * second[n].norm() for n in two)


def test_groups_of_layers_are_protected_one_after_the_other(tensors):
    """What is asked for is asked for once, and let go before the next group."""
    own = {"a": tensors[0], "b": tensors[1], "c": tensors[2]}
    asked = []

    def gradients_of(group):
        asked.append(list(group))
        return [{layer: tensors[3] for layer in group}, {layer: tensors[4] for layer in group}]

    cuts = [["a", "b", "c"]], [["a"], ["b", "c"]]
    whole, parts = (protect_layers([own], gradients_of, groups)[0] for groups in cuts)
    assert asked == [["a", "b", "c"], ["a"], ["b", "c"]]
    assert list(whole) == list(parts) == list(own) and all(torch.equal(whole[n], parts[n]) for n in own)
    assert torch.equal(whole["b"], project_out([tensors[1]], tensors[3:])[0])


def test_products_of_low_rank(tensors):
    wide = torch.cat(tensors)  # (20, 6)
    left, right = linear.factors_of(wide, 2)
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    torch.testing.assert_close(linear.product((left, right), (2, 10, 6)), (u[:, :2] * s[:2] @ v[:2]).reshape(2, 10, 6))
    assert left.shape == (20, 2) and right.shape == (2, 6)
    pairs = [{"a": linear.factors_of(wide, 2)}, {"a": linear.factors_of(-0.5 * wide, 1), "b": (left, right)}]
    both = linear.side_by_side(pairs)
    assert both["a"][0].shape == (20, 3) and torch.equal(both["b"][0], left)
    summed = linear.product(pairs[0]["a"], (20, 6)) + linear.product(pairs[1]["a"], (20, 6))
    torch.testing.assert_close(linear.product(both["a"], (20, 6)), summed)


class Whole(TorchFunctionMode):
    """Takes in the calls that turn a tensor of `size` numbers or more into float64, or name a device to move it to."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, (str, torch.device))]
            moved = function.__name__ in ("cpu", "cuda") or (function.__name__ == "to" and given)
            if moved or out.dtype == torch.float64:
                self.seen.append(function.__name__)
        return out


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x.double(), lambda x: x.to(torch.float64), lambda x: x.to("cpu", torch.float64), lambda x: x.cpu(),
     lambda x: x.type(torch.float64), lambda x: torch.stack([x, x]).double(), lambda x: x.to(device="cpu"),
     lambda x: torch.as_tensor(x, dtype=torch.float64)],
    ids=["double", "to", "to the CPU as double", "cpu", "type", "a stack", "by name", "as_tensor"],
)  # fmt: skip
def test_tensors_turned_or_moved_whole_are_seen(wrong):
    with Whole(8) as whole:
        torch.ones(8).to(torch.float32, copy=True).half().float(), wrong(torch.ones(2))
        assert whole.seen == []
        wrong(torch.ones(8))
    assert len(whole.seen) == 1


def test_large_gradients_are_projected_where_they_are_and_quickly():
    """No tensor is turned into float64 whole, nor moved; the result is that of float64 to 1e-6."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(256, 5000, generator=generator)
    many = [common + 0.3 * torch.randn(256, 5000, generator=generator) for _ in range(9)]
    exact = torch.stack([g.double().flatten() for g in many])
    exact = exact @ exact.T
    with Whole(many[0].numel() // 4) as whole:  # larger than a piece
        found = gram(many)
        (rest,) = project_out(many[:1], many[1:])
    assert whole.seen == [] and whole.size > linear.PIECE and found.dtype == torch.float64
    assert ((found - exact).abs() <= 2e-8 * exact.diagonal().max()).all()
    (best,) = project_out([many[0].double()], [g.double() for g in many[1:]])
    assert (rest - best).norm() <= 1e-6 * best.norm()
    assert all(abs(inner(rest, other)) <= 1e-6 * rest.norm() * other.norm() for other in many[1:])


@pytest.mark.parametrize("share", [0.1, 0.01])
def test_what_rounding_leaves_in_the_way_is_taken_out_as_well(share):
    """In float32, of a gradient mostly in the span of others that are nearly alike: subtracting once is not enough."""
    generator = torch.Generator().manual_seed(0)
    a, b, c, d, own = (torch.randn(64, 64, generator=generator) for _ in range(5))
    others = [a, a + 0.01 * b, c, c + 0.01 * d]
    (rest,) = project_out([a + b + c + d + share * own], others)
    assert all(abs(inner(rest, other)) <= 2e-6 * rest.norm() * other.norm() for other in others)
    assert rest.norm() >= 0.9 * share * own.norm()


def test_half_precision_is_projected_in_single(tensors):
    gradient, *others = [t.bfloat16() for t in tensors]
    (rest,) = project_out([gradient], others)
    (best,) = project_out([gradient.double()], [other.double() for other in others])
    assert rest.dtype == torch.bfloat16 and (rest.double() - best).norm() <= 0.01 * best.norm()
