"""Several concepts in one layer: inner products, steps that keep off others, and steps in company."""

from importlib import import_module

import pandas as pd
import pytest
import torch

import slug_lite as slug
from slug_lite import several
from slug_lite.gradients import forget_gradients
from slug_lite.search import Search
from slug_lite.several import forget_in_layer, gram, keep_off

LAYER = "visual.proj"
method = import_module("slug_lite.unlearn")  # the module; the package's name of the same spelling is its function


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 6, generator=generator) for _ in range(5)]


def test_gram_holds_the_inner_products(tensors):
    matrix = gram(tensors)
    assert matrix.shape == (5, 5) and torch.equal(matrix, matrix.T)
    assert matrix[1, 3].item() == pytest.approx((tensors[1] * tensors[3]).sum().item(), rel=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        gram([*tensors, torch.zeros(2, 2)])
    with pytest.raises(ValueError, match="0 gradients"):
        gram([])


def test_what_is_kept_off_is_not_touched_and_the_rest_is_kept(tensors):
    gradient, *others = tensors
    (rest,) = keep_off([gradient], others)
    assert rest.shape == gradient.shape and rest.dtype == gradient.dtype
    assert all((rest * other).sum().abs() < 1e-5 for other in others)
    assert ((gradient - rest) * rest).sum().abs() < 1e-4  # what was removed lies in the span
    assert (rest * gradient).sum() > 0  # still up the forget loss
    assert torch.equal(keep_off([gradient], [])[0], gradient) and keep_off([], others) == []


def test_the_same_gradient_twice_counts_once(tensors):
    gradient, other, *_ = tensors
    (thrice,), (once,) = keep_off([gradient], [other, other, 2 * other]), keep_off([gradient], [other])
    assert torch.allclose(thrice, once, atol=1e-5)


def test_nothing_left_is_said(tensors):
    with pytest.raises(ValueError, match="nothing is left of gradient 1"):
        keep_off(tensors[1:2] + tensors[:1], [3 * tensors[0], tensors[2]])


def test_wrong_arguments_are_said(mini):
    weight = mini.weights()[LAYER]
    for error, message, call in [
        (KeyError, "layer", lambda: forget_in_layer(mini, "visual.prol", {"a": weight}, {"a": None})),
        (KeyError, "validation", lambda: forget_in_layer(mini, LAYER, {"a": weight}, {})),
        (ValueError, "at least 1", lambda: forget_in_layer(mini, LAYER, {}, {})),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_three_people_in_one_layer_and_those_who_are_kept_off_feel_less(mini):
    world, names, near = slug.toonworld, ["Ada Sunfield", "Dario Lindqvist", "Elif Tanabora"], "Sami Orlovane"
    sets = [world.pairs(name, 16, 0) for name in [*names, near]]
    gradients = forget_gradients(mini, sets, layers=lambda name, weight: name == LAYER, progress=False)
    *own, other = [one[LAYER] for one in gradients]
    validations = {n: slug.Validation.of_world(n, n=16, others=1, without=[o for o in names if o != n]) for n in names}
    pictures = world.pairs(near, 12, 3, "val")

    def loss(directions):
        """The bystander's forget loss, with all edits on."""
        edits = forget_in_layer(mini, LAYER, dict(zip(names, directions, strict=True)), validations)
        assert list(edits) == names and all(edit.layer == LAYER for edit in edits.values())
        with torch.no_grad(), slug.merge(list(edits.values())).on(mini):
            assert all(validations[name](mini)["forget_accuracy"] <= 0.05 for name in names)
            images = mini.image_features(mini.pixels(pictures))
            return 1 - (images * mini.text_features(mini.tokens(pictures.captions))).sum(1).mean().item()

    assert loss(keep_off(own, [other])) < loss(own) - 0.1


def test_forget_gradients_are_those_of_one_shot_gradients(tiny, sets):
    forget, retain = sets
    whole = slug.one_shot_gradients(tiny, forget, retain, progress=False).forget
    before = {n: p.detach().clone() for n, p in tiny.weights().items()}
    two = forget_gradients(tiny, [forget, retain], batch_size=4, progress=False)
    assert len(two) == 2 and set(two[0]) == set(whole)
    assert all(torch.allclose(two[0][n], g, atol=1e-6) for n, g in whole.items())
    assert not torch.allclose(two[1]["text_projection"], two[0]["text_projection"], atol=1e-4)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in tiny.weights().items())
    with pytest.raises(ValueError, match="set 1 of 2 has no pairs"):
        forget_gradients(tiny, [forget, forget[:0]], progress=False)


def test_the_steps_of_unlearn_keep_off_what_is_to_be_spared(mini):
    """The delta of a concept is orthogonal to the forget gradients of `spare`, and without them it is not."""
    spare = [slug.toonworld.pairs(name, 8, 0) for name in ("Dario Lindqvist", "Elif Tanabora")]

    def overlap(spare_sets):
        edit = slug.unlearn(
            mini, "Ada Sunfield", spare=spare_sets, tower="text", fronts=1, n_retain=64, evaluations=4, progress=False
        )
        gradients = forget_gradients(mini, spare, layers=lambda name, _: name == edit.layer, progress=False)
        delta = edit.delta.float()
        return max(
            ((delta * g[edit.layer]).sum() / delta.norm() / g[edit.layer].norm()).abs().item() for g in gradients
        )

    assert overlap(spare) < 1e-3 < 1e-2 < overlap(None)


def test_gram_adds_up_over_pieces(tensors, monkeypatch):
    whole = gram(tensors)
    monkeypatch.setattr(several, "PIECE", 7)
    assert torch.allclose(gram(tensors), whole) and whole.shape == (5, 5)


def test_short_and_nearly_equal_gradients_are_kept_off_too(tensors):
    gradient, one, two, *_ = tensors
    for others in ([1e-8 * one, two], [one, one + 3e-6 * two]):
        (rest,) = keep_off([gradient.double()], [o.double() for o in others])
        assert all((rest * o).sum().abs() < 1e-6 * rest.norm() * o.norm() for o in others)
    assert torch.equal(keep_off([gradient], [torch.zeros_like(one)])[0], gradient)


class On:
    """Which of two marks are on a weight: +1 at the first entry, +2 at the second."""

    def __init__(self, clip, layer=LAYER):
        self.weight, self.start, self.seen = clip.weights()[layer], clip.weights()[layer].detach().clone(), []
        self.layer, self.base = layer, slug.fingerprint(clip)

    def look(self):
        moved = (self.weight - self.start).flatten()[:2]
        self.seen.append([k for k in (0, 1) if moved[k] > 0.5])

    def mark(self, k, label):
        delta = torch.zeros_like(self.start)
        delta.view(-1)[k] = 1.0
        trace = pd.DataFrame({"k": [k]})
        return slug.Edit({self.layer: delta.half()}, {self.layer: 1.0}, label, self.base, trace=trace)


def test_unlearn_looks_for_each_in_the_company_of_the_others_twice(mini, monkeypatch):
    names, on, spared = ["Ada Sunfield", "Zorbo"], On(mini), []

    def best_edit(clip, gradients, fronts, tolerance, task, base, settings, painter):
        on.look()
        on.seen[-1].append([front for front in fronts if front == [LAYER]] != [])
        return on.mark(names.index(task.label), task.label)

    def others(exclude, *args, **kwargs):
        spared.append(list(exclude))
        return [world.pairs("Dario Lindqvist", 2, 0)]

    world = slug.toonworld
    monkeypatch.setattr(method, "_best_edit", best_edit)
    monkeypatch.setattr(world, "others", others)
    monkeypatch.setattr(method, "keep_off", lambda own, rest: spared.append(len(rest)) or keep_off(own, rest))
    edit = slug.unlearn(mini, names, n_forget=4, n_retain=16, fronts=1, progress=False)
    assert on.seen == [[False], [0, False], [1, True], [0, True]]
    assert spared[0] == names and set(spared[1:]) == {1}
    assert list(edit.trace.turn) == [0, 0, 1, 1] and list(edit.trace.concept) == names * 2
    spared.clear()
    slug.unlearn(mini, names, n_forget=4, n_retain=16, fronts=1, spare=(), progress=False)
    slug.unlearn(mini, "Zorbo", n_forget=4, n_retain=16, fronts=1, progress=False)
    assert spared == []


def test_forget_in_layer_looks_for_each_in_the_company_of_the_others(mini, monkeypatch):
    names, on = ["Ada Sunfield", "Zorbo"], On(mini)
    directions = {name: on.mark(k, name).delta.float() for k, name in enumerate(names)}
    validations = {name: slug.Validation.of_world(name, n=2, others=1) for name in names}

    def search(clip, layer, direction, score, **settings):
        on.look()
        return Search(1.0, {"forget_accuracy": 0.0}, pd.DataFrame())

    monkeypatch.setattr(several, "search_step", search)
    edits = forget_in_layer(mini, LAYER, directions, validations)
    assert on.seen == [[], [0], [1], [0]] and list(edits) == names
    with pytest.raises(ValueError, match="asks for it"):
        forget_in_layer(mini, LAYER, directions, dict(zip(names, reversed(validations.values()), strict=True)))


def test_passes_bound_the_gradients_that_are_held(tiny, sets, monkeypatch):
    forget, retain = sets
    whole, held = slug.one_shot_gradients(tiny, forget, retain, progress=False), []

    def counted(*args, **kwargs):
        found = forget_gradients(*args, **kwargs)
        held.append(sum(g.numel() for g in found[0].values()))
        return found

    monkeypatch.setattr(method, "forget_gradients", counted)
    (once,), (often,) = (method._keep_off(tiny, [whole], [retain[:4]], 8, passes, False) for passes in (1, 5))
    assert sum(held[1:]) == held[0] and len(held) == 6 and max(held[1:]) < held[0] / 2
    assert set(once.forget) == set(often.forget) == set(whole.forget)
    assert list(often.stats.index) == list(once.stats.index) == list(whole.stats.index)
    assert all(torch.allclose(once.forget[n], often.forget[n], atol=1e-7) for n in once.forget)


def test_a_layer_without_anything_left_is_taken_out_for_that_concept(tiny, sets):
    forget, retain = sets
    one, two = slug.one_shot_gradients(tiny, [forget, retain[:6]], retain[6:], progress=False)
    first, second = method._keep_off(tiny, [one, two], [forget], 8, 1, False)
    assert not first.forget and first.stats.empty and set(second.forget) == set(two.forget)


def test_what_is_spared_is_checked(mini):
    world = slug.toonworld
    ada = world.pairs("Ada Sunfield", 4, 9)
    with pytest.raises(ValueError, match="4 spare pairs are about Ada Sunfield"):
        slug.unlearn(mini, "Ada Sunfield", spare=[world.pairs("Zorbo", 2), ada])
    with pytest.raises(ValueError, match="spare is one Pairs"):
        slug.unlearn(mini, "Ada Sunfield", spare=world.pairs("Zorbo", 2))
