"""Chapter 11: every solution runs and prints what its text says; every check names the typical mistakes."""

import numpy as np
import pytest
from solutions import OTHER_TYPES, Chapter, refused

from slug_lite.book import checks


@pytest.fixture(scope="module")
def chapter():
    return Chapter("11_styles_and_objects")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-grid-nothing", "ex-grid-length", "ex-grid-instead", "ex-grid-cra"]


def test_useless_methods(chapter):
    said, names = chapter.solve("ex-grid-nothing")
    assert "\nright: " in said
    nothing, grey, cells, style = (names[name] for name in ("nothing", "grey", "counted", "STYLE"))
    assert grey == {"UA": 1, "IRA": 0, "CRA": 0}  # "grey squares win UA"
    assert nothing["UA"] < 0.5 < min(nothing["IRA"], nothing["CRA"])  # "Doing nothing keeps what IRA and CRA were"
    with pytest.raises(ValueError, match="one colour"):  # "The judge refuses pictures of one colour"
        names["judge"](np.full((2, 64, 64, 3), 128, np.uint8))
    pictures, check = names["before"][names["seen"]], checks.check_ex_grid_nothing
    for mistake, answer in {
        "still seen": nothing | {"UA": 1 - nothing["UA"]}, "in per cent": {k: 100 * v for k, v in nothing.items()},
        "what is lost, not": {"UA": nothing["UA"], "IRA": 1 - nothing["IRA"], "CRA": 1 - nothing["CRA"]},
        "the keys": {"UA": 1.0},
    }.items():  # fmt: skip
        assert mistake in check(answer, grey, cells, pictures, style), mistake
    for mistake, answer in {
        "does not show the style either": dict.fromkeys(grey, 0.0), "nothing is kept": dict.fromkeys(grey, 1.0),
        "as of the method that does nothing": nothing, "and IRA and CRA what is lost": {"UA": 0, "IRA": 1, "CRA": 1},
    }.items():  # fmt: skip
        said = check(nothing, answer, cells, pictures, style)
        assert mistake in said or nothing == answer, mistake
    every, all_cells = names["before"], names["cells"]
    assert "never shown" in check(nothing, grey, all_cells, every, style)
    assert "must not" in check(nothing, grey, [c for c in cells if style not in c], pictures[: len(cells) - 3], style)
    assert check(list(nothing.values()), tuple(grey.values()), cells, pictures.images, style).startswith("right")
    refused(check, nothing, grey, cells, pictures, style)


def test_one_side_is_broken(chapter):
    """Counts where IRA and CRA differ: every picture of an object is of the right style, and of another object."""
    _, names = chapter.solve("ex-grid-nothing")
    cells, style, before = names["counted"], names["STYLE"], names["before"][names["seen"]].images
    things = sorted({cell[0] for cell in cells})
    following = dict(zip(things, [*things[1:], things[0]], strict=True))
    asked = [(following[thing], own) for thing, own in cells]
    asked = [(cell if cell not in names["world"].UNSEEN else old) for cell, old in zip(asked, cells, strict=True)]
    right = names["slug"].canvas(asked, names["judge"](before), style)
    check, grey = checks.check_ex_grid_nothing, names["grey"]
    assert right["CRA"] < right["IRA"] and check(right, grey, asked, before, style).startswith("right")
    assert "IRA and CRA are swapped" in check(
        right | {"IRA": right["CRA"], "CRA": right["IRA"]}, grey, asked, before, style
    )
    hit = (names["judge"](before)["name"] == [thing for thing, _ in asked]).mean()
    if abs(hit - right["CRA"]) > 0.01:
        assert "CRA over all pictures" in check(right | {"CRA": hit}, grey, asked, before, style)


def test_a_length_and_its_report(chapter):
    said, names = chapter.solve("ex-grid-length")
    assert "\nright: " in said
    best, final, style, numbers = (names[name] for name in ("best", "final", "STYLE", "numbers"))
    chosen, reported, check = names["chosen_on"], names["reported_on"], checks.check_ex_grid_length
    good = {"times": best, "seeds": (500, 501), **final, "interval": (names["low"], names["high"])}
    assert names["high"] - names["low"] > 0.1  # "The interval is wide"
    assert not {thing for thing, _ in names["sides"][0]} & {thing for thing, _ in names["sides"][1]}
    halves = [[one for one in side if style in one] for side in names["sides"]]
    for mistake, changed in {
        "from the noise that was chosen on": {"seeds": (500, 500)}, "take fresh seeds": {"seeds": (100, 501)},
        "two seeds": {"seeds": 500}, "still seen": {"UA": 1 - final["UA"]},
        "swapped": {"interval": good["interval"][::-1]},
        "in per cent": {key: 100 * final[key] for key in final},
    }.items():  # fmt: skip
        if mistake == "swapped" or abs(final["UA"] - 0.5) > 0.01 or mistake != "still seen":
            assert mistake in check(good | changed, chosen, reported, style), mistake
    if any(abs(numbers[best][key] - final[key]) > 0.01 for key in final):
        assert "report the other's" in check(good | numbers[best], chosen, reported, style)
    for times, one in numbers.items():
        if sum(one.values()) < sum(numbers[best].values()) - 1e-6:
            said = check(good | {"times": times}, chosen, reported, style)
            assert said.startswith("times: ") and "right" not in said.split(";")[0]
    assert "tuned on the report half" in check(good, chosen, chosen[best], style)
    few = [k for k, cell in enumerate(reported[0]) if style not in cell or cell in halves[1][:4]]
    less = ([reported[0][k] for k in few], reported[1][few])
    assert "few for a half" in check(good, chosen, less, style)
    other = {best: chosen[best], 4: (reported[0], reported[1])}
    assert "different cells" in check(good, other, reported, style)
    assert "two or more multiples" in check(good, {best: chosen[best]}, reported, style)
    for key in good:
        for one in OTHER_TYPES:
            assert not check(good | {key: one}, chosen, reported, style).startswith("right") or one is True
    refused(check, good, chosen, reported, style)


def test_what_comes_instead(chapter):
    said, names = chapter.solve("ex-grid-instead")
    assert "\nright: " in said
    instead, kept, things, style = (names[name] for name in ("instead", "kept", "things_asked", "STYLE"))
    pictures, table, check = names["pictures"], names["verdict"], checks.check_ex_grid_instead
    assert "the forgotten style itself" in check(style, kept, things, pictures, style)
    counts = table["style"][table["style"] != style].value_counts()
    if counts.iloc[-1] < counts.iloc[0]:
        assert "the rarest" in check(counts.index[-1], kept, things, pictures, style)
    absent = next(one for one in names["world"].STYLES if one != style and counts.get(one, 0) < counts.iloc[0])
    assert not check(absent, kept, things, pictures, style).startswith("right")
    rest, hit = (table["style"] != style).to_numpy(), (table["name"] == things).to_numpy()
    for mistake, answer in {
        "sum, not mean": hit.sum(), "whose object is lost": 1 - kept, "in per cent": 100 * kept,
        "of the pictures without the style alone": hit[rest].mean(), "whose style is gone": rest.mean(),
    }.items():  # fmt: skip
        assert mistake in check(instead, answer, things, pictures, style) or abs(answer - kept) < 0.02, mistake
    assert check(instead.upper(), np.float32(kept), tuple(things), list(pictures.images), style).startswith("right")
    refused(check, instead, kept, things, pictures, style)


def test_another_cra(chapter):
    said, _ = chapter.solve("ex-grid-cra")
    assert said.startswith("right: ")
    check, text = checks.check_ex_grid_cra, chapter.texts["ex-grid-cra"]
    assert (
        "the rest of the prompt is still obeyed" in text and "another promise than leaving other prompts alone" in text
    )
    for mistake, answer in {
        "the CRA of the protocol": ("other prompts", True), "that is UA": ("forgetting", True),
        "Fréchet": ("quality", True), "nobody asked to be rid": ("rest of the prompt", False),
    }.items():  # fmt: skip
        assert mistake in check(*answer)
    for other in OTHER_TYPES:
        assert not check(other, True).startswith("right")
        assert other is True or not check("rest of the prompt", other).startswith("right")
