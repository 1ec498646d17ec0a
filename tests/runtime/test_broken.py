"""Broken pictures and numbers: what is nothing, and must not pass for something forgotten."""

import numpy as np
import pytest
import torch

from slug_lite.runtime.broken import check_embedded, check_one_colour, not_finite, one_colour


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
