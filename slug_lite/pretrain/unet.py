"""Train mini Stable Diffusion's UNet from nothing, on the autoencoder's latents under mini CLIP's words.

The UNet (`UNet2DConditionModel`) sees latents and the text tower's last hidden states, both computed once, and
learns to tell picture from noise (v-prediction: Salimans & Ho, 2022; min-SNR weights: Hang et al., 2023); one caption
in ten is left out, for guidance. Noise levels that weigh more are drawn more often, evenly over a batch (Kingma et
al., 2021), so that no step is spent on pictures that hardly count. What it ships is a running mean of its weights.
"""

from __future__ import annotations

import copy
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.files import digest
from .autoencoder import FIRST_SHARES, SIZE, draw
from .clip import Groups
from .loop import CooledRecipe, Training, When, adamw, descend, learning_rate, train

SHARES = (  # of the pictures in a batch: at first, and as of each step of `UnetRecipe.phases`
    FIRST_SHARES,
    {"people": 0.16, "characters": 0.17, "cells": 0.67},  # once people are known
    {"people": 0.12, "characters": 0.3, "cells": 0.58},  # characters are the hardest to draw
    {"people": 0.1, "characters": 0.2, "cells": 0.7},  # then an object in a style
)
NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "prediction_type": "v_prediction"}  # fmt: skip


@dataclass(frozen=True)
class UnetRecipe:
    """How the UNet is trained; the defaults are those of the shipped weights."""

    steps: int = 21_600
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 300
    cooldown: float = 0.45
    weight_decay: float = 0.01
    ema: float = 0.999
    gamma: float = 5.0  # no noise level weighs more than a signal-to-noise ratio of this
    even: float = 0.3  # share of the noise levels drawn evenly; the others as often as they weigh
    no_caption: float = 0.1
    channels: tuple[int, ...] = (48, 96, 160)
    heads: tuple[int, ...] = (2, 3, 5)
    phases: tuple[int, ...] = (4000, 13_500, 15_400)  # the steps at which the next of `SHARES` begins
    captions: int = 96  # different captions drawn for each concept
    seed: int = 0


def build_unet(recipe: UnetRecipe = UnetRecipe(), latents: int = 6, width: int = 128) -> nn.Module:
    """An untrained `UNet2DConditionModel`; words come in at all levels but the finest.

    latents: channels of a latent picture. width: of the text tower's hidden states.
    """
    from diffusers import UNet2DConditionModel

    lower = len(recipe.channels) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return UNet2DConditionModel(
            sample_size=SIZE // 4, in_channels=latents, out_channels=latents, layers_per_block=1,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * lower,
            up_block_types=("CrossAttnUpBlock2D",) * lower + ("UpBlock2D",),
            block_out_channels=recipe.channels, cross_attention_dim=width, attention_head_dim=recipe.heads,
            norm_num_groups=16,
        ).eval()  # fmt: skip


@lru_cache
def signal_to_noise() -> Tensor:
    """The signal-to-noise ratio at each of the 1,000 noise levels, falling: (1000,)."""
    from diffusers import DDPMScheduler

    kept = DDPMScheduler(**NOISE).alphas_cumprod
    return kept / (1 - kept)


class Drawn(CooledRecipe, Protocol):
    """What `random_batch`, `noise_levels` and `averaged` ask of a recipe."""

    batch: int
    captions: int  # different captions drawn for each concept
    no_caption: float  # share of the pictures that are told the empty caption
    ema: float  # of the running mean, what stays of it in a step
    gamma: float  # no noise level weighs more than a signal-to-noise ratio of this
    even: float  # share of the noise levels drawn evenly; the others as often as they weigh


def random_batch(
    data: dict[str, Tensor], groups: Groups, recipe: Drawn, rng: np.random.Generator,
    shares: dict[str, float] = SHARES[0],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Latents (batch, channels, 16, 16) and hidden states (batch, context length, width) of a random batch."""
    index = {concept: k for k, concept in enumerate(c for members in groups.values() for c in members)}
    concepts = [index[c] for c in draw(groups, recipe.batch, rng, shares)]
    start = data["start"].tolist()
    pictures = [int(rng.integers(start[k], start[k + 1])) for k in concepts]
    words = [int(data["captions"][k, rng.integers(recipe.captions)]) for k in concepts]
    words = [0 if rng.random() < recipe.no_caption else row for row in words]
    return data["latents"][pictures].float(), data["states"][words].float()


def noise_levels(recipe: Drawn) -> tuple[Tensor, Tensor]:
    """How often each of the 1,000 noise levels is drawn, summing to one, and what its error then weighs: (1000,) each.

    The product is min-SNR's weight over 1,000 (Hang et al., 2023): the mean gradient is that of levels drawn evenly.
    """
    snr = signal_to_noise()
    weight = snr.clamp(max=recipe.gamma) / (1 + snr)
    often = ((1 - recipe.even) * weight / weight.mean() + recipe.even) / len(snr)
    return often, weight / (len(snr) * often)


def noised(z: Tensor, often: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents with noise, their noise levels (n,), and their velocities, which are what a UNet is to predict.

    z: latents, (n, channels, 16, 16), and so are those with noise and the velocities. often: how often each of the
    1,000 noise levels is drawn, (1000,).
    """
    even = (torch.arange(len(z)) + torch.rand(1, generator=generator)) / len(z)  # one level from each part of a batch
    t = torch.searchsorted(often.cumsum(0), even).clamp(max=len(often) - 1)
    noise = torch.randn(z.shape, generator=generator)
    kept = signal_to_noise()[t].view(-1, 1, 1, 1)
    signal, sigma = (kept / (1 + kept)).sqrt(), (1 / (1 + kept)).sqrt()
    return signal * z + sigma * noise, t, signal * noise - sigma * z


def unet_loss(
    unet: nn.Module, z: Tensor, states: Tensor, levels: tuple[Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    """How far a UNet is from the velocities of latents with noise, told the captions' states: a scalar.

    z: (n, channels, 16, 16). states: (n, context length, width). levels: what `noise_levels` returned.
    """
    often, weight = levels
    noisy, t, velocity = noised(z, often, generator)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noisy, t, states).sample.float()
    error = (predicted - velocity).square().mean((1, 2, 3))
    return (error * weight[t]).mean()


@torch.no_grad()
def _heeds(unet: nn.Module, data: dict[str, Tensor], groups: Groups, recipe: UnetRecipe) -> dict[str, float]:
    """The loss on a fixed batch, and how much it grows when every picture gets its neighbour's caption."""
    fixed = replace(recipe, batch=256, no_caption=0.0)
    z, states = random_batch(data, groups, fixed, np.random.default_rng([recipe.seed, 5]))
    levels, generators = noise_levels(recipe), [torch.Generator().manual_seed(0) for _ in range(2)]
    losses = [
        unet_loss(unet, z, words, levels, generator).item()
        for words, generator in zip((states, states.roll(1, 0)), generators, strict=True)
    ]
    return {"fixed_loss": round(losses[0], 5), "words_matter": round(losses[1] / losses[0] - 1, 4)}


def averaged(
    unet: nn.Module, recipe: Drawn, loss: Callable[[int], Tensor], look: Callable[[nn.Module, int], dict[str, float]],
    data: str,
) -> tuple[Training, nn.Module]:  # fmt: skip
    """A training of a UNet in which a running mean of its weights is kept, and that mean, which is what ships.

    loss: of a step, by its number. look: more for a row of the log, given the mean and the number of steps done. data:
    a digest of what it is trained on.
    """
    from diffusers.models.attention_processor import AttnProcessor

    both = nn.ModuleDict({"unet": unet, "mean": copy.deepcopy(unet).requires_grad_(False)})
    mean = both["mean"]
    unet.set_attn_processor(AttnProcessor())  # for so few positions a third quicker on a CPU than the fused kernel
    optimizer = adamw(unet, recipe)

    def one_step(step: int) -> float:
        unet.train()
        before = loss(step)
        descend(unet, before, optimizer, learning_rate(recipe, step))
        share = 1 - min(recipe.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(mean.parameters()), [p.detach() for p in unet.parameters()], share)
        return before.item()

    return Training(recipe, both, optimizer, one_step, lambda step: look(mean, step), data), mean


def train_unet(
    folder: str | Path, data: dict[str, Tensor], groups: Groups, recipe: UnetRecipe = UnetRecipe(), *,
    until: int | None = None, minutes: float = 4.0, look_every: int = 1000,
) -> nn.Module:  # fmt: skip
    """Train the UNet on what `prepare` made; its running mean is written to folder/unet, and returned.

    groups: the pool's concepts by kind, in the order of `data`. until, minutes: as in `train_vae`.
    look_every: steps between two looks at the running mean, a multiple of 50, logged in folder/unet_log.jsonl and
        kept in folder/unet.
    Raises ValueError if the checkpoint belongs to another recipe or other data or is damaged; KeyboardInterrupt after
    an interrupt, all saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unet = build_unet(recipe, latents=data["latents"].shape[1], width=data["states"].shape[2])
    levels = noise_levels(recipe)

    def loss(step: int) -> Tensor:
        shares = SHARES[bisect(recipe.phases, step)]
        z, states = random_batch(data, groups, recipe, np.random.default_rng([recipe.seed, step, 4]), shares)
        return unet_loss(unet, z, states, levels, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))

    def look(mean: nn.Module, step: int) -> dict[str, float]:
        if step % look_every and step != recipe.steps:
            return {}
        mean.save_pretrained(folder / "unet")
        return _heeds(mean, data, groups, recipe)

    training, mean = averaged(unet, recipe, loss, look, digest(data, {}))
    train(folder, "unet", training, When(until, minutes))
    return mean.eval()
