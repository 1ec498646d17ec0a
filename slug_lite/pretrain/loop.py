"""The loop that all trainings share: stoppable at any step, resumed exactly, with checkpoints and a log.

Everything that is random in a step follows from its number: a run that is resumed from a checkpoint ends with the
weights it would have had. Checkpoints, like all weights here, are safetensors.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..runtime.files import digest, read_text, write_signed
from ..runtime.labels import shown
from ..runtime.progress import bar
from ..runtime.undo import Undo, undone

FORMAT = "slug_lite checkpoint 1"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
STEP_LIMIT = 1 << 24  # AdamW counts steps in float32: from here on it would stand still


class Recipe(Protocol):
    """What all trainings ask of a recipe, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    steps: int
    lr: float
    warmup: int  # steps
    weight_decay: float


class CooledRecipe(Recipe, Protocol):
    """A recipe whose learning rate is constant until the last part of the steps."""

    cooldown: float  # that last part, in which the learning rate falls to zero


@dataclass(frozen=True)
class Training:
    """What is trained and how. one_step takes a step by its number, from 0, and gives its loss."""

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.AdamW
    one_step: Callable[[int], float]  # all that is random in it must follow from the step's number
    look: Callable[[int], dict[str, float]]  # more for a row of the log, given the number of steps done
    data: str = ""  # a digest of what it is trained on, where that does not follow from the recipe


@dataclass(frozen=True)
class When:
    """When a training stops, saves and logs."""

    until: int | None = None  # stop after this many steps in all; None: at the recipe's last
    minutes: float = 4.0  # between two checkpoints
    log_every: int = 50  # steps between two rows of the log; the recipe's last step has one of its own


def learning_rate(recipe: CooledRecipe, step: int) -> float:
    """Linear warm-up, then constant, then a straight line down to zero at the last step."""
    left = (recipe.steps - step) / max(1.0, recipe.cooldown * recipe.steps)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, left)


def adamw(model: nn.Module, recipe: Recipe, betas: tuple[float, float] = (0.9, 0.99)) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels alone."""
    weights = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas)


def descend(model: nn.Module, loss: Tensor, optimizer: torch.optim.AdamW, rate: float, clip_norm: float = 1.0) -> None:
    """One step of gradient descent at a learning rate, the gradients of all weights together clipped to a norm."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


def train(folder: Path, name: str, training: Training, when: When = When()) -> int:
    """Take the steps from the checkpoint folder/NAME-checkpoint.safetensors on; the number of steps done.

    The log is folder/NAME_log.jsonl: step, loss (the mean since the last row), lr, seconds of this sitting, and what
    `training.look` adds. Raises ValueError if the checkpoint belongs to another recipe or is damaged, and
    KeyboardInterrupt after an interrupt (Ctrl-C or TERM), all saved. Any other exception saves as well, but for one
    that comes while a step changes the weights: then the last checkpoint stands.
    """
    model, optimizer, steps = training.model, training.optimizer, training.recipe.steps
    kept, run = folder / f"{name}-checkpoint.safetensors", fixed(training.recipe)
    run |= {"data": training.data} if training.data else {}
    step = load_checkpoint(kept, model, optimizer, run) if kept.exists() else 0
    stop = min(steps if when.until is None else when.until, steps)
    start = saved = time.monotonic()
    losses: list[float] = []
    last = step if kept.exists() else None  # the step of the checkpoint that is there

    def save() -> None:
        nonlocal last, saved
        if step != last:
            save_checkpoint(kept, model, optimizer, step, run)
            last, saved = step, time.monotonic()

    with (
        _interrupts() as interrupted,
        _begun(optimizer) as begun,
        bar(total=stop, initial=step, desc=f"{name} steps") as done,
    ):
        try:
            while step < stop and not interrupted.is_set():
                loss = training.one_step(step)
                step += 1
                begun.clear()
                losses.append(loss)
                done.update()
                if step % when.log_every == 0 or step == steps:
                    row = {"step": step, "loss": round(float(np.mean(losses)), 5)}
                    row |= {"lr": optimizer.param_groups[0]["lr"], "seconds": round(time.monotonic() - start, 1)}
                    log_row(folder, row | training.look(step), f"{name}_log.jsonl")
                    losses = []
                if time.monotonic() - saved > 60 * when.minutes:
                    save()
        except BaseException:
            if not begun.is_set():  # else the weights are those of half a step, and the last checkpoint stands
                save()
            raise
        save()
    if interrupted.is_set():
        raise KeyboardInterrupt
    return step


def fixed(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that stay as they are from one sitting of a run to the next.

    All of them, but for `steps` where there is a cooldown: until that begins, no step depends on how many there are.
    """
    return {key: value for key, value in asdict(recipe).items() if key != "steps" or not hasattr(recipe, "cooldown")}


@undone
def _interrupts(undo: Undo) -> threading.Event:
    """An event that Ctrl-C or a TERM signal sets, so that a training can stop between two steps."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            undo[object()] = partial(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
            signal.signal(number, lambda *_: stop.set())
    return stop


@undone
def _begun(undo: Undo, optimizer: torch.optim.Optimizer) -> threading.Event:
    """An event that is set as soon as an optimizer begins to change weights."""
    begun = threading.Event()

    def begin(*_: object) -> None:
        begun.set()

    def forget() -> None:
        hooks = optimizer._optimizer_step_pre_hooks
        for key in [key for key, own in hooks.items() if own is begin]:
            hooks.pop(key, None)

    undo[object()] = forget
    optimizer.register_step_pre_hook(begin)
    return begun


def save_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.AdamW, step: int, recipe: dict[str, Any]
) -> None:
    """Weights, AdamW moments and step count in one safetensors file with a digest, put in place by an atomic rename.

    recipe: what `load_checkpoint` must be given again, as JSON has it. ValueError, and the last checkpoint stands, for
    weights that are not finite.
    """
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for name, p in model.named_parameters():
        if p in optimizer.state:
            tensors |= {f"{key}.{name}": optimizer.state[p][key] for key in MOMENTS}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"after {step} steps {broken[0]!r} is not finite; no checkpoint is written of that")
    write_signed(file, tensors, {"format": FORMAT, "step": str(step), "recipe": json.dumps(recipe)})


def load_checkpoint(file: Path, model: nn.Module, optimizer: torch.optim.AdamW, recipe: dict[str, Any]) -> int:
    """Restore what `save_checkpoint` wrote; the number of steps done.

    Raises ValueError, and nothing is changed, for a file of another recipe, one that is damaged, truncated or altered,
    that is no checkpoint, or whose tensors are not those of this model: other names, shapes or dtypes, or not finite.
    """
    try:
        with safe_open(file, "pt") as saved:
            meta = saved.metadata() or {}
            wanted = meta.get("format") == FORMAT and {"step", "recipe", "digest"} <= set(meta)
            tensors = {name: saved.get_tensor(name).clone() for name in saved.keys()} if wanted else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} is truncated or no safetensors file: {error}") from error
    if not tensors:
        raise ValueError(f"{str(file)!r} is no checkpoint of a training; remove it")
    if meta.pop("digest") != digest(tensors, meta):
        raise ValueError(f"{str(file)!r} was altered after it was saved: its digest does not match; remove it")
    step = check_papers(str(file), meta, recipe)
    check_checkpoint(str(file), tensors, dict(model.named_parameters()))
    states = {}
    for name, p in model.named_parameters():
        if f"exp_avg.{name}" in tensors:  # none before the first step, nor for weights that follow others
            moments = {key: tensors[f"{key}.{name}"].to(p.device) for key in MOMENTS}
            states[p] = {"step": torch.tensor(float(step)), **moments}
    for name, p in model.named_parameters():  # from here on nothing is left that could be wrong
        p.detach().copy_(tensors[f"model.{name}"])
    optimizer.state.update(states)
    return step


def check_papers(file: str, meta: dict[str, str], recipe: dict[str, Any]) -> int:
    """The step of a checkpoint. ValueError unless its recipe is this one, and the step one that a run can reach."""
    try:
        same = json.loads(meta["recipe"]) == json.loads(json.dumps(recipe))
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError(
            f"{file} was written by another recipe: {shown(meta['recipe'], 2000)}; remove it or give that recipe"
        )
    if not re.fullmatch("[0-9]{1,8}", meta["step"]) or int(meta["step"]) > STEP_LIMIT:
        raise ValueError(
            f"{file!r} was saved at step {shown(repr(meta['step']))}; a whole number from 0 to {STEP_LIMIT:,} is needed"
        )
    return int(meta["step"])


def check_checkpoint(file: str, tensors: dict[str, Tensor], weights: dict[str, nn.Parameter]) -> None:
    """ValueError unless tensors are a model's weights, all of them, with AdamW's moments of some of them."""
    known = {f"{part}.{name}": p for part in ("model", *MOMENTS) for name, p in weights.items()}
    pairs = [[key for part in MOMENTS if (key := f"{part}.{name}") in tensors] for name in weights]
    halves = [pair[0] for pair in pairs if len(pair) == 1]
    missing = [f"model.{name}" for name in weights if f"model.{name}" not in tensors]
    strange = sorted(set(tensors) - set(known)) + halves
    if missing or strange:
        raise ValueError(
            f"{file!r} does not fit this model: it lacks {missing[:3]}, and has {strange[:3]} that do not belong"
        )
    for name, tensor in tensors.items():
        p = known[name]
        if tensor.shape != p.shape or tensor.dtype != p.dtype:
            raise ValueError(
                f"{file!r} does not fit this model: {name!r} is {tuple(tensor.shape)} {tensor.dtype}, not "
                f"{tuple(p.shape)} {p.dtype}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{file!r} holds numbers that are not finite in {name!r}; remove it")
        if name.startswith("exp_avg_sq.") and (tensor < 0).any():
            raise ValueError(f"{file!r} holds means of squares below zero in {name!r}; remove it")


def log_row(folder: Path, row: dict[str, float], name: str) -> None:
    """Append a row to the log folder/NAME, dropping rows that a stopped run wrote after its last checkpoint."""
    file, part = folder / name, folder / f"{name}.part"
    rows = read_log(folder, name) if file.exists() else []
    rows = [r for r in rows if r["step"] < row["step"]] + [row]
    part.write_text("".join(json.dumps(r) + "\n" for r in rows))
    os.replace(part, file)


ROW_LIMIT = 100_000  # characters of a line of a log


def read_log(folder: str | Path, name: str = "train_log.jsonl") -> list[dict[str, float]]:
    """Rows of the log folder/NAME, oldest first: step, loss, lr, seconds; on some rows what was measured there.

    A last line that was cut, by a full disk or a killed process, is left out; ValueError for another that is no row,
    and for a log beyond 64 MB.
    """
    file, rows = Path(folder) / name, []
    lines = read_text(file).decode(errors="replace").splitlines()
    lines = [line for line in lines if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if len(line) <= ROW_LIMIT else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"line {number} of {str(file)!r} is no row of a log: {line[:80]!r}")
    return rows
