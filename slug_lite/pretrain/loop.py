"""The loop that all trainings share: stoppable at any step, resumed exactly, with checkpoints and a log.

Everything that is random in a step follows from its number: a run that is resumed from a checkpoint ends with the
weights it would have had. Checkpoints, like all weights here, are safetensors.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..runtime.progress import bar


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
    `training.look` adds. Raises ValueError if the checkpoint belongs to another recipe, and KeyboardInterrupt after
    an interrupt (Ctrl-C or TERM), all saved; after any other exception the last checkpoint stands.
    """
    model, optimizer, steps = training.model, training.optimizer, training.recipe.steps
    kept, run = folder / f"{name}-checkpoint.safetensors", fixed(training.recipe)
    step = load_checkpoint(kept, model, optimizer, run) if kept.exists() else 0
    stop = min(steps if when.until is None else when.until, steps)
    start = saved = time.monotonic()
    losses: list[float] = []
    with _interrupts() as interrupted, bar(total=stop, initial=step, desc=f"{name} steps") as done:
        while step < stop and not interrupted.is_set():
            losses.append(training.one_step(step))
            step += 1
            done.update()
            if step % when.log_every == 0 or step == steps:
                row = {"step": step, "loss": round(float(np.mean(losses)), 5), "lr": optimizer.param_groups[0]["lr"],
                       "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
                log_row(folder, row | training.look(step), f"{name}_log.jsonl")
                losses = []
            if time.monotonic() - saved > 60 * when.minutes:
                save_checkpoint(kept, model, optimizer, step, run)
                saved = time.monotonic()
        save_checkpoint(kept, model, optimizer, step, run)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return step


def fixed(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that stay as they are from one sitting of a run to the next.

    All of them, but for `steps` where there is a cooldown: until that begins, no step depends on how many there are.
    """
    return {key: value for key, value in asdict(recipe).items() if key != "steps" or not hasattr(recipe, "cooldown")}


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a TERM signal sets, so that a training can stop between two steps."""
    stop = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    kept = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def save_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.AdamW, step: int, recipe: dict[str, Any]
) -> None:
    """Weights, AdamW moments and step count in one safetensors file, put in place by an atomic rename.

    recipe: what `load_checkpoint` must be given again, as JSON has it.
    """
    tensors = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            if p in optimizer.state:
                tensors[f"{key}.{name}"] = optimizer.state[p][key].contiguous()
    part = file.with_suffix(".part")
    save_file(tensors, part, metadata={"step": str(step), "recipe": json.dumps(recipe)})
    os.replace(part, file)


def load_checkpoint(file: Path, model: nn.Module, optimizer: torch.optim.AdamW, recipe: dict[str, Any]) -> int:
    """Restore what `save_checkpoint` wrote; the number of steps done.

    Raises ValueError for a file of another recipe, a truncated one, or one that is no checkpoint.
    """
    try:
        with safe_open(file, "pt") as saved:
            meta = saved.metadata() or {}
            tensors = {name: saved.get_tensor(name) for name in saved.keys()} if "recipe" in meta else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} is truncated or no safetensors file: {error}") from error
    if not tensors:
        raise ValueError(f"{str(file)!r} is no checkpoint of a training; remove it")
    if json.loads(meta["recipe"]) != json.loads(json.dumps(recipe)):
        raise ValueError(f"{file} was written by another recipe: {meta['recipe']}; remove it or give that recipe")
    step = int(meta["step"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
            if f"exp_avg.{name}" in tensors:  # none before the first step, nor for weights that follow others
                moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
    return step


def log_row(folder: Path, row: dict[str, float], name: str) -> None:
    """Append a row to the log folder/NAME, dropping rows that a stopped run wrote after its last checkpoint."""
    file = folder / name
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = [r for r in rows if r["step"] < row["step"]] + [row]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def read_log(folder: str | Path, name: str = "train_log.jsonl") -> list[dict[str, float]]:
    """Rows of the log folder/NAME, oldest first: step, loss, lr, seconds; on some rows what was measured there."""
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]
