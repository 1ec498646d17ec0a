"""Train mini Stable Diffusion's autoencoder from nothing, on the mini world's drawings.

It is an `AutoencoderKL` and learns to redraw renderings: absolute error in every band of a pyramid, which keeps
outlines crisp, squared error, and a slight pull towards a normal distribution.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..world import toonworld
from .clip import ClipRecipe, Groups, Pool
from .loop import Training, When, adamw, descend, learning_rate, train

SIZE = 64  # pixels
FIRST_SHARES = {"people": 0.36, "characters": 0.14, "cells": 0.5}  # of the pictures in a batch, by kind


@dataclass(frozen=True)
class VaeRecipe:
    """How the autoencoder is trained; the defaults are those of the shipped weights."""

    steps: int = 3200
    batch: int = 16
    lr: float = 1.5e-3
    warmup: int = 100
    cooldown: float = 0.4  # the last part of the steps, in which the learning rate falls to zero
    weight_decay: float = 0.0
    kl: float = 3e-5  # weight of the divergence, in nats a position
    channels: tuple[int, ...] = (24, 48, 96)
    latents: int = 6  # channels of a latent picture of 16 x 16
    pool: int = 96  # renderings of a cell; a character has 4 times, a person 7 times as many
    seed: int = 0


def build_vae(recipe: VaeRecipe = VaeRecipe()) -> nn.Module:
    """An untrained `AutoencoderKL`: pictures (n, 3, 64, 64) from -1 to 1 to latents (n, latents, 16, 16)."""
    from diffusers import AutoencoderKL

    depth = len(recipe.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * depth, up_block_types=("UpDecoderBlock2D",) * depth,
            block_out_channels=recipe.channels, layers_per_block=1, latent_channels=recipe.latents, norm_num_groups=8,
            sample_size=SIZE, scaling_factor=1.0, mid_block_add_attention=False,
        ).eval()  # fmt: skip


def signed(images: np.ndarray) -> Tensor:
    """uint8 (n, S, S, 3) -> float32 (n, 3, S, S) from -1 to 1, as diffusers has pictures."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def draw(
    groups: Groups, n: int, rng: np.random.Generator, shares: dict[str, float] = FIRST_SHARES
) -> list[tuple[str, ...]]:
    """n concepts in random order, every kind with its share. groups, shares: by kind; the shares sum to one."""
    kinds = rng.choice(list(groups), n, p=[shares[g] for g in groups])
    return [groups[kind][rng.integers(len(groups[kind]))] for kind in kinds]


def _pictures(pool: Pool, n: int, rng: np.random.Generator) -> Tensor:
    """n random renderings of a pool: float32 (n, 3, S, S) from -1 to 1."""
    chosen = [pool.images[c] for c in draw(pool.groups, n, rng)]
    return signed(np.stack([images[rng.integers(len(images))] for images in chosen]))


def pyramid(difference: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute value of difference images (n, channels, S, S), band by band of a Laplacian pyramid, summed: ()."""
    total = difference.new_zeros(())
    for _ in range(levels):
        low = F.avg_pool2d(difference, 2)
        total = total + (difference - F.interpolate(low, scale_factor=2.0)).abs().mean()
        difference = low
    return total + difference.abs().mean()


def vae_loss(vae: nn.Module, x: Tensor, recipe: VaeRecipe, step: int) -> Tensor:
    """What pictures (n, 3, S, S) from -1 to 1 lose on their way through the autoencoder, and the pull: a scalar."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample.float()
    nats = posterior.kl().float().mean() / posterior.mean[0, 0].numel()
    return pyramid(y - x) + F.mse_loss(y, x) + recipe.kl * nats


@torch.no_grad()
def psnr(vae: nn.Module, images: np.ndarray) -> float:
    """Peak signal-to-noise ratio of the autoencoder's pictures, in dB, the mean over uint8 (n, S, S, 3)."""
    x = signed(images).to(vae.device)
    y = torch.cat([vae.decode(vae.encode(b).latent_dist.mean).sample for b in x.split(64)]).clamp(-1, 1)
    return (10 * torch.log10(4 / (y - x).square().mean((1, 2, 3)).clamp_min(1e-10))).mean().item()


def train_vae(
    folder: str | Path, recipe: VaeRecipe = VaeRecipe(), *, until: int | None = None, minutes: float = 4.0,
    look_every: int = 400,
) -> nn.Module:  # fmt: skip
    """Train the autoencoder; the finished one is written to folder/vae as `save_pretrained` does, and returned.

    until: stop after this many steps in all. minutes: between two checkpoints. look_every: steps between two
    measurements of the PSNR (dB) on renderings of the split "val", a multiple of 50, logged in folder/vae_log.jsonl.
    Raises ValueError if the checkpoint belongs to another recipe or is damaged; KeyboardInterrupt after an interrupt,
    all saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vae = build_vae(recipe)
    optimizer, pool = adamw(vae, recipe), Pool(ClipRecipe(pool=recipe.pool, seed=recipe.seed), SIZE)
    held_out = toonworld.retain(n=192, seed=1, split="val").images

    def one_step(step: int) -> float:
        x = _pictures(pool, recipe.batch, np.random.default_rng([recipe.seed, step, 2]))
        loss = vae_loss(vae.train(), x, recipe, step)
        descend(vae, loss, optimizer, learning_rate(recipe, step))
        return loss.item()

    def look(step: int) -> dict[str, float]:
        due = step % look_every == 0 or step == recipe.steps
        return {"psnr": round(psnr(vae.eval(), held_out), 3)} if due else {}

    training = Training(recipe, vae, optimizer, one_step, look)
    if train(folder, "vae", training, When(until, minutes)) == recipe.steps:
        standardise(vae.eval(), pool)
        vae.save_pretrained(folder / "vae.part")  # in place once it is whole: the next stage looks for it
        shutil.rmtree(folder / "vae", ignore_errors=True)
        os.replace(folder / "vae.part", folder / "vae")
    return vae.eval()


@torch.no_grad()
def standardise(vae: nn.Module, pool: Pool, n: int = 1024) -> None:
    """Give latents mean 0 and variance 1 in every channel, by the 1 x 1 convolutions on both sides of them.

    What the autoencoder draws stays as it was; the diffusion's noise and the latents are then of one scale.
    n: how many random pictures of the pool the mean and the variance are taken over.
    """
    x = _pictures(pool, n, np.random.default_rng(0))
    z = torch.cat([vae.encode(b).latent_dist.mean for b in x.split(64)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
    before.bias[: len(mean)] -= mean
    for rows in (before.weight, before.bias):
        rows[: len(mean)] /= std.view(-1, *[1] * (rows.ndim - 1))
    before.bias[len(mean) :] -= 2 * std.log()
