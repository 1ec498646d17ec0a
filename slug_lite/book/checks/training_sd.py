"""Checks of the appendix on training: what an autoencoder keeps of strange pictures, and what a frozen tower is for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._drawn import by_key
from .common import verdict, verdict_choice


def check_ex_sd_vae(decibels: Any, pictures: Any) -> str:
    """decibels: {what: peak signal-to-noise ratio in dB}; pictures: {what: (the picture, the same redrawn)}, bytes."""
    given = by_key(pictures, 2)
    if isinstance(given, str):
        return given
    if wrong := [key for key, (a, b) in given.items() if a.shape != b.shape]:
        return f"pictures: {wrong[0]} and what was redrawn of it have different shapes"
    if any((a == b).all() for a, b in given.values()):
        return "pictures: one was not redrawn: both are the same, byte for byte"
    error = np.array([((a.astype(float) - b) ** 2).mean() for a, b in given.values()])  # of bytes, 0 to 255
    absolute = np.array([np.abs(a.astype(float) - b).mean() for a, b in given.values()])
    wrapped = np.array([((a - b).astype(float) ** 2).mean() for a, b in given.values()])
    right = 10 * np.log10(255**2 / error)
    each = dict(zip(given, right, strict=True))
    return verdict(decibels, each, {
        "the peak is 1, where it is 2 for pixels from -1 to 1: four over the error": right - 10 * np.log10(4),
        "the error of pixels from 0 to 1 under a peak of 2": right + 10 * np.log10(4),
        "20 times the logarithm of the squared error: 10 times": 2 * right,
        "the natural logarithm: to the base of ten": right * np.log(10),
        "not in decibels: times ten is missing": right / 10,
        "the error itself, not the ratio (bytes)": error,
        "the error itself, not the ratio (pixels from -1 to 1)": error / 127.5**2,
        "the absolute error, not the squared one": 20 * np.log10(255 / absolute),
        "bytes wrap around: make numbers of them first": 10 * np.log10(255**2 / np.maximum(wrapped, 1e-9)),
        "the error over all pictures, the same for each": np.full_like(right, 10 * np.log10(255**2 / error.mean())),
    }, wanted="a number of dB for each picture", rel=0.0, abs_=0.25)  # fmt: skip


def check_ex_sd_frozen(gradient: Any) -> str:
    """Where the gradient would come from: "clip", "unet", "judge" or "nowhere"."""
    return verdict_choice(gradient, "unet", {
        "clip": "CLIP's vision tower does not belong to a text tower that was trained with a UNet",
        "judge": "the judge reads no captions: it says nothing of what a text tower should change",
        "nowhere": "there is one loss that both have: what the UNet was trained by",
    }, also="by a backward pass through all of it, at many times and noises")  # fmt: skip
