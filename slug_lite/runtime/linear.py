"""Linear algebra on gradients and deltas: inner products, what is orthogonal to others, products of low rank.

To first order, a step lambda * g_B for concept B changes the forget loss of A by lambda * <g_A, g_B>, an entry of the
Gram matrix of their forget gradients in that layer. What is left of g_B without its part in the span of the gradients
of all that is to stay changes none of theirs (as gradient projection does in continual learning: Farajtabar et al.,
2020; not part of the paper's method).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 1 << 18  # entries of each tensor that are looked at at a time
SHORT = 1 << 8  # products that are summed in float32, before float64 goes on


def inner(a: Tensor, b: Tensor, piece: int = PIECE) -> float:
    """The inner product of two tensors of a shape, summed in float64 where they are, in pieces that need little memory.

    (In float32 it would take a third of the time, and one pass over each weight is next to nothing.)
    """
    wide = torch.device("cpu") if a.device.type == "mps" else a.device  # MPS has no float64
    pairs = zip(a.reshape(-1).split(piece), b.reshape(-1).split(piece), strict=True)
    return float(sum(x.to(wide).double() @ y.to(wide).double() for x, y in pairs))


def _products(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """Inner products of tensors of one weight: (rows, columns), float64, on the CPU; taken where the first one is.

    On a GPU in float64; elsewhere in float32, summed in float64, see `SHORT` (tensors of float64 in float64).
    """
    device, same, total = rows[0].device, rows is columns, torch.zeros((), dtype=torch.float64)
    double = device.type == "cuda" or any(x.dtype == torch.float64 for x in (*rows, *columns))
    flat = [[x.detach().flatten() for x in some] for some in ((rows,) if same else (rows, columns))]
    for start in range(0, rows[0].numel(), PIECE):
        left, *other = (_stacked(some, start, device, torch.float64 if double else torch.float32) for some in flat)
        right = other[0] if other else left
        if double:
            total = total + (left @ right.T).cpu()
        else:  # (short ones, rows, columns), and then the sum
            short = [x.unflatten(1, (-1, SHORT)).transpose(0, 1) for x in (left, right)]
            total = total + torch.bmm(short[0], short[1].mT).cpu().sum(0, dtype=torch.float64)
    return (total + total.T) / 2 if same else total


def _stacked(flat: Sequence[Tensor], start: int, device: torch.device, kind: torch.dtype) -> Tensor:
    """A piece of each of several vectors as the rows of a matrix, filled up with zeros to a multiple of `SHORT`."""
    rows = torch.stack([x[start : start + PIECE].to(device, kind) for x in flat])
    return F.pad(rows, (0, -rows.shape[1] % SHORT))


def gram(gradients: Sequence[Tensor]) -> Tensor:
    """Inner products of n gradients of one weight: (n, n), float64. ValueError for none, or for several shapes."""
    if not len(gradients) or len({g.shape for g in gradients}) > 1:
        raise ValueError(
            f"{len(gradients)} gradients of the shapes {sorted({tuple(g.shape) for g in gradients})}; "
            "give one at least, and all of one weight"
        )
    return _products(gradients, gradients)


def project_out(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The part of each gradient that is orthogonal to every one of `others`, all of one weight and shaped as it.

    A step along it leaves the losses that `others` are gradients of as they are, to first order. Raises ValueError
    for other shapes, for what is not finite, and where less than a thousandth is left: a gradient in the span of the
    others. Computed where the gradients are; others may lie elsewhere, and are brought there piece by piece.
    """
    rests = _left_of(gradients, others)
    lost = next((k for k, rest in enumerate(rests) if rest is None), None)
    if lost is not None:
        raise ValueError(f"nothing is left of gradient {lost}: it lies in the span of the {len(others)} others")
    return rests


def _left_of(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor | None]:
    """`project_out`, with None where nothing is left."""
    if not len(gradients) or not len(others):
        return [g.detach().clone() for g in gradients]
    whole, n = gram([*gradients, *others]), len(gradients)
    if not torch.isfinite(whole).all():
        raise ValueError("gradients are not finite: nothing can be said about their span")
    live = whole.diagonal()[n:] > 0
    if not live.any():
        return [g.detach().clone() for g in gradients]
    others = [other for other, some in zip(others, live.tolist(), strict=True) if some]
    products, with_others = whole[n:, n:][live][:, live], whole[:n, n:][:, live]
    lengths = products.diagonal().sqrt()  # others count by direction, however short they are
    double = any(x.dtype == torch.float64 for x in (*gradients, *others))
    # directions in which the others hardly differ are those of rounding
    inverse = torch.linalg.pinv(products / lengths / lengths[:, None], rtol=1e-10 if double else 1e-7, hermitian=True)
    rests = [g.detach().to(torch.float64 if double else torch.float32, copy=True).contiguous() for g in gradients]
    for again in (False, True):  # what the first time leaves by rounding goes the second time
        with_others = _products(rests, others) if again else with_others
        _subtract(rests, with_others / lengths @ inverse / lengths, others)
    return [
        rest.to(g) if math.sqrt(inner(rest, rest)) > 1e-3 * math.sqrt(inner(g, g)) else None
        for rest, g in zip(rests, gradients, strict=True)
    ]


def _subtract(rests: list[Tensor], parts: Tensor, others: Sequence[Tensor]) -> None:
    """Take parts (rests, others) of the others off every rest, in place, piece by piece."""
    flat, piece = [rest.view(-1) for rest in rests], PIECE
    sides = [other.detach().flatten() for other in others]
    parts = parts.to(rests[0].dtype).to(rests[0].device)
    for start in range(0, flat[0].numel(), piece):
        rows = torch.stack([side[start : start + piece].to(flat[0]) for side in sides])
        for rest, change in zip(flat, parts @ rows, strict=True):
            rest[start : start + piece] -= change


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
            for k, part in zip(having, _left_of([directions[k][layer] for k in having], others), strict=True):
                if part is not None:
                    rests[k][layer] = part
    return rests


Factors = tuple[Tensor, Tensor]  # (out, rank) and (rank, in)


def factors_of(delta: Tensor, rank: int) -> Factors:
    """The two factors, in the delta's dtype, of the nearest product of `rank` (Eckart and Young, 1936)."""
    u, s, v = torch.linalg.svd(delta.float().flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(delta.dtype), (root[:, None] * v[:rank]).to(delta.dtype)


def of_lower_rank(factors: Factors, rank: int) -> Factors:
    """`factors_of` a product that is never made: of the small matrix between the bases of its two sides."""
    (left, rows), (right, columns) = torch.linalg.qr(factors[0].float()), torch.linalg.qr(factors[1].float().T)
    u, s, v = torch.linalg.svd(rows @ columns.T, full_matrices=False)
    root = s[:rank].sqrt()
    sides = left @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ right.T
    return sides[0].to(factors[0].dtype), sides[1].to(factors[1].dtype)


def product(factors: Factors, shape: Sequence[int]) -> Tensor:
    """What factors stand for, in their dtype and in a weight's shape."""
    left, right = factors
    return (left.float() @ right.float()).reshape(tuple(shape)).to(left.dtype)


def side_by_side(all_factors: Sequence[dict[str, Factors]]) -> dict[str, Factors]:
    """For each layer the factors of the sum: left ones side by side (out, ranks), right ones stacked (ranks, in).

    Of several dtypes: float16, since torch would make float32 of them.
    """
    found: dict[str, list[Factors]] = {}
    for factors in all_factors:
        for layer, pair in factors.items():
            mixed = layer in found and found[layer][0][0].dtype != pair[0].dtype
            found.setdefault(layer, []).append(pair)
            if mixed:
                found[layer] = [(a.half(), b.half()) for a, b in found[layer]]
    return {n: (torch.cat([a for a, _ in pairs], 1), torch.cat([b for _, b in pairs])) for n, pairs in found.items()}
