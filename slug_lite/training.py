"""The loop that the autoencoder's, the UNet's and the judge's trainings share: stoppable at any step, resumed exactly.

The learning rate is constant until the last part of the steps, the cooldown: until that begins, a recipe's `steps`
may be changed from one sitting to the next.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .pretrain import _log, load_checkpoint, save_checkpoint
from .progress import bar


class Recipe(Protocol):
    """What the loop asks of a recipe, a frozen dataclass; all its fields but `steps` are fixed for a run."""

    __dataclass_fields__: dict[str, Any]
    steps: int
    lr: float
    warmup: int
    cooldown: float  # the last part of the steps, in which the learning rate falls to zero
    weight_decay: float


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then constant, then a straight line down to zero at the last step."""
    left = (recipe.steps - step) / max(1.0, recipe.cooldown * recipe.steps)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, left)


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels alone."""
    weights = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))


def descend(model: nn.Module, loss: Tensor, optimizer: torch.optim.AdamW, recipe: Recipe, step: int) -> None:
    """One step of gradient descent, gradients clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


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


def train(
    folder: Path, name: str, recipe: Recipe, model: nn.Module, optimizer: torch.optim.AdamW,
    one_step: Callable[[int], float], look: Callable[[int], dict], until: int | None = None, minutes: float = 4.0,
) -> int:  # fmt: skip
    """Take the steps from the checkpoint folder/NAME-checkpoint.safetensors on; the number of steps done.

    one_step: takes a step by its number and gives its loss; all that is random in it must follow from that number.
    look: more for the log folder/NAME_log.jsonl, at steps of its choosing. until: stop after this many steps in all.
    minutes: between two checkpoints. Raises ValueError if the checkpoint belongs to another recipe, and
    KeyboardInterrupt after an interrupt, all saved; after any other exception the last checkpoint stands.
    """
    kept = folder / f"{name}-checkpoint.safetensors"
    run = {key: value for key, value in asdict(recipe).items() if key != "steps"}
    step = load_checkpoint(kept, model, optimizer, run) if kept.exists() else 0
    stop = min(recipe.steps if until is None else until, recipe.steps)
    start = saved = time.monotonic()
    losses: list[float] = []
    done = bar(total=stop, initial=step, desc=f"training {name}")
    with _interrupts() as interrupted:
        while step < stop and not interrupted.is_set():
            losses.append(one_step(step))
            step += 1
            done.update()
            if step % 50 == 0 or step == recipe.steps:
                row = {"step": step, "loss": round(float(np.mean(losses)), 5), "lr": learning_rate(recipe, step - 1),
                       "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
                _log(folder, row | look(step), f"{name}_log.jsonl")
                losses = []
            if time.monotonic() - saved > 60 * minutes:
                save_checkpoint(kept, model, optimizer, step, run)
                saved = time.monotonic()
        done.close()
        save_checkpoint(kept, model, optimizer, step, run)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return step
