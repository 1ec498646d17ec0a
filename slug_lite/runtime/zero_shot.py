"""What CLIP does with names and pictures: zero-shot classification (Radford et al., 2021), in batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .modes import gradient_free

if TYPE_CHECKING:
    from ..models import Clip
    from ..pairs import Pairs

BATCH = 256  # pictures or captions embedded at a time


@gradient_free
def zero_shot_classifier(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One unit vector a name, (len(names), dim): the normalised mean over its prompts (Radford et al., 2021).

    templates: strings with one `{}` each. ValueError where a bare string is given for either, or nothing.
    """
    if isinstance(names, str) or isinstance(templates, str) or not len(names) or not len(templates):
        raise ValueError(f"names {names!r} and templates {templates!r} must be sequences of at least one string")
    prompts = clip.tokens([template.format(name) for name in names for template in templates])
    features = torch.cat([clip.text_features(part) for part in prompts.split(BATCH)])
    return F.normalize(features.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


@gradient_free
def embed_images(clip: Clip, pixels: Tensor) -> Tensor:
    """Unit vectors (n, dim) of pictures (n, 3, S, S), in batches."""
    return torch.cat([clip.image_features(part) for part in pixels.split(BATCH)])


def labels(pairs: Pairs, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which pairs are about one of `names`, and which: row numbers and positions in `names`, both int64 (m,)."""
    position = {name: i for i, name in enumerate(names)}
    found = [(k, position[n]) for k, concept in enumerate(pairs.concepts or ()) for n in concept if n in position]
    rows, own = zip(*found, strict=True) if found else ((), ())
    return torch.tensor(rows, dtype=torch.long), torch.tensor(own, dtype=torch.long)


def retained(answers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """For each kind its accuracy in [0, 1]; "retain_accuracy", the mean over kinds; "retain_loss", the mean over
    kinds of the cross-entropy of the right name, in nats: it tells apart what accuracies of 100 % do not.

    answers: by kind the logits (pictures, names) and the positions of the right names (pictures,). Nothing for none.
    """
    if not answers:
        return {}
    known = {kind: logits.argmax(1).eq(own) & logits.isfinite().all(1) for kind, (logits, own) in answers.items()}
    accuracy = {kind: right.float().mean().item() for kind, right in known.items()}
    loss = [F.cross_entropy(logits, own).nan_to_num(math.inf, math.inf).item() for logits, own in answers.values()]
    return accuracy | {"retain_accuracy": sum(accuracy.values()) / len(loss), "retain_loss": sum(loss) / len(loss)}
