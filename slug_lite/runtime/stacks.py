"""Edits that are on: the untouched values of a weight, and what is added to them, oldest first.

Edits may be nested and come off in any order: a weight is always its untouched values plus the deltas that are on, in
the order they came; with none left it is the original, bit for bit. Threads take turns with a model: one that puts an
edit on waits until those of the others are off.

Weights are written through `detach()`, never under `torch.no_grad`, which an interrupt can leave switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .modes import note_grad_mode, note_gradients, note_modes
from .undo import LOCK, Undo, undone

Target = TypeVar("Target")
Changes = Sequence[tuple[nn.Parameter, Tensor]]  # weights, and what is added to each

Place = tuple[dict[str, Any], str, Any]  # a module's parameters or buffers, a name among them, what it stands for


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


def put_on(weight: nn.Parameter, token: object, delta: Tensor) -> None:
    """Add a delta, to be known again by `token`."""
    with LOCK:
        stack = STACKS.setdefault(weight, _Stack(weight.detach().clone()))
        stack.deltas[token] = delta
        weight.detach().copy_(stack.total())


def take_off(weight: nn.Parameter, token: object) -> None:
    """Take the delta of `token` off again; nothing happens where it is not on."""
    with LOCK:
        stack = STACKS.get(weight)
        if stack is None:  # an interrupt came before it was put on
            return
        stack.deltas.pop(token, None)
        weight.detach().copy_(stack.total())
        if not stack.deltas:
            STACKS.pop(weight, None)


def set_untouched(weight: nn.Parameter, values: Tensor) -> None:
    """Give a weight other values under the edits that are on, so that these still come off cleanly."""
    with LOCK:
        stack = STACKS.get(weight)
        if stack is not None:
            stack.original = values
        weight.detach().copy_(values if stack is None else stack.total())


@undone
def edited(undo: Undo, model: nn.Module, changes_of: Callable[[], Changes], target: Target) -> Target:
    """Weights with deltas added, for the length of a with-block, which gives its name to `target`.

    Leaving it, by an exception too, restores weights, requires_grad, .grad and train/eval mode of all of `model` bit
    for bit; RuntimeError then, if others were put in the weights' place. changes_of: asked when other threads' edits
    are off.
    """
    undo.turn(model.parameters())
    with LOCK:
        changes, token = changes_of(), object()
        check_changes(model, [(weight, weight.detach(), delta) for weight, delta in changes])
        for weight, _ in changes:
            undo[token, id(weight)] = partial(take_off, weight, token)
        _note_places(undo, model)
        note_gradients(undo, model, values=True)
        note_modes(undo, model)
        for weight, delta in changes:
            put_on(weight, token, delta)
    return target


@undone
def _shifted(undo: Undo, model: nn.Module, changes_of: Callable[[], Changes]) -> None:
    undo.turn(model.parameters())
    with LOCK:
        changes = [(weight, untouched(weight).clone(), delta) for weight, delta in changes_of()]
        new = check_changes(model, changes)
        for weight, old, _ in changes:
            undo[object()] = partial(set_untouched, weight, old)
        for weight, values in new:
            set_untouched(weight, values)
        undo.clear()  # from here on all of it is to stay


def shift(model: nn.Module, changes_of: Callable[[], Changes]) -> None:
    """Add deltas for good, under the edits that are on: all of them, or none where anything goes wrong."""
    with _shifted(model, changes_of):
        pass


@undone
def kept(undo: Undo, model: nn.Module, weight: nn.Parameter) -> Tensor:
    """A weight's values are put back after the with-block, which is given a copy of them; for tries in one layer.

    Inside no gradients are kept.
    """
    undo.turn(model.parameters())
    values = weight.detach().clone()
    undo[object()] = partial(weight.detach().copy_, values)
    note_grad_mode(undo)
    torch.set_grad_enabled(False)
    return values


def check_changes(
    model: nn.Module, changes: Sequence[tuple[nn.Parameter, Tensor, Tensor]]
) -> list[tuple[nn.Parameter, Tensor]]:
    """The changed weights with what they become, out of (weight, values, delta) each.

    ValueError for sums that the weight's dtype cannot hold, and for a weight whose memory is another's as well.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    places = sorted((*_span(p), id(p)) for p in model.parameters() if not p.is_meta and p.numel())
    shared, reach, last = {}, -1, 0  # by weight: another one that lies in the same memory
    for start, end, one in places:
        if start < reach:
            shared |= {one: last, last: one}
        if end > reach:
            reach, last = end, one
    new = []
    for weight, values, delta in changes:
        name = names.get(id(weight), "a weight")
        if id(weight) in shared:
            raise ValueError(
                f"{name!r} and {names[shared[id(weight)]]!r} are two parameters on one memory, so that an edit of one "
                "changes both; tie them by one parameter, or give each its own copy"
            )
        new.append((weight, add_delta(values, delta)))
        if not torch.isfinite(new[-1][1]).all() and torch.isfinite(values).all():
            raise ValueError(f"{name!r} is {weight.dtype}, which cannot hold the sum of the weight and the edit")
    return new


def _span(weight: Tensor) -> tuple[int, int]:
    """Where a weight lies in memory."""
    reach = sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
    return weight.data_ptr(), weight.data_ptr() + (reach + 1) * weight.element_size()


def _note_places(undo: Undo, model: nn.Module) -> None:
    """Write down which modules have which parameters: `load_state_dict(assign=True)` puts others in their place.

    With those of the edit alone put back, the model would be a mixture of two.
    """
    places = {
        f"{prefix}.{name}".lstrip("."): (module._parameters, name, p)
        for prefix, module in model.named_modules() for name, p in module._parameters.items() if p is not None
    }  # fmt: skip
    buffers = [(m._buffers, name, values) for m in model.modules() for name, values in m._buffers.items()]
    replaced: set[str] = set()
    undo[object()] = partial(_look, places, buffers, replaced)  # before the first of them is put back
    undo.at_end = partial(_complain, replaced)
    for table, name, p in places.values():
        undo["place", id(table), name] = partial(table.__setitem__, name, p)


def _look(places: dict[str, Place], buffers: Sequence[Place], replaced: set[str]) -> None:
    """Note which parameters are others now. Buffers follow them alone: moving a model gives it new ones."""
    replaced.update(whole for whole, (table, name, p) in places.items() if table.get(name) is not p)
    if replaced:
        for table, name, values in buffers:
            table[name] = values


def _complain(replaced: set[str]) -> None:
    if replaced:
        raise RuntimeError(
            "inside the block of an edit other weights were put in the model's place, as by load_state_dict(assign="
            f"True): {sorted(replaced)[:3]}; the model gets its own back, all of them. Load others before or after it"
        )
