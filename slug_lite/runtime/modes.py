"""Modes, hooks and gradients of a model for the length of a with-block; afterwards everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from .undo import LOCK, Undo, undone

if TYPE_CHECKING:
    from ..models import Clip

P, T = ParamSpec("P"), TypeVar("T")


def note_modes(undo: Undo, model: nn.Module) -> None:
    """Write down train or eval mode of every module."""
    for module in model.modules():
        undo.note(module, "training")


def note_gradients(undo: Undo, model: nn.Module, values: bool = False) -> None:
    """Write down every weight's requires_grad and .grad; values: and what that holds."""
    for p in model.parameters():
        held = p.grad.clone() if values and p.grad is not None else None
        undo["gradient", id(p)] = partial(_put_gradient, p, p.requires_grad, p.grad, held)


def _put_gradient(weight: nn.Parameter, requires_grad: bool, grad: Tensor | None, values: Tensor | None) -> None:
    weight.grad = None
    weight.requires_grad_(requires_grad)
    weight.grad = grad
    if values is not None:
        grad.detach().copy_(values)


def note_grad_mode(undo: Undo) -> None:
    """Write down whether gradients are recorded."""
    undo[object()] = partial(torch.set_grad_enabled, torch.is_grad_enabled())


@undone
def eval_mode(undo: Undo, model: nn.Module) -> None:
    """Eval mode inside; every module's own mode afterwards."""
    with LOCK:
        note_modes(undo, model)
        model.eval()


@undone
def no_gradients(undo: Undo) -> None:
    """As `torch.no_grad`, which an interrupt can leave switched on for the whole process."""
    note_grad_mode(undo)
    torch.set_grad_enabled(False)


def gradient_free(function: Callable[P, T]) -> Callable[P, T]:
    """A function that is called under `no_gradients`."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with no_gradients():
            return function(*args, **kwargs)

    return called


@undone
def only_gradients_of(undo: Undo, clip: Clip, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Eval mode, gradients for the named weights alone; afterwards everything is as it was, .grad included."""
    weights, chosen = clip.weights(), set(names)
    undo.turn(weights.values())
    with LOCK:
        note_gradients(undo, clip.model)
        note_modes(undo, clip.model)
        note_grad_mode(undo)
        clip.model.eval()
        for name, p in weights.items():
            p.requires_grad_(name in chosen)
            p.grad = None
        torch.set_grad_enabled(True)
    return {name: weights[name] for name in names}


@undone
def hooked(undo: Undo, modules: Sequence[nn.Module], functions: Sequence[Callable], *, before: bool = False) -> None:
    """A forward hook on each module; before=True: one that comes before, and is given keyword arguments too."""
    for module, function in zip(modules, functions, strict=True):
        undo[object()] = partial(_unhook, module, function)
        if before:
            module.register_forward_pre_hook(function, with_kwargs=True)
        else:
            module.register_forward_hook(function)


def _unhook(module: nn.Module, function: Callable) -> None:
    """Take a function's hooks off: an interrupt may have kept torch from giving a handle to do so."""
    pre, after = module._forward_pre_hooks, module._forward_hooks
    for table, extra in ((pre, module._forward_pre_hooks_with_kwargs), (after, module._forward_hooks_with_kwargs)):
        for key in [key for key, own in table.items() if own is function]:
            extra.pop(key, None)
            table.pop(key, None)
