"""The classic mistakes of re-implementations, made on purpose: the tests that pin the method down must notice each."""

import inspect

import pytest
import test_gradients

from slug_lite import gradients as G
from slug_lite import search
from slug_lite.pairs import Pairs


def rewritten(function, old, new):
    """A function of the gradients module with a piece of its source replaced, which must be there exactly once."""
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{old!r} is not in {function.__name__} once: adapt this test"
    room = dict(vars(G))
    exec(source.replace(old, new), room)
    return room[function.__name__]


def against_autograd(tiny, sets):
    test_gradients.test_equal_to_plain_autograd_whatever_the_batch_size(tiny, sets, 4)


def ascent(tiny, sets):
    test_gradients.test_the_sign_is_an_ascent(tiny, sets)


def contrastive_batches(tiny, sets):
    test_gradients.test_contrastive_batches_are_averaged(tiny, sets)


def wrong_sign(monkeypatch):
    right = search.make_delta
    monkeypatch.setattr(search, "make_delta", lambda gradient, step: right(gradient, -step))


def captions_of_the_concept(monkeypatch):
    right = G._retain_backward

    def wrong(clip, retain, *rest):
        return right(clip, Pairs(retain.images, ["a photo of Ada Sunfield"] * len(retain), retain.concepts), *rest)

    monkeypatch.setattr(G, "_retain_backward", wrong)


def batches_added_up(monkeypatch):
    wrong = rewritten(G._forget_backward, " * (len(texts) / len(forget))", "")
    monkeypatch.setattr(G, "_forget_backward", wrong)


def batches_counted_alike(monkeypatch):
    wrong = rewritten(G._forget_backward, "(len(texts) / len(forget))", "(1 / -(-len(forget) // batch_size))")
    monkeypatch.setattr(G, "_forget_backward", wrong)


def contrastive_batches_added_up(monkeypatch):
    right = G._retain_backward
    monkeypatch.setattr(G, "_retain_backward", lambda clip, retain, share, *rest: right(clip, retain, 1.0, *rest))


def gradients_never_zeroed(monkeypatch):
    monkeypatch.setattr(G, "_collect", rewritten(G._collect, "        p.grad = None\n", ""))


MISTAKES = [
    (wrong_sign, ascent), (captions_of_the_concept, against_autograd), (batches_added_up, against_autograd),
    (batches_counted_alike, against_autograd), (contrastive_batches_added_up, contrastive_batches),
    (gradients_never_zeroed, against_autograd),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "check"), MISTAKES, ids=lambda f: f.__name__)
def test_a_mistake_is_noticed(tiny, sets, monkeypatch, mistake, check):
    check(tiny, sets)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(tiny, sets)
