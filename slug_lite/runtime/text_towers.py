"""One text tower, two libraries: open_clip's names of its weights, and those of transformers.CLIPTextModel.

open_clip keeps the queries, keys and values of a block in one tensor, transformers in three. The text encoder of Stable
Diffusion is CLIP's text tower in transformers' form, without the projection that comes after it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from .fingerprints import Mark, same_mark
from .modes import gradient_free

SUMS, DIGITS = 4, (4, 2)  # of a block's mark: sums of sizes; digits of its hash, and of each sum
PART = DIGITS[0] + SUMS * DIGITS[1]

# open_clip's name -> transformers'
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
# the same for what a block holds, each with a weight and a bias
_INSIDE = {
    "ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
VOCABULARY = 49408  # of CLIP; further tokens are later additions
_FUSED = [f"self_attn.{letter}_proj" for letter in "qkv"]
_OPEN_CLIP = re.compile(r"(?:text\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_TRANSFORMERS = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def transformers_names(name: str) -> list[str]:
    """What a weight of a text tower is called in transformers' CLIPTextModel: one name, or three for a fused tensor.

    Takes the names of open_clip (of its own and of custom text towers) and of transformers (with the "text_model." of
    its version 4 and of CLIPModel, or without). ValueError for a name that a text encoder does not have.
    """
    bare = re.sub(r"^text(_model)?\.", "", name)
    block, own = _OPEN_CLIP.fullmatch(name), _TRANSFORMERS.fullmatch(bare)
    if bare in _OUTSIDE:
        return [_OUTSIDE[bare]]
    if block and block[2] == "attn.in_proj":
        return [f"encoder.layers.{block[1]}.{part}.{block[3]}" for part in _FUSED]
    if block and block[2] in _INSIDE:
        return [f"encoder.layers.{block[1]}.{_INSIDE[block[2]]}.{block[3]}"]
    if bare in _OUTSIDE.values() or (own and own[2] in (*_FUSED, *_INSIDE.values())):
        return [bare]
    raise ValueError(
        f"a text encoder does not have {name!r}: it has the embeddings, blocks and final norm of CLIP's text "
        "tower, and neither the vision tower nor text_projection nor the logit scale"
    )


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights or deltas of a text tower, by the names of transformers' CLIPTextModel, see `transformers_names`.

    Queries, keys and values, (3 * width, ...) in open_clip, come out as three tensors (width, ...).
    """
    out = {}
    for name, tensor in tensors.items():
        names = transformers_names(name)
        out |= zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor], strict=True)
    return out


def open_clip_name(name: str, prefix: str = "") -> str:
    """What a weight of a text tower, by its name in either library, is called in open_clip.

    prefix: "text." for a custom text tower. Queries, keys and values have one name together. ValueError as in
    `transformers_names`.
    """
    name = transformers_names(name)[0]
    block = _TRANSFORMERS.fullmatch(name)
    if not block:
        return prefix + next(old for old, new in _OUTSIDE.items() if new == name)
    part = next((old for old, new in _INSIDE.items() if new == block[2]), None)
    return f"{prefix}transformer.resblocks.{block[1]}." + (f"{part}.{block[3]}" if part else f"attn.in_proj_{block[3]}")


def to_open_clip(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The way back, by open_clip's names, see `open_clip_name`.

    Of queries, keys and values those that are not given are zero, as in a delta.
    """
    tensors, out = to_transformers(tensors), {}
    for name, tensor in tensors.items():
        whole = open_clip_name(name, prefix)
        parts = transformers_names(whole)
        out[whole] = tensor if len(parts) == 1 else torch.cat(
            [tensors.get(part, torch.zeros_like(tensor)) for part in parts]
        )  # fmt: skip
    return out


def _prefix(names: Container[str]) -> tuple[bool, str]:
    """Does a model whose weights are `names` use transformers' names? And how its names begin."""
    for prefix in ("", "text_model."):  # of transformers' text encoder; of its version 4 and its CLIPModel
        if f"{prefix}embeddings.token_embedding.weight" in names:
            return True, prefix
    return False, "text." if "text.token_embedding.weight" in names else ""


def translate_names(name: str, names: Container[str]) -> list[str]:
    """What another model, whose weights go by `names`, calls a weight of a text tower. ValueError if it cannot."""
    of_transformers, prefix = _prefix(names)
    return [prefix + new for new in transformers_names(name)] if of_transformers else [open_clip_name(name, prefix)]


def translate(tensors: Mapping[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Deltas, by the names that another model's weights go by: `names`. ValueError as in `transformers_names`."""
    of_transformers, prefix = _prefix(names)
    if of_transformers:
        return {prefix + name: tensor for name, tensor in to_transformers(tensors).items()}
    return to_open_clip(tensors, prefix)


@gradient_free
def tower_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """What tells text towers apart: twelve hex digits for embeddings and final norm, and twelve for each block.

    weights: all of a tower, by the names of either library. Each part is a `Mark` of four digits and four sums, so a
    CLIP in fp32 and a pipeline in fp16 or bf16 have the same; a tower whose last blocks are left out has the beginning.
    """
    parts: dict[int, Mark] = {}
    for name, weight in sorted(to_transformers(weights).items()):
        block = _TRANSFORMERS.fullmatch(name)
        if name == _OUTSIDE["token_embedding.weight"]:
            weight = weight[:VOCABULARY]  # tokens added by textual inversion leave the tower what it was
        part = parts.setdefault(int(block[1]) + 1 if block else 0, Mark(SUMS))
        part.add(f"{block[2]}.{block[3]}" if block else name, weight)
    return "".join(part.text(*DIGITS) for _, part in sorted(parts.items()))


def tower_mark(weights: Mapping[str, Tensor]) -> str:
    """`tower_fingerprint` of a text tower; "" for one of another kind than CLIP's."""
    try:
        return tower_fingerprint(weights)
    except ValueError:
        return ""


def differences(found: str, wanted: str) -> list[str]:
    """What of a text tower is not as in another, by `tower_fingerprint`; blocks left out at the end do not count."""
    parts = [(found[i : i + PART], wanted[i : i + PART]) for i in range(0, len(found), PART)]
    names = ["embeddings or final norm", *(f"block {k}" for k in range(len(parts) - 1))]
    return [name for name, (a, b) in zip(names, parts, strict=True) if b and not same_mark(a, b, *DIGITS)]
