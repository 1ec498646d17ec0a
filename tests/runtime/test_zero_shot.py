"""Names and pictures: classifiers by hand, labels, batches that change nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import slug_lite as slug
from slug_lite import Pairs
from slug_lite.runtime import zero_shot


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
    rows, own = zero_shot.labels(pairs, ("dog", "cat"))
    assert rows.tolist() == [0, 2] and own.tolist() == [1, 0]
    assert zero_shot.labels(pairs, ("Clay",))[0].tolist() == [0, 2]
    assert zero_shot.labels(pairs, ("nobody",))[0].tolist() == []


def test_batches_do_not_change_what_is_found(tiny, monkeypatch):
    pixels = tiny.pixels(slug.toonworld.pairs("Zorbo", n=7, size=32))
    names, templates = ["cat", "dog", "cow"], ["a {}", "a picture of a {}"]
    images, classifier = zero_shot.embed_images(tiny, pixels), slug.zero_shot_classifier(tiny, names, templates)
    monkeypatch.setattr(zero_shot, "BATCH", 2)
    torch.testing.assert_close(zero_shot.embed_images(tiny, pixels), images)
    torch.testing.assert_close(slug.zero_shot_classifier(tiny, names, templates), classifier)
    assert not images.requires_grad and not classifier.requires_grad


def test_a_bare_string_is_no_list_of_names():
    for names, templates in (("Ada Sunfield", ["{}"]), (["Ada Sunfield"], "{}"), ([], ["{}"]), (["cat"], [])):
        with pytest.raises(ValueError, match="sequences of at least one string"):
            slug.zero_shot_classifier(None, names, templates)
