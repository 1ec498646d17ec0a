"""What an edit goes on: a Clip or its model, a diffusers.StableDiffusionPipeline, or its text encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .models import Clip
from .runtime.checks import FREEZE, check_fit
from .runtime.fingerprints import weights_fingerprint
from .runtime.libraries import encoder_of, is_pipeline
from .runtime.stacks import untouched
from .runtime.text_towers import tower_mark, translate
from .runtime.wrappers import unwrapped


def as_clip(target: object) -> Clip:
    """A Clip, or a CLIP's model as one. ValueError for anything else."""
    if isinstance(target, Clip):
        return target
    target = unwrapped(target)
    if isinstance(target, nn.Module) and (hasattr(target, "encode_text") or hasattr(target, "get_text_features")):
        return Clip(target, None, None)  # weights only: an edit needs neither tokenizer nor transform
    raise ValueError(
        "an edit goes on a Clip, an open_clip model, a CLIPModel, a StableDiffusionPipeline or its text encoder, "
        f"not on a {type(target).__name__}"
    )


def weights_of(target: object) -> dict[str, nn.Parameter]:
    """The weights that edits of a target change, by its own names."""
    return dict((encoder_of(target) or as_clip(target).model).named_parameters())


def modules_of(target: object) -> nn.Module:
    """All that an edit restores when it comes off: the model, or every model of a pipeline."""
    if is_pipeline(target):
        return nn.ModuleList(part for part in target.components.values() if isinstance(part, nn.Module))
    return encoder_of(target) or as_clip(target).model


def deltas_for(target: object, deltas: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """The weights of a target that deltas of a CLIP's layers go to, each with what is added to it.

    ValueError for layers that the target does not have, other shapes, and weights that are not in memory.
    """
    weights, found = weights_of(target), dict[str, Tensor]()
    own = all(layer in weights for layer in deltas)
    for layer, delta in deltas.items():
        try:
            parts = {layer: delta} if own else translate({layer: delta}, weights)
        except ValueError as error:
            unknown = f"the edit changes {layer!r}, which this model does not have"
            raise ValueError(f"{error}{FREEZE}" if encoder_of(target) else unknown) from error
        for name, part in parts.items():
            check_fit(layer, name, weights, part)
            found[name] = part if name not in found else found[name] + part
    return [(weights[name], delta) for name, delta in found.items()]


def fingerprint(target: object) -> str:
    """What tells base models apart: 24 hex digits for all weights, "-" and the mark of the text tower if it is CLIP's.

    Edits that are on do not change it. A pipeline, or its text encoder, has the second part alone.
    """
    weights = {name: untouched(weight) for name, weight in weights_of(target).items()}
    if encoder_of(target):
        return f"-{tower_mark(weights)}"
    clip = as_clip(target)
    text = {n: w for n, w in weights.items() if clip.tower(n) == "text" and "text_projection" not in n}
    return weights_fingerprint(weights) + (f"-{mark}" if (mark := tower_mark(text)) else "")
