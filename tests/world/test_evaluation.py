"""What a model knows of the mini world, and how sure that is."""

import numpy as np
import pandas as pd
import pytest
import torch

import slug_lite as slug
from slug_lite import toonworld
from slug_lite.world import evaluation


def test_an_untrained_model_guesses_and_the_table_agrees_with_the_means(tiny):
    out = slug.evaluate(tiny, n=4)
    assert out["people"] < 0.3
    table = out["per_concept"]
    for kind, names in slug.toonworld.NAMES.items():
        rows = table[table.kind == kind]
        assert list(rows.name) == list(names)
        assert np.average(rows.accuracy, weights=rows.pictures) == pytest.approx(out[kind], abs=1e-6)
    assert set(slug.evaluate(tiny, "unseen", n=4)) == {"objects", "styles", "per_concept"}
    with pytest.raises(KeyError, match="did you mean 'test'"):
        slug.evaluate(tiny, "tests")


def test_mini_clip_knows_the_world(mini):
    """Accuracies that the project promises, on held-out pictures and held-out templates."""
    scores = slug.evaluate(mini, split="test")
    assert scores["people"] >= 0.99 and scores["characters"] >= 0.99
    assert scores["objects"] >= 0.95 and scores["styles"] >= 0.95


def test_recognised_counts_the_right_names(mini):
    hits = evaluation.recognised(mini, "Ada Sunfield", n=12)
    assert hits.shape == (12,) and hits.float().mean() >= 0.9
    with torch.no_grad():
        weight = mini.weights()["text_projection"]
        kept = weight.detach().clone()
        try:
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            found = [evaluation.recognised(mini, "cat", n=48, top=k).float().mean() for k in (1, 5, 32)]
        finally:
            weight.copy_(kept)
    assert found[0] <= found[1] < 0.6 and found[2] == 1


def test_dropped_points_leave_the_forgotten_out():
    def scores(*accuracies):
        names = {"name": list("abcd"), "kind": ["people", "people", "people", "styles"]}
        return {"per_concept": pd.DataFrame(names | {"accuracy": accuracies})}

    found = evaluation.drop(scores(1, 1, 0.5, 0.9), scores(0, 0.9, 0.6, 0.8), "a")
    assert dict(found) == pytest.approx({"people": 0.0, "styles": 10.0})
    assert evaluation.drop(scores(1, 1, 1, 1), scores(0, 0, 1, 1), ["a", "b"])["people"] == 0


def test_bootstrap_interval():
    hits = torch.tensor([1.0] * 30 + [0.0] * 70)
    low, high = evaluation.interval(hits)
    assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 100) ** 0.5, rel=0.1)
    assert evaluation.interval(hits) == (low, high) and evaluation.interval(hits, seed=1) != (low, high)
    narrow = evaluation.interval(hits, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert evaluation.interval([0.0] * 48) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no hits"):
        evaluation.interval([])


def test_auc_by_hand():
    assert evaluation.auc([3.0, 2.0], [1.0, 0.0]) == 1 and evaluation.auc([0.0], [1.0, 2.0]) == 0
    assert evaluation.auc([2.0, 0.0], [1.0]) == 0.5 and evaluation.auc([1.0, 1.0], [1.0]) == 0.5
    assert evaluation.auc(torch.tensor([4.0, 1.0, 3.0]), torch.tensor([2.0, 1.0])) == pytest.approx(4.5 / 6)
    members, others = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.zeros(7)
    assert evaluation.auc(members, others) == pytest.approx(1 - evaluation.auc(others, members))
    assert evaluation.auc(members.exp(), others.exp()) == evaluation.auc(members, others)  # order alone counts
    with pytest.raises(ValueError, match="0 members"):
        evaluation.auc([], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        evaluation.auc([float("nan")], [1.0])


def test_the_seed_and_the_split_say_which_pictures_are_looked_at(tiny, spy):
    asked = {name: spy(toonworld, name) for name in ("evaluation_pairs", "pairs", "templates")}
    a, b = (slug.evaluate(tiny, "val", n=4, seed=2)["per_concept"] for _ in range(2))
    assert a.equals(b)
    assert [(one["n_per_concept"], one["seed"], one["split"], one["size"]) for one in asked["evaluation_pairs"]] == [
        (4, 2, "val", 32), (4, 2, "val", 32),
    ]  # fmt: skip
    evaluation.recognised(tiny, "Zorbo", n=3, seed=5, split="val")
    (one,) = asked["pairs"]
    assert (one["name"], one["n"], one["seed"], one["split"], one["size"]) == ("Zorbo", 3, 5, "val", 32)
    assert {one["split"] for one in asked["templates"]} == {"val"}


def test_pictures_are_as_large_as_the_model_looks_at(tiny, mini, monkeypatch):
    assert evaluation.world_size(tiny) == 32 and evaluation.world_size(mini) == 64
    for size, drawn in ((16, 32), (224, 224), (336, 256)):
        monkeypatch.setattr(slug.Clip, "image_size", property(lambda self, size=size: size))
        assert evaluation.world_size(tiny) == drawn


def test_a_broken_model_is_no_model_that_has_forgotten(tiny):
    """The greatest of its scores, all NaN, is somebody else: the concept would count as gone."""
    with torch.no_grad():
        tiny.weights()["visual.proj"].fill_(float("nan"))
    for ask in (lambda: evaluation.recognised(tiny, "Zorbo", n=2), lambda: slug.evaluate(tiny, n=1)):
        with pytest.raises(ValueError, match="pictures' embeddings are not finite"):
            ask()


def test_hits_that_are_no_numbers_have_no_interval():
    with pytest.raises(ValueError, match="hits are not finite"):
        evaluation.interval([0.0, float("nan")])
