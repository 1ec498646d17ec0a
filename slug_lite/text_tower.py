"""One text tower, two libraries: open_clip's names of its weights, and those of transformers.CLIPTextModel.

open_clip keeps the queries, keys and values of a block in one tensor, transformers in three. The text encoder of Stable
Diffusion is CLIP's text tower in transformers' form, without the projection that comes after it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping

import numpy as np
import torch
from torch import Tensor

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
_FUSED = [f"self_attn.{letter}_proj" for letter in "qkv"]
_OPEN_CLIP = re.compile(r"(?:text\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_TRANSFORMERS = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights or deltas of a text tower, by the names of transformers' CLIPTextModel.

    Takes the names of open_clip (of its own and of custom text towers) and of transformers (with the "text_model." of
    its version 4 and of CLIPModel, or without). Queries, keys and values, (3 * width, ...) in open_clip, come out as
    three tensors (width, ...). ValueError for a name that a text encoder does not have.
    """
    out = {}
    for name, tensor in tensors.items():
        bare = re.sub(r"^text(_model)?\.", "", name)
        block, own = _OPEN_CLIP.fullmatch(name), _TRANSFORMERS.fullmatch(bare)
        if bare in _OUTSIDE:
            out[_OUTSIDE[bare]] = tensor
        elif block and block[2] == "attn.in_proj":
            for part, third in zip(_FUSED, tensor.chunk(3), strict=False):
                out[f"encoder.layers.{block[1]}.{part}.{block[3]}"] = third
        elif block and block[2] in _INSIDE:
            out[f"encoder.layers.{block[1]}.{_INSIDE[block[2]]}.{block[3]}"] = tensor
        elif bare in _OUTSIDE.values() or (own and own[2] in (*_FUSED, *_INSIDE.values())):
            out[bare] = tensor
        else:
            raise ValueError(
                f"a text encoder does not have {name!r}: it has the embeddings, blocks and final norm of CLIP's text "
                "tower, and neither the vision tower nor text_projection nor the logit scale"
            )
    return out


def to_open_clip(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The way back, by open_clip's names; prefix: "text." for a custom text tower.

    Of queries, keys and values those that are not given are zero, as in a delta. ValueError as in `to_transformers`.
    """
    tensors = to_transformers(tensors)
    outside, inside = ({new: old for old, new in names.items()} for names in (_OUTSIDE, _INSIDE))
    out = {}
    for name, tensor in tensors.items():
        block = _TRANSFORMERS.fullmatch(name)
        if not block:
            out[prefix + outside[name]] = tensor
        elif block[2] in inside:
            out[f"{prefix}transformer.resblocks.{block[1]}.{inside[block[2]]}.{block[3]}"] = tensor
        else:
            thirds = [f"encoder.layers.{block[1]}.{part}.{block[3]}" for part in _FUSED]
            fused = torch.cat([tensors.get(third, torch.zeros_like(tensor)) for third in thirds])
            out[f"{prefix}transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}"] = fused
    return out


def carry(tensors: Mapping[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Deltas, by the names that another model's weights go by: `names`. ValueError as in `to_transformers`."""
    for prefix in ("", "text_model."):  # transformers' text encoder, its version 4 and its CLIPModel
        if f"{prefix}embeddings.token_embedding.weight" in names:
            return {prefix + name: tensor for name, tensor in to_transformers(tensors).items()}
    return to_open_clip(tensors, "text." if "text.token_embedding.weight" in names else "")


@torch.no_grad()
def text_print(weights: Mapping[str, Tensor]) -> str:
    """What tells text towers apart: four hex digits for embeddings and final norm, and four for each block.

    weights: all of a tower, by the names of either library. Each part is the beginning of a SHA-256 over shapes, and
    signs of up to 4,096 evenly spaced values a tensor. No rounding to another dtype changes a sign, so a CLIP in fp32
    and a pipeline in fp16 or bf16 give the same; a tower whose last blocks are left out gives the beginning.
    """
    parts: dict[int, hashlib._Hash] = {}
    for name, weight in sorted(to_transformers(weights).items()):
        block = _TRANSFORMERS.fullmatch(name)
        flat = weight.flatten()
        places = torch.linspace(0, flat.numel() - 1, min(4096, flat.numel()), dtype=torch.float64).round().long()
        signs = np.packbits(torch.signbit(flat[places.to(flat.device)]).cpu().numpy())
        part = parts.setdefault(int(block[1]) + 1 if block else 0, hashlib.sha256())
        place = f"{block[2]}.{block[3]}" if block else name
        part.update(f"{place}{tuple(weight.shape)}".encode() + signs.tobytes())
    return "".join(part.hexdigest()[:4] for _, part in sorted(parts.items()))


def differences(found: str, wanted: str) -> list[str]:
    """What of a text tower is not as in another, by their `text_print`; blocks left out at the end do not count."""
    parts = [(found[i : i + 4], wanted[i : i + 4]) for i in range(0, len(found), 4)]
    names = ["embeddings or final norm", *(f"block {k}" for k in range(len(parts) - 1))]
    return [name for name, (a, b) in zip(names, parts, strict=True) if a != b]
