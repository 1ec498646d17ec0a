"""Train mini CLIP from nothing, on the mini world alone.

Mini CLIP is an `open_clip.CLIP`: the contrastive loss of CLIP (Radford et al., 2021), half of the patches dropped
in most steps (FLIP: Li et al., 2023), AdamW with a cosine schedule. A batch holds every person and character
at most once and an object x style cell at most once, so that few captions fit two pictures.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file

from ..models import Clip
from ..pairs import Pairs
from ..runtime.progress import bar
from ..world import captions, toonworld
from ..world.evaluation import evaluate
from .loop import Training, When, adamw, descend, train

MODEL_CFG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 5, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
PREPROCESS_CFG = {
    "mean": list(OPENAI_DATASET_MEAN), "std": list(OPENAI_DATASET_STD), "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip
Groups = dict[str, list[tuple[str, ...]]]  # concepts by kind: "people", "characters", "cells"


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
        self.groups: Groups = {
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


def train_step(clip: Clip, optimizer: torch.optim.AdamW, pairs: Pairs, recipe: ClipRecipe, step: int) -> float:
    """Bring pictures and their captions together; the loss before the step."""
    model = clip.model
    dropping = step < (1 - recipe.whole) * recipe.steps and recipe.patch_dropout > 0
    model.visual.patch_dropout = (
        open_clip.transformer.PatchDropout(recipe.patch_dropout) if dropping else torch.nn.Identity()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        out = model.train()(normalise(pairs.images), clip.tokens(pairs.captions))
    loss = open_clip.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    descend(model, loss, optimizer, learning_rate(recipe, step), recipe.clip_norm)
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss.item()


def train_clip(
    folder: str | Path, recipe: ClipRecipe = ClipRecipe(), *, until: int | None = None, log_every: int = 50,
    evaluate_every: int = 400,
) -> Clip:  # fmt: skip
    """Train mini CLIP and write it to `folder` in open_clip's own format; returns the trained `Clip` (eval mode).

    folder: gets open_clip_config.json, open_clip_model.safetensors (fp16) and training.json when training ends;
        train_log.jsonl and train-checkpoint.safetensors on the way. A run that was stopped goes on from its checkpoint.
    until: stop after this many steps in all, leaving the checkpoint (None: to the end). log_every: steps between two
        rows of the log. evaluate_every: steps between two rows with accuracies on the split "val", a multiple of it.
    Raises ValueError if the folder's checkpoint belongs to another recipe, and for one that is damaged;
    KeyboardInterrupt after an interrupt, all saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clip = build_clip(recipe.model_cfg, recipe.seed)
    optimizer = adamw(clip.model, recipe, recipe.betas)
    pool = Pool(recipe, recipe.model_cfg["vision_cfg"]["image_size"])

    def one_step(step: int) -> float:
        return train_step(clip, optimizer, pool.batch(recipe, step), recipe, step)

    def look(step: int) -> dict[str, float]:
        row = {"logit_scale": round(clip.model.logit_scale.exp().item(), 3)}
        if step % evaluate_every == 0 or step == recipe.steps:
            clip.model.eval()
            scores = evaluate(clip, split="val", n=8)
            row |= {kind: round(scores[kind], 4) for kind in toonworld.NAMES}
        return row

    training = Training(recipe, clip.model, optimizer, one_step, look)
    done = train(folder, "train", training, When(until, log_every=log_every))
    clip.model.eval()
    clip.model.visual.patch_dropout = torch.nn.Identity()
    if done == recipe.steps:
        save_clip(clip, folder, recipe)
    return clip


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
