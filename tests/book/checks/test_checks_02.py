"""Chapter 2: every solution runs and prints what its text says; every check names the typical mistakes."""

import math
import re

import pytest
import torch
from solutions import Chapter, never_raises

from slug_lite.book import checks
from slug_lite.world import evaluation


@pytest.fixture(scope="module")
def chapter():
    """The gradient is the edit's own, without the searches of the cell that divides it by the step."""
    return Chapter("02_what_it_means_to_forget", given=["gradient"])


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-forget-three", "ex-forget-wrong-zero", "ex-forget-attack", "ex-forget-average"]


def test_three(chapter):
    said, names = chapter.solve("ex-forget-three")
    none, one, check = names["none"], names["n"], checks.check_ex_forget_three
    # "About three hundred. One hit costs more than half as many again."
    assert "check: right" in said and abs(none - 300) < 5 and 1.5 * none < one < 1.7 * none
    assert check((300, one)).startswith("right")
    exactly = next(n for n in range(100, 1000) if n * 0.01 * 0.99 ** (n - 1) <= 0.05)
    for mistake, answer in {
        "exactly one hit": (none, exactly),
        "two times the first number": (none, 2 * none),
        "are swapped": (one, none),
        "one per cent of chance": (459, 662),
        "the same number for both": (none, none),
        "1 / p": (100, 200),
        "of shape (2,)": none,
    }.items():
        assert mistake in check(answer), (mistake, check(answer))
    never_raises(check)


def test_fair_noise():
    check = checks.check_ex_forget_wrong_zero
    assert check((5 / 24, 12.5)).startswith("right")
    for mistake, answer in {
        "this is FA@1": (1 / 24, 12.5),
        "taken out of the list": (5 / 23, 12.5),
        "counted from zero": (5 / 24, 11.5),
        "without the 1": (5 / 24, 12),
        "zero is not fair": (0, 12.5),
        "the last place is not noise": (5 / 24, 24),
        "swapped": (12.5, 5 / 24),
        "in per cent": (500 / 24, 12.5),
    }.items():
        assert mistake in check(answer), mistake
    never_raises(check)


def test_the_wrong_zero(chapter):
    said, _ = chapter.solve("ex-forget-wrong-zero")
    rank = {
        line.split()[0]: float(re.search(r"mean rank of her name ([\d.]+)", line)[1]) for line in said.splitlines()[:3]
    }
    # "her name stands further in front there than in the edited model, which is the nearer of the two to fair noise"
    assert "check: right" in said and rank["retrained"] < rank["edited"]
    assert abs(rank["edited"] - 12.5) < abs(rank["retrained"] - 12.5)


def test_attack(chapter):
    said, _ = chapter.solve("ex-forget-attack")
    assert said.count("check: right") == 9
    found = [float(value) for value in re.findall(r": ([\d.]+)[,}]", said)]
    assert len(found) == 9 and all(abs(value - 0.5) < 0.08 for value in found)  # "within a few hundredths of one half"
    g = torch.Generator().manual_seed(0)
    a, b, check = torch.randn(96, generator=g) + 0.6, torch.randn(80, generator=g), checks.check_ex_forget_attack
    right = evaluation.auc(a, b)
    every = torch.cat([a, b])
    assert "hardly" in check(right, a, b)
    for mistake, answer in {
        "members and twins are swapped": 1 - right,
        "tuned on the report half": max(((a >= t).float().mean() - (b >= t).float().mean()).item() for t in every),
        "sum, not mean": right * 96 * 80,
        "the difference of the mean scores": a.mean() - b.mean(),
        "Gini": 2 * right - 1,
        "in per cent": 100 * right,
    }.items():
        assert mistake in check(answer, a, b), (mistake, check(answer, a, b))
    assert "give the scores" in check(right, "members", b)
    never_raises(check, a, b)


def test_average(chapter):
    edit = chapter.names["edit"]
    said, names = chapter.solve("ex-forget-average", gradient=edit.delta.float() / edit.step)
    rows = re.findall(r"([\d.]+): FA@1 +([\d.]+)%, AUC ([\d.]+), JS ([\d.]+)", said)
    factor, left, auc, js = (list(map(float, column)) for column in zip(*rows, strict=True))
    v = names["vectors"]["retrained"]
    retrained = evaluation.auc(v["fresh"] @ v["names"][names["ada"]], v["others"] @ v["names"][names["ada"]])
    assert "check: right" in said and factor[js.index(min(js))] == 0.75  # "least at three quarters of the step"
    assert js[factor.index(1)] < 1.15 * min(js)  # "hardly larger at the step that was taken"
    near = min(range(len(auc)), key=lambda k: abs(auc[k] - retrained))
    assert 0 < left[factor.index(0.75)] < 10 and factor[near] <= 0.5 and left[near] > 50  # "a few", "most are"
    assert auc[factor.index(1.5)] > 0.5 >= auc[factor.index(2.0)]  # "reaches one half only beyond one and a half times"


def test_divergence():
    g, check = torch.Generator().manual_seed(0), checks.check_ex_forget_average
    p, q = (torch.randn(30, 24, generator=g).mul(3).softmax(1).double() for _ in range(2))
    m = (p + q) / 2

    def kl(x, y):
        return (x * (x / y).log()).sum(1).mean().item()

    right = (kl(p, m) + kl(q, m)) / 2
    assert check(right, p, q).startswith("right")
    for mistake, answer in {
        "sum, not mean, of the two halves": 2 * right,
        "not symmetric": kl(p, q),
        "one half alone": kl(p, m),
        "in bits": right / math.log(2),
        "its square root": right**0.5,
        "sum, not mean, over the pictures": 30 * right,
        "the wrong sign": -right,
    }.items():
        assert mistake in check(answer, p, q), mistake
    assert "do not add up to 1" in check(right, 2 * p, q) and "give the probabilities" in check(right, "p", q)
    never_raises(check, p, q)
