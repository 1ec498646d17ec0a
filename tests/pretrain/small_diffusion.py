"""Recipes of trainings of diffusion that take a moment."""

import torch

from slug_lite.pretrain.autoencoder import VaeRecipe
from slug_lite.pretrain.unet import UnetRecipe

VAE = VaeRecipe(steps=6, batch=4, channels=(8, 8, 16), latents=2, pool=1, warmup=2)
SIDE = 32  # pixels, half of mini SD's: convolutions do not mind
UNET = UnetRecipe(steps=6, batch=4, channels=(16, 16, 32), heads=(1, 1, 2), captions=3, warmup=2)


def same(a, b):
    """Whether two models have the same weights, bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
