"""Stable Diffusion: pipelines, their text encoder, and pictures that they draw themselves.

diffusers is imported where it is needed, not with the package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .models import Clip, safe_files, tensor_names
from .pairs import Pairs, unknown
from .progress import bar, quiet
from .text_tower import carry, to_transformers

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

# What ships with the package, and the folder of slug_lite/assets that it lies in
SHIPPED_PIPELINES = {"mini": "mini-sd"}
GUIDANCE = 3.2  # what suits mini Stable Diffusion; diffusers' own 7.5 oversaturates the pictures of so small a UNet
_MODELS = ("unet", "vae", "text_encoder")
_ACTIVATIONS = {("GELU", "none"): "gelu", ("GELU", "tanh"): "gelu_pytorch_tanh", ("QuickGELU", None): "quick_gelu"}


def is_pipeline(target: object) -> bool:
    """Is it one of diffusers' pipelines? Asked by name, so that diffusers need not be imported."""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(target).__mro__)


def encoder_of(target: object) -> nn.Module | None:
    """The text encoder that an edit goes on: a StableDiffusionPipeline's, or a transformers.CLIPTextModel itself.

    None for what is neither pipeline nor text encoder; ValueError for pipelines of another kind, or without one.
    """
    kinds = {kind.__name__ for kind in type(target).__mro__}
    if "CLIPTextModel" in kinds or "DiffusionPipeline" not in kinds:
        return target if "CLIPTextModel" in kinds else None
    if "StableDiffusionPipeline" not in kinds:
        raise ValueError(
            f"the pipeline is a {type(target).__name__}; a StableDiffusionPipeline is needed (one of other parts that "
            "shares its text encoder has the edit too)"
        )
    encoder = getattr(target, "text_encoder", None)
    if "CLIPTextModel" not in {kind.__name__ for kind in type(encoder).__mro__}:
        found = "has no text_encoder" if encoder is None else f"has a {type(encoder).__name__} as text_encoder"
        raise ValueError(f"the pipeline {found}; a transformers.CLIPTextModel is needed")
    return encoder


def check_clip(clip: object) -> None:
    """ValueError for a pipeline where a Clip is needed, with what to do instead."""
    if is_pipeline(clip) or encoder_of(clip):
        raise ValueError(
            f"a {type(clip).__name__} has no vision tower to take gradients through. Find the edit on the CLIP that "
            'its text encoder comes from, unlearn(clip, ..., tower="text"), and put it on: edit.on(pipe). Forget '
            "pictures that only the pipeline can supply come from generated_pairs(pipe, prompt, n)"
        )


def check_draws(pipe: object) -> None:
    """ValueError for what is no StableDiffusionPipeline."""
    if not is_pipeline(pipe) or not encoder_of(pipe):
        raise ValueError(f"pictures are drawn by a StableDiffusionPipeline, not by a {type(pipe).__name__}")


def has_layer(pipe: StableDiffusionPipeline, layer: str) -> bool:
    """Does the pipeline's text encoder have this weight of a CLIP?"""
    weights = dict(encoder_of(pipe).named_parameters())
    try:
        return set(carry({layer: torch.zeros(3)}, weights)) <= set(weights)
    except ValueError:
        return False


def text_encoder_from(clip: Clip, *, rounded: torch.dtype | None = None, skip: int = 0) -> CLIPTextModel:
    """A Clip's text tower, as it is now, as the transformers.CLIPTextModel that gives the same states for a caption.

    rounded: round the weights to this dtype first, as torch.float16. They keep the Clip's own dtype and device.
    skip: how many blocks to leave out at the end; 1 as in Stable Diffusion 2, whose last state is CLIP's last but one.
    Returns it in eval mode, with weights of its own. Its last_hidden_state, (n, context length, width), is that after
    the final norm, pooler_output that of the end token. ValueError for towers that CLIPTextModel cannot be: not
    causal, with weights or an activation of another kind, or pooling otherwise.
    """
    from transformers import CLIPTextModel

    text = {n: w.detach() for n, w in clip.weights().items() if clip.tower(n) == "text" and "text_projection" not in n}
    config = clip.model.config.text_config if clip.of_transformers else _text_config(clip)
    depth = config.num_hidden_layers
    if not 0 <= skip < depth:
        raise ValueError(f"skip={skip}; the text tower has {depth} blocks, and at least one must stay")
    model = CLIPTextModel(type(config).from_dict({**config.to_dict(), "num_hidden_layers": depth - skip}))
    inner = getattr(model, "text_model", model)  # transformers 4 has one more level
    weights = {name: w.to(rounded or w.dtype).to(w.dtype) for name, w in to_transformers(text).items()}
    kept = {name: w for name, w in weights.items() if not _block(name) >= depth - skip}
    inner.load_state_dict(kept, strict=True)
    return model.to(clip.device, next(iter(text.values())).dtype).eval()


def _block(name: str) -> int:
    """The number of the block that a weight of a CLIPTextModel is in, -1 outside of them."""
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _text_config(clip: Clip) -> Any:
    """The CLIPTextConfig of open_clip's text tower, its own or a custom one."""
    from transformers import CLIPTextConfig

    tower = getattr(clip.model, "text", clip.model)
    if not hasattr(tower, "transformer") or not hasattr(tower, "token_embedding"):
        raise ValueError(f"the text tower is a {type(tower).__name__}, not one of CLIP's kind")
    pool, eos = getattr(tower, "text_pool_type", None) or tower.pool_type, getattr(tower, "text_eos_id", None)
    if tower.attn_mask is None or pool not in ("argmax", "eos"):
        raise ValueError(
            f"the text tower {'is not causal' if tower.attn_mask is None else f'pools by {pool!r}'}; "
            "a CLIPTextModel is causal and takes the state of the end token"
        )
    block, (vocabulary, width) = tower.transformer.resblocks[0], tower.token_embedding.weight.shape
    kind = (type(block.mlp.gelu).__name__, getattr(block.mlp.gelu, "approximate", None))
    if kind not in _ACTIVATIONS:
        raise ValueError(f"the text tower's activation is {block.mlp.gelu}; GELU or QuickGELU are known")
    # open_clip's argmax takes the highest token, which is the end token; transformers asks for its number
    end = getattr(clip.tokenizer, "eot_token_id", vocabulary - 1) if pool == "argmax" else eos or tower.eos_id
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(tower.transformer.resblocks), num_attention_heads=block.attn.num_heads,
        max_position_embeddings=len(tower.positional_embedding), hidden_act=_ACTIVATIONS[kind],
        layer_norm_eps=tower.ln_final.eps, bos_token_id=end - 1, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip


def load_diffusion(
    name: str | Path = "mini", device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Load a diffusers.StableDiffusionPipeline from safetensors, without safety checker, in eval mode.

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

    saved = check_pipeline(folder)
    if quiet():
        logging.disable_progress_bar()
        of_transformers.disable_progress_bar()
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False,
            local_files_only=True,
        )  # fmt: skip
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"the pipeline in {str(folder)!r} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error
    for part, names in saved.items():  # diffusers and transformers make random what a file lacks
        missing = [name for name in getattr(pipe, part).state_dict() if name.removeprefix("text_model.") not in names]
        if missing and not any(".query." in name for name in names):  # names of long ago, which diffusers translates
            raise ValueError(
                f"the weights in {str(folder / part)!r} lack {missing[0]!r}, {len(missing)} tensors in all"
            )
    if quiet():
        pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def check_pipeline(folder: Path) -> dict[str, set[str]]:
    """Raise a clear error unless `folder` holds a StableDiffusionPipeline with whole safetensors weights.

    Returns the names of the tensors of each model, the text encoder's without "text_model.".
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no model_index.json, so it is no pipeline of diffusers")
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(index)!r} is no pipeline's index with a '_class_name': {error}") from error
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{str(folder)!r} holds a {kind}; a StableDiffusionPipeline is needed")
    for part in (*_MODELS, "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"the pipeline in {str(folder)!r} has no {part}")
    return {part: _tensor_names(folder / part) for part in _MODELS}


def _tensor_names(folder: Path) -> set[str]:
    return {name.removeprefix("text_model.") for file in safe_files(folder) for name in tensor_names(file)}


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
    if min(n, batch_size, 1 if steps is None else steps) < 1:
        raise ValueError(f"n={n}, batch_size={batch_size}, steps={steps}: at least 1 is needed of each")
    captions = [prompts[k % len(prompts)] for k in range(n)]
    own = call_settings(steps, guidance_scale)
    images, shown = [], getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**shown, "disable": True})
    try:
        with bar(total=n, desc="drawing", show=progress) as done:
            for start in range(0, n, batch_size):
                rows = range(start, min(start + batch_size, n))
                noise = [torch.Generator().manual_seed(picture_seed(seed, k)) for k in rows]
                drawn = pipe([captions[k] for k in rows], generator=noise, **own).images
                images += [np.asarray(image.convert("RGB")) for image in drawn]
                done.update(len(rows))
    finally:
        pipe.set_progress_bar_config(**shown)
    return Pairs(np.stack(images), captions)


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
