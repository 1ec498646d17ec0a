"""Pictures that a pipeline draws, each from noise of its own, and what its UNet is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..pairs import Pairs
from ..runtime.libraries import encoder_of, is_pipeline
from ..runtime.numbers import check_whole
from ..runtime.progress import bar
from ..runtime.undo import Undo, undone

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GUIDANCE = 3.2  # what suits mini Stable Diffusion; diffusers' own 7.5 oversaturates the pictures of so small a UNet


def check_draws(pipe: object) -> None:
    """ValueError for what is no StableDiffusionPipeline."""
    if not is_pipeline(pipe) or not encoder_of(pipe):
        raise ValueError(f"pictures are drawn by a StableDiffusionPipeline, not by a {type(pipe).__name__}")


def generated_pairs(
    pipe: StableDiffusionPipeline, prompt: str | Sequence[str], n: int, *, seed: int = 0, batch_size: int = 4,
    steps: int | None = None, guidance_scale: float | None = None, progress: bool = True,
) -> Pairs:  # fmt: skip
    """n pairs of a prompt and a picture that the pipeline draws of it: uint8 images (n, height, width, 3).

    prompt: one, or several that take turns. seed: every picture has noise of its own, made on the CPU from seed and
        number, so neither batch size nor n changes it, to rounding; other seeds give other pictures.
    steps, guidance_scale: None takes the pipeline's own defaults.
    Raises ValueError for another kind of pipeline, no prompt, and numbers below 1.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    check_draws(pipe)
    if not prompts or not all(isinstance(text, str) and text for text in prompts):
        raise ValueError(f"prompt is {prompt!r}; give a text or a list of texts")
    check_whole(n=n, batch_size=batch_size, steps=1 if steps is None else steps)
    captions = [prompts[k % len(prompts)] for k in range(n)]
    own = call_settings(steps, guidance_scale)
    images: list[np.ndarray] = []
    with _without_bar(pipe), bar(total=n, desc="drawing", show=progress) as done:
        for start in range(0, n, batch_size):
            rows = range(start, min(start + batch_size, n))
            noise = [torch.Generator().manual_seed(picture_seed(seed, k)) for k in rows]
            drawn = pipe([captions[k] for k in rows], generator=noise, **own).images
            images += [np.asarray(image.convert("RGB")) for image in drawn]
            done.update(len(rows))
    return Pairs(np.stack(images), captions)


@undone
def _without_bar(undo: Undo, pipe: StableDiffusionPipeline) -> None:
    """Inside, the pipeline draws no progress bars of its own."""
    undo.note(pipe, "_progress_bar_config")
    pipe.set_progress_bar_config(**{**getattr(pipe, "_progress_bar_config", {}), "disable": True})


@torch.no_grad()
def prompt_states(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> torch.Tensor:
    """What the UNet is told of each prompt: (n, context length, width), in the text encoder's dtype."""
    return pipe.encode_prompt(list(prompts), pipe.text_encoder.device, 1, False)[0]


def call_settings(steps: int | None, guidance_scale: float | None) -> dict[str, float]:
    """What to call a pipeline with; what is None is left to its own defaults."""
    asked = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    return {key: value for key, value in asked.items() if value is not None}


def picture_seed(seed: int, number: int) -> int:
    """The seed of the noise of one picture of `generated_pairs`, to draw it again: torch.Generator().manual_seed(...)

    Seeds that follow each other share no pictures, so that one draws to choose on and the next to report on.
    """
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
