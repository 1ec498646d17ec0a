"""Work in pieces: nothing is left out, nothing is alone, and the whole is what all at once would give."""

import pytest
import torch
from torch import nn

import slug_lite as slug
from slug_lite.runtime.batches import Memory, batches, cached_backward, contrastive_batches, groups


def test_groups_are_of_like_size_and_hold_everything(tiny):
    names = [n for n, w in tiny.weights().items() if slug.editable(n, w)]
    found = groups(tiny.weights(), names, 3)
    assert [n for group in found for n in group] == names and len(found) == 3
    sizes = [sum(tiny.weights()[n].numel() for n in group) for group in found]
    assert max(sizes) <= 2 * sum(sizes) / 3


def test_more_passes_than_layers_are_no_empty_ones():
    weights = {name: torch.zeros(size) for name, size in (("a", 5), ("b", 1), ("c", 5))}
    assert groups(weights, list("abc"), 1000) == [["a"], ["b"], ["c"]] and groups(weights, ["b"], 7) == [["b"]]


def test_batches_hold_every_row_once():
    assert batches(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)] and batches(6, 3) == [slice(0, 3), slice(3, 6)]


@pytest.mark.parametrize(("n", "size", "lengths"), [(11, 5, [5, 6]), (12, 5, [5, 5, 2]), (11, None, [11]), (3, 2, [3])])
def test_no_pair_is_alone_in_a_contrastive_batch(n, size, lengths):
    found = contrastive_batches(n, size)
    assert [chunk.stop - chunk.start for chunk in found] == lengths
    assert [row for chunk in found for row in range(n)[chunk]] == list(range(n))


def test_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match=r"contrastive_batch=1; .* at least 2"):
        contrastive_batches(4, 1)
    for numbers in ({"batch_size": 0}, {"passes": 0}, {"batch_size": -1, "passes": 2}):
        with pytest.raises(ValueError, match="at least 1"):
            slug.Memory(**numbers)


@pytest.mark.parametrize(("size", "forwards"), [(10, 1), (3, 8), (1, 20)])
def test_activations_of_one_micro_batch_are_held_at_a_time(size, forwards):
    """A loss that sees all rows has the gradient of all at once; several micro-batches run twice, one runs once."""
    torch.manual_seed(0)
    x, towers, seen = torch.randn(10, 6).double(), [nn.Linear(6, 4).double() for _ in range(2)], []

    def loss(a, b):
        return torch.logsumexp(a @ b.T, 1).mean()

    def embed(rows):
        seen.append(len(x[rows]))
        return towers[0](x[rows]), towers[1](x[rows])

    whole = loss(towers[0](x), towers[1](x))
    wanted = torch.autograd.grad(whole, [p for tower in towers for p in tower.parameters()])
    ticks = []
    value = cached_backward(embed, loss, 10, size, lambda: ticks.append(1))
    assert value == pytest.approx(whole.item(), rel=1e-12) and len(seen) == forwards and max(seen) <= size
    assert len(ticks) == len(batches(10, size))
    for got, p in zip(wanted, [p for tower in towers for p in tower.parameters()], strict=True):
        torch.testing.assert_close(p.grad, got, rtol=1e-10, atol=1e-12)


def test_what_is_protected_is_held_in_groups_that_fit():
    """Five names leave 67 sets: 1.1 GB for one layer of 1024 x 4096."""
    weights = {name: torch.empty(1024, 4096, device="meta") for name in "abcde"} | {"f": torch.empty(8, 8)}
    large = 67 * weights["a"].nbytes
    assert 1.1e9 < large < Memory().protected < 2 * large
    assert Memory().protect(weights, list("abcdef"), 67) == [["a"], ["b"], ["c"], ["d"], ["e", "f"]]
    assert Memory(protected=2 * large).protect(weights, list("abcdef"), 67) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert Memory(passes=6).protect(weights, list("abcde"), 1) == [[name] for name in "abcde"]
    assert Memory().protect(weights, list("abcdef"), 1) == [list("abcdef")] and Memory().protect(weights, [], 9) == []
    assert Memory().place(weights, ["a"], 67) is None and Memory(protected=large - 1).place(weights, ["a"], 67) == "cpu"
    with pytest.raises(ValueError, match="protected=0"):
        Memory(protected=0)
