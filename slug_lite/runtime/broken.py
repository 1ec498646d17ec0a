"""Pictures and numbers that are broken: they must never pass for a concept that is forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVELS = 2  # of 255, by which a picture of one colour may vary


def not_finite(pictures: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Which pictures, of floating point numbers, hold NaN or infinity."""
    return [k for k, picture in enumerate(pictures) if not np.isfinite(picture).all()]


def one_colour(pictures: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Which pictures, uint8 (height, width, 3), are all of one colour, as a broken pipeline or a safety checker leaves.

    Of one pixel there is nothing to say.
    """
    return [
        k for k, picture in enumerate(pictures)
        if picture.shape[0] * picture.shape[1] > 1 and (np.ptp(picture, axis=(0, 1)) <= LEVELS).all()
    ]  # fmt: skip


def check_one_colour(pictures: Sequence[np.ndarray] | np.ndarray) -> None:
    """ValueError for pictures of one colour: what is not seen in them says nothing."""
    if plain := one_colour(pictures):
        raise ValueError(
            f"{len(plain)} of {len(pictures)} pictures are all of one colour, number {plain[0]} first: broken ones, "
            "which say nothing about what a model knows (half precision that overflowed? a safety checker?)"
        )


def check_embedded(vectors: Tensor, what: str) -> Tensor:
    """The embeddings (n, dim) as they are; ValueError where some are not finite: such a model has forgotten nothing."""
    bad = int((~torch.isfinite(vectors).all(-1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(vectors)} {what} are not finite: a broken model, or too low a precision")
    return vectors
