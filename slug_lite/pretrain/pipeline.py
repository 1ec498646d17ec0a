"""What mini Stable Diffusion's trained parts become: pictures to look at on the way, and at the end a pipeline.

The pipeline is a `diffusers.StableDiffusionPipeline` whose text encoder is mini CLIP's text tower, weight for weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from ..diffusion.text_encoder import text_encoder_from
from ..models import Clip
from .guidance import GuidanceRecipe
from .unet import NOISE

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer


def scheduler() -> object:
    """DPM-Solver++ over the noise levels that the UNet was trained on: 20 steps are enough.

    Its stochastic form, which mends in later steps what earlier ones got wrong.
    """
    from diffusers import DPMSolverMultistepScheduler

    # diffusers asks for the offset; this solver ignores it
    return DPMSolverMultistepScheduler(**NOISE, algorithm_type="sde-dpmsolver++", steps_offset=1)


@torch.no_grad()
def sample(
    unet: nn.Module, vae: nn.Module, states: Tensor, nothing: Tensor, seed: int = 0,
    guidance: float = GuidanceRecipe.student, steps: int = 20,
) -> np.ndarray:  # fmt: skip
    """Pictures for hidden states (n, context length, width), as the finished pipeline draws them: uint8 (n, 64, 64, 3).

    nothing: the empty caption's hidden states, (1, context length, width). Every picture is drawn with the same noise.
    """
    solver = scheduler()
    solver.set_timesteps(steps)
    size, channels = unet.config.sample_size, unet.config.in_channels
    noise = [torch.Generator().manual_seed(seed) for _ in states]
    z = torch.cat([torch.randn(1, channels, size, size, generator=one) for one in noise]).to(unet.device)
    words = torch.cat([nothing.expand_as(states), states]).to(unet.device)
    for t in solver.timesteps:
        without, told = unet(torch.cat([z, z]), t, words).sample.chunk(2)
        z = solver.step(without + guidance * (told - without), t, z, generator=noise).prev_sample
    x = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
    return ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def clip_tokenizer(clip: Clip) -> CLIPTokenizer:
    """CLIP's tokenizer in transformers' form, with a Clip's context length and open_clip's padding, id 0 ("!")."""
    from transformers import CLIPTokenizer

    words = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): number for word, number in words.encoder.items()}
    merges = sorted(words.bpe_ranks, key=words.bpe_ranks.get)
    length = clip.tokens([""]).shape[1]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=length)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer as every transformers reads it: tokenizer.json, and CLIP's own vocab.json and merges.txt."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def save_pipeline(folder: str | Path, vae: nn.Module, unet: nn.Module, clip: Clip) -> StableDiffusionPipeline:
    """Put the parts together and write them to `folder` as `save_pretrained` does, fp16; the pipeline, fp16 too.

    vae, unet: as `train_vae` and `train_unet` give them, or read from a folder, which the configurations written do
    not name. clip: the Clip that they were trained under.
    """
    from diffusers import StableDiffusionPipeline

    tokenizer = clip_tokenizer(clip)
    pipe = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder_from(clip, rounded=torch.float16), tokenizer=tokenizer,
        scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16)  # fmt: skip
    pipe.save_pretrained(folder)
    save_tokenizer(tokenizer, Path(folder) / "tokenizer")
    _forget_origin(Path(folder))
    return pipe


def _forget_origin(folder: Path) -> None:
    """Take out of a pipeline's configurations where its parts were read from: diffusers writes that path down."""
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if "_name_or_path" in config:
            del config["_name_or_path"]
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
