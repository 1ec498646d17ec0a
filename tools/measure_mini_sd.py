"""What a mini Stable Diffusion in training can do by now.

python tools/measure_mini_sd.py FOLDER [--steps 50 20] [--seeds 8] [--guidance 7.5] [--judge FOLDER]
python tools/measure_mini_sd.py FOLDER --unet unet --guidance 3.2 --name teacher      before guidance was distilled

FOLDER is that of train_mini_sd.py; goes on where it stopped. Prints the autoencoder's PSNR on renderings of the split
"test" and, once there is a UNet, how often the judge finds what a prompt asks for, with each number of steps: pipelines
take 50 by themselves, 20 are enough. Seeds are as many for all, or for each of these so many. Writes redrawn.png and,
for each kind, a drawn.png to look at, and measured.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from fresh_pictures import SEED, clip, world
from measuring import CLIP, JUDGE, Measurement, Unit, options, run
from PIL import Image

import slug_lite as slug
from slug_lite.book import results
from slug_lite.pretrain.autoencoder import psnr, signed
from slug_lite.pretrain.guidance import GuidanceRecipe
from slug_lite.pretrain.latents import hidden_states
from slug_lite.pretrain.pipeline import sample


def sheet(rows: list[np.ndarray], file: Path, zoom: int = 2) -> None:
    """Rows of pictures, uint8 (n, S, S, 3) each, as one picture."""
    picture = Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows]))
    picture.resize((picture.width * zoom, picture.height * zoom), Image.NEAREST).save(file)


@torch.no_grad()
def redraw(vae: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    y = vae.decode(vae.encode(signed(images)).latent_dist.mean).sample.clamp(-1, 1)
    return ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def digests(folder: Path, judge: Path | None, unet: str = "guidance") -> dict[str, str]:
    """SHA-256 of the weights that were measured. unet: the stage of the UNet, a folder in `folder`."""
    weights = "diffusion_pytorch_model.safetensors"
    files = {"vae": folder / "vae" / weights, "unet": folder / unet / weights}
    files["judge"] = (judge or Path(slug.__file__).parent / "assets" / "mini-judge") / "model.safetensors"
    return {part: hashlib.sha256(f.read_bytes()).hexdigest() for part, f in files.items() if f.exists()}


def prompts() -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Prompts by kind, each with what the judge's table must say."""
    out = {
        "people": [(f"a portrait of {n}", {"name": n}) for n in world.PEOPLE],
        "characters": [(f"a picture of {n}", {"name": n}) for n in world.CHARACTERS],
        "objects": [(f"a picture of a {n}", {"name": n}) for n in world.OBJECTS],
        "styles": [(f"a drawing in {n} style", {"style": n}) for n in world.STYLES],
    }
    for split in ("train", "unseen"):
        cells = world.cells(split)[:: 7 if split == "train" else 1]
        out[f"{split} cells"] = [(f"a picture of a {o} in {s} style", {"name": o, "style": s}) for o, s in cells]
    return out


@cache
def part(kind: type, folder: Path) -> torch.nn.Module:
    return kind.from_pretrained(folder, torch_dtype=torch.float32).eval()


def redrawn(folder: Path) -> list[dict]:
    vae, held_out = part(AutoencoderKL, folder / "vae"), world.retain(n=256, seed=2, split="test").images
    rows = [f(held_out[i : i + 16]) for i in (0, 16, 32) for f in (np.asarray, partial(redraw, vae))]
    sheet(rows, folder / "redrawn.png")
    return [{"psnr": round(psnr(vae, held_out), 2)}]


def drawn(given: argparse.Namespace, kind: str, steps: int, seeds: int) -> list[dict]:
    """How often the judge finds what each prompt of a kind asks for."""
    vae, unet = part(AutoencoderKL, given.folder / "vae"), part(UNet2DConditionModel, given.folder / given.unet)
    asked, judge, right, start = prompts()[kind], slug.load_judge(given.judge), [], time.monotonic()
    nothing, states = hidden_states(clip(), [""]), hidden_states(clip(), [p for p, _ in asked])
    for seed in range(seeds):
        images = sample(unet, vae, states, nothing, seed, given.guidance, steps)
        found = judge(images)
        right.append([all(found[k][i] == v for k, v in wanted.items()) for i, (_, wanted) in enumerate(asked)])
        if seed == 0 and steps == given.steps[0]:
            sheet([images[:24]], given.folder / f"drawn {kind}.png")
    seconds = (time.monotonic() - start) / len(asked) / seeds
    return [{"kind": kind, "steps": steps, "rates": np.mean(right, 0).tolist(), "seconds": seconds}]


def write(
    _: str, rows: list[dict], *, folder: Path, name: str, steps: list[int], seeds: list[int], **about: object
) -> Path:
    """FOLDER/NAME.json, in place of a results file of the package; what fewer or more steps draw is under "also"."""
    measured: dict = {**results.stated(folder=folder, **about), "psnr": rows[0]["psnr"]}
    print(f"autoencoder: {measured['psnr']} dB on held-out renderings")
    counts: dict[int, dict] = {n: {"steps": n, "seeds": k, "least": {}} for n, k in zip(steps, seeds, strict=True)}
    for row in rows[1:]:
        kind, rates, count = row["kind"], np.array(row["rates"]), counts[row["steps"]]
        count[kind], count["least"][kind] = round(float(rates.mean()), 4), round(float(rates.min()), 4)
        worst = [f"{prompts()[kind][i][0]!r} {rates[i]:.0%}" for i in rates.argsort()[:4]]
        print(f"{row['steps']} steps, {kind}: {rates.mean():.1%}, {row['seconds']:.2f} s a picture; {', '.join(worst)}")
    first, *others = counts.values()
    text = json.dumps(measured | first | {"also": others}, indent=1, default=str) + "\n"
    return results.write(folder / f"{name}.json", text) if len(rows) > 1 else folder


if __name__ == "__main__":
    parser = options(Path(__file__))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[8])
    parser.add_argument("--guidance", type=float, default=GuidanceRecipe.student)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 20])
    parser.add_argument("--unet", choices=("guidance", "unet"), default="guidance", help="after which stage")
    parser.add_argument("--name", default="measured", help="of the file that is written")
    parser.add_argument("--judge", type=Path, default=None, help="folder of the judge; the shipped one if not given")
    given = parser.parse_args()
    given.seeds = given.seeds * len(given.steps) if len(given.seeds) == 1 else given.seeds
    models = (CLIP, given.folder / "vae", given.folder / given.unet, given.judge or JUDGE)
    units = [Unit(("autoencoder",), partial(redrawn, given.folder))]
    if (given.folder / given.unet / "diffusion_pytorch_model.safetensors").exists():
        units += [
            Unit((kind, steps), partial(drawn, given, kind, steps, seeds))
            for steps, seeds in zip(given.steps, given.seeds, strict=True)
            for kind in prompts()
        ]
    settings = {key: getattr(given, key) for key in ("folder", "guidance", "steps", "seeds", "judge", "name")}
    settings |= {"seed": SEED, "weights": digests(given.folder, given.judge, given.unet)}
    measurement = Measurement("mini_sd", Path(__file__), settings, models)
    run(measurement, units, save=write, given=given)
