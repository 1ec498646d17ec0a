"""Train mini Stable Diffusion and the judge: autoencoder, judge, latents, UNet, and the UNet's guidance distilled.

python tools/train_mini_sd.py FOLDER                  goes on where it stopped; checkpoints, logs, results lie in FOLDER
python tools/train_mini_sd.py FOLDER --begin ASSETS   with the autoencoder, judge and UNet of ASSETS, an assets folder
                                                      of a package in which guidance is not distilled yet

Stop it at any time with Ctrl-C or TERM: it ends after the step at hand, with a checkpoint. Hours on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import torch

import slug_lite as slug
from slug_lite.pretrain.autoencoder import SIZE, VaeRecipe, train_vae
from slug_lite.pretrain.clip import ClipRecipe, Pool
from slug_lite.pretrain.guidance import GuidanceRecipe, distil_guidance
from slug_lite.pretrain.judge import train_judge
from slug_lite.pretrain.latents import prepare
from slug_lite.pretrain.loop import read_log
from slug_lite.pretrain.unet import UnetRecipe, train_unet


def begin(folder: Path, assets: Path) -> None:
    """Put into FOLDER what the first stages would have: parts, and logs that say that they are done."""
    pipeline = assets / "mini-sd"
    if "guidance" in json.loads((pipeline / "training.json").read_text()):
        raise SystemExit(f"the UNet in {pipeline} has its guidance distilled already; take an older version's")
    for part in ("vae", "unet"):
        shutil.copytree(pipeline / part, folder / part)
        shutil.copy(pipeline / f"{part}_log.jsonl", folder)
    shutil.copytree(assets / "mini-judge", folder / "judge")


def done(folder: Path, steps: int) -> bool:
    """Whether the UNet is trained: by its log, whose last row is written once the weights are."""
    log = folder / "unet_log.jsonl"
    return log.exists() and max((row["step"] for row in read_log(folder, log.name)), default=0) >= steps


def train(folder: Path, unet_recipe: UnetRecipe, recipe: GuidanceRecipe) -> None:
    """All stages that are not done yet."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    vae_recipe = VaeRecipe()
    if not (folder / "vae" / "config.json").exists():
        train_vae(folder, vae_recipe)
    if not (folder / "judge" / "training.json").exists():
        train_judge(folder / "judge")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    pool = Pool(ClipRecipe(pool=vae_recipe.pool, seed=vae_recipe.seed), SIZE)
    data = prepare(folder, vae, slug.load_clip("mini", device="cpu"), pool, unet_recipe)
    groups = pool.groups
    del pool, vae
    if not done(folder, unet_recipe.steps):
        train_unet(folder, data, groups, unet_recipe)
    teacher = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    distil_guidance(folder, teacher, data, groups, recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--begin", type=Path, metavar="ASSETS", help="with what is trained in this folder")
    parser.add_argument("--steps", type=int, default=UnetRecipe().steps, help="of the UNet")
    parser.add_argument("--guidance-steps", type=int, default=GuidanceRecipe().steps, help="of the last stage")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.begin and not (given.folder / "vae").exists():
        begin(given.folder, given.begin)
    try:
        train(given.folder, UnetRecipe(steps=given.steps), GuidanceRecipe(steps=given.guidance_steps))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the checkpoint in {given.folder}")


if __name__ == "__main__":
    main()
