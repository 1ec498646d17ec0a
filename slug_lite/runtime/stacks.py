"""Edits that are on: the untouched values of a weight, and what is added to them, oldest first.

Edits may be nested and come off in any order: a weight is always its untouched values plus the deltas that are on, in
the order they came; with none left it is the original, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


@dataclass
class _Stack:
    """The untouched values of a weight and the deltas that are on it now, oldest first."""

    original: Tensor
    deltas: dict[object, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        value = self.original
        for delta in self.deltas.values():
            value = add_delta(value, delta)
        return value


STACKS = WeakIdKeyDictionary()  # nn.Parameter -> _Stack


def add_delta(weight: Tensor, delta: Tensor) -> Tensor:
    """weight + delta in the weight's dtype: the one way in which a delta is ever added."""
    return weight + delta.to(weight.device, weight.dtype)


def untouched(weight: nn.Parameter) -> Tensor:
    """A weight's values without any edit that is on it."""
    stack = STACKS.get(weight)
    return weight.detach() if stack is None else stack.original


@torch.no_grad()
def put_on(weight: nn.Parameter, token: object, delta: Tensor) -> None:
    """Add a delta, to be known again by `token`."""
    stack = STACKS.setdefault(weight, _Stack(weight.detach().clone()))
    stack.deltas[token] = delta
    weight.copy_(stack.total())


@torch.no_grad()
def take_off(weight: nn.Parameter, token: object) -> None:
    """Take the delta of `token` off again; nothing happens where it is not on."""
    stack = STACKS.get(weight)
    if stack is None:  # an interrupt came before it was put on
        return
    stack.deltas.pop(token, None)
    weight.copy_(stack.total())
    if not stack.deltas:
        STACKS.pop(weight, None)


@torch.no_grad()
def shift(weight: nn.Parameter, delta: Tensor) -> None:
    """Add a delta for good, under the edits that are on, so that these still come off cleanly."""
    stack = STACKS.get(weight)
    if stack is None:
        weight.copy_(add_delta(weight, delta))
    else:
        stack.original = add_delta(stack.original, delta)
        weight.copy_(stack.total())


@torch.no_grad()
def restore(weight: nn.Parameter, requires_grad: bool, grad: Tensor | None, values: Tensor | None) -> None:
    """Give a weight its flag and its .grad back, which holds `values` again."""
    weight.requires_grad_(requires_grad)
    weight.grad = grad
    if grad is not None:
        grad.copy_(values)


def finish(*tasks: Callable[[], object]) -> None:
    """Every task, also where an interrupt or an error comes in between: that task is done again, and it is raised last.

    Each may be done twice without harm.
    """
    first: BaseException | None = None
    for task in tasks:
        for _ in range(2):
            try:
                task()
                break
            except BaseException as error:
                first = first or error
    if first is not None:
        raise first


@contextmanager
def edited(model: nn.Module, changes: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Weights with deltas added, for the length of a with-block.

    Leaving it, by an exception too, restores weights, requires_grad, .grad and train/eval mode of all of `model` bit
    for bit.
    """
    grads = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    token = object()
    try:
        for weight, delta in changes:
            put_on(weight, token, delta)
        yield
    finally:
        finish(
            *(partial(take_off, weight, token) for weight, _ in changes),
            *(partial(restore, *kept) for kept in grads),
            *(partial(setattr, module, "training", training) for module, training in modes),
        )
