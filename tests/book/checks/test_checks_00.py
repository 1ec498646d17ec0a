"""Chapter 0: every solution runs and prints what its text says; every check names the typical mistakes."""

import re
from dataclasses import replace

import pytest
from solutions import OTHER_TYPES, Chapter, refused

import slug_lite as slug
from slug_lite.book import checks
from slug_lite.book.checks import _edits
from slug_lite.book.checks import sixty_seconds as room


@pytest.fixture(scope="module")
def chapter():
    return Chapter("00_forget_in_sixty_seconds")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-forget-other", "ex-wrong-way", "ex-describe"]


def test_somebody_else(chapter):
    said, names = chapter.solve("ex-forget-other")
    assert "\nright: " in said
    text = chapter.texts["ex-forget-other"]
    assert "only the character costs the others anything, and little: a few names lose a few" in text
    dear = re.findall(r"^(\w[\w ]*): 0% left, .*less than before: (.*)$", said, re.MULTILINE)
    assert [(name, who == "nobody") for name, who in dear] == [
        ("Dario Lindqvist", True), ("Zorbo", False), ("cat", True), ("Clay", True)
    ]  # fmt: skip
    assert 1 < len(dear[1][1].split(", ")) < 7
    assert "objects cost the others least on average" in text
    assert room._lost().idxmin() == "objects"
    assert "all kinds a fraction of a point" in text and room._lost().max() < 1
    name, table, check = names["name"], names["table"], checks.check_ex_forget_other
    frame = table.rename("accuracy").rename_axis("name").reset_index()
    worse = table.where(table.index != "cat", 0.25)
    rest = worse.drop(name)
    for some in (table, frame, table.to_dict(), {"per_concept": frame}):
        assert check(name, some, table.drop(name).mean(), "objects").startswith("right")
    over_kinds = frame.assign(kind=[slug.toonworld.kind_of(one) for one in frame.name]).query("name != @name")
    assert check(name, table, over_kinds.groupby("kind").accuracy.mean().mean(), "objects").startswith("right")
    for mistake, answer in {
        "was counted among the others": (name, worse, worse.mean(), "objects"),
        f"the accuracy of {name}": (name, worse, worse[name], "objects"),
        "sum for mean": (name, worse, rest.sum(), "objects"),
        "what the others lost": (name, worse, 1 - rest.mean(), "objects"),
        "in per cent": (name, worse, 100 * rest.mean(), "objects"),
        "was the edit on": (name, worse.where(worse.index != name, 1.0), 1.0, "objects"),
        "another kind costs less": (name, worse, rest.mean(), "people"),
        "the kind that costs most": (name, worse, rest.mean(), room._lost().idxmax()),
    }.items():
        assert mistake in check(*answer), (mistake, check(*answer))
    assert check(name, worse, rest.mean(), "objects").startswith("right")
    refused(check, name, worse, rest.mean(), "objects")


def test_the_wrong_way(chapter):
    said, names = chapter.solve("ex-wrong-way")
    assert "\nright: " in said
    rows = {
        row[0]: [float(x) for x in row[1].split()] for row in re.findall(r"^(\S+) .*?\[(.*?)\]", said, re.MULTILINE)
    }
    text = chapter.texts["ex-wrong-way"]
    assert "A quarter of the edit's length does that." in text and rows["25%"][0] > rows["before"][0]
    assert "with a cosine *below* the one before" in text and rows["100%"][0] < rows["before"][0]
    higher = [after > before for before, after in zip(rows["before"][1:], rows["100%"][1:], strict=True)]
    assert "The cosines to most other names rise as well" in text and sum(higher) > len(higher) / 2
    assert "She is recognised in every picture all the same." in text and said.count("recognised 100%") == 4
    edit, reverse, check = names["edit"], names["reverse"], checks.check_ex_wrong_way
    own = room.toonworld.PEOPLE.index(room.NAME)
    cosine = {key: _edits.cosines(room.NAME, *edits) for key, edits in
              {"before": (), "back": (reverse,), "forth": (edit,)}.items()}  # fmt: skip
    right = cosine["back"][own]
    quarter = replace(edit, deltas={edit.layer: -edit.delta / 4}, steps={edit.layer: -edit.step / 4})
    assert check(edit, quarter, _edits.cosines(room.NAME, quarter)[own], 1).startswith("right")
    careless = replace(reverse, steps=edit.steps)
    assert "give its step the minus sign too" in check(edit, careless, right, 1.0)
    elsewhere = {"visual.proj": 0.01 * _edits.mini().weights()["visual.proj"].detach().half()}
    for mistake, answer in {
        "not turned": (edit, edit, right, 1), "not along the edit": (edit, replace(edit, deltas={
            edit.layer: edit.delta.flip(0)}), right, 1),
        "take the same layer": (edit, replace(edit, deltas=elsewhere, steps={"visual.proj": -1.0}), right, 1),
        "it changes nothing": (edit, replace(edit, deltas={edit.layer: 0 * edit.delta}), right, 1),
        "from before": (edit, reverse, cosine["before"][own], 1),
        "with the edit on, where": (edit, reverse, cosine["forth"][own], 1),
        "the forget loss": (edit, reverse, 1 - right, 1), "over all names": (edit, reverse, cosine["back"].mean(), 1),
        "against it she is recognised": (edit, reverse, right, 0), "in per cent": (edit, reverse, right, 100),
    }.items():  # fmt: skip
        assert mistake in check(*answer), (mistake, check(*answer))
    refused(lambda *some: check(*some, 1.0), edit, reverse, right)
    for other in OTHER_TYPES:
        if other is not True and other != {"a": 1}:  # read as the number one, which is right
            assert not check(edit, reverse, right, other).startswith("right")


def test_a_description(chapter):
    said, names = chapter.solve("ex-describe")
    assert "\nright: " in said and said.startswith("before: 1\n")
    assert "still the description no longer finds her first" in chapter.texts["ex-describe"]
    edit, after, check = names["edit"], names["second"], checks.check_ex_describe
    assert after > 3
    assert "the edit, a layer of the text tower, has moved both" in chapter.texts["ex-describe"]
    assert names["clip"].tower(edit.layer) == "text"
    for mistake, answer in {
        "counted from zero": (0, after - 1), "are swapped": (after, 1), "was it on?": (1, 1),
        "by her name": (1, room._rank(room.NAME, edit)), "behind her": (23, 24 - after),
        "counted from the end": (24, 25 - after),
    }.items():  # fmt: skip
        assert mistake in check(edit, *answer), (mistake, check(edit, *answer))
    refused(lambda some: check(some, 1, after), edit)
    refused(lambda some: check(edit, 1, some), after)
    for other in OTHER_TYPES:
        if other is not True and other != {"a": 1}:  # read as the number one, which is right
            assert not check(edit, other, after).startswith("right")
