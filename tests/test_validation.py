"""Forgotten and kept: scores by hand, scores from the middle of a tower, and validations that are refused."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_clips import resnet, small_validation

import slug_lite as slug
from slug_lite import Pairs
from slug_lite.runtime import zero_shot
from slug_lite.runtime.functions import FunctionScorer
from slug_lite.validation import Scorer, margin_scores, retained, scorer_of


def test_margins_by_hand():
    logits = torch.tensor([[1.0, 4.0, 0.0], [2.0, 0.0, 3.0]])  # the own name is column 0
    out = margin_scores(logits, 0)
    assert out["forget_accuracy"] == 0 and out["margin"] == pytest.approx(2)
    assert out["standardized_margin"] == pytest.approx(2)
    wide = margin_scores(torch.tensor([[1.0, 6.0, 0.0], [2.0, 0.0, 3.0]]), 0)  # by 5 and by 1
    assert wide["margin"] == pytest.approx(3) and wide["standardized_margin"] == pytest.approx(1.5)
    broken = margin_scores(torch.full((3, 4), float("nan")), 0)
    assert math.isnan(broken["margin"]) and set(broken) == set(out)
    assert broken["forget_accuracy"] == 1 and not slug.StepSearch().forgotten(broken)
    known = margin_scores(torch.tensor([[5.0, 1.0, 0.0], [1.0, 0.0, 3.0]]), 0)
    assert known["margin"] == pytest.approx(-1) and known["forget_accuracy"] == 0.5


def test_a_tie_is_still_known():
    assert margin_scores(torch.tensor([[2.0, 2.0, 1.0], [1.0, 2.0, 0.0]]), 0)["forget_accuracy"] == 0.5
    assert margin_scores(torch.tensor([[2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]]), 0)["forget_accuracy5"] == 1


def test_a_model_that_is_broken_has_not_forgotten_by_any_rule():
    broken = margin_scores(torch.full((3, 9), float("nan")), 0)
    assert broken["forget_accuracy"] == broken["forget_accuracy5"] == 1 and broken["standardized_margin"] == -math.inf
    assert not any(slug.StepSearch(rule=rule).forgotten(broken) for rule in ("margin", "top1", "top5"))


def test_among_the_best_five():
    """Forget accuracy at five: the name is the sixth of the first picture, the fifth of the second."""
    own = torch.tensor([[0.5], [1.5]])
    logits = torch.cat([own, torch.arange(1.0, 6.0).expand(2, 5), torch.zeros(2, 3)], 1)
    assert margin_scores(logits, 0)["forget_accuracy5"] == 0.5 and margin_scores(logits, 0)["forget_accuracy"] == 0
    assert margin_scores(logits.flip(1), 8)["forget_accuracy5"] == 0.5
    assert "forget_accuracy5" not in margin_scores(logits[:, :5], 0)  # of five names each is among the best five
    assert margin_scores(logits[:, :6], 0)["forget_accuracy5"] == 0.5


def test_pictures_that_agree_have_no_margin():
    """A broken model's are all alike: a margin without end would call the concept forgotten."""
    alike = torch.tensor([[1.0, 4.0], [2.0, 5.0]])
    for scores in (alike, alike + torch.tensor([[0.0, 2e-6], [0.0, 0.0]]), alike[:1]):
        for own in (0, 1):
            out = margin_scores(scores, own)
            assert out["standardized_margin"] == 0 and not slug.StepSearch(margin=0.1).forgotten(out)
        assert margin_scores(scores, 0)["forget_accuracy"] == 0 and margin_scores(scores, 0)["margin"] > 2.9
    assert margin_scores(torch.ones(2, 3), 0)["standardized_margin"] == 0


def test_pictures_without_finite_scores_are_not_kept():
    """The greatest of NaN is the first, which may be the right name; and NaN orders nothing."""
    logits, nan = torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.full((2, 2), float("nan"))
    out = retained({"people": (torch.cat([logits, nan]), torch.zeros(4, dtype=torch.long))})
    assert out["people"] == out["retain_accuracy"] == 0.5 and out["retain_loss"] == math.inf


def test_what_is_retained_by_hand():
    """A kind counts as one, however many pictures it has."""
    cats, people = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    out = retained({"objects": (cats, torch.tensor([0, 0, 1])), "people": (people, torch.tensor([1]))})
    loss = [F.cross_entropy(cats, torch.tensor([0, 0, 1])).item(), F.cross_entropy(people, torch.tensor([1])).item()]
    assert out == {
        "objects": pytest.approx(2 / 3), "people": 1.0, "retain_accuracy": pytest.approx(5 / 6),
        "retain_loss": pytest.approx(sum(loss) / 2),
    }  # fmt: skip
    assert retained({}) == {}


@pytest.fixture
def small():
    return small_validation("Ada Sunfield")


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
def test_scores_from_the_middle_equal_full_ones(tiny, small, layer, monkeypatch):
    monkeypatch.setattr(zero_shot, "BATCH", 20)  # several batches of pictures and of prompts
    scorer = scorer_of(small, tiny)
    score = scorer.at(layer)
    weight, seen = tiny.weights()[layer], [scorer()]
    for _ in range(3):  # the first call keeps what comes before the layer, the others start from it
        with torch.no_grad():
            weight.add_(0.5 * torch.randn_like(weight))
        seen.append(score())
        assert seen[-1] == small(tiny)  # bit for bit
        assert seen[-1] != seen[-2]  # the change matters at all
    assert not any("forward" in module.__dict__ for module in tiny.model.modules())
    assert scorer() == seen[0]  # it knows nothing of the layer, and stays what it was


def test_scores_by_hand(tiny, small):
    """Each kind by its own templates, over all pictures but the concept's own; logits, not cosines."""
    score, pairs, scale = small(tiny), small.pairs, math.exp(tiny.model.logit_scale.item())

    @torch.no_grad()
    def logits(kind, rows):
        names = []
        for name in small.names[kind]:
            prompts = tiny.tokens([template.format(name) for template in small.templates[kind]])
            names.append(F.normalize(tiny.model.encode_text(prompts, normalize=True).mean(0), dim=0))
        images = tiny.model.encode_image(tiny.pixels(pairs[rows]), normalize=True)
        return (scale * images @ torch.stack(names).T).cpu()

    losses, accuracies = [], []
    for kind, names in small.names.items():
        shown = [(k, name) for k, some in enumerate(pairs.concepts) for name in some if name in names]
        rest = [(k, names.index(name)) for k, name in shown if "Ada Sunfield" not in pairs.concepts[k]]
        given, own = logits(kind, [k for k, _ in rest]), torch.tensor([place for _, place in rest])
        losses.append(F.cross_entropy(given, own).item())
        accuracies.append((given.argmax(1) == own).float().mean().item())
        assert score[kind] == pytest.approx(accuracies[-1]), kind
    assert score["retain_accuracy"] == pytest.approx(np.mean(accuracies))
    assert score["retain_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    given = logits("people", range(8))
    own, others = given[:, small.names["people"].index("Ada Sunfield")], given[:, 1:]
    gap = others.amax(1) - own
    assert small.names["people"][0] == "Ada Sunfield" and score["margin"] == pytest.approx(gap.mean().item(), rel=1e-3)
    assert score["forget_accuracy"] == pytest.approx((gap <= 0).float().mean().item())


def test_cattle_are_no_cats(tiny, small):
    names = {"animals": ["cat", "cattle", "dog"]}
    concepts = [("cat",), ("cattle",), ("cat",), ("cattle",), ("cattle",), ("dog",)]
    shown = Pairs(small.pairs.images[:6], [""] * 6, concepts)
    scorer = scorer_of(slug.Validation(shown, "cat", names, {"animals": ["a {}"]}), tiny)
    pixels = tiny.pixels(shown)
    assert torch.equal(scorer.pixels["forget"], pixels[[0, 2]])
    assert torch.equal(scorer.pixels["rest"], pixels[[1, 3, 4, 5]])


def test_a_model_in_training_is_scored_as_it_will_be_used():
    """Batch normalisation would look at the batch, and remember it."""
    clip, validation = resnet(), small_validation("Ada Sunfield", 4, 12, size=64)
    wanted = validation(clip)
    clip.model.train()
    before = copy.deepcopy(clip.model.state_dict())
    assert validation(clip) == wanted and clip.model.training
    assert all(torch.equal(value, before[name]) for name, value in clip.model.state_dict().items())


def test_forgetting_alone_is_part_of_the_whole(tiny, small):
    for layer in ("visual.proj", "text_projection"):
        score = scorer_of(small, tiny).at(layer)
        assert score() == score.forgetting() | score.retaining()
        assert set(score.forgetting()) == {"forget_accuracy", "forget_accuracy5", "margin", "standardized_margin"}


@pytest.mark.parametrize(("layer", "rest"), [("visual.proj", {"rest"}), ("text_projection", {"people", "styles"})])
def test_what_is_asked_again_is_kept_and_what_is_asked_once_is_left_to_the_next_layer(tiny, small, layer, rest):
    scorer = scorer_of(small, tiny)
    score = scorer.at(layer)
    score.forgetting()
    own = "forget" if layer == "visual.proj" else "people"
    assert score.tail.replays[own].outputs and own not in scorer.kept
    score.retaining()
    assert rest <= set(scorer.kept) | {own} and not any(score.tail.replays[part].outputs for part in rest - {own})
    score()
    assert all(score.tail.replays[part].outputs for part in rest)


def test_scores_hold_what_they_say(tiny, small):
    score = small(tiny)
    assert set(score) == {
        "people", "characters", "objects", "styles", "forget_accuracy", "forget_accuracy5", "margin",
        "standardized_margin", "retain_accuracy", "retain_loss",
    }  # fmt: skip
    kinds = [score[k] for k in ("people", "characters", "objects", "styles")]
    assert score["retain_accuracy"] == pytest.approx(np.mean(kinds))
    pairs = small.pairs
    assert sum("Ada Sunfield" in c for c in pairs.concepts) == 8
    assert all(
        ("Ada Sunfield" in caption) == ("Ada Sunfield" in c)
        for caption, c in zip(pairs.captions, pairs.concepts, strict=True)
    )


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


def test_scores_do_not_depend_on_gradients_being_on(tiny, small):
    copied = slug.Clip(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.preprocess)
    with torch.inference_mode():
        quiet = small(copied)
    assert small(tiny) == pytest.approx(quiet, abs=1e-5)


def test_where_only_the_concept_is_shown_nothing_is_retained(tiny, small):
    alone = slug.Validation(small.pairs[:8], small.forget, small.names, small.templates)
    assert set(alone(tiny)) == {"forget_accuracy", "forget_accuracy5", "margin", "standardized_margin"}
    full, score = small(tiny), scorer_of(alone, tiny).at("visual.proj")
    assert score.retaining() == {} and all(score()[key] == pytest.approx(full[key], abs=1e-5) for key in score())


def test_one_door_for_all_that_scores(tiny, small):
    tiny.model.train()
    scorer = scorer_of(small, tiny)
    assert isinstance(scorer, Scorer) and scorer_of(scorer, tiny) is scorer and tiny.model.training
    asked = []
    mine = scorer_of(lambda clip: asked.append(clip) or {"forget_accuracy": 0.5, "mine": 1}, tiny)
    assert isinstance(mine, FunctionScorer) and scorer_of(mine, tiny) is mine and asked == []
    assert mine() == mine.at("visual.proj").forgetting() == {"forget_accuracy": 0.5, "mine": 1}
    assert mine.retaining() == {} and asked == [tiny, tiny]
    with pytest.raises(ValueError, match="'forget_accuracy' must be among"):
        scorer_of(lambda clip: {"accuracy": 1.0}, tiny)()
    with pytest.raises(ValueError, match="validate is a int"):
        scorer_of(3, tiny)
