"""An edit: what is added to one weight tensor (or, merged, to several), with the papers that say where it belongs.

Deltas are kept in half precision, in memory as in the file: what the search tried is what is stored and applied.
How edits nest and come off in any order: `runtime.stacks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from .runtime.checks import check_base
from .runtime.edit_files import Products, check_matrices, not_finite, outlines, read_edit, same_shapes, write_edit
from .runtime.fingerprints import same_mark
from .runtime.labels import shown
from .runtime.libraries import encoder_of, own_version
from .runtime.linear import Factors, factors_of, of_lower_rank, side_by_side
from .runtime.numbers import check_whole
from .runtime.reports import Report, shortfall
from .runtime.stacks import edited, shift
from .runtime.undo import Block
from .search import DELTA_DTYPE
from .targets import deltas_for, fingerprint, modules_of, weights_of

Target = TypeVar("Target")  # a Clip or its model, a StableDiffusionPipeline or its text encoder


@dataclass(frozen=True, eq=False)
class Edit:
    """deltas: for each layer what is added to it, half precision, in the weight's shape
    steps: for each layer the step size lambda that made it; concept: what it forgets, in words
    base: `fingerprint` of the model that it was made for; trace: the search, one row an evaluation (not saved)
    factors: of an edit of low rank, for each layer what its delta is the product of; these are saved then
    report: what was asked for and what was reached (not saved); None for an edit that no search has made as it is

    Raises ValueError for deltas and steps of different layers, and for deltas that are not finite.
    """

    deltas: Mapping[str, Tensor]
    steps: dict[str, float]
    concept: str
    base: str
    version: str = field(default_factory=own_version)
    trace: pd.DataFrame | None = None
    factors: dict[str, Factors] | None = None
    report: Report | None = None

    def __post_init__(self) -> None:
        if not self.deltas or set(self.deltas) != set(self.steps):
            raise ValueError(f"deltas and steps must be for the same layers: {list(self.deltas)}, {list(self.steps)}")
        for layer in not_finite(self.deltas):
            raise ValueError(f"the delta of {layer!r} is not finite")

    @property
    def layers(self) -> list[str]:
        return list(self.deltas)

    @property
    def layer(self) -> str:
        if len(self.deltas) != 1:
            raise ValueError(f"this edit has {len(self.deltas)} layers, see .layers, .steps and .deltas")
        return next(iter(self.deltas))

    @property
    def step(self) -> float:
        return self.steps[self.layer]

    @property
    def delta(self) -> Tensor:
        return self.deltas[self.layer]

    def __repr__(self) -> str:
        parts = ", ".join(f"{layer} (step {self.steps[layer]:.3g})" for layer in self.layers)
        return f"Edit(forget {shown(self.concept)}: {parts}{shortfall(self.report)})"

    def check(self, target: object, force: bool = False) -> list[tuple[nn.Parameter, Tensor]]:
        """The weights of `target` that this edit changes, each with its delta; ValueError if it is for another model.

        force=True lets another model of the same shapes pass.
        """
        deltas_for(target, outlines(self.deltas))  # products of factors are made for a weight of their shape alone
        changes = deltas_for(target, self.deltas)
        if not force:
            whole = not encoder_of(target) and all(layer in weights_of(target) for layer in self.deltas)
            check_base(self.base, fingerprint(target), whole)
        return changes

    def on(self, target: Target, *, force: bool = False) -> Block[Target]:
        """Put the edit on `target` for the length of a with-block.

        target: a Clip or its model, a diffusers.StableDiffusionPipeline or its text encoder, of any dtype and device.
        Leaving it, however, restores weights, requires_grad, .grad and train/eval mode bit for bit. Threads take turns
        (asyncio tasks need a lock, or get an error); what reads the model without an edit of its own sees what is on.
        ValueError, and nothing changed, for a target of another kind, for layers that it does not have (a pipeline
        has no vision tower and no text_projection), other shapes, and, without force, another model.
        """
        return edited(modules_of(target), partial(self.check, target, force), target)

    def apply(self, target: Target, *, force: bool = False) -> None:
        """Add the edit for good, all or nothing; `revert` takes it off to rounding, `on` bit for bit. Else as `on`."""
        shift(modules_of(target), partial(self.check, target, force))

    def revert(self, target: Target) -> None:
        """Subtract what `apply` added. The fingerprint is that of the edited model then, so it is not asked for."""
        shift(modules_of(target), lambda: [(weight, -delta) for weight, delta in self.check(target, force=True)])

    def low_rank(self, rank: int) -> Edit:
        """The edit with every delta replaced by the nearest one of `rank` (Eckart and Young, 1936), for small files.

        A convolution counts as a matrix (out, in * height * width). ValueError for a rank below 1, and for no matrix.
        """
        check_whole(rank=rank)
        check_matrices(self.deltas)
        if self.factors:
            factors = {layer: of_lower_rank(pair, rank) for layer, pair in self.factors.items()}
        else:
            factors = {layer: factors_of(delta, rank) for layer, delta in self.deltas.items()}
        deltas = Products(factors, same_shapes([self.deltas]))
        return replace(self, deltas=deltas, factors=factors, report=None)

    def save(self, file: str | Path) -> Path:
        """Write the edit as safetensors with its metadata; an existing file is replaced in one go."""
        papers = {"steps": self.steps, "concept": self.concept, "base": self.base, "version": self.version}
        return write_edit(Path(file), self.deltas, self.factors, papers)

    @classmethod
    def load(cls, file: str | Path) -> Edit:
        """Read what `save` wrote. FileNotFoundError, or ValueError for a truncated, foreign, altered or forged file."""
        return cls(**read_edit(Path(file)))


def merge(edits: Sequence[Edit]) -> Edit:
    """One edit that does what all of `edits` do; deltas of a shared layer are added.

    Where all are of low rank, so is their sum, made when it is asked for. Raises ValueError for no edits, other bases,
    other shapes of a layer, or a sum too large for half precision (of low rank: when it is made, as by `Edit.on`).
    """
    if not edits:
        raise ValueError("no edits given")
    bases = {edit.base.partition("-")[0] for edit in edits}
    if not all(same_mark(base, edits[0].base.partition("-")[0]) for base in bases):
        raise ValueError(f"edits of different base models cannot be merged: {', '.join(sorted(bases))}")
    shapes, steps = same_shapes([edit.deltas for edit in edits]), dict[str, float]()
    for edit in edits:
        for layer in edit.layers:
            steps[layer] = steps.get(layer, 0.0) + edit.steps[layer]
    base = max((edit.base for edit in edits), key=len)  # files of older versions have a shorter one
    concept = " + ".join(edit.concept for edit in edits)
    if all(edit.factors for edit in edits):
        factors = side_by_side([edit.factors for edit in edits])
        return Edit(Products(factors, shapes), steps, concept, base, factors=factors)
    deltas: dict[str, Tensor] = {}
    for edit in edits:
        for layer, delta in edit.deltas.items():
            summed = delta.float() if layer not in deltas else deltas[layer].float() + delta.float()
            deltas[layer] = summed.to(DELTA_DTYPE)
            if not torch.isfinite(deltas[layer]).all():
                raise ValueError(f"the sum of the edits of {layer!r} does not fit into half precision")
    return Edit(deltas, steps, concept, base)
