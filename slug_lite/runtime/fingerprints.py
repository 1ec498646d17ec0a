"""Short marks that tell models apart; a seal against changes they are not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .text_towers import tower_fingerprint


@torch.no_grad()
def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of SHA-256 over every weight's name, shape and up to 256 evenly spaced values, as bfloat16.

    The same for a model loaded in fp32 and in bf16, and in fp16 where the weights were saved so.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.flatten()
        places = torch.linspace(0, flat.numel() - 1, min(256, flat.numel()), dtype=torch.float64).round().long()
        sample = flat[places.to(flat.device)].to(torch.bfloat16).cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def tower_mark(weights: Mapping[str, Tensor]) -> str:
    """`tower_fingerprint` of a text tower; "" for one of another kind than CLIP's."""
    try:
        return tower_fingerprint(weights)
    except ValueError:
        return ""
