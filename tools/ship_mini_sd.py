"""Put a trained mini Stable Diffusion and its judge into the package, with their records and model cards.

python tools/ship_mini_sd.py FOLDER       FOLDER is that of train_mini_sd.py, after measure_mini_sd.py has written its
                                          measured.json there
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers
from measure_mini_sd import digests
from safetensors.torch import load_file

import slug_lite as slug
from slug_lite.pretrain.autoencoder import SIZE, VaeRecipe
from slug_lite.pretrain.guidance import GuidanceRecipe
from slug_lite.pretrain.loop import read_log
from slug_lite.pretrain.pipeline import save_pipeline
from slug_lite.pretrain.unet import UnetRecipe

ASSETS = Path(__file__).parents[1] / "slug_lite" / "assets"
CARD = """# Mini Stable Diffusion

A small text-to-image pipeline for the book *Machine Unlearning, One Layer at a Time*: a `diffusers.StableDiffusionPipeline` in its own folder format, loaded by
`slug_lite.load_diffusion("mini")` or by `StableDiffusionPipeline.from_pretrained` and this folder. Pictures of {size} x {size} pixels; float16 on disk.

| part | weights | what it is |
|---|---|---|
| `vae` | {vae:.1f} million | autoencoder, latents of 16 x 16 x {latents} |
| `unet` | {unet:.1f} million | cross-attention to all states of the text encoder |
| `text_encoder` | {text:.1f} million | mini CLIP's text tower, weight for weight, the token table included |

## Data

Drawings of the mini world (`slug_lite.toonworld`, training split), all invented or drawn under open licences (see `../world/ATTRIBUTION.md`), with captions that name, describe, or do both.
{unseen} of {cells} object x style cells were never shown, and no picture of anybody real.

## Training

Autoencoder: {vae_steps:,} steps of {vae_batch}, error in every band of a pyramid, slight pull towards a normal distribution. UNet: {unet_steps:,} steps of {unet_batch}, v-prediction, min-SNR weights, one caption in ten left out; a running mean of
its weights. Guidance: {guidance_steps:,} more steps of {guidance_batch}, in which the UNet learns what it said with guidance {teacher:g} to say with {student:g}, the default of `diffusers` (after Meng et al., 2023, arXiv 2210.03142), on the same
pictures and captions; a running mean of those weights ships. The text tower stays as it is. On two CPU cores, the last stage on one, {minutes:.0f} minutes together. Recipes and versions are in `training.json`, logs in
`vae_log.jsonl`, `unet_log.jsonl` and `guidance_log.jsonl`, the code in `slug_lite/pretrain`.

## What it can do

Autoencoder: {psnr:.1f} dB on held-out drawings. Prompts of one sentence, guidance {guidance:g}, as `pipe(prompt)` has it, named by the judge (`../mini-judge`). Pictures that show what was asked for, in all and of the least shown concept:

{table}

## Limits

It draws the mini world and nothing else, and cells that it never saw rarely. It is for teaching and testing unlearning; it says nothing about photographs or real people.

## Licence

MIT for the weights. They were trained on drawings under MIT, Apache 2.0, CC BY 4.0 and CC BY-SA 4.0 licences, whose attribution ships beside them.
"""
JUDGE = """# Mini judge

A small classifier for the book *Machine Unlearning, One Layer at a Time*, loaded by `slug_lite.load_judge()`: says who or what a drawing shows, and in which style, or that it is none of these.
It shares nothing with mini CLIP and has never seen a generated picture. {weights:.2f} million weights; float16 on disk.

Trained on drawings of the mini world (see `../world/ATTRIBUTION.md`), slightly blurred, noisy or tinted; "none of these" on people who are nobody, halves and blends of two pictures, snippets, blurs, shuffled tiles
and noise. {steps:,} steps of {batch} pictures, seed {seed}. Recipe and temperatures are in `training.json`, the log in `judge_log.jsonl`, the code in `slug_lite/pretrain/judge.py`.

Right answers on held-out drawings, a third of them none of these: {scores}.

It knows the mini world and nothing else. Licence: MIT for the weights; the drawings' attribution ships beside them.
"""


def millions(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def ship_pipeline(folder: Path, target: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    logs = {part: read_log(folder, f"{part}_log.jsonl") for part in ("vae", "unet", "guidance")}
    measured = json.loads((folder / "measured.json").read_text())
    if measured.pop("weights") != digests(folder, folder / "judge"):
        raise SystemExit("measured.json is of other weights: run tools/measure_mini_sd.py first")
    if any(log[-1]["lr"] > 0.01 * max(row["lr"] for row in log) for log in logs.values()):
        raise SystemExit("a training has not come to its end yet")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder / "guidance", torch_dtype=torch.float32)
    pipe = save_pipeline(target, vae, unet, slug.load_clip("mini", device="cpu"))
    for part in logs:
        shutil.copy(folder / f"{part}_log.jsonl", target)
    del measured["folder"], measured["judge"]
    recipes = {"vae": VaeRecipe(), "unet": UnetRecipe(steps=logs["unet"][-1]["step"]),
               "guidance": GuidanceRecipe(steps=logs["guidance"][-1]["step"])}  # fmt: skip
    versions = {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}
    training = {k: asdict(r) for k, r in recipes.items()} | {"measured": measured, "versions": versions}
    (target / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    world = slug.toonworld
    (target / "README.md").write_text(CARD.format(
        size=SIZE, vae=millions(vae), unet=millions(unet), text=millions(pipe.text_encoder),
        latents=recipes["vae"].latents, unseen=len(world.UNSEEN), cells=len(world.OBJECTS) * len(world.STYLES),
        vae_steps=recipes["vae"].steps, vae_batch=recipes["vae"].batch, unet_steps=recipes["unet"].steps,
        unet_batch=recipes["unet"].batch, guidance_steps=recipes["guidance"].steps, guidance_batch=recipes["guidance"].batch,
        teacher=recipes["guidance"].teacher, student=recipes["guidance"].student, minutes=sum(map(taken, logs.values())), psnr=measured["psnr"],
        guidance=measured["guidance"], table=table([measured, *measured["also"]]),
    ))  # fmt: skip


def table(counts: list[dict]) -> str:
    """Kinds by numbers of steps, in Markdown."""
    head = "".join(f" | {count['steps']} steps, {count['seeds']} seeds | least" for count in counts)
    rows = [
        f"| {kind}" + "".join(f" | {count[kind]:.1%} | {count['least'][kind]:.1%}" for count in counts) + " |"
        for kind in counts[0]["least"]
    ]
    return "\n".join([f"|{head} |", "|---" * (1 + 2 * len(counts)) + "|", *rows])


def taken(log: list[dict]) -> float:
    """Minutes that a training took, over all its sittings: `seconds` starts anew with each."""
    times = [row["seconds"] for row in log]
    return sum(b - a if b > a else b for a, b in zip([0.0, *times], times, strict=False)) / 60


def ship_judge(folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "judge.json", "training.json", "judge_log.jsonl"):
        shutil.copy(folder / name, target)
    recipe, last = json.loads((folder / "training.json").read_text()), read_log(folder, "judge_log.jsonl")[-1]
    weights = sum(x.numel() for x in load_file(target / "model.safetensors").values()) / 1e6
    scores = ", ".join(f"{kind} {last[kind]:.1%}" for kind in slug.toonworld.NAMES)
    (target / "README.md").write_text(JUDGE.format(weights=weights, scores=scores, **recipe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    ship_judge(given.folder / "judge", ASSETS / "mini-judge")
    ship_pipeline(given.folder, ASSETS / "mini-sd")
    for folder in ("mini-judge", "mini-sd"):
        size = sum(file.stat().st_size for file in (ASSETS / folder).rglob("*") if file.is_file())
        print(f"{ASSETS / folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
