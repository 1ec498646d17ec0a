"""Train the mini models from nothing, on the mini world alone.

Mini CLIP is an `open_clip.CLIP`: the contrastive loss of CLIP (Radford et al., 2021), half of the patches dropped
in most steps (FLIP: Li et al., 2023), AdamW with a cosine schedule. A batch holds every person and character
at most once and an object x style cell at most once, so that few captions fit two pictures.

Everything that is random in a step follows from (seed, step): a run that is resumed from a checkpoint ends with
the weights it would have had. Checkpoints, like all weights here, are safetensors.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import captions, toonworld
from .models import Clip
from .pairs import Pairs
from .progress import bar

MODEL_CFG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 5, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
PREPROCESS_CFG = {
    "mean": list(OPENAI_DATASET_MEAN), "std": list(OPENAI_DATASET_STD), "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip


@dataclass(frozen=True)
class ClipRecipe:
    """How mini CLIP is trained; the defaults are those of the shipped weights."""

    steps: int = 5200
    people: int = 24  # pictures of different people in a batch
    characters: int = 8
    cells: int = 128  # pictures of different object x style cells
    lr: float = 1e-3
    warmup: int = 150
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    patch_dropout: float = 0.5
    whole: float = 0.12  # the last part of the steps sees whole pictures
    pool: int = 96  # renderings of a cell kept ready; a character has 4 times, a person 7 times as many
    seed: int = 0
    exclude: tuple[str, ...] = ()  # concepts that training never sees
    model_cfg: dict = field(default_factory=lambda: MODEL_CFG)


def build_clip(model_cfg: dict = MODEL_CFG, seed: int = 0) -> Clip:
    """An untrained CLIP of `model_cfg` with open_clip's initialisation, with its tokenizer and transform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**model_cfg, output_dict=True)
    size = model_cfg["vision_cfg"]["image_size"]
    preprocess = image_transform_v2(PreprocessCfg(size=size, **PREPROCESS_CFG), is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=model_cfg["text_cfg"]["context_length"])
    return Clip(model.eval(), tokenizer, preprocess)


class Pool:
    """Renderings of the training split, ready in memory: uint8 (n, S, S, 3), grouped by concept."""

    def __init__(self, recipe: ClipRecipe, size: int) -> None:
        gone = set(recipe.exclude)
        self.groups: dict[str, list[tuple[str, ...]]] = {
            "people": [(p,) for p in toonworld.PEOPLE if p not in gone],
            "characters": [(c,) for c in toonworld.CHARACTERS if c not in gone],
            "cells": [c for c in toonworld.cells("train") if not gone & set(c)],
        }
        counts = {"people": 7 * recipe.pool, "characters": 4 * recipe.pool, "cells": recipe.pool}
        self.images: dict[tuple[str, ...], np.ndarray] = {}
        work = [(g, c) for g, members in self.groups.items() for c in members]
        for group, concept in bar(work, desc="renderings", leave=False):
            self.images[concept] = toonworld.renderings(concept, counts[group], recipe.seed, size=size)

    def batch(self, recipe: ClipRecipe, step: int) -> Pairs:
        """The batch of a step: different concepts, a random rendering and a fresh caption of each."""
        rng = np.random.default_rng([recipe.seed, step, 1])
        sizes = {"people": recipe.people, "characters": recipe.characters, "cells": recipe.cells}
        concepts = [
            members[i] for group, members in self.groups.items() for i in rng.permutation(len(members))[: sizes[group]]
        ]
        images = np.stack([self.images[c][rng.integers(len(self.images[c]))] for c in concepts])
        return Pairs(images, [captions.caption(c, "train", "mixed", rng) for c in concepts], concepts)


def normalise(images: np.ndarray) -> torch.Tensor:
    """What open_clip's evaluation transform does to pictures that have the model's size already, all at once.

    uint8 (n, S, S, 3) -> float32 (n, 3, S, S)
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(PREPROCESS_CFG[k]).view(3, 1, 1) for k in ("mean", "std"))
    return (x - mean) / std


def learning_rate(recipe: ClipRecipe, step: int) -> float:
    """Linear warm-up, then a half cosine down to zero at the last step."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _optimizer(model: torch.nn.Module, recipe: ClipRecipe) -> torch.optim.AdamW:
    weights = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)


def save_checkpoint(
    file: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, recipe: dict
) -> None:
    """Weights, AdamW moments and step count in one safetensors file, put in place by an atomic rename."""
    tensors = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            if p in optimizer.state:
                tensors[f"{key}.{name}"] = optimizer.state[p][key].contiguous()
    part = file.with_suffix(".part")
    save_file(tensors, part, metadata={"step": str(step), "recipe": json.dumps(recipe)})
    os.replace(part, file)


def load_checkpoint(file: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: dict) -> int:
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


def _train_step(clip: Clip, optimizer: torch.optim.Optimizer, pairs: Pairs, recipe: ClipRecipe, step: int) -> float:
    model = clip.model
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    dropping = step < (1 - recipe.whole) * recipe.steps and recipe.patch_dropout > 0
    model.visual.patch_dropout = (
        open_clip.transformer.PatchDropout(recipe.patch_dropout) if dropping else torch.nn.Identity()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        out = model.train()(normalise(pairs.images), clip.tokens(pairs.captions))
    loss = open_clip.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss.item()


def train_clip(
    folder: str | Path, recipe: ClipRecipe = ClipRecipe(), *, until: int | None = None, log_every: int = 50,
    evaluate_every: int = 400, checkpoint_every: int = 200,
) -> Clip:  # fmt: skip
    """Train mini CLIP and write it to `folder` in open_clip's own format; returns the trained `Clip` (eval mode).

    folder: gets open_clip_config.json, open_clip_model.safetensors (fp16) and train_log.jsonl when training ends; a
        checkpoint.safetensors besides. A run that was stopped goes on from its checkpoint.
    until: stop after this many steps in all, leaving the checkpoint (None: to the end).
    Raises ValueError if the folder's checkpoint belongs to another recipe. An interrupt leaves a checkpoint.
    """
    from .metrics import evaluate  # here: metrics looks at the world through models too

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clip = build_clip(recipe.model_cfg, recipe.seed)
    optimizer, kept = _optimizer(clip.model, recipe), folder / "checkpoint.safetensors"
    step = load_checkpoint(kept, clip.model, optimizer, asdict(recipe)) if kept.exists() else 0
    pool = Pool(recipe, recipe.model_cfg["vision_cfg"]["image_size"])
    stop, start, running = min(recipe.steps if until is None else until, recipe.steps), time.monotonic(), []
    done = bar(total=stop, initial=step, desc="training mini CLIP")
    try:
        while step < stop:
            running.append(_train_step(clip, optimizer, pool.batch(recipe, step), recipe, step))
            step += 1
            done.update()
            if step % log_every == 0 or step == recipe.steps:
                row = {
                    "step": step,
                    "loss": round(float(np.mean(running)), 4),
                    "lr": round(learning_rate(recipe, step - 1), 7),
                    "logit_scale": round(clip.model.logit_scale.exp().item(), 3),
                    "seconds": round(time.monotonic() - start, 1),
                }
                running = []
                if step % evaluate_every == 0 or step == recipe.steps:
                    clip.model.eval()
                    scores = evaluate(clip, split="val", n=8)
                    row |= {kind: round(scores[kind], 4) for kind in toonworld.NAMES}
                _log(folder, row)
            if step % checkpoint_every == 0:
                save_checkpoint(kept, clip.model, optimizer, step, asdict(recipe))
    finally:
        done.close()
        save_checkpoint(kept, clip.model, optimizer, step, asdict(recipe))
    clip.model.eval()
    clip.model.visual.patch_dropout = torch.nn.Identity()
    if step == recipe.steps:
        save_clip(clip, folder, recipe)
    return clip


def _log(folder: Path, row: dict, name: str = "train_log.jsonl") -> None:
    """Append a row to the log, dropping rows that a stopped run wrote after its last checkpoint."""
    file = folder / name
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = [r for r in rows if r["step"] < row["step"]] + [row]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def used_tokens(clip: Clip) -> torch.Tensor:
    """Ids of all tokens that some caption of the mini world uses, start, end and padding included."""
    return torch.cat([clip.tokens(captions.vocabulary()).flatten().cpu(), clip.tokens([""]).flatten().cpu()]).unique()


@torch.no_grad()
def save_clip(clip: Clip, folder: Path, recipe: ClipRecipe) -> None:
    """Write a `Clip` as open_clip's folder: config JSON and fp16 safetensors.

    The model given is rounded to fp16 values too, so that it and the saved one are the same. Rows of the token
    table that no caption uses are set to zero: they were never trained, and the file packs to a quarter.
    """
    table = clip.model.token_embedding.weight
    unused = torch.ones(len(table), dtype=torch.bool)
    unused[used_tokens(clip)] = False
    table[unused] = 0
    for p in clip.model.parameters():
        p.copy_(p.half().float())
    state = {n: v.half().contiguous() for n, v in clip.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": recipe.model_cfg, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    training = asdict(recipe) | {"torch": torch.__version__, "open_clip": open_clip.__version__,
                                 "python": platform.python_version()}  # fmt: skip
    (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")


def read_log(folder: str | Path, name: str = "train_log.jsonl") -> Iterable[dict]:
    """Rows of a training log, oldest first: step, loss, lr, logit_scale, seconds; accuracies on some rows."""
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]
