"""The appendix on training: its solution runs and prints what its text says; its check names the typical mistakes."""

import re

import pytest
import torch
from solutions import OTHER_TYPES, Chapter, never_raises

from slug_lite.book import checks
from slug_lite.book.checks import training_clip as room
from slug_lite.pretrain.clip import ClipRecipe, Pool


@pytest.fixture(scope="module")
def chapter():
    return Chapter("A1_training_mini_clip")


def test_the_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-batch"]


def test_a_batch_at_random(chapter):
    said, names = chapter.solve("ex-batch")
    assert "\nright: " in said
    text, drawn, shown, many = chapter.texts["ex-batch"], names["drawn"], names["shown"], names["many"]
    people = int(re.search(r"^(\d+) pictures of 24 people", said, re.MULTILINE)[1])
    assert "Many pictures show people, of whom there are 24" in text and people == 0.4 * len(drawn)
    each = [float(one) for one in re.findall(r": ([\d.]+) of each", said)]
    assert "shows each of them two or three times on average" in text and 2 <= min(each) <= max(each) <= 3
    assert "No object in a style comes twice here" in text
    assert all(times == 1 for one, times in shown.value_counts().items() if len(one) == 2)
    assert "most captions fit more than one picture (the line before the check's)" in text
    assert 0.75 < many / len(drawn) < 0.87
    assert said.strip().splitlines()[-2].startswith(f"{many} of {len(drawn)} captions ({many / len(drawn):.0%})")
    assert names["fits"] == room._fits(drawn)
    check = checks.check_ex_batch
    alike = list(shown)
    for mistake, answer in {
        "the very same alone": sum(alike.count(one) > 1 for one in alike), "people alone": people,
        "how many people and characters": 32, "fit one picture alone": len(drawn) - many, "all of them": len(drawn),
        "a share, where": many / len(drawn), "how many pictures a caption fits": sum(names["fits"]) / len(drawn),
        "pairs of a caption and a picture": sum(names["fits"]), "in per cent": 100 * many,
    }.items():  # fmt: skip
        assert mistake in check(answer, drawn), (mistake, check(answer, drawn))
    for seed in range(5):
        estimate = sum(fit > 1 for fit in room._fits(room.toonworld.retain(n=160, seed=seed)))
        assert check(estimate).startswith("right") and check(torch.tensor([estimate])).startswith("right")
    assert "the very same alone" in check(80)
    never_raises(check)
    never_raises(check, drawn)
    for other in OTHER_TYPES:
        if other is not None:
            assert not check(many, other).startswith("right")


def test_what_the_recipe_cures_and_what_not(chapter):
    """In a batch of the recipe's own, captions of people fit one picture, those of an object alone more."""
    assert "leave the objects and styles as they are" in chapter.texts["ex-batch"]
    recipe = ClipRecipe(pool=1)
    batch = Pool(recipe, 64).batch(recipe, 0)
    fits = room._fits(batch)
    single = [fit for fit, concept in zip(fits, batch.concepts, strict=True) if len(concept) == 1]
    cells = [fit for fit, concept in zip(fits, batch.concepts, strict=True) if len(concept) == 2]
    assert set(single) == {1} and sum(fit > 1 for fit in cells) > 0.3 * len(cells)
