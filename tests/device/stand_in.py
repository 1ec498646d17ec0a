"""A stand-in for a GPU: tensors that say they are on cuda:0, and refuse what CUDA refuses, on any machine.

Marked tensors lie in ordinary memory. A torch function mode watches every call: what is made on, or moved to, "cuda"
is marked; marked and unmarked tensors in one call raise as torch does ("Expected all tensors to be on the same
device"), and so do .numpy(), __array__, indexing a CPU tensor by a marked one, and CPU generators for marked noise. It
says nothing of kernels, precision or speed: for these a real GPU is needed. What is called in C++ alone, or in another
thread, it does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TO_NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
INDEX = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
GENERATOR = "Expected a 'cuda' device type for generator but found 'cpu'"
plainly = torch._C.DisableTorchFunctionSubclass  # inside, marked tensors are handled as what they are

# Calls in which CUDA lets both kinds meet
_MEET = {"copy_", "_has_compatible_shallow_copy_type"}
_READ = {"tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__repr__", "__len__", "__format__"}


class Marked(torch.Tensor):
    """A tensor that says it is on cuda:0."""

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.ndim == 0 else str(self)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        if id(self) not in memo:
            with plainly():
                memo[id(self)] = _leaf(self.detach().clone(), self)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> Any:
        with plainly():
            return self.detach().as_subclass(torch.Tensor).__reduce_ex__(protocol)


def _leaf(values: torch.Tensor, like: torch.Tensor) -> Marked:
    """Marked values, a parameter and in need of a gradient where another tensor is."""
    out = values.as_subclass(Marked).requires_grad_(like.requires_grad)
    if isinstance(like, torch.nn.Parameter):
        out._is_param = True  # as torch.nn.Parameter does with subclasses
    return out


def mark(x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, Marked):
        return x
    return _leaf(x.detach(), x) if x.is_leaf and x.requires_grad else x.as_subclass(Marked)


def unmark(x: Any) -> Any:
    return x.as_subclass(torch.Tensor) if isinstance(x, Marked) else x


def on_cuda(device: Any) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    try:
        return device is not None and torch.device(device).type == "cuda"
    except (RuntimeError, TypeError):
        return False


def is_large(x: Any) -> bool:
    """Is it a tensor of one dimension or more? Those of none are numbers, which may meet everything."""
    return isinstance(x, torch.Tensor) and x.ndim > 0


def leaves(given: Iterable[Any]) -> Iterator[Any]:
    """What is given, out of all lists, tuples and dicts."""
    for x in given:
        if isinstance(x, (list, tuple, dict)):
            yield from leaves(x.values() if isinstance(x, dict) else x)
        else:
            yield x


def each(function: Callable[[Any], Any], result: Any) -> Any:
    """A result with its tensors, wherever they are in it, put through a function."""
    if isinstance(result, (list, tuple, dict)) and not isinstance(result, torch.Size):
        return tree_map(function, result)
    return function(result)


class StandIn(TorchFunctionMode):
    """Watches every call while it is on; calls: how many of them had to do with a marked tensor."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        with plainly():
            flat = list(leaves((args, kwargs)))
            tensors = [t for t in flat if isinstance(t, torch.Tensor)]
            marked = [t for t in tensors if isinstance(t, Marked)]
            self.calls += bool(marked)
            if name == "__get__" and marked:
                return self._read(func, args)
            if name in ("numpy", "__array__") and marked and not kwargs.get("force"):
                raise TypeError(TO_NUMPY)
            if name in ("to", "cuda", "cpu", "type_as") and isinstance(args[0], torch.Tensor):
                return self._moved(func, name, args, kwargs)
            device = None if name == "_parse_to" else kwargs.get("device")  # which only reads what Module.to is given
            there = bool(marked) if device is None else on_cuda(device)
            if there and any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat):
                raise RuntimeError(GENERATOR)
            if device is not None:
                kwargs["device"] = CPU if there else device
                return each(mark if there else unmark, func(*args, **kwargs))
            self._check(name, args, tensors, marked)
            out = func(*args, **kwargs)
            if not marked or name in _READ or self._comes_to_the_cpu(name, args):
                return out
            return iter([mark(x) for x in out]) if name == "__iter__" else each(mark, out)

    @staticmethod
    def _read(func: Any, args: tuple) -> Any:
        """An attribute of a marked tensor."""
        where = {
            torch.Tensor.device.__get__: CUDA, torch.Tensor.is_cuda.__get__: True, torch.Tensor.is_cpu.__get__: False,
        }  # fmt: skip
        return where[func] if func in where else mark(func(*args))

    @staticmethod
    def _moved(func: Any, name: str, args: tuple, kwargs: dict) -> torch.Tensor:
        """A tensor that goes to a device, or to another dtype: a copy where the device changes, as with CUDA."""
        tensor, rest = args[0], list(args[1:])
        target = rest[0] if rest else kwargs.get("device", kwargs.get("other"))
        if name in ("cuda", "cpu"):
            there, out = name == "cuda", tensor
        else:
            stays = target is None or isinstance(target, torch.dtype)
            like = tensor if stays else target
            there = isinstance(like, Marked) if isinstance(like, torch.Tensor) else on_cuda(like)
            rest[:1] = [CPU if on_cuda(one) else one for one in rest[:1]]
            out = func(tensor, *rest, **{k: CPU if k == "device" and on_cuda(v) else v for k, v in kwargs.items()})
        if isinstance(tensor, Marked) != there and out is tensor:
            out = tensor.clone()
        return mark(out) if there else unmark(out)

    @staticmethod
    def _comes_to_the_cpu(name: str, args: tuple) -> bool:
        """Is the result in ordinary memory, though something on the device went into it?"""
        of_numbers = name in ("tensor", "as_tensor") and not isinstance((*args, None)[0], torch.Tensor)
        return of_numbers or (name in ("copy_", "__getitem__") and not isinstance(args[0], Marked))

    @staticmethod
    def _check(name: str, args: tuple, tensors: list, marked: list) -> None:
        """RuntimeError where marked and unmarked tensors must not meet."""
        if not marked or name in _MEET or len(marked) == len(tensors):
            return
        if name in ("__getitem__", "__setitem__"):
            index = list(leaves(args[1:2]))
            if not isinstance(args[0], Marked) and any(isinstance(i, Marked) and i.ndim > 0 for i in index):
                raise RuntimeError(INDEX)
            if name == "__getitem__" or not any(map(is_large, index)):  # without such an index values are copied
                return
            tensors = [args[0], args[2]]
        if any(is_large(t) and not isinstance(t, Marked) for t in tensors):
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
        "is_current_stream_capturing": lambda: False,
    }  # fmt: skip
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # so that moved weights are marked themselves
    try:
        streams = patch("torch.accelerator.current_accelerator", lambda *_, **__: None)  # whose streams are asked for
        with patch.multiple(torch.cuda, **stubs), streams, StandIn() as mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
