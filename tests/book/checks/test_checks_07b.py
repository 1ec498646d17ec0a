"""The interlude: every solution runs and prints what its text says; every check names the typical mistakes."""

import numpy as np
import pytest
import torch
from open_clip.transformer import PatchDropout
from solutions import OTHER_TYPES, Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import official_code as room


@pytest.fixture(scope="module")
def chapter():
    return Chapter("07b_reading_the_official_code")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-code-sign", "ex-code-order", "ex-code-train", "ex-code-own"]


def test_a_test_of_the_sign(chapter):
    said, names = chapter.solve("ex-code-sign")
    assert "\nright: 3 of 5 moves climb" in said
    printed = chapter.cell("# NBVAL_CHECK_OUTPUT\ndef turned")
    assert "Those that the printed lines of section 1 call climbing, and no other." in chapter.texts["ex-code-sign"]
    called = [" climbs L_f" in line for line in printed.splitlines()]
    assert called == [line.startswith("True") for line in said.splitlines()[: len(called)]] and any(called)
    climbs, moves, layer, check = names["climbs"], names["moves"], names["LAYER"], checks.check_ex_code_sign
    look = names["look"]

    def long(move):
        return look(layer, move)["forget loss"] > look(layer, 0 * move)["forget loss"]

    up = room.forget_gradient(room.NAME, layer)
    assert check(lambda move: (move * up).sum() > 0, moves, layer).startswith("right")  # another way
    answers = iter([False, True, False, False, True, True, False, True])  # the fourth of them is wrong
    for mistake, answer in {
        "the wrong sign": lambda move: not climbs(move), "says True whatever": lambda move: True,
        "says False whatever": lambda move: look(layer, 0 * move)["recognised"] < 1, "not short": long,
        "a function that returns True or False": lambda move: 0.1, "give your function": climbs(up),
        "stops with ZeroDivisionError": lambda move: 1 / 0,
        "wrong for \"notebook's ready step": lambda move: next(answers),
    }.items():  # fmt: skip
        assert mistake in check(answer, moves, layer), (mistake, check(answer, moves, layer))
    refused(check, lambda move: (move * up).sum() > 0, moves, layer)


def test_the_order_of_batches(chapter):
    said, names = chapter.solve("ex-code-order")
    assert "\nright: " in said
    moved, far, text = names["changes"], names["far"], chapter.texts["ex-code-order"]
    assert "The mean does not care about the reversed order; the running sums do." in text
    assert far[True, "reversed"] < 1e-3 < 0.02 < far[False, "reversed"]
    assert "Sorting changes both" in text and min(far[zero, "people first"] for zero in (True, False)) > 0.02
    check = checks.check_ex_code_order
    assert check({key: one.to_dict() for key, one in moved.items()}, far).startswith("right")
    assert check({key: -one for key, one in moved.items()}, {k: np.float32(v) for k, v in far.items()})[:5] == "right"
    uneven = {key: one.abs() * (-1.0) ** np.arange(len(one)) for key, one in moved.items()}
    turned = {"reversed": "people first", "people first": "reversed"}
    for mistake, answer in {
        "zeroed and not zeroed are swapped": ({k: moved[not k[0], k[1]] for k in moved}, far),
        "the two orders are swapped": ({k: moved[k[0], turned[k[1]]] for k in moved}, far),
        "mean for median": (moved, far | {(False, "reversed"): moved[False, "reversed"].abs().mean()}),
        "the largest": (moved, far | {(False, "reversed"): moved[False, "reversed"].abs().max()}),
        "with their signs": (uneven, far | {(False, "reversed"): uneven[False, "reversed"].median()}),
        "in per cent": (moved, far | {(False, "reversed"): 100 * far[False, "reversed"]}),
        "a number for each layer": (far, far), "with the keys": (moved, {"reversed": 0.1}),
    }.items():  # fmt: skip
        assert mistake in check(*answer), (mistake, check(*answer))
    refused(check, moved, far)
    for other in OTHER_TYPES:
        assert not check(moved | {(False, "reversed"): other}, far).startswith("right")
        assert not check(moved, far | {(False, "reversed"): other}).startswith("right")


def test_train_mode(chapter):
    said, names = chapter.solve("ex-code-train")
    assert "\nright: " in said
    clip, layer, check = names["clip"], names["LAYER"], checks.check_ex_code_train
    between, calm = names["between"], names["to_calm"]
    assert "the gradient is another one each time" in chapter.texts["ex-code-train"] and between < 0.999
    state = torch.get_rng_state()
    room._train_cosines.cache_clear()
    assert check(clip, layer, torch.tensor(between), [calm]).startswith("right")
    assert torch.equal(state, torch.get_rng_state())
    for mistake, answer in {
        "nothing was thrown away": (1.0, 1.0), "set to one seed": (1.0, calm), "compare a gradient": (between, 1.0),
        "between: not the cosine but 1 - cos": (1 - between, calm), "in per cent": (100 * between, calm),
        "between: the wrong sign": (-between, calm), "calm: in degrees": (between, np.degrees(np.arccos(calm))),
        "calm: wrong": (between, 0.7),
    }.items():  # fmt: skip
        assert mistake in check(clip, layer, *answer), (mistake, check(clip, layer, *answer))
    refused(check, clip, layer, between, calm)
    old = clip.model.visual.patch_dropout
    clip.model.visual.patch_dropout = PatchDropout(0.5)
    assert "put the old module back" in check(clip, layer, between, calm)
    clip.model.visual.patch_dropout = old
    clip.model.train()
    assert "still in train mode" in check(clip, layer, between, calm)
    clip.model.eval()


def test_a_reading(chapter):
    said, names = chapter.solve("ex-code-own")
    assert said.startswith("right: in form; ") and "chosen and reported on one set" in said
    reading, check = names["reading"], checks.check_ex_code_own
    assert check(reading | {"reported": "ten new pictures"}).startswith("right")
    assert "one set" not in check(reading | {"reported": "ten new pictures"})
    assert check(reading | {"number": "63.2 of table 2: bash scripts/run.sh"}).startswith("right")
    for mistake, change in {
        "commit: a branch": {"commit": "main"}, "sign: no file": {"sign": "in the loop"},
        "a file alone is no place": {"emptied": "train.py"}, "experiment: say what": {"experiment": "a run"},
        "number: give it": {"number": "63.2 in table 2"}, "reported is missing": {"reported": " "},
    }.items():  # fmt: skip
        assert mistake in check(reading | change), (mistake, check(reading | change))
    assert "emptied is missing" in check({key: text for key, text in reading.items() if key != "emptied"})
    refused(check, reading)
    for key in reading:
        for other in OTHER_TYPES:
            assert isinstance(other, str) or not check(reading | {key: other}).startswith("right")
