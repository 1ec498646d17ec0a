"""Models of other libraries, known by the names of their classes: neither diffusers nor transformers is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from .broken import broken_weights
from .checks import check_fit
from .wrappers import check_offload, check_parts, unwrapped


def is_pipeline(target: object) -> bool:
    """Is it one of diffusers' pipelines?"""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(target).__mro__)


def encoder_of(target: object) -> nn.Module | None:
    """The text encoder that an edit goes on: a StableDiffusionPipeline's, or a transformers.CLIPTextModel itself.

    None for what is neither pipeline nor text encoder; ValueError for pipelines of another kind, or without one.
    """
    if isinstance(target, nn.Module):
        target = unwrapped(target)
        _check_in_memory(target)
    elif isinstance(own := getattr(target, "model", None), nn.Module):  # a Clip's, with what has happened to it since
        check_parts(own)
        _check_in_memory(own)
    kinds = {kind.__name__ for kind in type(target).__mro__}
    if "CLIPTextModel" in kinds or "DiffusionPipeline" not in kinds:
        return target if "CLIPTextModel" in kinds else None
    check_stable(target)
    encoder = unwrapped(target.text_encoder)
    if "CLIPTextModel" not in {kind.__name__ for kind in type(encoder).__mro__}:
        raise ValueError(
            f"the pipeline has a {type(encoder).__name__} as text_encoder; a transformers.CLIPTextModel is needed"
        )
    check_offload(encoder)
    _check_in_memory(encoder)
    return encoder


def check_stable(pipe: object) -> None:
    """ValueError for a pipeline that is no StableDiffusionPipeline with a text encoder."""
    if "StableDiffusionPipeline" not in {kind.__name__ for kind in type(pipe).__mro__}:
        raise ValueError(
            f"the pipeline is a {type(pipe).__name__}; a StableDiffusionPipeline is needed (one of other parts that "
            "shares its text encoder has the edit too)"
        )
    if getattr(pipe, "text_encoder", None) is None:
        raise ValueError("the pipeline has no text_encoder; a transformers.CLIPTextModel is needed")


def _check_in_memory(model: nn.Module) -> None:
    """ValueError for weights that are elsewhere: of these not even a fingerprint can be taken."""
    weights = dict(model.named_parameters())
    for name in [name for name, weight in weights.items() if weight.is_meta][:1]:
        check_fit(name, name, weights, weights[name])


def check_clip(clip: object) -> None:
    """ValueError for what is no Clip, with what to do instead, for weights that are NaN or have no gradients.

    Those are on the meta device, or in float8. Whole numbers pass: the search leaves out what asks for no gradient.
    """
    if is_pipeline(clip) or encoder_of(clip):
        raise ValueError(
            f"a {type(clip).__name__} has no vision tower to take gradients through. Find the edit on the CLIP that "
            "its text encoder comes from, unlearn_pipeline(pipe, clip, ...), and put it on: edit.on(pipe). Forget "
            "pictures that only the pipeline can supply come from generated_pairs(pipe, prompt, n)"
        )
    model, parts = getattr(clip, "model", None), ("tokenizer", "preprocess")
    whole = all(getattr(clip, part, None) is not None for part in parts) and hasattr(clip, "tokens")
    if not whole or not (hasattr(model, "encode_text") or hasattr(model, "get_text_features")):
        raise ValueError(
            f"clip is a {type(clip).__name__}; a slug_lite.Clip is needed: load_clip(...), or Clip(model, tokenizer, "
            "preprocess) of a CLIP that is in memory, none of them None"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("no gradients can be taken inside torch.inference_mode(); call this outside of it")
    weights = dict(clip.model.named_parameters())
    for name in [name for name, weight in weights.items() if weight.is_floating_point()]:
        check_fit(name, name, weights, weights[name])
    if bad := broken_weights(clip.model):
        raise ValueError(f"weights of the CLIP are not finite: {bad[0]!r}, {len(bad)} in all")


def embedding(out: Any) -> Tensor:
    """What an encoder returns, in float32 at least; transformers 5 wraps the projected embedding into an output."""
    x = out if isinstance(out, Tensor) else out.pooler_output
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def image_size(model: nn.Module) -> int:
    """Height of the pictures that a CLIP of either library takes, in pixels."""
    size = model.visual.image_size if hasattr(model, "visual") else model.config.vision_config.image_size
    return size[0] if isinstance(size, (tuple, list)) else size


def own_version() -> str:
    """This package's version, "unknown" where it runs from a folder that was never installed."""
    try:
        return version("slug-lite")
    except PackageNotFoundError:
        return "unknown"
