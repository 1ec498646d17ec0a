"""What checks of several chapters ask of an edit that a reader has made: whether it is one, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...edit import Edit
from ...runtime.modes import gradient_free
from ...runtime.zero_shot import embed_images, zero_shot_classifier
from ...world import evaluation, toonworld
from ._ground import mini
from .common import other_type, short

T = TypeVar("T")


def not_an_edit(answer: Any, wanted: str = "an edit") -> str:
    """The sentence for an answer that is no edit of the book's model; "" for one that is."""
    if not isinstance(answer, Edit):
        return other_type(answer, wanted)
    try:
        answer.check(mini(), force=True)
    except Exception as error:
        return f"give {wanted} of mini CLIP; this one does not fit it: {short(str(error))}"
    return ""


def under(edits: Sequence[Edit], ask: Callable[[], T]) -> T:
    """What is answered with edits on the checks' own mini CLIP, one inside the other."""
    if not edits:
        return ask()
    with edits[0].on(mini(), force=True):
        return under(edits[1:], ask)


def left(name: str, *edits: Edit, n: int = 48, seed: int = 1000) -> float:
    """The share of fresh test pictures of a concept that is recognised with the edits on."""
    return under(edits, lambda: evaluation.recognised(mini(), name, n=n, seed=seed).float().mean().item())


@gradient_free
def _names() -> Tensor:
    """The people's names as mini CLIP reads them now, unit vectors (people, dim)."""
    return zero_shot_classifier(mini(), toonworld.PEOPLE, toonworld.templates("people", "test"))


@cache
def _untouched_names() -> Tensor:
    return _names()


@cache
def _pixels(shown: str, n: int, seed: int) -> Tensor:
    """One person's test pictures, as mini CLIP takes them."""
    return mini().pixels(toonworld.pairs(shown, n=n, seed=seed, split="test"))


@gradient_free
def cosines(shown: str, *edits: Edit, n: int = 12, seed: int = 0) -> Tensor:
    """Mean cosines of one person's test pictures and each person's name, (people,), with the edits on."""
    names, read = _untouched_names(), {mini().tower(layer) for edit in edits for layer in edit.layers}

    def ask() -> Tensor:
        pictures = embed_images(mini(), _pixels(shown, n, seed))
        return (pictures @ (names if read <= {"vision"} else _names()).T).mean(0).cpu().double()

    return under(edits, ask)


def flat(edit: Edit, layer: str) -> Tensor:
    """An edit's delta in a layer as one vector of doubles, on the CPU; zeros where it does not change that layer."""
    if layer not in edit.layers:
        return torch.zeros(mini().weights()[layer].numel(), dtype=torch.float64)
    return edit.deltas[layer].detach().cpu().double().flatten()
