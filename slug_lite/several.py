"""Several concepts: whose steps meet, and steps that keep off what is to stay.

To first order, a step lambda * g_B for concept B changes the forget loss of A by lambda * <g_A, g_B>, an entry of the
Gram matrix of their forget gradients in that layer. What is left of g_B without its part in the span of the gradients
of all that is to stay changes none of theirs (as gradient projection does in continual learning: Farajtabar et al.,
2020; not part of the paper's method).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .edit import Edit, fingerprint, merge
from .metrics import Validation
from .models import Clip
from .pairs import unknown
from .search import NothingForgets, make_delta, search_step

PIECE = 1 << 20  # entries of each gradient that are looked at in float64 at a time


def gram(gradients: Sequence[Tensor]) -> Tensor:
    """Inner products of n gradients of one weight: (n, n), float64. ValueError for none, or for several shapes."""
    if not len(gradients) or len({g.shape for g in gradients}) > 1:
        raise ValueError(
            f"{len(gradients)} gradients of the shapes {sorted({tuple(g.shape) for g in gradients})}; "
            "give one at least, and all of one weight"
        )
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for pieces in zip(*(g.detach().flatten().split(PIECE) for g in gradients), strict=True):
        rows = torch.stack([piece.cpu().double() for piece in pieces])  # on the CPU: not every device has float64
        total += rows @ rows.T
    return total


def keep_off(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The part of each gradient that is orthogonal to every one of `others`, all of one weight and shaped as it.

    A step along it leaves the losses that `others` are gradients of as they are, to first order. Raises ValueError
    for other shapes, and where less than a thousandth is left: a gradient in the span of the others.
    """
    if not len(gradients) or not len(others):
        return [g.detach().clone() for g in gradients]
    others = [other for other in others if other.norm() > 0]
    products, n = gram([*gradients, *others]), len(gradients)
    lengths = products.diagonal()[n:].sqrt()  # others count by direction, however short they are
    among = products[n:, n:] / lengths / lengths[:, None]
    shares = products[:n, n:] / lengths @ torch.linalg.pinv(among, rtol=1e-10, hermitian=True) / lengths
    rests = []
    for k, gradient in enumerate(gradients):
        rest = gradient.detach().cpu().double()
        for share, other in zip(shares[k].tolist(), others, strict=True):
            rest = rest - share * other.detach().to(rest)
        if rest.norm() <= 1e-3 * gradient.norm():
            raise ValueError(f"nothing is left of gradient {k}: it lies in the span of the {len(others)} others")
        rests.append(rest.to(gradient))
    return rests


def forget_in_layer(
    clip: Clip, layer: str, directions: Mapping[str, Tensor], validations: Mapping[str, Validation], *,
    rounds: int = 2, evaluations: int = 10, rule: str = "margin", clearance: float = 4.0,
) -> dict[str, Edit]:  # fmt: skip
    """For each concept the shortest step in `layer` that forgets it in the company of the others; one edit each.

    directions: for each concept the tensor to walk along, shaped as the weight, for instance its forget gradient
    validations: for each concept how to score it; rounds: how often the steps are looked for, with those of all
    others on, the first time with those found so far. rule, clearance, evaluations: see `search_step`.

    `merge` the edits to have all of them, or those of them that are wanted. The model is left as it was. Raises
    KeyError for an unknown layer or a concept without a validation, ValueError for no concepts or rounds,
    `NothingForgets` where a concept's search fails.
    """
    if layer not in clip.weights():
        raise unknown(layer, clip.weights(), "layer")
    if not directions or rounds < 1:
        raise ValueError(f"{len(directions)} directions and {rounds} rounds; at least 1 of each is needed")
    for concept in directions:
        if concept not in validations:
            raise unknown(concept, validations, "concept with a validation")
        if not isinstance(validations[concept], Validation) or validations[concept].forget != concept:
            raise ValueError(f"the validation of {concept!r} must be a slug_lite.Validation that asks for it")
    base, edits = fingerprint(clip), {}
    for _ in range(rounds):
        for concept, direction in directions.items():
            company = [edit for other, edit in edits.items() if other != concept]
            with merge(company).on(clip) if company else nullcontext():
                score = validations[concept].prepare(clip).of_layer(layer)
                found = search_step(
                    clip, layer, direction, score, evaluations=evaluations, rule=rule, clearance=clearance
                )
            if found.step is None:
                raise NothingForgets(
                    f"no step in {layer!r} forgot {concept!r}, with {len(company)} others", found.trace
                )
            delta = make_delta(direction, found.step).cpu()
            edits[concept] = Edit({layer: delta}, {layer: found.step}, concept, base, trace=found.trace)
    return edits
