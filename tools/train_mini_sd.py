"""Train mini Stable Diffusion and the judge: the autoencoder, the judge, latents, the UNet, one after the other.

python tools/train_mini_sd.py FOLDER            goes on where it stopped; checkpoints, logs and results lie in FOLDER

Stop it at any time with Ctrl-C or TERM: it ends after the step at hand, with a checkpoint. Hours on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

import slug_lite as slug
from slug_lite.pretrain.autoencoder import SIZE, VaeRecipe, train_vae
from slug_lite.pretrain.clip import ClipRecipe, Pool
from slug_lite.pretrain.judge import train_judge
from slug_lite.pretrain.latents import prepare
from slug_lite.pretrain.unet import UnetRecipe, train_unet


def train(folder: Path, steps: int) -> None:
    """All stages that are not done yet."""
    from diffusers import AutoencoderKL

    recipe = VaeRecipe()
    if not (folder / "vae" / "config.json").exists():
        train_vae(folder, recipe)
    if not (folder / "judge" / "training.json").exists():
        train_judge(folder / "judge")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    pool = Pool(ClipRecipe(pool=recipe.pool, seed=recipe.seed), SIZE)
    data = prepare(folder, vae, slug.load_clip("mini", device="cpu"), pool, UnetRecipe())
    groups = pool.groups
    del pool, vae
    train_unet(folder, data, groups, UnetRecipe(steps=steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=UnetRecipe().steps, help="of the UNet")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        train(given.folder, given.steps)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the checkpoint in {given.folder}")


if __name__ == "__main__":
    main()
