"""What a mini Stable Diffusion in training can do by now.

python tools/measure_mini_sd.py FOLDER [--seeds 8] [--guidance 3] [--steps 20] [--judge FOLDER]

FOLDER is that of train_mini_sd.py; goes on where it stopped. Prints the autoencoder's PSNR on renderings of the split
"test" and, once there is a UNet, how often the judge finds what a prompt asks for; writes redrawn.png and, for each
kind, a drawn.png to look at, measured.json.
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
from slug_lite.diffusion.drawing import GUIDANCE
from slug_lite.pretrain.autoencoder import psnr, signed
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


def digests(folder: Path, judge: Path | None) -> dict[str, str]:
    """SHA-256 of the weights that were measured."""
    files = {part: folder / part / "diffusion_pytorch_model.safetensors" for part in ("vae", "unet")}
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


def drawn(given: argparse.Namespace, kind: str) -> list[dict]:
    """How often the judge finds what each prompt of a kind asks for."""
    vae, unet = part(AutoencoderKL, given.folder / "vae"), part(UNet2DConditionModel, given.folder / "unet")
    asked, judge, right, start = prompts()[kind], slug.load_judge(given.judge), [], time.monotonic()
    nothing, states = hidden_states(clip(), [""]), hidden_states(clip(), [p for p, _ in asked])
    for seed in range(given.seeds):
        images = sample(unet, vae, states, nothing, seed, given.guidance, given.steps)
        found = judge(images)
        right.append([all(found[k][i] == v for k, v in wanted.items()) for i, (_, wanted) in enumerate(asked)])
        if seed == 0:
            sheet([images[:24]], given.folder / f"drawn {kind}.png")
    seconds = (time.monotonic() - start) / len(asked) / given.seeds
    return [{"kind": kind, "rates": np.mean(right, 0).tolist(), "seconds": seconds}]


def write(_: str, rows: list[dict], *, folder: Path, **about: object) -> Path:
    """FOLDER/measured.json, in place of a results file of the package."""
    measured: dict = {**results.stated(folder=folder, **about), "psnr": rows[0]["psnr"], "least": {}}
    print(f"autoencoder: {measured['psnr']} dB on held-out renderings")
    for row in rows[1:]:
        kind, rates = row["kind"], np.array(row["rates"])
        measured[kind], measured["least"][kind] = round(float(rates.mean()), 4), round(float(rates.min()), 4)
        worst = [f"{prompts()[kind][i][0]!r} {rates[i]:.0%}" for i in rates.argsort()[:4]]
        print(f"{kind}: {rates.mean():.1%}, {row['seconds']:.2f} s a picture; least: {', '.join(worst)}")
    text = json.dumps(measured, indent=1, default=str) + "\n"
    return results.write(folder / "measured.json", text) if len(rows) > 1 else folder


if __name__ == "__main__":
    parser = options(Path(__file__))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--judge", type=Path, default=None, help="folder of the judge; the shipped one if not given")
    given = parser.parse_args()
    models = (CLIP, given.folder / "vae", given.folder / "unet", given.judge or JUDGE)
    units = [Unit(("autoencoder",), partial(redrawn, given.folder))]
    if (given.folder / "unet" / "diffusion_pytorch_model.safetensors").exists():
        units += [Unit((kind,), partial(drawn, given, kind)) for kind in prompts()]
    settings = {key: getattr(given, key) for key in ("folder", "seeds", "guidance", "steps", "judge")}
    settings |= {"seed": SEED, "weights": digests(given.folder, given.judge)}
    measurement = Measurement("mini_sd", Path(__file__), settings, models)
    run(measurement, units, save=write, given=given)
