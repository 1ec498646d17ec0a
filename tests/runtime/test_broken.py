"""Broken pictures and numbers: what is nothing, and must not pass for something forgotten."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_clips import small_validation

import slug_lite as slug
from slug_lite import Pairs
from slug_lite.runtime.broken import check_embedded, check_one_colour, not_finite, one_colour
from slug_lite.runtime.checks import check_sets


def test_pictures_of_one_colour():
    generator = np.random.default_rng(0)
    black, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), (90, 200, 7), np.uint8)
    grain = grey + generator.integers(0, 3, (8, 8, 3)).astype(np.uint8)
    spot, noise = grey.copy(), generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    spot[2, 3, 1] = 0
    assert one_colour([black, spot, grey, noise, grain, grey[:1, :1]]) == [0, 2, 4]
    check_one_colour(np.stack([spot, noise]))
    with pytest.raises(ValueError, match="2 of 3 pictures are all of one colour, number 1 first"):
        check_one_colour([noise, black, grey])


def test_numbers_that_are_not_finite():
    pictures = np.zeros((3, 2, 2, 3), np.float32)
    pictures[1, 0, 0, 0], pictures[2, 1, 1, 2] = np.nan, np.inf
    assert not_finite(pictures) == [1, 2] and not_finite(pictures[:1]) == []
    vectors = torch.from_numpy(pictures.reshape(3, -1))
    assert check_embedded(vectors[:1], "x") is not None
    with pytest.raises(ValueError, match="2 of 3 pictures are not finite"):
        check_embedded(vectors, "pictures")


def blackened(pairs, rows, as_list=False):
    """The pairs with some pictures black; as_list: PIL images, those in another size and mode."""
    images = pairs.images.copy()
    images[rows] = 0
    if as_list:
        images = pairs.pil()
        for k in range(len(images))[rows]:
            images[k] = Image.new("L", (40 + k, 50))
    return Pairs(images, pairs.captions, pairs.concepts)


@pytest.mark.parametrize("as_list", [False, True], ids=["array", "list"])
def test_black_pictures_do_not_pass_for_what_is_forgotten(sets, as_list):
    """In black pictures nobody recognises anything, by the rule "top1" not even before the first step."""
    forget, retain = sets
    with pytest.raises(ValueError, match="2 of 6 pictures of the forget set are all of one colour, number 4 first"):
        check_sets([forget, blackened(forget, slice(4, None), as_list)], retain)
    v = small_validation("Ada Sunfield", 4)
    with pytest.raises(ValueError, match="3 of 4 validation pictures of Ada Sunfield are all of one colour"):
        slug.Validation(blackened(v.pairs, slice(1, 4), as_list), v.forget, v.names, v.templates)
    slug.Validation(blackened(v.pairs, slice(4, 6), as_list), v.forget, v.names, v.templates)


def test_black_pictures_among_those_to_retain_are_counted(tiny, sets):
    forget, retain = sets
    with pytest.warns(UserWarning, match="3 of 20 pictures of the retain set are all of one colour") as caught:
        slug.one_shot_gradients(
            tiny, forget, blackened(retain, slice(3), True), layers=lambda n, _: n == "text_projection", progress=False
        )
    assert len(caught) == 1 and caught[0].filename == __file__
