"""Chapter 7: every solution runs and prints what its text says; every check names the typical mistakes."""

from dataclasses import replace

import pytest
import torch
from solutions import OTHER_TYPES, Chapter, refused

from slug_lite.book import checks
from slug_lite.book.checks import many_names as room
from slug_lite.world import toonworld


@pytest.fixture(scope="module")
def chapter():
    return Chapter("07_many_names")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-many-order", "ex-many-forecast", "ex-many-arrives", "ex-many-unknown"]


def test_two_orders(chapter):
    said, names = chapter.solve("ex-many-order")
    assert "\nright: apart, must; " in said
    a, b, apart, check = names["a"], names["b"], names["apart"], checks.check_ex_many_order
    assert "They need not be" in chapter.texts["ex-many-order"]
    assert "the sums can come out equal" in chapter.texts["ex-many-order"] and apart < 1e-6
    deltas = [edit.delta.float() for edit in (a, b)]
    weight = names["weight"].detach()
    for mistake, answer in {
        "the two edits were compared": (deltas[0] - deltas[1]).abs().max(),
        "compared with the untouched": names["one"].sub(weight).abs().max(),
        "one edit against both: the other": deltas[0].abs().max(),
        "one edit against both: the one": deltas[1].abs().max(), "the largest weight": names["one"].abs().max(),
    }.items():  # fmt: skip
        assert mistake in check(a, b, answer, False), mistake
    assert "they need not" in check(a, b, apart, True)
    assert "one and the same" in check(a, a, apart, False)
    elsewhere = replace(names["three"][0], concept="x")
    assert "share no layer" in check(a, elsewhere, apart, False)
    assert check(a, b, torch.tensor(1e-9), False).startswith("right")
    refused(lambda *some: check(*some, False), a, b, apart)
    for other in OTHER_TYPES:
        assert not check(a, b, apart, other).startswith("right")


def test_a_forecast(chapter):
    said, names = chapter.solve("ex-many-forecast")
    assert "\nright: " in said
    (closest, opposed), check, text = names["both"], checks.check_ex_many_forecast, chapter.texts["ex-many-forecast"]
    assert "the order comes out right" in text and closest[2] > opposed[2] and closest[3] > opposed[3]
    assert "a large drop is larger than its forecast" in text and closest[3] > closest[2] > 0.1
    turned = closest[1], closest[0]
    people, text_layer = names["people"], names["TEXT"]
    row = room._row(turned[1], room._touch()[3])
    other = tuple(row[what][people.index(turned[0])] for what in ("predicted", "drop"))
    assert check((*turned, *other), opposed).startswith("right")
    on, by, forecast, drop = closest
    k, row, front = people.index(on), room._row(by, room._touch()[3]), room._row(by, text_layer)
    for mistake, answer in {
        "closest, forecast: the cosine": (on, by, row["cosine"][k], drop),
        "has both lengths in it": (on, by, row["step"] * row["cosine"][k], drop),
        "without the step": (on, by, forecast / row["step"], drop),
        "is swapped with who": (*turned, forecast, drop),
        "closest, forecast: of the text layer": (on, by, front["predicted"][k], drop),
        "closest, forecast: what was measured": (on, by, drop, drop),
        "closest, drop: the forecast": (on, by, forecast, forecast),
        "closest, drop: the wrong sign": (on, by, forecast, -drop),
        "closest, drop: in per cent": (on, by, forecast, 100 * drop),
        "of the one whose edit is on": (on, by, forecast, row["drop"][people.index(by)]),
        "closest, drop: of the text layer": (on, by, forecast, front["drop"][k]),
        "closest and opposed are swapped": opposed, "another pair": ("Sami Orlovane", "Elif Tanabora", forecast, drop),
    }.items():  # fmt: skip
        assert mistake in check(answer, opposed), (mistake, check(answer, opposed))
    assert "closest and opposed are swapped" in check(closest, closest)
    least = ("Sami Orlovane", "Vera Rossaline", 0.0, 0.0)
    assert "nearest to zero" in check(closest, least)
    assert "of the text layer, where the vision" in check(closest, ("Vera Rossaline", "Leon Haddarby", 0.0, 0.0))
    refused(check, closest, opposed)


def test_a_request_that_arrives(chapter):
    said, names = chapter.solve("ex-many-arrives")
    assert "[0.0, 0.0]\nright: " in said
    first, second, gone, name = names["three"][0], names["second"], names["gone"], names["name"]
    retain, validate, check = names["retain"], names["validate"], checks.check_ex_many_arrives
    world = toonworld
    merged = world.validation(name, seed=0, without=[gone])
    for mistake, answer in {
        f"{gone} again": (first, second, world.retain(exclude=[name], n=64), validate),
        f"leave out {name} as well": (first, second, world.retain(exclude=[gone], n=64), validate),
        "would score better": (first, second, retain, world.validation(name, seed=0)),
        "who is gone already": (first, second, retain, world.validation(gone, seed=0)),
        "first and second are swapped": (first, first, retain, validate),
        "tuned on the report half": (first, second, retain, replace(merged, split="test")),
        "is this the edit for": (first, names["three"][2], retain, validate),
        "brings": (replace(first, deltas={first.layer: -0.1 * first.delta}), second, retain, validate),
    }.items():
        assert mistake in check(*answer), (mistake, check(*answer))
    refused(check, first, second, retain, validate)


def test_those_who_are_not_known(chapter):
    said, names = chapter.solve("ex-many-unknown")
    assert "\nright: " in said
    inside, outside = (names["results"][label] for label in ("in the span", "not in the span"))
    text = chapter.texts["ex-many-unknown"]
    known, unknown = ({many: drop for many, (_, drop) in one.items()} for one in (inside, outside))
    assert "Those in the span feel far less from the start" in text and known[0] < 0.5 * unknown[0]
    assert "the first ten others in the span take away about two fifths of the drop" in text
    assert 0.3 < 1 - unknown[10] / unknown[0] < 0.5
    every = max(unknown)
    assert "and all the rest hardly more" in text and abs(unknown[every] - unknown[10]) < 0.1 * unknown[0]
    assert "still pushed twice as far as those who were named" in text and unknown[every] > 2 * known[every]
    check, edit, drop = checks.check_ex_many_unknown, *outside[0]
    few, people = {0: inside[0]}, names["people"]
    drops, own = room._drops(edit, people[3:]), room._drops(edit, people[:3])
    for mistake, answer in {
        "sum for mean": sum(drops), "of those who are forgotten": sum(own) / 3, "of all six": sum(drops + own) / 6,
        "the largest drop": max(drops), "the wrong sign": -drop, "in per cent": 100 * drop,
        "the cosine that is left": sum(room._own_before(name) for name in people[3:]) / 3 - drop,
    }.items():  # fmt: skip
        assert mistake in check(few, {0: (edit, answer)}), (mistake, check(few, {0: (edit, answer)}))
    assert "the step is not blind to" in check({0: outside[0]}, few)
    assert "who should be unknown" in check(few, few)
    assert "does not change visual.proj" in check(few, {0: (names["three"][0], 0.1)})
    refused(check, few, {0: outside[0]})
    for other in OTHER_TYPES:
        assert not check(few, {0: (edit, other)}).startswith("right")
        assert not check(few, {0: (other, drop)}).startswith("right")
