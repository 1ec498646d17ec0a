"""Load a pipeline of Stable Diffusion, from safetensors alone. diffusers is imported when it is needed, not before."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from ..runtime.checks import unknown
from ..runtime.pipeline_files import admit, read_text_encoder, read_tokenizer
from ..runtime.progress import quiet

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# What ships with the package, and the folder of slug_lite/assets that it lies in
SHIPPED_PIPELINES = {"mini": "mini-sd"}


def load_diffusion(
    name: str | Path = "mini", device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Load a diffusers.StableDiffusionPipeline from safetensors, without safety checker, in eval mode.

    No Python that lies in a folder is run, and of its configurations only what its models know is read.

    name: "mini" (ships with the package), a folder as `save_pretrained` writes it, or "OWNER/NAME" on the hub, which
        is looked for in the hub's cache first if HF_HUB_OFFLINE is set.
    device: None takes a GPU where there is one. dtype: of all its models, whatever that of the files.
    Raises KeyError for an unknown name (the nearest is named), FileNotFoundError for a missing folder or file,
    ValueError for another kind of pipeline and for weights that are pickled or damaged.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; give torch.float32, torch.float16 or torch.bfloat16")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name in SHIPPED_PIPELINES:
        with resources.as_file(resources.files("slug_lite") / "assets" / SHIPPED_PIPELINES[name]) as folder:
            return _load_pipeline(Path(folder), device, dtype)
    if not Path(name).is_dir() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name)):
        return _load_pipeline(_fetch(str(name)), device, dtype)
    if Path(name).is_dir() or isinstance(name, Path) or re.search(r"[/\\~]|^\.", name):
        return _load_pipeline(Path(name), device, dtype)
    raise unknown(name, [*SHIPPED_PIPELINES, "a folder", "OWNER/NAME on the hub"], "diffusion model")


def _fetch(name: str) -> Path:
    """The folder in the hub's cache that holds a pipeline, its safetensors alone."""
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import constants

    try:
        offline = constants.HF_HUB_OFFLINE
        return Path(
            StableDiffusionPipeline.download(name, use_safetensors=True, safety_checker=None, local_files_only=offline)
        )
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no folder here, is not in the hub's cache {constants.HF_HUB_CACHE} and could not be "
            f"fetched: {error}"
        ) from error


def _load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging
    from transformers.utils import logging as of_transformers

    if quiet():
        logging.disable_progress_bar()
        of_transformers.disable_progress_bar()
    with TemporaryDirectory(prefix="slug_lite_") as place:
        own = admit(folder, Path(place))
        tokenizer = read_tokenizer(own, folder)
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                own, torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False,
                local_files_only=True, text_encoder=read_text_encoder(own, dtype),
                tokenizer=tokenizer,
            )  # fmt: skip
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ValueError(
                f"the pipeline in {str(folder)!r} cannot be loaded: {type(error).__name__}: {reason}"
            ) from error
    for part, place in ((pipe, folder), (pipe.unet, folder / "unet"), (pipe.vae, folder / "vae")):
        part.register_to_config(_name_or_path=str(place))  # where it came from, not what the loader saw
    pipe.text_encoder.config._name_or_path = str(folder / "text_encoder")
    if quiet():
        pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
