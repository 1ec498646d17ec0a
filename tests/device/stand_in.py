"""A stand-in for a GPU: tensors that say they are on cuda:0, and refuse what CUDA refuses, on any machine.

Marked tensors lie in ordinary memory. A torch function mode watches every call: what is made on, or moved to, "cuda"
is marked; marked and unmarked tensors in one call raise as torch does ("Expected all tensors to be on the same
device"), and so do .numpy(), __array__, indexing a CPU tensor by a marked one, and CPU generators for marked noise. It
says nothing of kernels, precision or speed: for these a real GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
TO_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
)
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
INDEX = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
GENERATOR = "Expected a 'cuda' device type for generator but found 'cpu'"
plainly = torch._C.DisableTorchFunctionSubclass  # inside, marked tensors are handled as what they are

# Calls in which CUDA lets both kinds meet
_MEET = {"copy_", "set_", "__set__", "__get__", "backward", "_has_compatible_shallow_copy_type", "__setitem__"}
_READ = {"tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__repr__", "__len__", "__format__"}


class Marked(torch.Tensor):
    """A tensor that says it is on cuda:0."""

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.ndim == 0 else str(self)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        with plainly():
            copied = self.detach().clone().as_subclass(Marked)
            copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol: int) -> Any:
        with plainly():
            return self.detach().as_subclass(torch.Tensor).__reduce_ex__(protocol)


def mark(x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, Marked):
        return x
    return torch.nn.Parameter(x.detach().as_subclass(Marked), x.requires_grad) if isinstance(
        x, torch.nn.Parameter
    ) else x.as_subclass(Marked)  # fmt: skip


def unmark(x: Any) -> Any:
    return x.as_subclass(torch.Tensor) if isinstance(x, Marked) else x


def on_cuda(device: Any) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    try:
        return device is not None and torch.device(device).type == "cuda"
    except (RuntimeError, TypeError):
        return False


class StandIn(TorchFunctionMode):
    """Watches every call while it is on."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        with plainly():
            tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
            marked = [t for t in tensors if isinstance(t, Marked)]
            if func == torch.Tensor.device.__get__:
                return CUDA if marked else func(*args, **kwargs)
            if func == torch.Tensor.is_cuda.__get__:
                return bool(marked)
            if name in ("numpy", "__array__") and marked:
                raise TypeError(TO_NUMPY)
            if name in ("to", "cuda", "cpu") and isinstance(args[0], torch.Tensor):
                return self._moved(func, name, args, kwargs)
            if kwargs.get("device") is not None:
                return self._made(func, args, kwargs)
            self._check(name, args, tensors, marked)
            out = func(*args, **kwargs)
            if not marked or name in _READ:
                return out
            return tree_map(mark, out)

    @staticmethod
    def _moved(func: Any, name: str, args: tuple, kwargs: dict) -> torch.Tensor:
        if name in ("cuda", "cpu"):
            return mark(args[0].clone()) if name == "cuda" else unmark(args[0])
        named = [a for a in [*args[1:], *kwargs.values()] if isinstance(a, (str, torch.device))]
        named += [a for a in args[1:2] if isinstance(a, int) and not isinstance(a, bool)]
        like = [a for a in args[1:] if isinstance(a, torch.Tensor)]
        cpu = torch.device("cpu")
        args = tuple(cpu if on_cuda(a) and not isinstance(a, (bool, torch.dtype)) else a for a in args)
        kwargs = {k: cpu if k == "device" and v is not None else v for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        there = on_cuda(named[0]) if named else isinstance((like or args)[0], Marked)
        if isinstance(args[0], Marked) == there:
            return mark(out) if there else out
        return mark(out.clone() if out is args[0] else out) if there else unmark(out)

    @staticmethod
    def _made(func: Any, args: tuple, kwargs: dict) -> Any:
        there = on_cuda(kwargs["device"])
        generator = kwargs.get("generator")
        if there and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
            raise RuntimeError(GENERATOR)
        kwargs["device"] = torch.device("cpu")
        return tree_map(mark if there else unmark, func(*args, **kwargs))

    @staticmethod
    def _check(name: str, args: tuple, tensors: list, marked: list) -> None:
        if not marked or name in _MEET or len(marked) == len(tensors):
            return
        if name in ("__getitem__", "index_select", "take_along_dim", "gather") and not isinstance(args[0], Marked):
            raise RuntimeError(INDEX if name == "__getitem__" else MIXED)
        if name == "__getitem__":  # a marked tensor may be indexed by one in ordinary memory
            return
        if any(t.ndim > 0 for t in tensors if not isinstance(t, Marked)):  # numbers may meet everything
            raise RuntimeError(f"{MIXED} (in {name})")


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Inside, there seems to be one GPU, and every model that is moved to it says that it is there."""
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    stubs = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "synchronize": lambda *_: None, "empty_cache": lambda: None, "get_device_name": lambda *_: "a stand-in",
        "get_device_capability": lambda *_: (8, 0), "manual_seed_all": lambda *_: None, "manual_seed": lambda *_: None,
        "reset_peak_memory_stats": lambda *_: None, "max_memory_allocated": lambda *_: 0,
    }  # fmt: skip
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # so that moved weights are marked themselves
    try:
        with patch.multiple(torch.cuda, **stubs), StandIn() as mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
