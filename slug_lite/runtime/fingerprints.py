"""Short marks that tell models apart; a seal against changes they are not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .modes import gradient_free
from .text_towers import tower_fingerprint

SAMPLE = 4096  # values of each tensor that are looked at, evenly spaced
FLOOR = 1e-3  # added to a tensor's size: what half precision rounds to nothing counts for nothing
STEP = 0.05  # in powers of two: how much the sizes of all tensors together may differ in models that are one
_DIGITS = 4  # of the fingerprint's 16, that stand for the sizes; the others for the signs


@gradient_free
def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits: 12 of SHA-256 over every weight's name, shape and signs of sampled values; 4 for their sizes.

    No rounding to another dtype changes a sign, and hardly any a size: the same weights in fp32, fp16 and bf16 are one
    model. To be compared by `same_weights`, for sizes may fall on either side of a step.
    """
    digest, sizes = hashlib.sha256(), 0.0
    for name, weight in sorted(weights.items()):
        flat = weight.flatten()
        places = torch.linspace(0, flat.numel() - 1, min(SAMPLE, flat.numel()), dtype=torch.float64).round().long()
        sample = flat[places.to(flat.device)].float().cpu()  # of float8 too, which knows neither signs nor sums
        signs = np.packbits(torch.signbit(sample).numpy())
        digest.update(f"{name}{tuple(weight.shape)}".encode() + signs.tobytes())
        sizes += math.log2(sample.double().square().mean().sqrt().item() + FLOOR) if len(sample) else 0.0
    step = round(sizes / STEP) % 16**_DIGITS if math.isfinite(sizes) else 0
    return f"{digest.hexdigest()[: 16 - _DIGITS]}{step:0{_DIGITS}x}"


def same_weights(one: str, other: str) -> bool:
    """Are two `weights_fingerprint`s of one model, in whatever dtypes?"""
    if one == other or len(one) != 16 or len(other) != 16:
        return one == other
    try:
        apart = (int(one[-_DIGITS:], 16) - int(other[-_DIGITS:], 16)) % 16**_DIGITS
    except ValueError:
        return False
    return one[:-_DIGITS] == other[:-_DIGITS] and apart in (0, 1, 16**_DIGITS - 1)


def tower_mark(weights: Mapping[str, Tensor]) -> str:
    """`tower_fingerprint` of a text tower; "" for one of another kind than CLIP's."""
    try:
        return tower_fingerprint(weights)
    except ValueError:
        return ""
