"""Models inside of other modules: taken out, where weights and names stay the same, else refused by the wrapper's name.

Known by the names of their classes, so that no library is imported for it.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

# Wrapper -> where it keeps the model, whose weights it shares
_SEE_THROUGH = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
_REFUSED = {
    "FullyShardedDataParallel": "whose weights are in pieces; give the model before it is wrapped",
    "FSDPModule": "whose weights are in pieces; give the model before fully_shard",
    "DeepSpeedEngine": "whose weights may be in pieces; give the model before it is wrapped",
    "PeftModel": "with adapters beside its weights; give model.merge_and_unload()",
}
Given = TypeVar("Given")


def _kinds(model: object) -> list[str]:
    return [kind.__name__ for kind in type(model).__mro__]


def unwrapped(model: Given) -> Any:
    """The model inside of torch.compile's and DataParallel's wrappers, to any depth; anything else as it is.

    ValueError, naming the wrapper, for FSDP, DeepSpeed and PEFT, around the model or anywhere in it.
    """
    for _ in range(9):  # a wrapper in a wrapper
        own = next((_SEE_THROUGH[kind] for kind in _kinds(model) if kind in _SEE_THROUGH), None)
        if own is None:
            break
        model = getattr(model, own)
    if isinstance(model, nn.Module):
        check_parts(model)
    return model


def parallel(model: object) -> str | None:
    """The wrapper around a model that computes on several GPUs, by its name; it hides the model's own attributes."""
    return next((kind for kind in _kinds(model) if _SEE_THROUGH.get(kind) == "module"), None)


def check_parts(model: nn.Module) -> None:
    """ValueError for a model that is, or in which a part is, wrapped by something that changes its weights' names."""
    for name, part in model.named_modules():
        kinds = _kinds(part)
        refused = next((kind for kind in kinds if kind in _REFUSED), None)
        if name and (around := next((kind for kind in kinds if kind in _SEE_THROUGH), None)):
            raise ValueError(
                f"a {type(model).__name__} cannot be edited: its part {name!r} is a {around}, which changes the "
                f"names of weights; put the part in it back, its .{_SEE_THROUGH[around]}, and wrap the whole model "
                "instead, or compile the part in place by part.compile()"
            )
        if refused:
            where = f"its part {name!r} is" if name else "it is"
            raise ValueError(f"a {type(model).__name__} cannot be edited: {where} a {refused}, {_REFUSED[refused]}")
        if "BaseTunerLayer" in kinds:  # of PEFT, put there by load_lora_weights or add_adapter
            raise ValueError(
                f"a {type(model).__name__} cannot be edited: its part {name!r} is a {type(part).__name__} of PEFT, "
                "with adapters beside its weights; merge or unload them first, as by pipe.unload_lora_weights()"
            )


def check_offload(model: nn.Module) -> None:
    """ValueError for group offloading through a stream: it keeps copies of the weights, which no edit would reach."""
    for name, part in model.named_modules():
        registry = getattr(part, "_diffusers_hook", None)
        for hook in getattr(registry, "hooks", {}).values():
            group = getattr(hook, "group", None)
            if getattr(group, "cpu_param_dict", None) or getattr(group, "offload_to_disk_path", None):
                raise ValueError(
                    f"{name or type(model).__name__!r} is under diffusers' group offloading with copies of its weights "
                    "(use_stream, offload_to_disk_path), which an edit would not reach; offload without them, or use "
                    "enable_model_cpu_offload"
                )
