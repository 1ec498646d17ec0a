"""Several concepts in one layer of one's own choice."""

import pandas as pd
import pytest
import torch
from small_clips import small_validation
from test_several import Marks

import slug_lite as slug
from slug_lite import algorithm
from slug_lite.book.one_layer import forget_in_layer
from slug_lite.gradients import forget_gradients
from slug_lite.runtime.linear import project_out
from slug_lite.search import Found

LAYER = "visual.proj"


def test_wrong_arguments_are_said(mini):
    weight = mini.weights()[LAYER]
    for error, message, call in [
        (KeyError, "layer", lambda: forget_in_layer(mini, "visual.prol", {"a": weight}, {"a": None})),
        (KeyError, "validation", lambda: forget_in_layer(mini, LAYER, {"a": weight}, {})),
        (ValueError, "at least 1", lambda: forget_in_layer(mini, LAYER, {}, {})),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_three_people_in_one_layer_and_those_who_are_protected_feel_less(mini):
    world, names, near = slug.toonworld, ["Ada Sunfield", "Dario Lindqvist", "Elif Tanabora"], "Sami Orlovane"
    sets = [world.pairs(name, 16, 0) for name in [*names, near]]
    gradients = forget_gradients(mini, sets, layers=lambda name, weight: name == LAYER)
    *own, other = [one[LAYER] for one in gradients]
    validations = {n: small_validation(n, 16, 16, 64, without=[o for o in names if o != n]) for n in names}
    pictures = world.pairs(near, 12, 3, "val")

    def loss(directions):
        """The other's forget loss, with all edits on."""
        edits = forget_in_layer(mini, LAYER, dict(zip(names, directions, strict=True)), validations)
        assert list(edits) == names and all(edit.layer == LAYER for edit in edits.values())
        with torch.no_grad(), slug.merge(list(edits.values())).on(mini):
            assert all(validations[name](mini)["forget_accuracy"] <= 0.05 for name in names)
            images = mini.image_features(mini.pixels(pictures))
            return 1 - (images * mini.text_features(mini.tokens(pictures.captions))).sum(1).mean().item()

    assert loss(project_out(own, [other])) < loss(own) - 0.1


def test_each_is_looked_for_while_the_others_edits_are_on(mini, monkeypatch):
    names, marks = ["Ada Sunfield", "Zorbo"], Marks(mini, LAYER)
    directions = {name: marks.edit(k, name).delta.float() for k, name in enumerate(names)}
    validations = {name: small_validation(name, 2, 8, 64) for name in names}

    def search(clip, directions, layers, score, search):
        marks.look()
        trace = pd.DataFrame({"step": [1.0]})
        return {layer: Found(1.0, {"forget_accuracy": 0.0, "retain_accuracy": 1.0}, trace) for layer in layers}

    monkeypatch.setattr(algorithm, "search_layers", search)
    edits = forget_in_layer(mini, LAYER, directions, validations)
    assert marks.seen == [[], [0], [1], [0]] and list(edits) == names
    assert all(torch.equal(edits[name].delta.float(), directions[name]) for name in names)
    marks.seen.clear()
    forget_in_layer(mini, LAYER, directions, validations, rounds=1)
    assert marks.seen == [[], [0]]
    with pytest.raises(ValueError, match="asks for it"):
        forget_in_layer(mini, LAYER, directions, dict(zip(names, reversed(validations.values()), strict=True)))


def test_a_concept_that_no_step_forgets_is_said(mini):
    validations = {"Zorbo": small_validation("Zorbo", 2, 8, 64)}
    direction = torch.randn(mini.weights()[LAYER].shape, generator=torch.Generator().manual_seed(0))
    search = slug.StepSearch(evaluations=1, margin=1e6)
    with pytest.raises(slug.NothingForgets, match="'Zorbo'") as caught:
        forget_in_layer(mini, LAYER, {"Zorbo": direction}, validations, search=search)
    assert set(caught.value.trace.layer) == {LAYER}
