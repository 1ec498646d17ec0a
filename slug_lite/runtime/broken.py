"""Pictures and numbers that are broken: they must never pass for a concept that is forgotten."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .modes import gradient_free

Pictures = Sequence[np.ndarray] | Sequence[Image.Image] | np.ndarray  # of a list each may have a size of its own
LEVELS = 2  # of 255, by which a picture of one colour may vary


def not_finite(pictures: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Which pictures, of floating point numbers, hold NaN or infinity."""
    return [k for k, picture in enumerate(pictures) if not np.isfinite(picture).all()]


def one_colour(pictures: Pictures) -> list[int]:
    """Which pictures are all of one colour, as a broken pipeline or a safety checker leaves them.

    Arrays are uint8 (height, width, 3). Of one pixel there is nothing to say.
    """
    arrays = (np.asarray(one.convert("RGB")) if isinstance(one, Image.Image) else one for one in pictures)
    return [
        k for k, picture in enumerate(arrays)
        if picture.shape[0] * picture.shape[1] > 1 and (np.ptp(picture, axis=(0, 1)) <= LEVELS).all()
    ]  # fmt: skip


def check_one_colour(pictures: Pictures, what: str = "pictures") -> None:
    """ValueError for pictures of one colour: what is not seen in them says nothing."""
    if plain := one_colour(pictures):
        raise ValueError(
            f"{len(plain)} of {len(pictures)} {what} are all of one colour, number {plain[0]} first: broken ones, "
            "which say nothing about what a model knows (half precision that overflowed? a safety checker?)"
        )


def warn_one_colour(pictures: Pictures, what: str) -> None:
    """A warning that counts pictures of one colour, where many others say enough."""
    if plain := one_colour(pictures):
        warnings.warn(f"{len(plain)} of {len(pictures)} {what} are all of one colour, as broken ones are", stacklevel=4)


def check_embedded(vectors: Tensor, what: str) -> Tensor:
    """The embeddings (n, dim) as they are; ValueError where some are not finite: such a model has forgotten nothing."""
    bad = int((~torch.isfinite(vectors).all(-1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(vectors)} {what} are not finite: a broken model, or too low a precision")
    return vectors


@gradient_free
def broken_weights(model: nn.Module) -> list[str]:
    """Names of weights that are not finite; of float8 too, and of those that are in memory alone."""
    kept = {name: weight for name, weight in model.named_parameters() if not weight.is_meta}
    return [name for name, weight in kept.items() if not torch.isfinite(weight.float()).all()]
