"""An edit: what is added to one weight tensor (or, merged, to several), with the papers that say where it belongs.

Deltas are kept in half precision, in memory as in the file: what the search tried is what is stored and applied.
Edits may be nested and come off in any order. For every edited weight the untouched values are kept aside, and the
weight is always those values plus the deltas that are on, in the order they came; with none left it is the
original, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .diffusion import encoder_of, is_pipeline
from .models import Clip
from .text_tower import carry, differences, text_print

FORMAT = "slug_lite edit 1"
DELTA_DTYPE = torch.float16
FREEZE = ". To have the search leave a weight out, freeze it in the CLIP: requires_grad_(False)"
Target = TypeVar("Target")  # a Clip or its model, a StableDiffusionPipeline or its text encoder


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


_STACKS = WeakIdKeyDictionary()  # nn.Parameter -> _Stack


def add_delta(weight: Tensor, delta: Tensor) -> Tensor:
    """weight + delta in the weight's dtype: the one way in which a delta is ever added."""
    return weight + delta.to(weight.device, weight.dtype)


def untouched(weight: nn.Parameter) -> Tensor:
    """A weight's values without any edit that is on it."""
    stack = _STACKS.get(weight)
    return weight.detach() if stack is None else stack.original


@torch.no_grad()
def fingerprint(clip: Clip) -> str:
    """16 hex digits that tell base models apart, "-" and the `text_print` of the text tower, where it is CLIP's.

    Edits that are on do not change it. The first part is SHA-256 over every weight's name, shape and up to 256 evenly
    spaced values, rounded to bfloat16: the same for a model loaded in fp32 and in bf16, and in fp16 where the weights
    were saved so. The second is by what a pipeline's text encoder is known again. It tells models apart, and is no
    seal: a change of values between those looked at goes unnoticed.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(clip.weights().items()):
        flat = untouched(weight).flatten()
        places = torch.linspace(0, flat.numel() - 1, min(256, flat.numel()), dtype=torch.float64).round().long()
        sample = flat[places.to(flat.device)].to(torch.bfloat16).cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    text = {n: w for n, w in clip.weights().items() if clip.tower(n) == "text" and "text_projection" not in n}
    tower = _text_print(text)
    return digest.hexdigest()[:16] + (f"-{tower}" if tower else "")


def _text_print(weights: dict[str, nn.Parameter]) -> str:
    """`text_print` without the edits that are on; "" for a tower of another kind than CLIP's."""
    try:
        return text_print({name: untouched(weight) for name, weight in weights.items()})
    except ValueError:
        return ""


def _version() -> str:
    try:
        return version("slug-lite")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def _as_clip(target: object) -> Clip:
    if isinstance(target, Clip):
        return target
    if isinstance(target, nn.Module) and (hasattr(target, "encode_text") or hasattr(target, "get_text_features")):
        return Clip(target, None, None)  # weights only: an edit needs neither tokenizer nor transform
    raise ValueError(
        "an edit goes on a Clip, an open_clip model, a CLIPModel, a StableDiffusionPipeline or its text encoder, "
        f"not on a {type(target).__name__}"
    )


def _modules(target: object) -> nn.Module:
    """All that `on` restores: the model, or every model of a pipeline."""
    if is_pipeline(target):
        return nn.ModuleList(part for part in target.components.values() if isinstance(part, nn.Module))
    return encoder_of(target) or _as_clip(target).model


def _check_fit(layer: str, name: str, weights: dict[str, nn.Parameter], delta: Tensor) -> None:
    """ValueError unless `weights` have what an edit of `layer`, in their terms `name`, can be added to."""
    if name not in weights:
        blocks = {int(found[1]) for n in weights if (found := re.match(r"(?:text_model\.)?encoder\.layers\.(\d+)", n))}
        hint = f": its blocks are 0 to {max(blocks)} (Stable Diffusion 2 leaves CLIP's last one out)" if blocks else ""
        raise ValueError(f"the edit changes {layer!r}, which this model does not have{hint}{FREEZE if blocks else ''}")
    weight = weights[name]
    if weight.shape != delta.shape:
        raise ValueError(f"the edit's {name!r} is {tuple(delta.shape)}, the model's is {tuple(weight.shape)}")
    if weight.is_meta or not weight.is_floating_point():
        kind = "on the meta device" if weight.is_meta else weight.dtype
        raise ValueError(f"{name!r} is {kind}; an edit goes on weights that are in memory, as floating point numbers")


@dataclass(frozen=True, eq=False)
class Edit:
    """deltas: for each layer what is added to it, half precision, in the weight's shape
    steps: for each layer the step size lambda that made it; concept: what it forgets, in words
    base: `fingerprint` of the model that it was made for; trace: the search, one row an evaluation (not saved)
    factors: of an edit of low rank, for each layer what its delta is the product of; these are saved then

    Raises ValueError for deltas and steps of different layers, and for deltas that are not finite.
    """

    deltas: dict[str, Tensor]
    steps: dict[str, float]
    concept: str
    base: str
    version: str = field(default_factory=_version)
    trace: pd.DataFrame | None = None
    factors: dict[str, tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        if not self.deltas or set(self.deltas) != set(self.steps):
            raise ValueError(f"deltas and steps must be for the same layers: {list(self.deltas)}, {list(self.steps)}")
        for layer, delta in self.deltas.items():
            if not torch.isfinite(delta).all():
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
        return f"Edit(forget {self.concept}: {parts})"

    def check(self, target: object, force: bool = False) -> list[tuple[nn.Parameter, Tensor]]:
        """The weights of `target` that this edit changes, each with its delta; ValueError if it is for another model.

        force=True lets another model of the same shapes pass.
        """
        encoder = encoder_of(target)
        weights = dict((encoder or _as_clip(target).model).named_parameters())
        own, found = all(layer in weights for layer in self.deltas), dict[str, Tensor]()
        for layer, delta in self.deltas.items():
            try:
                carried = {layer: delta} if own else carry({layer: delta}, weights)
            except ValueError as error:
                message = (
                    f"{error}{FREEZE}" if encoder else f"the edit changes {layer!r}, which this model does not have"
                )
                raise ValueError(message) from error
            for name, part in carried.items():
                _check_fit(layer, name, weights, part)
                found[name] = part if name not in found else found[name] + part
        if not force:
            base = f"-{_text_print(weights)}" if encoder else fingerprint(_as_clip(target))
            self._check_base(base) if own and not encoder else self._check_text(base)
        return [(weights[name], delta) for name, delta in found.items()]

    def _check_base(self, found: str) -> None:
        made_for, this = (base.partition("-")[0] for base in (self.base, found))
        if this != made_for:
            raise ValueError(
                f"the edit was made for the model {made_for}, this one is {this}; force=True applies it all the same"
            )

    def _check_text(self, base: str) -> None:
        """The same where only text towers can be compared."""
        wanted, found = self.base.partition("-")[2], base.partition("-")[2]
        if not wanted or not found:
            whose = "the edit does not say" if not wanted else "this model does not show"
            raise ValueError(f"{whose} which of CLIP's text towers it has; force=True applies it all the same")
        if other := differences(found, wanted):
            raise ValueError(
                f"the edit was made for the model {self.base.partition('-')[0]}, whose text tower is not this one: "
                f"they differ in {', '.join(other)}; force=True applies it all the same"
            )

    @contextmanager
    def on(self, target: Target, *, force: bool = False) -> Iterator[Target]:
        """Put the edit on `target` for the length of a with-block.

        target: a Clip or its model, a diffusers.StableDiffusionPipeline or its text encoder, of any dtype and on any
            device. An edit of the text tower is carried over to the names of another library.
        Leaving it, by an exception too, restores weights, requires_grad, .grad and train/eval mode bit for bit.
        ValueError, and nothing changed, for a target of another kind, for layers that it does not have (a pipeline
        has no vision tower and no text_projection), other shapes, and, without force, another model.
        """
        changes, model = self.check(target, force), _modules(target)
        grads = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        modes = [(module, module.training) for module in model.modules()]
        token = object()
        try:
            for weight, delta in changes:
                _put_on(weight, token, delta)
            yield target
        finally:
            _finish(
                *(partial(_take_off, weight, token) for weight, _ in changes),
                *(partial(_restore, *kept) for kept in grads),
                *(partial(setattr, module, "training", training) for module, training in modes),
            )

    def apply(self, target: Target, *, force: bool = False) -> None:
        """Add the edit for good; `revert` takes it off again to rounding, `on` bit for bit. Targets as for `on`."""
        for weight, delta in self.check(target, force):
            _shift(weight, delta)

    def revert(self, target: Target) -> None:
        """Subtract what `apply` added. The fingerprint is that of the edited model then, so it is not asked for."""
        for weight, delta in self.check(target, force=True):
            _shift(weight, -delta)

    def low_rank(self, rank: int) -> Edit:
        """The edit with every delta replaced by the nearest one of `rank` (Eckart and Young, 1936), for small files.

        A convolution counts as a matrix (out, in * height * width). ValueError for a rank below 1. What is lost is
        yours to measure: put both edits on and compare.
        """
        if rank < 1:
            raise ValueError(f"rank={rank}; at least 1 is needed")
        factors = {}
        for layer, delta in self.deltas.items():
            u, s, v = torch.linalg.svd(delta.float().flatten(1), full_matrices=False)
            root = s[:rank].sqrt()
            factors[layer] = ((u[:, :rank] * root).to(DELTA_DTYPE), (root[:, None] * v[:rank]).to(DELTA_DTYPE))
        deltas = {layer: _product(*factors[layer], self.deltas[layer].shape) for layer in factors}
        return replace(self, deltas=deltas, factors=factors)

    def save(self, file: str | Path) -> Path:
        """Write the edit as safetensors with its metadata; an existing file is replaced in one go."""
        file = Path(file)
        tensors = {layer: delta.contiguous().cpu() for layer, delta in self.deltas.items()}
        if self.factors:
            sides = {layer: zip(("left", "right"), pair, strict=True) for layer, pair in self.factors.items()}
            tensors = {f"{n}.{side}": x.contiguous().cpu() for n, pair in sides.items() for side, x in pair}
        meta = {
            "format": FORMAT,
            "concept": self.concept,
            "base": self.base,
            "version": self.version,
            "steps": json.dumps(self.steps),
        }
        if self.factors:
            meta["shapes"] = json.dumps({layer: list(delta.shape) for layer, delta in self.deltas.items()})
        meta["digest"] = _digest(tensors, meta)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            part.write_bytes(save(tensors, metadata=meta))
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        return file

    @classmethod
    def load(cls, file: str | Path) -> Edit:
        """Read what `save` wrote. FileNotFoundError, or ValueError for a truncated, foreign or altered file."""
        file = Path(file)
        if not file.is_file():
            raise FileNotFoundError(f"there is no edit file {str(file)!r}")
        try:
            with safe_open(file, "pt") as saved:
                meta = saved.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise ValueError(f"{str(file)!r} is no edit: its format is {meta.get('format')!r}, not {FORMAT!r}")
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{str(file)!r} is truncated or no safetensors file: {error}") from error
        if meta.get("digest") != _digest(tensors, {k: v for k, v in meta.items() if k != "digest"}):
            raise ValueError(f"{str(file)!r} was altered after it was saved: its digest does not match its content")
        papers = (json.loads(meta["steps"]), meta["concept"], meta["base"], meta["version"])
        if "shapes" not in meta:
            return cls(tensors, *papers)
        shapes = json.loads(meta["shapes"])
        factors = {layer: (tensors[f"{layer}.left"], tensors[f"{layer}.right"]) for layer in shapes}
        return cls({n: _product(*pair, shapes[n]) for n, pair in factors.items()}, *papers, factors=factors)


def _product(left: Tensor, right: Tensor, shape: Sequence[int]) -> Tensor:
    return (left.float() @ right.float()).reshape(tuple(shape)).to(DELTA_DTYPE)


def _digest(tensors: dict[str, Tensor], meta: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finish(*tasks: Callable[[], object]) -> None:
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


@torch.no_grad()
def _restore(weight: nn.Parameter, requires_grad: bool, grad: Tensor | None, values: Tensor | None) -> None:
    weight.requires_grad_(requires_grad)
    weight.grad = grad
    if grad is not None:
        grad.copy_(values)


@torch.no_grad()
def _put_on(weight: nn.Parameter, token: object, delta: Tensor) -> None:
    stack = _STACKS.setdefault(weight, _Stack(weight.detach().clone()))
    stack.deltas[token] = delta
    weight.copy_(stack.total())


@torch.no_grad()
def _take_off(weight: nn.Parameter, token: object) -> None:
    stack = _STACKS.get(weight)
    if stack is None:  # an interrupt came before it was put on
        return
    stack.deltas.pop(token, None)
    weight.copy_(stack.total())
    if not stack.deltas:
        _STACKS.pop(weight, None)


@torch.no_grad()
def _shift(weight: nn.Parameter, delta: Tensor) -> None:
    stack = _STACKS.get(weight)
    if stack is None:
        weight.copy_(add_delta(weight, delta))
    else:  # under edits that are on, so that these still come off cleanly
        stack.original = add_delta(stack.original, delta)
        weight.copy_(stack.total())


def merge(edits: Sequence[Edit]) -> Edit:
    """One edit that does what all of `edits` do; deltas of a shared layer are added.

    Edits of low rank stay so, their ranks added up, as long as all are of low rank.
    Raises ValueError for no edits, other bases, other shapes of a layer, or a sum too large for half precision.
    """
    if not edits:
        raise ValueError("no edits given")
    bases = {edit.base.partition("-")[0] for edit in edits}
    if len(bases) > 1:
        raise ValueError(f"edits of different base models cannot be merged: {', '.join(sorted(bases))}")
    deltas: dict[str, Tensor] = {}
    steps: dict[str, float] = {}
    factors = _side_by_side([edit.factors for edit in edits if edit.factors])
    for edit in edits:
        for layer, delta in edit.deltas.items():
            if layer in deltas and deltas[layer].shape != delta.shape:
                raise ValueError(f"edits disagree on the shape of {layer!r}")
            summed = delta.float() if layer not in deltas else deltas[layer].float() + delta.float()
            deltas[layer] = summed.to(DELTA_DTYPE)
            if not torch.isfinite(deltas[layer]).all():
                raise ValueError(f"the sum of the edits of {layer!r} does not fit into half precision")
            steps[layer] = steps.get(layer, 0.0) + edit.steps[layer]
    if all(edit.factors for edit in edits):
        deltas = {layer: _product(*factors[layer], delta.shape) for layer, delta in deltas.items()}
    else:
        factors = None
    base = max((edit.base for edit in edits), key=len)  # files of older versions have a shorter one
    return Edit(deltas, steps, " + ".join(edit.concept for edit in edits), base, factors=factors)


def _side_by_side(all_factors: Sequence[dict[str, tuple[Tensor, Tensor]]]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer the factors of the sum: left ones side by side (out, ranks), right ones stacked (ranks, in)."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for factors in all_factors:
        for layer, pair in factors.items():
            found.setdefault(layer, []).append(pair)
    return {n: (torch.cat([a for a, _ in pairs], 1), torch.cat([b for _, b in pairs])) for n, pairs in found.items()}
