"""A name as a task: which split, which seed and which names reach the pictures."""

import pytest

import slug_lite as slug
from slug_lite import toonworld
from slug_lite.world import tasks
from slug_lite.world.tasks import task


@pytest.fixture
def fresh():
    """The sets of all others, drawn anew."""
    tasks._others.cache_clear()
    yield
    tasks._others.cache_clear()


def asked(calls, *keys):
    return [tuple(one[key] for key in keys) for one in calls]


def test_what_is_validated_is_neither_trained_nor_tested_on(spy, fresh):
    """The pictures searched on come from the split "val", those of the gradients from "train", by one seed."""
    calls = {name: spy(toonworld, name) for name in ("pairs", "retain", "others", "evaluation_pairs", "validation")}
    drawn, named = spy(toonworld, "sprites"), spy(toonworld, "caption")
    found = task("Ada Sunfield", n_forget=3, n_retain=20, seed=7, size=32)
    (one,) = asked(calls["validation"], "name", "seed", "split", "size", "without")
    assert one == ("Ada Sunfield", 7, "val", 32, ())
    assert asked(calls["evaluation_pairs"], "seed", "split", "size") == [(7, "val", 32)]
    assert asked(calls["retain"], "exclude", "n", "seed", "split") == [(("Ada Sunfield",), 20, 7, "train")]
    own = asked(calls["pairs"], "name", "n", "seed", "split")
    assert sorted(own) == [("Ada Sunfield", 3, 7, "train"), ("Ada Sunfield", 48, 7, "val")]
    assert calls["others"] == [] and found.protect == ()
    scored = len(found.validate.pairs) + 6  # her own among the pictures of everybody are dropped
    for split, number in (("val", scored), ("train", len(found.forget) + len(found.retain))):
        assert sum(one["split"] == split for one in named) == number
    assert {one["split"] for one in drawn} == {"train", "val"}


def test_names_that_are_to_go_as_well_are_neither_retained_nor_scored_nor_protected(spy, fresh):
    calls = {name: spy(toonworld, name) for name in ("retain", "others", "validation")}
    found = task("Zorbo", n_forget=3, n_retain=20, seed=7, size=32, without=["Clay", "Ada Sunfield"])
    gone = ("Ada Sunfield", "Clay", "Zorbo")
    assert asked(calls["retain"], "exclude") == [(gone,)]
    assert asked(calls["validation"], "name", "without") == [("Zorbo", ["Clay", "Ada Sunfield"])]
    assert asked(calls["others"], "exclude", "n", "seed", "split", "size") == [(gone, 16, 7, "train", 32)]
    assert len(found.protect) == 72 - 3
    task("Ada Sunfield", n_forget=3, n_retain=20, seed=7, size=32, without=["Zorbo", "Clay"])
    assert len(calls["others"]) == 1  # the tasks of one list ask for the same
    task("Ada Sunfield", n_forget=3, n_retain=20, seed=8, size=32, without=["Zorbo", "Clay"])
    assert len(calls["others"]) == 2 and calls["others"][1]["seed"] == 8


def test_sets_and_validation_of_ones_own_are_taken_as_they_are(spy):
    calls = {name: spy(toonworld, name) for name in ("retain", "validation")}
    retain, validate = toonworld.pairs("cat", n=2, size=32), lambda clip: {"forget_accuracy": 0.0}
    found = task("Zorbo", n_forget=2, size=32, retain=retain, validate=validate)
    assert found.retain is retain and found.validate is validate and found.concept == "Zorbo"
    assert calls == {"retain": [], "validation": []}


def test_a_name_for_a_clip_is_drawn_as_large_as_it_looks(tiny, spy):
    calls = spy(tasks, "task")
    found = slug.as_task("Zorbo", tiny, seed=5)
    (one,) = calls
    assert (one["name"], one["n_forget"], one["n_retain"], one["seed"], one["size"]) == ("Zorbo", 48, 512, 5, 32)
    assert (len(found.forget), len(found.retain)) == (48, 512) and found.forget.images.shape[1:] == (32, 32, 3)


def test_wrong_names_and_validations(tiny):
    with pytest.raises(KeyError, match="did you mean 'Zorbo'"):
        slug.as_task("Zorbi", tiny)
    with pytest.raises(KeyError, match="did you mean 'Zorbo'"):
        task("Ada Sunfield", n_forget=2, n_retain=4, size=32, without=["Zorbi"])
    with pytest.raises(ValueError, match="'Zorbo' is to be forgotten, the validation asks for 'Ada Sunfield'"):
        task("Zorbo", validate=toonworld.validation("Ada Sunfield", n=2, others=1, size=32))


@pytest.mark.parametrize("spelt", ["ada sunfield", "ADA  SUNFIELD", "Ada_Sunfield", " ada-sunfield "])
def test_a_name_in_another_spelling_is_the_name(tiny, spelt):
    own = slug.as_task(spelt, tiny)
    assert own.concept == own.validate.forget == "Ada Sunfield" and own.forget.concepts[0] == ("Ada Sunfield",)
    other = slug.as_task("zorbo", tiny, without=[spelt])
    assert other.concept == "Zorbo" and not any("Ada Sunfield" in names for names in other.retain.concepts)
    for names in ([spelt, "Ada Sunfield"], ["zorbo", "Zorbo"]):
        with pytest.raises(ValueError, match="names something twice"):
            slug.unlearn_several(tiny, names)
