"""The appendix on training: every solution runs and prints what its text says; every check names typical mistakes."""

import re

import numpy as np
import pytest
import torch
from solutions import Chapter, refused

from slug_lite.book import checks


@pytest.fixture(scope="module")
def chapter():
    return Chapter("A2_training_mini_sd")


def test_every_exercise_has_its_solution_and_its_check(chapter):
    assert chapter.checked() == ["ex-sd-vae", "ex-sd-frozen"]


def test_strange_pictures(chapter):
    said, names = chapter.solve("ex-sd-vae")
    assert "\nright: " in said
    decibels, check = names["decibels"], checks.check_ex_sd_vae
    grey = float(re.search(r"an even grey: ([\d.]+) dB", said)[1])
    # "one and two pixels are redrawn no better than by an even grey", "Of larger squares more is kept"
    assert abs(decibels[1] - grey) < 0.3 > abs(decibels[2] - grey) and decibels[2] < decibels[4] < decibels[8]
    world = names["autoencoder"].psnr(names["pipe"].vae, names["held_out"].images[:20])
    assert max(decibels.values()) < world - 5  # "none of these boards comes near the drawings of the world"
    pictures = dict(zip(decibels, zip(names["boards"], names["redrawn"], strict=True), strict=True))
    value = np.array(list(decibels.values()))
    error = np.array([((a.astype(float) - b) ** 2).mean() for a, b in pictures.values()])
    for mistake, answer in {
        "the peak is 1": value - 6.02, "from 0 to 1 under a peak": value + 6.02, "20 times": 2 * value,
        "natural": value * np.log(10), "times ten is missing": value / 10, "the error itself": error,
        "over all pictures": np.full(4, 10 * np.log10(255**2 / error.mean())), "the wrong sign": -value,
    }.items():  # fmt: skip
        assert mistake in check(dict(zip(decibels, answer, strict=True)), pictures), mistake
    assert "was not redrawn" in check(decibels, {k: (a, a) for k, (a, _) in pictures.items()})
    tensors = {k: (torch.as_tensor(a), torch.as_tensor(b)) for k, (a, b) in pictures.items()}
    assert check({k: torch.tensor(v) for k, v in decibels.items()}, tensors).startswith("right")
    refused(check, decibels, pictures)


def test_a_tower_that_was_not_frozen(chapter):
    said, _ = chapter.solve("ex-sd-frozen")
    assert said.startswith("right: unet")
    text, check = chapter.texts["ex-sd-frozen"], checks.check_ex_sd_frozen
    assert "no vision tower that belongs to it" in text and "the UNet's own denoising error" in text
    for mistake, answer in {
        "does not belong to": "clip", "reads no captions": "judge", "one loss that both have": "nowhere",
    }.items():  # fmt: skip
        assert mistake in check(answer)
    assert check(" UNet ").startswith("right")
    refused(check, "unet")
