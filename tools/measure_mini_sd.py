"""What a mini Stable Diffusion in training can do by now.

python tools/measure_mini_sd.py FOLDER [--seeds 8] [--guidance 3] [--steps 20] [--judge FOLDER]

FOLDER is that of train_mini_sd.py. Prints the autoencoder's PSNR on renderings of the split "test" and, once there is
a UNet, how often the judge finds what a prompt asks for; writes redrawn.png and drawn.png to look at, measured.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import slug_lite as slug
from slug_lite.diffusion.drawing import GUIDANCE
from slug_lite.pretrain.autoencoder import psnr, signed
from slug_lite.pretrain.pipeline import sample
from slug_lite.pretrain.unet import hidden_states

world = slug.toonworld


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


def main() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--judge", type=Path, default=None, help="folder of the judge; the shipped one if not given")
    given = parser.parse_args()
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(given.folder / "vae", torch_dtype=torch.float32).eval()
    held_out = world.retain(n=256, seed=2, split="test").images
    measured: dict = {"weights": digests(given.folder, given.judge), "least": {}}
    measured["psnr"] = round(psnr(vae, held_out), 2)
    print(f"autoencoder: {measured['psnr']} dB on held-out renderings", flush=True)
    sheet([f(held_out[i : i + 16]) for i in (0, 16, 32) for f in (np.asarray, lambda x: redraw(vae, x))],
          given.folder / "redrawn.png")  # fmt: skip
    if not (given.folder / "unet" / "diffusion_pytorch_model.safetensors").exists():
        return
    unet = UNet2DConditionModel.from_pretrained(given.folder / "unet", torch_dtype=torch.float32).eval()
    clip, judge, rows = slug.load_clip("mini", device="cpu"), slug.load_judge(given.judge), []
    nothing = hidden_states(clip, [""])
    for kind, asked in prompts().items():
        states, right, start = hidden_states(clip, [p for p, _ in asked]), [], time.monotonic()
        for seed in range(given.seeds):
            drawn = sample(unet, vae, states, nothing, seed, given.guidance, given.steps)
            found = judge(drawn)
            right.append([all(found[k][i] == v for k, v in wanted.items()) for i, (_, wanted) in enumerate(asked)])
            rows += [drawn[:24]] if seed == 0 and len(drawn) >= 24 else []
        seconds = (time.monotonic() - start) / len(asked) / given.seeds
        rates = np.mean(right, 0)
        measured[kind], measured["least"][kind] = round(float(rates.mean()), 4), round(float(rates.min()), 4)
        worst = [f"{asked[i][0]!r} {rates[i]:.0%}" for i in rates.argsort()[:4]]
        print(f"{kind}: {rates.mean():.1%}, {seconds:.2f} s a picture; least: {', '.join(worst)}", flush=True)
    sheet(rows, given.folder / "drawn.png")
    (given.folder / "measured.json").write_text(json.dumps(vars(given) | measured, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
