"""Two halves of the world: fixed for good, of each kind the same number, nobody in both."""

import pytest

import slug_lite as slug

world = slug.toonworld


def test_halves_are_of_each_kind_and_share_nobody():
    assert list(world.DEVELOPMENT) == list(world.REPORT) == list(world.NAMES)
    for kind, names in world.NAMES.items():
        development, report = world.DEVELOPMENT[kind], world.REPORT[kind]
        assert sorted(development + report) == sorted(names) and len(development) == len(report) == len(names) // 2
    assert sum(map(len, world.REPORT.values())) == 36


def test_halves_do_not_depend_on_who_asks():
    for half, names in (("development", world.DEVELOPMENT), ("report", world.REPORT)):
        assert {world.half_of(name) for own in names.values() for name in own} == {half}
    with pytest.raises(KeyError, match="Ada Sunfield"):
        world.half_of("Ada Sunfeld")


def test_the_draw_is_that_of_the_first_day():
    """Names that were tuned on stay where they are, whatever is added: another draw would make them new again."""
    assert world.DEVELOPMENT["people"][:3] == ("Yuri Thornevik", "Jonas Ferrowick", "Nico Jansworth")
    assert world.REPORT["characters"] == ("Gearhart", "Zorbo", "Countess Vesper", "Whispering Willa")
    assert world.DEVELOPMENT["objects"][-2:] == ("trumpet", "butterfly")
    assert world.DEVELOPMENT["styles"] == ("Papercut", "Enamel", "Storybook", "Sticker")
