"""Linear algebra on gradients and deltas: inner products, what is orthogonal to others, products of low rank.

To first order, a step lambda * g_B for concept B changes the forget loss of A by lambda * <g_A, g_B>, an entry of the
Gram matrix of their forget gradients in that layer. What is left of g_B without its part in the span of the gradients
of all that is to stay changes none of theirs (as gradient projection does in continual learning: Farajtabar et al.,
2020; not part of the paper's method).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PIECE = 1 << 20  # entries of each tensor that are looked at in float64 at a time


def inner(a: Tensor, b: Tensor, piece: int = PIECE) -> float:
    """The inner product of two tensors of a shape, summed in float64, in pieces that need little memory."""
    wide = torch.device("cpu") if a.device.type == "mps" else a.device  # MPS has no float64
    pairs = zip(a.reshape(-1).split(piece), b.reshape(-1).split(piece), strict=True)
    return sum((x.to(wide).double() @ y.to(wide).double()).item() for x, y in pairs)


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


def project_out(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
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
    parts = products[:n, n:] / lengths @ torch.linalg.pinv(among, rtol=1e-10, hermitian=True) / lengths
    rests = []
    for k, gradient in enumerate(gradients):
        rest = gradient.detach().cpu().double()
        for part, other in zip(parts[k].tolist(), others, strict=True):
            rest = rest - part * other.detach().to(rest)
        if rest.norm() <= 1e-3 * gradient.norm():
            raise ValueError(f"nothing is left of gradient {k}: it lies in the span of the {len(others)} others")
        rests.append(rest.to(gradient))
    return rests


def protect_layers(
    directions: Sequence[dict[str, Tensor]], gradients_of: Callable[[list[str]], list[dict[str, Tensor]]],
    groups: Sequence[list[str]],
) -> list[dict[str, Tensor]]:  # fmt: skip
    """Directions, by layer, without their parts in the span of the others' gradients, see `project_out`.

    gradients_of: a group of layers -> the others' gradients there, one dict each. A layer in which nothing is left of
    a direction is taken out of it.
    """
    rests: list[dict[str, Tensor]] = [{} for _ in directions]
    for group in groups:
        kept = gradients_of(group)
        for layer in group:
            others, having = [one.pop(layer) for one in kept], [k for k, own in enumerate(directions) if layer in own]
            for k, part in zip(having, _rests([directions[k][layer] for k in having], others), strict=True):
                if part is not None:
                    rests[k][layer] = part
    return rests


def _rests(gradients: list[Tensor], others: list[Tensor]) -> list[Tensor | None]:
    """`project_out`, with None where nothing is left."""
    try:
        return list(project_out(gradients, others))
    except ValueError:
        return [None] if len(gradients) == 1 else [_rests([gradient], others)[0] for gradient in gradients]


Factors = tuple[Tensor, Tensor]  # (out, rank) and (rank, in)


def factors_of(delta: Tensor, rank: int) -> Factors:
    """The two factors, in the delta's dtype, of the nearest product of `rank` (Eckart and Young, 1936)."""
    u, s, v = torch.linalg.svd(delta.float().flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(delta.dtype), (root[:, None] * v[:rank]).to(delta.dtype)


def product(factors: Factors, shape: Sequence[int]) -> Tensor:
    """What factors stand for, in their dtype and in a weight's shape."""
    left, right = factors
    return (left.float() @ right.float()).reshape(tuple(shape)).to(left.dtype)


def side_by_side(all_factors: Sequence[dict[str, Factors]]) -> dict[str, Factors]:
    """For each layer the factors of the sum: left ones side by side (out, ranks), right ones stacked (ranks, in)."""
    found: dict[str, list[Factors]] = {}
    for factors in all_factors:
        for layer, pair in factors.items():
            found.setdefault(layer, []).append(pair)
    return {n: (torch.cat([a for a, _ in pairs], 1), torch.cat([b for _, b in pairs])) for n, pairs in found.items()}
