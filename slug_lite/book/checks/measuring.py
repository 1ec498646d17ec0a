"""Checks of chapter 2: how many pictures a claim needs, fair noise, an attack's AUC, and the distance to retraining."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...world import evaluation
from .common import array, asked_for, other_type, verdict


def _pictures(hits: int, p: float, level: float) -> int:
    """The least n of which at most `hits` are recognised with probability 1 - level, if a share p is recognised."""
    n = hits + 1
    while sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits + 1)) > 1 - level:
        n += 1
    return n


def check_ex_forget_three(pictures: Any, p: float = 0.01, level: float = 0.95) -> str:
    """(n with no hit among them, n with at most one) for the claim that fewer than a share p is recognised."""
    none, one = _pictures(0, p, level), _pictures(1, p, level)
    exactly = next(n for n in range(int(1 / p), 10**6) if n * p * (1 - p) ** (n - 1) <= 1 - level)
    found = array(pictures)
    if found is not None and found.shape == (2,) and found[0] == math.ceil(3 / p - 1e-9):
        none = int(found[0])  # the rule of three itself, which rounds log 20 up
    mistakes = {
        "exactly one hit was counted, not at most one: none may happen too": (none, exactly),
        "two times the first number: one hit costs less than that": (none, 2 * none),
        "no hit and one hit are swapped": (one, none),
        "one per cent of chance was allowed, not five": (_pictures(0, p, 0.99), _pictures(1, p, 0.99)),
        "the same number for both: a hit has to be paid for": (none, none),
        "1 / p: with so many pictures one hit is expected, and none is no surprise": (1 / p, 2 / p),
    }
    return verdict(pictures, (none, one), mistakes, wanted="two numbers of pictures", rel=0, abs_=0.5)


def check_ex_forget_wrong_zero(answer: Any, names: int = 24, top: int = 5) -> str:
    """(FA@5, mean rank of her name) of a model to which her name is fair noise, among `names` names."""
    share, rank = top / names, (1 + names) / 2
    mistakes = {
        "this is FA@1: any of five places counts": (1 / names, rank),
        "her own name was taken out of the list: it is one of them": (top / (names - 1), rank),
        "the rank was counted from zero: the first has rank 1": (share, (names - 1) / 2),
        "half of the names, without the 1: ranks run from 1": (share, names / 2),
        "zero is not fair: fair noise has her name in front as often as any other": (0.0, rank),
        "the last place is not noise either: a model has to know her to avoid her": (share, names),
        "FA@5 and rank are swapped": (rank, share),
        "FA@5 is in per cent, where a share of 1 is asked for": (100 * share, rank),
    }
    return verdict(answer, (share, rank), mistakes, wanted="(FA@5, mean rank)", rel=0.005)


def check_ex_forget_attack(auc: Any, members: Any, twins: Any) -> str:
    """The AUC of your attack; `members`, `twins`: the scores that it gives to their pictures."""
    groups = [array(one) for one in (members, twins)]
    if any(one is None or one.ndim != 1 or not len(one) for one in groups):
        return other_type(
            [members, twins], "the scores of members and of twins, a number for each picture, after the AUC"
        )
    a, b = groups
    right = evaluation.auc(a.tolist(), b.tolist())
    every = np.concatenate([a, b])
    best = max(np.mean(a >= t) - np.mean(b >= t) for t in every)
    mistakes = {
        "members and twins are swapped": 1 - right,
        "tuned on the report half: the advantage at a threshold chosen on these pictures, not the AUC": best,
        "the accuracy at the median, not the AUC": (np.mean(a > np.median(every)) + np.mean(b <= np.median(every))) / 2,
        "sum, not mean: the number of pairs that come out right": right * len(a) * len(b),
        "the difference of the mean scores, not the AUC": a.mean() - b.mean(),
        "the Gini coefficient, 2 AUC - 1": 2 * right - 1,
    }
    error = math.sqrt((len(a) + len(b) + 1) / (12 * len(a) * len(b)))  # of an AUC by chance, pictures independent
    away = abs(right - 0.5) / error
    also = (
        f"that is {away:.1f} standard errors from one half, {'chance hardly' if away > 3 else 'chance may'} explain it"
    )
    return verdict(auc, right, mistakes, wanted="the AUC, a number", rel=0, abs_=0.006, also=also)


def check_ex_forget_average(divergence: Any, p: Any, q: Any) -> str:
    """The mean Jensen-Shannon divergence in nats; p, q: what two models say of each picture, (pictures, names)."""
    tables = [array(one) for one in (p, q)]
    if any(one is None or one.ndim != 2 for one in tables) or tables[0].shape != tables[1].shape:
        return other_type([p, q], "the probabilities of both models, (pictures, names), after the divergence")
    if any(not np.allclose(one.sum(1), 1, atol=1e-3) for one in tables):
        return "the rows of p and q do not add up to 1: give probabilities, the softmax over the names, not cosines"
    a, b = (np.maximum(one, 1e-12) for one in tables)

    def kl(x: np.ndarray, y: np.ndarray) -> float:
        return float((x * np.log(x / y)).sum(1).mean())

    middle = (a + b) / 2
    right = (kl(a, middle) + kl(b, middle)) / 2
    if isinstance(stopped := asked_for(divergence, right, "the divergence, a number"), str):
        return stopped
    mistakes = {
        "sum, not mean, of the two halves": 2 * right,
        "not symmetric: this is the KL divergence of the first from the second": kl(a, b),
        "not symmetric: this is the KL divergence of the second from the first": kl(b, a),
        "one half alone: the divergence of the first from the middle": kl(a, middle),
        "one half alone: the divergence of the second from the middle": kl(b, middle),
        "in bits: take the natural logarithm": right / math.log(2),
        "the distance, not the divergence: its square root was taken": math.sqrt(right),
        "sum, not mean, over the pictures": right * len(a),
    }
    return verdict(divergence, right, mistakes, wanted="the divergence, a number", rel=0.002, abs_=1e-6)
