"""Pictures that a pipeline draws, each from noise of its own, and what its UNet is told."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..pairs import Pairs
from ..runtime.broken import broken_weights, not_finite, one_colour
from ..runtime.libraries import check_stable, is_pipeline
from ..runtime.limits import cut
from ..runtime.modes import gradient_free
from ..runtime.numbers import check_whole
from ..runtime.progress import bar
from ..runtime.undo import Undo, undone
from ..runtime.wrappers import parallel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TRIES = 4  # of a picture that comes out broken, each from noise of its own, before it is an error


def check_draws(pipe: object) -> None:
    """ValueError for what is no StableDiffusionPipeline, or has a part that diffusers cannot call.

    Whether an edit could go on it is not asked: PEFT in a text encoder, or offloading of any kind, draws well.
    """
    if not is_pipeline(pipe):
        raise ValueError(f"pictures are drawn by a StableDiffusionPipeline, not by a {type(pipe).__name__}")
    check_stable(pipe)
    for name in ("text_encoder", "unet", "vae"):
        if around := parallel(getattr(pipe, name)):
            raise ValueError(
                f"the pipeline's {name} is a {around}, which diffusers cannot call; give it the model inside: "
                f"pipe.{name} = pipe.{name}.module"
            )


def generated_pairs(
    pipe: StableDiffusionPipeline, prompt: str | Sequence[str], n: int, *, seed: int = 0, batch_size: int = 4,
    steps: int | None = None, guidance_scale: float | None = None, progress: bool = True,
) -> Pairs:  # fmt: skip
    """n pairs of a prompt and a picture that the pipeline draws of it: uint8 images (n, height, width, 3).

    prompt: one, or several that take turns. seed: every picture has noise of its own, made on the CPU from seed and
        number, so neither batch size nor n changes it, to rounding; other seeds give other pictures.
    steps, guidance_scale: None takes the pipeline's own defaults.
    Pictures that a safety checker flags, or that are all of one colour, show nothing of the prompt: they are drawn anew
    from other noise, and a warning says how many.
    Raises ValueError for another kind of pipeline, no prompt, numbers below 1, pictures that are not finite, and ones
    that are broken `TRIES` times over.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    check_draws(pipe)
    if not prompts or not all(isinstance(text, str) and text for text in prompts):
        raise ValueError(f"prompt is {prompt!r}; give a text or a list of texts")
    check_whole(n=n, batch_size=batch_size, steps=1 if steps is None else steps)
    captions = [prompts[k % len(prompts)] for k in range(n)]
    own = call_settings(steps, guidance_scale)
    images, again = list[np.ndarray](), Counter[str]()
    with _without_bar(pipe), bar(total=n, desc="drawing", show=progress) as done:
        for start in range(0, n, batch_size):
            rows = range(start, min(start + batch_size, n))
            images += _unbroken(pipe, {k: captions[k] for k in rows}, seed, own, again)
            done.update(len(rows))
    if again:
        told = ", ".join(f"{count} {why}" for why, count in again.items())
        warnings.warn(f"drawn anew from other noise, of {n} pictures: {told}", stacklevel=2)
    return Pairs(np.stack(images), captions)


@undone
def _without_bar(undo: Undo, pipe: StableDiffusionPipeline) -> None:
    """Inside, the pipeline draws no progress bars of its own."""
    undo.note(pipe, "_progress_bar_config")
    pipe.set_progress_bar_config(**{**getattr(pipe, "_progress_bar_config", {}), "disable": True})


def _unbroken(
    pipe: StableDiffusionPipeline, captions: dict[int, str], seed: int, settings: dict[str, float], again: Counter[str]
) -> list[np.ndarray]:
    """Pictures of captions by their numbers, broken ones drawn anew; `again` counts these by what was wrong."""
    whole: dict[int, np.ndarray] = {}
    for attempt in range(TRIES):
        rows = [k for k in captions if k not in whole]
        if not rows:
            break
        noise = [torch.Generator().manual_seed(picture_seed(seed, k, attempt)) for k in rows]
        drawn = draw(pipe, [captions[k] for k in rows], noise, settings)
        whole |= {k: image for k, (image, why) in zip(rows, drawn, strict=True) if not why}
        again.update(why for _, why in drawn if why)
    if len(whole) < len(captions):
        raise ValueError(
            f"{len(captions) - len(whole)} of {len(captions)} pictures are broken in each of {TRIES} tries: "
            f"{', '.join(again)}. {doubt(pipe)}"
        )
    return [whole[k] for k in captions]


def draw(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], noise: list[torch.Generator], settings: dict[str, float]
) -> list[tuple[np.ndarray, str]]:
    """A picture of each prompt, uint8 (height, width, 3), with what is wrong with it, "" for nothing.

    ValueError for pictures that are not finite: no other noise would mend them.
    """
    out = pipe(cut(prompts), generator=noise, output_type="np", **settings)
    broken = not_finite(out.images)
    if broken:
        raise ValueError(f"{len(broken)} of {len(prompts)} pictures are not finite numbers. {doubt(pipe)}")
    # as diffusers makes PIL images of them
    images = [(image * 255).round().astype(np.uint8) for image in out.images]
    plain, flagged = set(one_colour(images)), getattr(out, "nsfw_content_detected", None) or [False] * len(images)
    return [
        (image, "flagged by the safety checker" if flag else "all of one colour" if k in plain else "")
        for k, (image, flag) in enumerate(zip(images, flagged, strict=True))
    ]


def doubt(pipe: StableDiffusionPipeline) -> str:
    """What to look at where pictures come out broken: weights that are not finite, half precision, safety checker."""
    for name in ("text_encoder", "unet", "vae"):
        if bad := broken_weights(getattr(pipe, name)):
            return f"Weights of the pipeline's {name} are not finite: {bad[0]!r}, {len(bad)} in all"
    halves = [name for name in ("unet", "vae") if getattr(pipe, name).dtype == torch.float16]
    hints = [f"{' and '.join(halves)} in float16 may overflow: try float32 or bfloat16"] if halves else []
    if getattr(pipe, "safety_checker", None) is not None:
        hints.append("the safety checker blackens what it flags: safety_checker=None draws without it")
    return f"{'; '.join(hints) or 'An edit that is on may be too large'}"


@gradient_free
def prompt_states(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> torch.Tensor:
    """What the UNet is told of each prompt: (n, context length, width), in the text encoder's dtype."""
    return pipe.encode_prompt(cut(prompts), pipe.text_encoder.device, 1, False)[0]


def call_settings(steps: int | None, guidance_scale: float | None) -> dict[str, float]:
    """What to call a pipeline with; what is None is left to its own defaults."""
    asked = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    return {key: value for key, value in asked.items() if value is not None}


def picture_seed(seed: int, number: int, attempt: int = 0) -> int:
    """The seed of the noise of one picture of `generated_pairs`, to draw it again: torch.Generator().manual_seed(...)

    Seeds that follow each other share no pictures, so that one draws to choose on and the next to report on. attempt:
    how often the picture came out broken before.
    """
    keys = (seed, number, attempt) if attempt else (seed, number)
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])
