"""Edits as files: what is written, and what is admitted of a file that somebody else wrote.

A file is read once into memory, checked, and then owned. Papers that say what no edit can say are refused by name.
Factors stay factors until it is known how large a weight they are for: a few bytes could ask for gigabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import read_signed, write_signed
from .labels import CONCEPT_LIMIT, check_label
from .linear import Factors, product

FORMAT = "slug_lite edit 1"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
PRODUCT_LIMIT = 1 << 28  # numbers in a product of factors; the largest embedding of a CLIP has 256 million
_SIDES = ("left", "right")
_PAPERS = ("steps", "concept", "base", "version")


class Products(Mapping[str, Tensor]):
    """The deltas of an edit of low rank, each made of its factors when it is asked for."""

    def __init__(self, factors: Mapping[str, Factors], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.factors, self.shapes = factors, shapes

    def __getitem__(self, layer: str) -> Tensor:
        """ValueError for a product that is too large for any layer, or not finite."""
        if math.prod(self.shapes[layer]) > PRODUCT_LIMIT:
            raise ValueError(
                f"the edit of {layer!r} has the shape {list(self.shapes[layer])}; at most {PRODUCT_LIMIT:,} numbers "
                "are made of two factors"
            )
        delta = product(self.factors[layer], self.shapes[layer])
        if not torch.isfinite(delta).all():
            raise ValueError(f"the delta of {layer!r} is not finite: it does not fit into half precision")
        return delta

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def not_finite(deltas: Mapping[str, Tensor]) -> list[str]:
    """The layers whose deltas are not finite; of products, those whose factors are not."""
    pairs = deltas.factors if isinstance(deltas, Products) else {layer: (delta,) for layer, delta in deltas.items()}
    return [layer for layer, parts in pairs.items() if not all(torch.isfinite(part).all() for part in parts)]


def outlines(deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The deltas without their numbers, on the meta device: whether they fit is known before any product is made."""
    shapes = deltas.shapes if isinstance(deltas, Products) else {layer: delta.shape for layer, delta in deltas.items()}
    return {layer: torch.empty(tuple(shape), device="meta") for layer, shape in shapes.items()}


def check_matrices(deltas: Mapping[str, Tensor]) -> None:
    """ValueError for what has no rank: a bias, a number."""
    for layer in [layer for layer, delta in outlines(deltas).items() if delta.ndim < 2]:
        raise ValueError(f"{layer!r} is no matrix, of which a lower rank is asked for")


def same_shapes(all_deltas: Sequence[Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """The shape of each layer in several edits; no product is made. ValueError where they disagree."""
    shapes: dict[str, tuple[int, ...]] = {}
    for deltas in all_deltas:
        for layer, outline in outlines(deltas).items():
            if shapes.setdefault(layer, tuple(outline.shape)) != tuple(outline.shape):
                raise ValueError(f"edits disagree on the shape of {layer!r}")
    return shapes


def write_edit(
    file: Path, deltas: Mapping[str, Tensor], factors: Mapping[str, Factors] | None, papers: Mapping[str, Any]
) -> Path:
    """Write an edit as safetensors with its papers: steps, concept, base, version. Of low rank: its factors alone.

    ValueError for what `read_edit` would refuse.
    """
    texts = {key: json.dumps(value) if key == "steps" else value for key, value in papers.items()}
    tensors: dict[str, Tensor] = dict(deltas) if not factors else {}
    for layer, pair in (factors or {}).items():
        tensors |= {f"{layer}.{side}": part for side, part in zip(_SIDES, pair, strict=True)}
    if factors:
        texts["shapes"] = json.dumps({layer: list(outline.shape) for layer, outline in outlines(deltas).items()})
    others = sorted(name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES.values())
    if others:
        raise ValueError(
            f"{others[0]!r} is {tensors[others[0]].dtype}; edits are kept in half precision, torch.float16"
        )
    _read(tensors, texts, "the edit")
    write_signed(file, tensors, {"format": FORMAT, **texts})
    return file


def read_edit(file: Path) -> dict[str, Any]:
    """What `write_edit` wrote: deltas, factors, steps, concept, base, version.

    FileNotFoundError, or ValueError for a file that is truncated, foreign, altered, or says what no edit can say.
    """
    return _read(*read_signed(file, FORMAT, "edit", _DTYPES), repr(str(file)))


def _read(tensors: Mapping[str, Tensor], papers: Mapping[str, str], where: str) -> dict[str, Any]:
    """Tensors and papers, checked against each other, as the fields of an edit. ValueError that says which is wrong."""
    if lacking := [key for key in _PAPERS if key not in papers]:
        raise ValueError(f"the papers of {where} lack {', '.join(lacking)}; an edit has {', '.join(_PAPERS)}")
    known = {
        "steps": _steps(papers["steps"], where),
        "concept": check_label(papers["concept"], f"the concept of {where}", CONCEPT_LIMIT),
        "base": _mark(papers["base"], r"[\w.:+-]{1,8192}", f"the base of {where}"),
        "version": _mark(papers["version"], r"[\w.+!-]{1,100}", f"the version of {where}"),
    }
    if "shapes" not in papers:
        if set(tensors) != set(known["steps"]):
            raise ValueError(f"{where} has steps for {_some(known['steps'])}, but tensors for {_some(tensors)}")
        return {"deltas": {layer: tensors[layer] for layer in known["steps"]}, "factors": None, **known}
    shapes = _shapes(papers["shapes"], where)
    if set(shapes) != set(known["steps"]) or set(tensors) != {f"{n}.{side}" for n in shapes for side in _SIDES}:
        raise ValueError(
            f"{where} has steps for {_some(known['steps'])}, shapes for {_some(shapes)} and tensors {_some(tensors)}; "
            "every layer needs one of each, .left and .right"
        )
    factors = {layer: tuple(tensors[f"{layer}.{side}"] for side in _SIDES) for layer in known["steps"]}
    for layer, (left, right) in factors.items():
        _check_factors(layer, left, right, shapes[layer], where)
    return {"deltas": Products(factors, shapes), "factors": factors, **known}


def _check_factors(layer: str, left: Tensor, right: Tensor, shape: tuple[int, ...], where: str) -> None:
    """ValueError unless two factors of one dtype, and of a rank of one or more, make a weight of this shape."""
    rank, sides = left.shape[-1] if left.ndim == 2 else 0, (shape[0], math.prod(shape[1:]))
    if rank < 1 or tuple(left.shape) != (sides[0], rank) or tuple(right.shape) != (rank, sides[1]):
        raise ValueError(
            f"the factors of {layer!r} in {where} are {list(left.shape)} and {list(right.shape)}; for the shape "
            f"{list(shape)}, [{sides[0]}, rank] and [rank, {sides[1]}] of a rank of at least 1 are needed"
        )
    if left.dtype != right.dtype:
        raise ValueError(f"the factors of {layer!r} in {where} are {left.dtype} and {right.dtype}; one dtype is needed")


def _some(names: Mapping[str, Any]) -> str:
    return f"{[str(name)[:80] for name in list(names)[:3]]}{'' if len(names) <= 3 else f' and {len(names) - 3} more'}"


def _table(text: str, key: str, where: str) -> dict[str, Any]:
    """A paper that says something of each layer. ValueError for what is no JSON, no table, or has no layer."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {key} of {where} are no JSON: {str(error)[:80]}") from error
    if not isinstance(table, dict) or not table:
        raise ValueError(f"the {key} of {where} are {text[:80]!r}; for each layer something is needed")
    for layer in table:
        check_label(layer, f"a layer's name in the {key} of {where}")
    return table


def _steps(text: str, where: str) -> dict[str, float]:
    """Step sizes by layer. ValueError for one that is no finite number."""
    steps = _table(text, "steps", where)
    for layer, step in steps.items():
        good = isinstance(step, (int, float)) and not isinstance(step, bool) and abs(step) <= 1e300
        if not good:  # NaN and Infinity among them: they are smaller than nothing
            raise ValueError(f"the step of {layer!r} in {where} is {str(step)[:80]!r}; a finite number is needed")
    return {layer: float(step) for layer, step in steps.items()}


def _shapes(text: str, where: str) -> dict[str, tuple[int, ...]]:
    """Shapes by layer. ValueError for one that no weight has."""
    shapes = _table(text, "shapes", where)
    for layer, shape in shapes.items():
        if not isinstance(shape, list) or not 1 <= len(shape) <= 6 or not all(
            type(side) is int and 1 <= side < 1 << 31 for side in shape
        ):  # fmt: skip
            raise ValueError(f"the shape of {layer!r} in {where} is {str(shape)[:80]}; one to six sides are needed")
    return {layer: tuple(shape) for layer, shape in shapes.items()}


def _mark(text: object, pattern: str, what: str) -> str:
    """A mark or a number of a version. ValueError for what looks like neither."""
    if not isinstance(text, str) or not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"{what} is {str(text)[:80]!r}; letters, digits and .:+-! alone are allowed")
    return text
