"""The two losses whose gradients SLUG compares (Cai, Tan, Asif, 2025, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forget_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """L_f: mean of 1 - cos over the pairs to forget. Small while the model knows them: forgetting *climbs* it.

    image_features, text_features: (n, dim), of any length; the cosine is taken here. Returns a scalar in [0, 2].
    """
    return (1 - F.cosine_similarity(image_features, text_features, dim=-1)).mean()


def retain_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None = None
) -> Tensor:
    """L_r: CLIP's symmetric contrastive loss over all pairs given (Radford et al., 2021, figure 3).

    image_features, text_features: unit vectors (n, dim); logit_scale: scalar. Returns a scalar, in nats.
    logit_bias: of a model trained by SigLIP's loss, which is taken then: is each of the n * n a pair, or is it not?
    The sum of their cross-entropies, a picture (Zhai et al., 2023, algorithm 1).
    """
    logits = logit_scale * image_features @ text_features.T  # (n, n): row = picture, column = caption
    if logit_bias is not None:
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(sign * (logits + logit_bias)).sum() / len(logits)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
