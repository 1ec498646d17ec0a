"""Modes of a model for the length of a with-block; afterwards everything is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ..models import Clip


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode afterwards, after an exception too."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def only_gradients_of(clip: Clip, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Eval mode, gradients for the named weights alone; afterwards everything is as it was, .grad included."""
    weights = clip.weights()
    flags = {n: (p.requires_grad, p.grad) for n, p in weights.items()}
    chosen = set(names)
    with eval_mode(clip.model):
        try:
            for name, p in weights.items():
                p.requires_grad_(name in chosen)
                p.grad = None
            with torch.enable_grad():
                yield {name: weights[name] for name in names}
        finally:
            for name, p in weights.items():
                p.grad = None
                p.requires_grad_(flags[name][0])
                p.grad = flags[name][1]
