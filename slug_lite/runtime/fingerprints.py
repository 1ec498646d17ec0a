"""Short marks that tell models apart; a seal against changes they are not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .modes import gradient_free

SAMPLE = 4096  # values of each tensor that are looked at, evenly spaced
FLOOR = 1e-3  # added to a tensor's size: what half precision rounds to nothing counts for nothing
STEP = 0.01  # in powers of two: how much a sum of sizes may differ in models that are one
SUMS, HASH, SUM = 4, 12, 3  # of a whole model: sums of sizes, digits of the hash, digits of a sum


class Mark:
    """A hash over names, shapes and signs of tensors, and several weighted sums over their sizes.

    No rounding to another dtype changes a sign, and hardly any a size; float8, which rounds by up to 6 %, makes another
    model of most. Sizes are logarithms, to the base of two, of the root mean square of a tensor's values in bfloat16;
    what a tensor weighs in each sum, 0.5 to 1 or -1 to -0.5, follows from its name. So a tensor that is scaled by 3 %
    shows in every sum, and two that are scaled in opposite ways in all but few.
    """

    def __init__(self, sums: int = SUMS) -> None:
        self.digest, self.sizes = hashlib.sha256(), np.zeros(sums)

    def add(self, name: str, weight: Tensor) -> None:
        flat = weight.flatten()
        places = torch.linspace(0, flat.numel() - 1, min(SAMPLE, flat.numel()), dtype=torch.float64).round().long()
        sample = flat[places.to(flat.device)].float().cpu()  # of float8 too, which knows neither signs nor sums
        signs = np.packbits(torch.signbit(sample).numpy())
        # bfloat16 makes 1 of every gain that training has hardly moved, so all dtypes are compared in it; where half
        # precision has a value halfway between two of its own, every other one goes up, else all would go one way
        sample *= 1 + 2.0**-12 * (-1) ** torch.arange(len(sample))
        sample = sample.bfloat16()
        self.digest.update(f"{name}{tuple(weight.shape)}".encode() + signs.tobytes())
        size = sample.double().square().mean().sqrt().item() if len(sample) else 1.0
        drawn = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.int8)[: len(self.sizes)] + 0.5
        self.sizes += (np.copysign(0.5, drawn) + drawn / 256) * math.log2(size + FLOOR)

    def text(self, hashed: int = HASH, summed: int = SUM) -> str:
        """`hashed` hex digits of the hash, and `summed` of each sum in steps, which begin anew where digits end."""
        steps = np.round(np.where(np.isfinite(self.sizes), self.sizes, 0) / STEP).astype(int) % 16**summed
        return self.digest.hexdigest()[:hashed] + "".join(f"{step:0{summed}x}" for step in steps)


def same_mark(one: str, other: str, hashed: int = HASH, summed: int = SUM) -> bool:
    """Are two `Mark`s' texts of one model, in whatever dtypes? Each sum may fall on either side of a step."""
    if one[:hashed] != other[:hashed] or len(one) != len(other):
        return False
    try:
        steps = [[int(mark[i : i + summed], 16) for i in range(hashed, len(mark), summed)] for mark in (one, other)]
    except ValueError:
        return one == other
    return all((a - b) % 16**summed in (0, 1, 16**summed - 1) for a, b in zip(*steps, strict=True))


@gradient_free
def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A `Mark` of all weights: 24 hex digits, to be compared by `same_mark`."""
    mark = Mark()
    for name, weight in sorted(weights.items()):
        mark.add(name, weight)
    return mark.text()
