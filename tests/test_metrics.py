"""Zero-shot accuracy and validation, checked on features that are known by construction."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import slug_lite as slug
from slug_lite import metrics, replay
from slug_lite.pairs import Pairs
from slug_lite.search import forgotten


def test_classifier_is_the_renormalised_mean_over_prompts(tiny):
    names, templates = ["cat", "dog", "cow"], ["a {}", "a picture of a {}"]
    classifier = slug.zero_shot_classifier(tiny, names, templates)
    by_hand = []
    for name in names:
        with torch.no_grad():
            features = tiny.model.encode_text(tiny.tokens([t.format(name) for t in templates]), normalize=True)
        by_hand.append(F.normalize(features.mean(0), dim=0))
    torch.testing.assert_close(classifier, torch.stack(by_hand))


def test_labels():
    pairs = Pairs(np.zeros((3, 4, 4, 3), np.uint8), ["", "", ""], [("cat", "Clay"), ("Zorbo",), ("dog", "Clay")])
    rows, own = metrics.labels(pairs, ("dog", "cat"))
    assert rows.tolist() == [0, 2] and own.tolist() == [1, 0]
    assert metrics.labels(pairs, ("Clay",))[0].tolist() == [0, 2]
    assert metrics.labels(pairs, ("nobody",))[0].tolist() == []


def test_margin_and_clearance_by_hand():
    logits = torch.tensor([[1.0, 4.0, 0.0], [2.0, 0.0, 3.0]])  # the own name is column 0
    out = metrics.margin_scores(logits, 0)
    assert out["forget_accuracy"] == 0 and out["margin"] == pytest.approx(2) and out["clearance"] == pytest.approx(2)
    broken = metrics.margin_scores(torch.full((3, 4), float("nan")), 0)
    assert broken["forget_accuracy"] == 1 and not forgotten(broken)  # a broken model has not forgotten
    known = metrics.margin_scores(torch.tensor([[5.0, 1.0, 0.0], [1.0, 0.0, 3.0]]), 0)
    assert known["margin"] == pytest.approx(-1) and known["forget_accuracy"] == 0.5


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


def test_same_seed_same_pictures(tiny):
    a, b = (slug.evaluate(tiny, n=4, seed=2)["per_concept"] for _ in range(2))
    assert a.equals(b)


@pytest.fixture
def small():
    return slug.Validation.of_world("Ada Sunfield", n=8, others=1, size=32)


@pytest.mark.parametrize(
    "layer",
    [
        "visual.conv1.weight",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "visual.transformer.resblocks.1.attn.in_proj_weight",
        "visual.proj",
        "transformer.resblocks.0.attn.out_proj.weight",
        "transformer.resblocks.1.mlp.c_proj.weight",
        "text_projection",
    ],
)
def test_scores_from_the_middle_equal_full_ones(tiny, small, layer):
    scorer = small.prepare(tiny)
    score = scorer.of_layer(layer)
    weight, seen = tiny.weights()[layer], [scorer.score()]
    for _ in range(3):  # the first call keeps what comes before the layer, the others start from it
        with torch.no_grad():
            weight.add_(0.5 * torch.randn_like(weight))
        seen.append(score())
        assert seen[-1] == small(tiny)  # bit for bit
        assert seen[-1] != seen[-2]  # the change matters at all
    assert not any("forward" in module.__dict__ for module in tiny.model.modules())


def test_forgetting_alone_is_part_of_the_whole(tiny, small):
    for layer in ("visual.proj", "text_projection"):
        score = small.prepare(tiny).of_layer(layer)
        assert score() == score.forgetting() | score.retaining()
        assert set(score.forgetting()) == {"forget_accuracy", "margin", "clearance"}


def test_blocks_that_are_skipped(tiny):
    vision, text = tiny.model.visual.transformer.resblocks, tiny.model.transformer.resblocks
    for layer, blocks in (
        ("visual.conv1.weight", []),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", []),
        ("visual.transformer.resblocks.1.attn.in_proj_weight", list(vision)[:1]),
        ("visual.proj", list(vision)),
        ("text_projection", list(text)),
    ):
        assert replay.blocks_before(tiny, layer) == blocks, layer


def test_skipped_blocks_come_back_after_an_interrupt(tiny, small):
    fresh, score = (small.prepare(tiny).of_layer("visual.proj") for _ in range(2))
    score()
    hook = tiny.model.visual.ln_post.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    for stopped in (fresh, score):  # while it is kept, while it is played back
        with pytest.raises(KeyboardInterrupt):
            stopped()
        assert not any("forward" in module.__dict__ for module in tiny.model.modules())
    hook.remove()
    assert fresh() == score() == small(tiny)  # half of a run is not taken for a whole one


def test_scores_hold_what_they_say(tiny, small):
    score = small(tiny)
    assert set(score) == {
        "people", "characters", "objects", "styles", "forget_accuracy", "margin", "clearance", "retain_accuracy",
        "retain_loss",
    }  # fmt: skip
    kinds = [score[k] for k in ("people", "characters", "objects", "styles")]
    assert score["retain_accuracy"] == pytest.approx(np.mean(kinds))
    pairs = small.pairs
    assert sum("Ada Sunfield" in c for c in pairs.concepts) == 8
    assert all(
        ("Ada Sunfield" in caption) == ("Ada Sunfield" in c)
        for caption, c in zip(pairs.captions, pairs.concepts, strict=True)
    )


def test_validation_pictures_are_neither_trained_nor_tested_on(small):
    for split in ("train", "test"):
        other = slug.toonworld.pairs("Ada Sunfield", n=24, size=32, split=split)
        seen = {image.tobytes() for image in other.images}
        assert not seen & {image.tobytes() for image in small.pairs.images}


def test_bad_validations_are_refused(small):
    v = small
    with pytest.raises(ValueError, match=r"need \.concepts"):
        slug.Validation(Pairs(v.pairs.images, v.pairs.captions), v.forget, v.names, v.templates)
    with pytest.raises(ValueError, match="in 0 of the kinds"):
        slug.Validation(v.pairs, "Nobody", v.names, v.templates)
    with pytest.raises(ValueError, match="templates for"):
        slug.Validation(v.pairs, v.forget, v.names, {"people": ["{}"]})
    with pytest.raises(ValueError, match="no validation picture"):
        slug.Validation(v.pairs[8:], v.forget, v.names, v.templates)
    with pytest.raises(ValueError, match="fewer than two names"):
        slug.Validation(v.pairs, v.forget, {"people": [v.forget]}, {"people": ["{}"]})
    with pytest.raises(ValueError, match="at least one template"):
        slug.Validation(v.pairs, v.forget, v.names, {**v.templates, "people": "{}"})
    with pytest.raises(ValueError, match="sequences of at least one string"):
        slug.zero_shot_classifier(None, "Ada Sunfield", ["{}"])


def test_mini_clip_knows_the_world(mini):
    """Accuracies that the project promises, on held-out pictures and held-out templates."""
    scores = slug.evaluate(mini, split="test", n=24)
    assert scores["people"] >= 0.99 and scores["characters"] >= 0.99
    assert scores["objects"] >= 0.95 and scores["styles"] >= 0.95


def test_scores_do_not_depend_on_gradients_being_on(tiny, small):
    copied = slug.Clip(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.preprocess)
    with torch.inference_mode():
        quiet = small(copied)
    assert small(tiny) == pytest.approx(quiet, abs=1e-5)


def test_bootstrap_interval():
    hits = torch.tensor([1.0] * 30 + [0.0] * 70)
    low, high = metrics.interval(hits)
    assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 100) ** 0.5, rel=0.1)
    assert metrics.interval(hits) == (low, high) and metrics.interval(hits, seed=1) != (low, high)
    narrow = metrics.interval(hits, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert metrics.interval([0.0] * 48) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no hits"):
        metrics.interval([])


def test_recognised_counts_the_right_names(mini):
    hits = metrics.recognised(mini, "Ada Sunfield", n=12)
    assert hits.shape == (12,) and hits.float().mean() >= 0.9
    with torch.no_grad():
        weight = mini.weights()["text_projection"]
        kept = weight.detach().clone()
        try:
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            one, five, all_of_them = (metrics.recognised(mini, "cat", n=48, top=k).float().mean() for k in (1, 5, 32))
        finally:
            weight.copy_(kept)
    assert one <= five < 0.6 and all_of_them == 1


def test_lost_points_leave_the_forgotten_out():
    import pandas as pd

    def scores(*accuracies):
        names = {"name": list("abcd"), "kind": ["people", "people", "people", "styles"]}
        return {"per_concept": pd.DataFrame(names | {"accuracy": accuracies})}

    found = metrics.lost(scores(1, 1, 0.5, 0.9), scores(0, 0.9, 0.6, 0.8), "a")
    assert dict(found) == pytest.approx({"people": 0.0, "styles": 10.0})
    assert metrics.lost(scores(1, 1, 1, 1), scores(0, 0, 1, 1), ["a", "b"])["people"] == 0


def test_auc_by_hand():
    assert metrics.auc([3.0, 2.0], [1.0, 0.0]) == 1 and metrics.auc([0.0], [1.0, 2.0]) == 0
    assert metrics.auc([2.0, 0.0], [1.0]) == 0.5 and metrics.auc([1.0, 1.0], [1.0]) == 0.5
    assert metrics.auc(torch.tensor([4.0, 1.0, 3.0]), torch.tensor([2.0, 1.0])) == pytest.approx(4.5 / 6)
    members, others = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.zeros(7)
    assert metrics.auc(members, others) == pytest.approx(1 - metrics.auc(others, members))
    assert metrics.auc(members.exp(), others.exp()) == metrics.auc(members, others)  # order alone counts
    with pytest.raises(ValueError, match="0 members"):
        metrics.auc([], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        metrics.auc([float("nan")], [1.0])


def test_a_tie_is_still_known():
    assert metrics.margin_scores(torch.tensor([[2.0, 2.0, 1.0], [1.0, 2.0, 0.0]]), 0)["forget_accuracy"] == 0.5


def test_a_forward_of_ones_own_comes_back(tiny, small):
    block = tiny.model.visual.transformer.resblocks[0]
    own = block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)
    score = small.prepare(tiny).of_layer("visual.proj")
    assert score() == score() and block.forward is own


def test_a_deeper_layer_starts_from_what_the_last_one_kept(tiny, small, monkeypatch):
    """What everything else keeps, asked once a layer: blocks before the layer run once for all layers."""
    scorer, runs = small.prepare(tiny), []
    vision, text = tiny.model.visual.transformer.resblocks, tiny.model.transformer.resblocks

    def count(module, args):
        if "forward" not in vars(module):  # it is run, not played back
            runs.append(module)

    for block in (*vision, *text):
        block.register_forward_pre_hook(count)
    for blocks, layers in (
        (vision, ["visual.conv1.weight", "visual.transformer.resblocks.1.mlp.c_fc.weight", "visual.proj"]),
        (text, ["transformer.resblocks.1.attn.out_proj.weight", "text_projection"]),
    ):
        counts = []
        for layer in layers:
            weight = tiny.weights()[layer]
            before = weight.detach().clone()
            with torch.no_grad():
                weight.add_(0.3 * torch.randn_like(weight))
                fresh = small.prepare(tiny).retaining()
                runs.clear()
                assert scorer.of_layer(layer).retaining() == fresh  # bit for bit
                weight.copy_(before)
            counts.append([sum(run is block for run in runs) for block in blocks])
        assert counts[0][0] > 0 and counts[-1][0] == 0 and counts[-1][1] > 0
    scorer.kept.clear()
    monkeypatch.setattr(metrics, "KEPT", 10)
    scorer.of_layer("visual.proj").retaining()
    assert not scorer.kept  # more than may be kept
