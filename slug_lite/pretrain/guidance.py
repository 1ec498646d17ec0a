"""Distil mini Stable Diffusion's guidance, so that it draws best with the one that every first call has.

A pipeline draws with u + g (c - u): u is what the UNet says of the empty caption, c of the prompt's (Ho & Salimans,
2022). The UNet of `train_unet` draws best with g from 3 to 4; diffusers' own default is 7.5, which spoils its pictures.
So a student learns to say u + (g / 7.5) (c - u) where its teacher said c, and u about as before: guidance 7.5 of the
student is guidance g of the teacher. The larger g is, the less is to be learnt. (No guidance at all where noise is
weak, after Kynkäänniemi et al., 2024, arXiv 2404.07724, suits the teacher as well, and is the most to be learnt: after
4,000 steps of it a student drew half of the styles.)

After the first stage of "On Distillation of Guided Diffusion Models" (Meng et al., 2023, section 3.1, arXiv
2210.03142). Their student says the guided sum at once, is told g as one more input, and is called once a step. Ours is
told nothing, so its layers stay as they are, and guidance is still the pipeline's to apply: rescaled, with negative
prompts and all. The price is that guidance enlarges the student's errors in c - u, 7.5 times; a step therefore asks it
for both, u and c of the same noise, and compares what a pipeline makes of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.files import digest
from .clip import Groups
from .loop import When, train
from .unet import SHARES, averaged, noise_levels, noised, random_batch


@dataclass(frozen=True)
class GuidanceRecipe:
    """How guidance is distilled; the defaults are those of the shipped weights."""

    steps: int = 8000
    batch: int = 16  # pictures, each told its caption and none
    lr: float = 3e-4
    warmup: int = 50
    cooldown: float = 0.7
    weight_decay: float = 0.0  # the teacher is where the weights are to stay
    ema: float = 0.995
    gamma: float = 5.0  # this and the next: noise levels are drawn and weighed as in `UnetRecipe`
    even: float = 0.3
    teacher: float = 3.6  # guidance that suits the teacher
    student: float = 7.5  # guidance that is to draw the same of the student: the default of diffusers
    alone: float = 0.02  # what counts of an error of u by itself
    other_caption: float = 0.15  # share of the pictures that are told a caption of another
    captions: int = 96  # different captions of each concept in the data: as in `UnetRecipe`
    seed: int = 0
    no_caption: ClassVar[float] = 0.0  # in place of another: all are told none as well


def predictions(unet: nn.Module, noisy: Tensor, t: Tensor, states: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """u and c, in one call of the UNet: (n, channels, 16, 16) each, float32.

    noisy: latents with noise, (n, channels, 16, 16). t: noise levels, (n,). states: what c is told, (n, context length,
    width). nothing: the empty caption's, which u is told, (1, context length, width).
    """
    told = torch.cat([nothing.expand_as(states), states])
    with torch.autocast("cpu", torch.bfloat16):
        return unet(torch.cat([noisy, noisy]), torch.cat([t, t]), told).sample.float().chunk(2)


def guided(u: Tensor, c: Tensor, g: float) -> Tensor:
    """What a pipeline draws with."""
    return u + g * (c - u)


def guidance_loss(
    student: nn.Module, teacher: nn.Module, z: Tensor, states: Tensor, nothing: Tensor, recipe: GuidanceRecipe,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """How far a student is from what it is to say: a scalar.

    What is compared is what pipelines draw with, in units of c: an error that u and c share counts a seventh of one
    that tells them apart, as it does in a picture. u by itself counts little: held to its teacher's to the last digit,
    a small UNet has no room for what c has to be, a mixture with u that it never had to say when it was told words.
    z: latents, (n, channels, 16, 16). states: (n, context length, width). nothing: (1, context length, width).
    Noise levels weigh as in `unet_loss`: where noise is weak, captions change little, but what goes wrong is seen.
    """
    often, weight = noise_levels(recipe)
    noisy, t, _ = noised(z, often, generator)
    with torch.no_grad():
        u, c = predictions(teacher, noisy, t, states, nothing)
    own_u, own_c = predictions(student, noisy, t, states, nothing)
    apart = guided(own_u, own_c, recipe.student) - guided(u, c, recipe.teacher)
    error = (apart / recipe.student).square() + recipe.alone * (own_u - u).square()
    return (error.mean((1, 2, 3)) * weight[t]).mean()


@torch.no_grad()
def _left(
    student: nn.Module, teacher: nn.Module, data: dict[str, Tensor], groups: Groups, recipe: GuidanceRecipe
) -> dict[str, float]:
    """What is left of the squared difference that guidance makes: 1 for the teacher itself, 0 for the perfect student.

    Between the teacher with its own guidance and a student with the new one, on a fixed batch with its captions. And
    how far u has moved, as a share of what a caption changes.
    """
    z, states = random_batch(data, groups, replace(recipe, batch=256), np.random.default_rng([recipe.seed, 7]))
    often, weight = noise_levels(recipe)
    noisy, t, _ = noised(z, often, torch.Generator().manual_seed(0))
    said, own = (predictions(unet, noisy, t, states, data["states"][:1].float()) for unet in (teacher, student))
    wanted, before, now = guided(*said, recipe.teacher), guided(*said, recipe.student), guided(*own, recipe.student)

    def apart(a: Tensor, b: Tensor) -> float:
        return ((a - b).square().mean((1, 2, 3)) * weight[t]).sum().item()

    left, moved = apart(now, wanted) / apart(before, wanted), apart(own[0], said[0]) / apart(said[1], said[0])
    return {"left": round(left, 5), "moved": round(moved, 5)}


def distil_guidance(
    folder: str | Path, teacher: nn.Module, data: dict[str, Tensor], groups: Groups,
    recipe: GuidanceRecipe = GuidanceRecipe(), *, until: int | None = None, minutes: float = 4.0, look_every: int = 400,
) -> nn.Module:  # fmt: skip
    """Distil a UNet's guidance; the student's running mean is written to folder/guidance, and returned.

    teacher: as `train_unet` gives it; stays as it is. data, groups: what `prepare` made, of the training split alone,
        and the pool's concepts by kind, in its order. until, minutes: as in `train_vae`.
    look_every: steps between two looks at the running mean, a multiple of 50, logged in folder/guidance_log.jsonl and
        kept in folder/guidance.
    Raises ValueError if the checkpoint belongs to another recipe, teacher or data or is damaged; KeyboardInterrupt
    after an interrupt, all saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    student, nothing = copy.deepcopy(teacher).requires_grad_(True), data["states"][:1].float()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step, 6])
        z, states = random_batch(data, groups, recipe, rng, SHARES[1])
        # while a picture is being drawn it does not show yet what it is asked for: the teacher is heard there as well
        other = torch.from_numpy(rng.random(recipe.batch) < recipe.other_caption)
        states = torch.where(other.view(-1, 1, 1), states.roll(1, 0), states)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        return guidance_loss(student, teacher, z, states, nothing, recipe, generator)

    def look(mean: nn.Module, step: int) -> dict[str, float]:
        if step % look_every and step != recipe.steps:
            return {}
        mean.save_pretrained(folder / "guidance")
        return _left(mean, teacher, data, groups, recipe)

    sources = data | {f"teacher.{name}": weight for name, weight in teacher.state_dict().items()}
    training, mean = averaged(student, recipe, loss, look, digest(sources, {}))
    train(folder, "guidance", training, When(until, minutes))
    return mean.eval()
