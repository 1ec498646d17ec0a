"""Checks of chapter 1: sentences about nobody, the logit scale, the floor of the contrastive loss, and strangers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models import Clip
from ...runtime.modes import gradient_free
from ...runtime.zero_shot import embed_images, labels, zero_shot_classifier
from ...world import toonworld
from .common import asked_for, number, other_type, verdict


@cache
def _pictures() -> tuple[np.ndarray, Tensor]:
    """The chapter's test pictures of people (n, H, W, 3), and whom each shows (n,)."""
    shown = toonworld.evaluation_pairs(n_per_concept=8, seed=0, split="test")
    found, who = labels(shown, toonworld.PEOPLE)
    return np.stack([shown.images[k] for k in found.tolist()]), who


def _faces(clip: Clip) -> tuple[Tensor, Tensor]:
    """Embeddings of those pictures (n, dim), and whom each shows (n,)."""
    images, who = _pictures()
    return embed_images(clip, clip.pixels(images)), who.to(clip.device)


def _templates() -> tuple[str, ...]:
    """The chapter's templates for people."""
    return (*toonworld.templates("people", "val"), *toonworld.templates("people", "test"))


@gradient_free
def check_ex_clip_nobody(first: Any, clip: Clip) -> str:
    """A dict: sentence -> the person whose pictures, on average, are nearest to it."""
    if not isinstance(first, Mapping) or not first or not all(isinstance(sentence, str) for sentence in first):
        return other_type(first, "a dict of sentences and the name of who comes first")
    faces, who = _faces(clip)
    texts = clip.text_features(clip.tokens(list(first)))
    table = faces @ texts.T  # (pictures, sentences)
    means = torch.stack([table[who == k].mean(0) for k in range(len(toonworld.PEOPLE))])  # (people, sentences)
    best = torch.stack([table[who == k].amax(0) for k in range(len(toonworld.PEOPLE))])
    for column, (sentence, name) in enumerate(first.items()):
        order = [toonworld.PEOPLE[k] for k in means[:, column].argsort(descending=True).tolist()]
        hair = f"the right one is near the top of the list {', '.join(sorted(order[:3]))}"
        if name not in toonworld.PEOPLE:
            return f"{sentence!r}: {other_type(name, 'the full name of one of the people')}"
        if name == order[0]:
            continue
        if name == order[-1]:
            return f"{sentence!r}: the wrong sign, {name} comes last; {hair}"
        if name == toonworld.PEOPLE[best[:, column].argmax()]:
            return f"{sentence!r}: the single best picture, not the mean over each person's pictures; {hair}"
        if name == order[1]:
            return f"{sentence!r}: {name} comes second, not first; {hair}"
        wears = [word for word in toonworld.looks(name).split() if word in sentence.split() and len(word) > 4]
        why = "guessed by the accessory" if wears else "not by the cosine"
        return f"{sentence!r}: {why}, {name} has place {1 + order.index(name)}; {hair}"
    return f"right: {', '.join(first.values())}"


@gradient_free
def check_ex_clip_scale(probabilities: Any, clip: Clip, name: str = "Ada Sunfield") -> str:
    """Mean probability of the right name on her own pictures, for the logit scales 1, 10, the learned one and 100."""
    wanted = "four mean probabilities, for the scales 1, 10, the learned one, and 100"
    if isinstance(stopped := asked_for(probabilities, np.zeros(4), wanted), str):
        return stopped
    faces, who = _faces(clip)
    one = toonworld.PEOPLE.index(name)
    every = faces @ zero_shot_classifier(clip, toonworld.PEOPLE, _templates()).T
    mine, learned = every[who == one], clip.logit_scale().item()
    scales = (1.0, 10.0, learned, 100.0)

    def mean(cosines: Tensor, dim: int = 1, times: tuple[float, ...] = scales) -> list[float]:
        return [(s * cosines).softmax(dim)[:, one].mean().item() for s in times]

    mistakes = {
        "the softmax runs over the pictures, not over the names: dim=1": mean(mine, 0),
        "divided by the scale: it is the inverse of a temperature, so multiply": mean(
            mine, 1, tuple(1 / s for s in scales)
        ),
        "everybody's pictures, not hers alone": mean(every),
        "the learned scale is a logarithm: take its exponential": mean(mine, 1, (1.0, 10.0, math.log(learned), 100.0)),
        "accuracy, not probability: the order does not depend on the scale": [
            (mine.argmax(1) == one).float().mean().item()
        ]
        * 4,
        "sum, not mean, over the pictures": [len(mine) * p for p in mean(mine)],
    }
    return verdict(probabilities, mean(mine), mistakes, wanted=wanted, rel=0.005, abs_=5e-4)


def check_ex_clip_floor(loss: Any, copies: int = 2, pairs: int = 16) -> str:
    """The least contrastive loss that you found, in nats, where each of the `pairs` captions occurs `copies` times."""
    right = math.log(copies)
    mistakes = {
        "sum, not mean, of the two directions: half of it is asked for": 2 * right,
        "in bits: take the natural logarithm": math.log2(copies),
        "the loss of a model that knows nothing, log B, not the least one": math.log(pairs),
        "zero would be the floor if no caption occurred twice": 0.0,
        "sum, not mean, over the pairs": pairs * right,
        "the probability itself, not minus its logarithm": 1 / copies,
    }
    found, listed = number(loss), [right, math.log(pairs), *mistakes.values()]
    if found is not None and right < found < math.log(pairs) and not np.isclose(found, listed, rtol=0.01).any():
        return f"not at the floor yet: a larger scale tells the vectors further apart; the floor is near {right:.2g}"
    return verdict(loss, right, mistakes, wanted="the loss in nats, a number", rel=0.01)


@gradient_free
def check_ex_clip_stranger(answer: Any, clip: Clip, stranger: str = "Zelda Quark", name: str = "Ada Sunfield") -> str:
    """(pictures won by the name never read, mean cosine of her pictures to the best of the names without her own)."""
    if isinstance(stopped := asked_for(answer, np.zeros(2), "(pictures won, mean cosine)"), str):
        return stopped
    faces, who = _faces(clip)
    one = toonworld.PEOPLE.index(name)
    more = faces @ zero_shot_classifier(clip, [*toonworld.PEOPLE, stranger], _templates()).T  # (n, people + 1)
    won = int((more.argmax(1) == len(toonworld.PEOPLE)).sum())
    cosines = more[who == one, :-1]
    rest = torch.cat([cosines[:, :one], cosines[:, one + 1 :]], dim=1)
    cosine = rest.amax(1).mean().item()
    last = int((more.argmax(1) == len(toonworld.PEOPLE) - 1).sum())
    mistakes = {
        "her own name is still in the list": (won, cosines.amax(1).mean().item()),
        "the pictures of the last real person were counted: the stranger's place is after all of them": (last, cosine),
        "the mean over the names, not the best of them": (won, rest.mean().item()),
        "the lowest cosine, not the highest": (won, rest.amin(1).mean().item()),
        "pictures that the stranger does not win were counted": (len(faces) - won, cosine),
    }
    return verdict(answer, (won, cosine), mistakes, wanted="(pictures won, mean cosine)", rel=0.02, abs_=0.004)
