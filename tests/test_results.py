"""Shipped results: they say where they come from, and hold what the project promises."""

import pytest

import slug_lite as slug
from slug_lite.results import load_results


def test_ten_people_forgotten_one_at_a_time():
    """Left of the person: at most 2 % on average and 12.5 % at worst. Others: at most 2 points a kind on average."""
    people, about = load_results("people")
    assert len(people) >= 10 and people.name.is_unique and set(people.name) <= set(slug.toonworld.PEOPLE)
    assert people.known.min() > 0.9 and people.left.mean() <= 0.02 and people.left.max() <= 0.125
    for kind in slug.toonworld.NAMES:
        assert people[f"lost_{kind}"].mean() <= 2
    assert people.seconds.max() <= 60
    assert {"script", "seed", "date", "versions", "pictures"} <= set(about)


def test_unknown_results_are_named():
    with pytest.raises(KeyError, match="did you mean 'people'"):
        load_results("peple")
